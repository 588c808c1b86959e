# Everything runs in .venv, made here on first use. Needs Python 3.11 or newer, git and make; no more.
#   make demo PYTHON=python3.12          another interpreter
#   make test ARGS="-k ppo -x"           passed on to pytest

VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
ARGS ?=
# A name that is no working interpreter (a shim of a version that is not installed) is passed over.
CANDIDATES := $(or $(PYTHON),python3.11 python3 python3.12 python3.13)

EXTRAS_demo := classic,plot
EXTRAS_test := test
EXTRAS_docs := docs

.DEFAULT_GOAL := help
.PHONY: help demo test mutants learn learn-full kill bench docs clean
.DELETE_ON_ERROR:

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

demo: $(VENV)/.demo  ## a first agent, from nothing to a picture
	@echo "==> demo"
	@$(BIN)/python examples/demo.py $(ARGS)

test: $(VENV)/.test  ## the tests that continuous integration runs
	@echo "==> testing with $(WORKERS) workers"
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow" --durations 10 $(ARGS)

mutants: $(VENV)/.test  ## every committed wrong version of the code must make a named test fail
	@echo "==> mutants"
	@$(BIN)/python tests/mutants/run.py $(ARGS)

learn: $(VENV)/.test  ## the long learning tests (minutes)
	@echo "==> learning"
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m slow --durations 0 $(ARGS)

learn-full: $(VENV)/.test  ## a million steps of MuJoCo, three seeds a job (a day, or a GPU)
	@echo "==> learning, in full"
	@$(BIN)/python benchmarks/learning.py --full --seeds 3 $(ARGS)

kill: $(VENV)/.test  ## kill a training process fifty times; the newest checkpoint has to load (three minutes)
	@echo "==> kills"
	@KILLS=50 $(BIN)/python -m pytest tests/training/test_kill.py $(ARGS)

bench: $(VENV)/.demo  ## speed beside Stable-Baselines3 and SBX (a quarter of an hour)
	@echo "==> benchmarks"
	@$(BIN)/python benchmarks/speed.py $(ARGS)

docs: $(VENV)/.docs  ## the documentation, into site/
	@echo "==> documentation"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict $(ARGS)

clean:  ## remove what make and the tools made
	rm -rf $(VENV) .cache .pytest_cache .hypothesis .ruff_cache site build dist
	find src tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(BIN)/python:
	@found=; for candidate in $(CANDIDATES); do \
	    if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	    then found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "advantage needs Python 3.11 or newer; tried: $(CANDIDATES)." >&2; \
	    echo "Install one, or name it: make PYTHON=/path/to/python3 ..." >&2; exit 1; \
	fi; \
	echo "==> making $(VENV) with $$found, $$($$found --version)"; \
	$$found -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "$$found cannot make virtual environments; on Debian: apt install python3-venv" >&2; \
	    exit 1; }

# One stamp for each set of extras; all share one environment and one set of versions.
$(VENV)/.%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "==> installing advantage[$(EXTRAS_$*)] (about a minute the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input \
	    --constraint constraints.txt --editable ".[$(EXTRAS_$*)]"
	@touch $@

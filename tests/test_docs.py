"""The documentation is true: every Python block and every `advantage` command on a page runs, in order.

The blocks of a page share one namespace and one empty working directory, as a reader's session would. A block
that cannot run here begins with ` ```python notest ` and is counted in `UNTESTED`.
"""

import dataclasses
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if page.exists()]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

# How many blocks of a page are not run; each needs its reason here.
UNTESTED: dict[str, int] = {
    "docs/algorithms/rainbow.md": 1,  # half an hour; tests/experiments/test_ablate.py has a small budget
    "docs/comparing.md": 2,  # minutes; tests/test_cli.py runs both commands with a small budget
    "docs/design.md": 1,  # signatures only
    "docs/scaling.md": 1,  # eight devices; tests/llm/test_sharding.py has eight of a CPU
    "docs/environments.md": 1,  # hours; tests/test_cli.py runs both commands with a small budget
}
FEW = 6

# Other languages are not run. `py`, `python3`, `sh` or `shell` would escape this test unnoticed.
LANGUAGES = {"", "python", "bash", "text", "console", "yaml", "toml", "json", "diff", "mermaid", "math"}
FENCE = re.compile(
    r"^[ \t]*(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^\n`]*)\n(?P<body>.*?)^[ \t]*(?P=fence)[ \t]*$",
    re.DOTALL | re.MULTILINE,
)


@dataclasses.dataclass(frozen=True)
class Block:
    """One fenced block: its language, the words after it, its text and the line of its first row."""

    language: str
    options: tuple[str, ...]
    body: str
    line: int


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, indented ones (in lists and tabs) too."""
    found = []
    for match in FENCE.finditer(text):
        language, *options = match["info"].split() or [""]
        line = text.count("\n", 0, match.start("body")) + 1
        found.append(Block(language, tuple(options), textwrap.dedent(match["body"]), line))
    return found


def commands(body: str) -> list[str]:
    """The `advantage ...` commands of a Bash block, with continued lines joined and prompts removed."""
    lines = (line.strip().removeprefix("$ ") for line in body.replace("\\\n", " ").splitlines())
    return [line for line in lines if re.match(r"advantage(\s|$)", line)]


def run_python(page: Path, block: Block, namespace: dict) -> None:
    """Execute a block so that a traceback shows the page and its line."""
    code = compile("\n" * (block.line - 1) + block.body, str(page), "exec")
    exec(code, namespace)


def run_command(page: Path, block: Block, command: str) -> None:
    """Run `advantage ...` as the installed script would, in a process of its own."""
    start = [sys.executable, "-c", "from advantage.cli import main; raise SystemExit(main())"]
    arguments = shlex.split(command, comments=True)[1:]
    pipe = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run([*start, *arguments], timeout=300, env=os.environ, **pipe)
    assert done.returncode == 0, f"{page.name}:{block.line}: {command}\n{done.stdout}"


@pytest.mark.parametrize("name", NAMES)
def test_page(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page, namespace = ROOT / name, {"__name__": "__main__"}
    # Readers' code is not ours: it may broadcast as JAX allows.
    with jax.numpy_rank_promotion("allow"):
        for block in blocks(page.read_text(encoding="utf-8")):
            if block.language == "python" and "notest" not in block.options:
                run_python(page, block, namespace)
            elif block.language == "bash" and "notest" not in block.options:
                for command in commands(block.body):
                    run_command(page, block, command)


def test_languages_are_known():
    """No block escapes by an unusual name."""
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8")):
            assert block.language in LANGUAGES, f"{page.name}:{block.line}: {block.language}"


def test_few_blocks_are_not_run():
    untested = Counter()
    for name, page in zip(NAMES, PAGES, strict=True):
        untested[name] += sum("notest" in block.options for block in blocks(page.read_text(encoding="utf-8")))
    assert dict(+untested) == UNTESTED
    assert untested.total() <= FEW


def test_links_between_pages():
    """A relative link leads to a file that is there."""
    wrong = []
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            file = target.split("#")[0]
            if file and "://" not in target and not target.startswith("mailto:"):
                if not (page.parent / file).exists():
                    wrong.append(f"{page.relative_to(ROOT)}: {target}")
    assert not wrong


def test_blocks_are_found():
    bash = "    $ advantage x \\\n      --y  # why\n    pip install z\n"
    text = f"```python\na = 1\n```\n\n- item\n\n    ```bash notest\n{bash}    ```\n"
    first, second = blocks(text)
    assert first == Block("python", (), "a = 1\n", 2)
    assert (second.language, second.options, second.line) == ("bash", ("notest",), 8)
    found = [shlex.split(command, comments=True) for command in commands(second.body)]
    assert found == [["advantage", "x", "--y"]]

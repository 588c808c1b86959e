"""A pytest plugin for `run.py`: notes which source was tested, and whether tests failed by an assertion."""

import json
import os
import sys
from pathlib import Path

import pytest

FAILED: dict[str, bool] = {}


def by_assertion(error: BaseException) -> bool:
    """Whether a test failed by an assertion, `pytest.fail` or `pytest.raises`, and did not just crash."""
    if isinstance(error, BaseExceptionGroup):  # Hypothesis reports several failures at once
        return all(by_assertion(part) for part in error.exceptions)
    return isinstance(error, AssertionError | pytest.fail.Exception)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        FAILED[item.nodeid] = call.when == "call" and by_assertion(call.excinfo.value)
    return report


def pytest_sessionfinish():
    package, source = os.environ["MUTANTS_PACKAGE"], Path(os.environ["MUTANTS_SOURCE"])
    imported = getattr(sys.modules.get(package), "__file__", None)
    seen = {
        "imported": imported,
        "right_source": imported is not None and Path(imported).resolve().is_relative_to(source),
        "failed": FAILED,
    }
    Path(os.environ["MUTANTS_SEEN"]).write_text(json.dumps(seen), encoding="utf-8")

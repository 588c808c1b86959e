"""The mutation runner on a toy project: it must tell killed from survived, broken and misnamed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

RUN = Path(__file__).with_name("run.py")

SOURCE = '''
def advantage(value, baseline):
    return value - baseline


def unused(value):
    return value - 1
'''
TESTS = '''
import pytest
import toy


def test_advantage():
    assert toy.advantage(3, 1) == 2


@pytest.mark.parametrize("value", [0, 3])
def test_no_baseline(value):
    assert toy.advantage(value, 0) == value


def test_wrong():
    assert toy.advantage(1, 1) == 1


def test_shapes():
    toy.advantage(1, 1) + 1
'''
SIGN = {
    "name": "sign",
    "file": "src/toy/__init__.py",
    "find": "value - baseline",
    "replace": "value + baseline",
    "killed_by": ["test_toy.py::test_advantage"],
}


@pytest.fixture
def run(tmp_path):
    """`run(*entries)` writes a list of mutants of the toy project and runs it: `(exit code, output)`."""
    (tmp_path / "src" / "toy").mkdir(parents=True)
    (tmp_path / "src" / "toy" / "__init__.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "test_toy.py").write_text(TESTS, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n", encoding="utf-8")

    def run(*entries, arguments=()):
        complete = [{**SIGN, **entry} for entry in entries]
        (tmp_path / "list.yaml").write_text(yaml.safe_dump(complete), encoding="utf-8")
        options = ["--root", str(tmp_path), "--list", str(tmp_path / "list.yaml"), "--package", "toy"]
        command = [sys.executable, str(RUN), *options, *arguments]
        # Half the time of such small runs goes into loading plugins.
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
        return done.returncode, done.stdout + done.stderr

    return run


def test_a_noticed_mutant_is_killed(run, tmp_path):
    code, output = run({})
    assert code == 0, output
    assert "1 killed, 0 survived, 0 broken" in output
    assert (tmp_path / "src" / "toy" / "__init__.py").read_text(encoding="utf-8") == SOURCE


def test_one_survivor_fails_the_run(run):
    code, output = run({}, {"name": "unnoticed", "find": "value - 1", "replace": "value - 2"})
    assert code == 1, output
    assert "1 killed, 1 survived, 0 broken" in output


def test_every_named_test_must_notice(run):
    code, output = run({"killed_by": ["test_toy.py::test_advantage", "test_toy.py::test_no_baseline"]})
    assert code == 1, output
    assert "0 killed, 1 survived, 0 broken" in output


def test_one_case_of_a_parametrised_test_is_enough(run):
    code, output = run({"replace": "0 * value - baseline", "killed_by": ["test_toy.py::test_no_baseline"]})
    assert code == 0, output


@pytest.mark.parametrize(
    "entry",
    [
        {"replace": "value -"},  # cannot be imported
        {"replace": "undefined"},
        {"replace": "None", "killed_by": ["test_toy.py::test_shapes"]},  # a crash, no assertion
    ],
)
def test_a_crash_is_no_kill(run, entry):
    code, output = run(entry)
    assert code == 1, output
    assert "0 killed, 0 survived, 1 broken" in output


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"find": "value - "}, "exactly once"),
        ({"find": "value / baseline"}, "exactly once"),
        ({"replace": SIGN["find"]}, "differ"),
        ({"file": "test_toy.py"}, "not a file under src/"),
        ({"file": "src/toy/none.py"}, "not a file under src/"),
        ({"killed_by": ["test_toy.py::test_wrong"]}, "must pass on the unmodified source"),
        ({"killed_by": ["test_toy.py::test_none"]}, "must pass on the unmodified source"),
        ({"killed_by": []}, "expected an entry"),
        ({"killed_by": "test_toy.py::test_advantage"}, "is a list"),
        ({"reason": "unknown field"}, "expected an entry"),
    ],
)
def test_a_list_that_does_not_fit_is_an_error(run, entry, message):
    code, output = run(entry)
    assert code == 2, output
    assert message in output


def test_names(run):
    code, output = run({}, {})
    assert (code, "more than once" in output) == (2, True), output
    code, output = run({}, {"name": "other"}, arguments=["other"])
    assert (code, "1 killed" in output) == (0, True), output
    code, output = run({}, arguments=["nobody"])
    assert (code, "no such mutants" in output) == (2, True), output


def test_the_wrong_source_is_noticed(run, tmp_path):
    """A path that comes before the copy's would test the unmodified source and call every mutant survived."""
    line = f"import sys; sys.path.insert(0, {str(tmp_path / 'src')!r})\n"
    (tmp_path / "conftest.py").write_text(line, encoding="utf-8")
    code, output = run({})
    assert code == 1, output
    assert f"tested toy from {tmp_path / 'src'}" in output


def test_an_empty_list_is_no_failure(run):
    assert run()[0] == 0

"""The examples run, with small budgets, and say what they promise."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from advantage import cli

EXAMPLES = Path(__file__).parents[1] / "examples"
BUDGETS = {
    "atari": 60,
    "custom_env": 1024,
    "custom_loss": 512,
    "custom_network": 512,
    "demo": 1024,
    "gymnasium_dqn": 1500,
    "rlhf": 400,
    "sweep": 1,
}


@pytest.fixture
def example(tmp_path, monkeypatch, capsys):
    """Runs an example as its readers do, in an empty folder, and returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--total-timesteps", str(BUDGETS[name]), *arguments])
        # Readers' code is not ours: it may broadcast as JAX allows.
        with jax.numpy_rank_promotion("allow"):
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_is_tested():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == BUDGETS.keys()


def test_demo(example, tmp_path, capsys):
    out = example("demo", "--seeds", "2")
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == [
        "agent.gif", "learning_curve.png", "model.zip",
    ]  # fmt: skip
    results, following = out.split("Try next:")
    assert "IQM" in results and "steps/s" in results
    assert max(len(line) for line in results.splitlines()) <= 80
    following = following.strip().splitlines()
    assert len(following) == 3
    # The commands it names work as they stand.
    for line in following[:2]:
        assert cli.main(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    assert (tmp_path / "demo" / "watch.gif").exists()
    assert shlex.split(following[2], comments=True)[1].endswith("examples/sweep.py")


def test_sweep(example):
    out = example("sweep")
    rates = [float(line.split()[0]) for line in out.splitlines() if re.match(r" +\d\.\de[+-]\d\d ", line)]
    np.testing.assert_allclose(rates, np.geomspace(3e-5, 1e-1, 8), rtol=0.05)
    assert "steps/s" in out


def test_atari(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["atari.py", "ALE/Breakout-v5", str(BUDGETS["atari"]), str(tmp_path)])
    runpy.run_path(str(EXAMPLES / "atari.py"), run_name="__main__")
    assert "of a human's" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"atari.zip", "atari.gif"}


def test_rlhf(tmp_path, monkeypatch, capsys):
    """From random weights to PPO: a reward model that orders held-out pairs, by which the true score more than doubles."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rlhf.py", "--steps", str(BUDGETS["rlhf"])])
    runpy.run_path(str(EXAMPLES / "rlhf.py"), run_name="__main__")
    out = capsys.readouterr().out
    accuracy, before, after = (int(re.search(words, out)[1]) for words in (r"reward model: (\d+)%", r"answers: (\d+)% before", r"PPO, (\d+)% after"))
    assert accuracy >= 90 and before < 45 and after > 70, (accuracy, before, after)
    assert (tmp_path / "runs" / "rlhf" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["custom_env", "custom_loss", "custom_network", "gymnasium_dqn"])
def test_short_examples(example, name):
    assert re.search(r"return.*: +-?\d+\.\d+ ± \d", example(name))

"""What memory brings where it is needed: SAC and TD3 on a cue that is shown once, with and without it.

    python benchmarks/recurrent.py             # trains and writes the table; a few minutes
    python benchmarks/recurrent.py --report    # the table anew, from what is committed

`advantage/ProbeRecall-v0` shows -1 or 1 in the first step of an episode alone; three steps later the reward is the cue
times the action. A policy without memory gets 0 on average, whatever it has learned; the best gets 1. Three seeds in
one process; every seed plays 200 episodes (the best action) at each of four points of training. All arms of an
algorithm have the same settings, which nobody tuned.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"
DATA, TABLE = RESULTS / "recurrent.json", RESULTS / "recurrent.md"
ENV, SEEDS, EPISODES, STEPS, POINTS = "advantage/ProbeRecall-v0", 3, 200, 4_000, 4
SETTINGS = {
    "n_envs": 4, "learning_rate": 3e-3, "buffer_size": 8_000, "learning_starts": 200, "batch_size": 64, "gamma": 0.9,
    "tau": 0.02, "train_freq": 1, "gradient_steps": 1,
}  # fmt: skip
MEMORY = {"lstm_hidden_size": 16, "sequence_length": 4, "burn_in": 2}
ARMS = {f"{name}, {kind}": (name, kind) for name in ("SAC", "TD3") for kind in ("no memory", "lstm", "gru")}


def train(name: str, kind: str) -> dict[str, Any]:
    """One arm: mean returns `[seeds, points]`, and the seconds of training with its compiling."""
    import advantage
    from advantage.training.evaluation import evaluate_every_seed

    policy, words = ("MlpPolicy", {}) if kind == "no memory" else ("MlpLstmPolicy", {"rnn_type": kind, **MEMORY})
    noise = {"action_noise": 0.3} if name == "TD3" else {}
    words = {"net_arch": [16], **words}
    model = getattr(advantage, name)(policy, ENV, seeds=SEEDS, seed=0, policy_kwargs=words, **SETTINGS, **noise)
    returns, seconds = [], 0.0
    for _ in range(POINTS):
        began = time.process_time()
        model.learn(STEPS // POINTS, reset_num_timesteps=False)
        seconds += time.process_time() - began
        returns.append(evaluate_every_seed(model, ENV, EPISODES, seed=1).returns.mean(axis=1).tolist())
    steps = [STEPS // POINTS * (k + 1) for k in range(POINTS)]
    return {"steps": steps, "returns": np.transpose(returns).tolist(), "cpu_seconds": round(seconds, 1)}


def measure() -> dict[str, Any]:
    """All arms, and where they were measured."""
    arms = {}
    for name, arm in ARMS.items():
        arms[name] = train(*arm)
        print(name, np.round(np.mean(arms[name]["returns"], axis=0), 2), f"{arms[name]['cpu_seconds']} s", flush=True)
    versions = {package: importlib.metadata.version(package) for package in ("advantage", "jax", "numpy")}
    return {"machine": f"{os.cpu_count()} cores of {platform.machine()}", "versions": versions, "arms": arms}


def report(data: dict[str, Any]) -> str:
    """The table."""
    steps = next(iter(data["arms"].values()))["steps"]
    lines = [
        "# Recurrent policies", "", "Made by `python benchmarks/recurrent.py`.", "",
        f"{ENV}: a cue of the first step is to be answered three steps later; {SEEDS} seeds, mean return of {EPISODES}"
        f" episodes of the best action at each point, means over seeds. The best return is 1, the expected one of any"
        f" policy without memory 0. On {data['machine']}.", "",
        "| | " + " | ".join(f"{step:,} steps" for step in steps) + " | worst seed at the end | CPU-seconds |",
        "| --- |" + " ---: |" * (len(steps) + 2),
    ]  # fmt: skip
    for name, arm in data["arms"].items():
        returns = np.array(arm["returns"])
        cells = [f"{x:.2f}" for x in [*returns.mean(axis=0), returns[:, -1].min()]]
        lines.append(f"| {name} | {' | '.join(cells)} | {arm['cpu_seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure unless told to report only, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="write the table from the committed numbers")
    if not parser.parse_args().report:
        DATA.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    TABLE.write_text(report(json.loads(DATA.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()

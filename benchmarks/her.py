"""What hindsight brings where rewards are sparse: SAC on PointReach with and without it.

    python benchmarks/her.py             # trains and writes the table; a few minutes
    python benchmarks/her.py --report    # the table anew, from what is committed

A point in a square goes to a goal within 50 steps; each step costs 1 until it is there. Three seeds in one process;
every seed plays 50 whole episodes (the best action) at each of four points of training, and an episode is a success
where the point is at the goal when it ends. All arms have the same settings, which nobody tuned.
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
DATA, TABLE = RESULTS / "her.json", RESULTS / "her.md"
ENV, SEEDS, EPISODES, STEPS, POINTS = "goals/PointReach-v0", 3, 50, 8_000, 4
SETTINGS = {
    "n_envs": 4, "learning_rate": 1e-3, "buffer_size": 100_000, "learning_starts": 1_000, "batch_size": 128,
    "gamma": 0.95, "tau": 0.02, "train_freq": 1, "gradient_steps": 2,
}  # fmt: skip
NET_ARCH = [64, 64]
ARMS: dict[str, dict[str, Any] | None] = {
    "without": None,
    "future, k = 4": {"n_sampled_goal": 4, "goal_selection_strategy": "future"},
    "final, k = 4": {"n_sampled_goal": 4, "goal_selection_strategy": "final"},
    "episode, k = 4": {"n_sampled_goal": 4, "goal_selection_strategy": "episode"},
}


def train(kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """One arm: the share of successes `[seeds, points]`, and seconds, with compiling in the first arm only."""
    from advantage import SAC, HerReplayBuffer
    from advantage.training.evaluation import evaluate_every_seed

    hindsight = {} if kwargs is None else {"replay_buffer_class": HerReplayBuffer, "replay_buffer_kwargs": kwargs}
    model = SAC(
        "MultiInputPolicy", ENV, seeds=SEEDS, seed=0, policy_kwargs={"net_arch": NET_ARCH}, **SETTINGS, **hindsight
    )
    successes, seconds = [], 0.0
    for _ in range(POINTS):
        began = time.process_time()
        model.learn(STEPS // POINTS, reset_num_timesteps=False)
        seconds += time.process_time() - began
        successes.append(evaluate_every_seed(model, ENV, EPISODES, seed=1).successes.mean(axis=1).tolist())
    steps = [STEPS // POINTS * (k + 1) for k in range(POINTS)]
    return {"steps": steps, "successes": np.transpose(successes).tolist(), "cpu_seconds": round(seconds, 1)}


def measure() -> dict[str, Any]:
    """All arms, and where they were measured."""
    arms = {}
    for name, kwargs in ARMS.items():
        arms[name] = train(kwargs)
        print(f"{name}: {arms[name]}", flush=True)
    versions = {package: importlib.metadata.version(package) for package in ("jax", "equinox", "gymnasium")}
    machine = f"{os.cpu_count()} cores of {platform.machine()}"
    return {"settings": SETTINGS | {"net_arch": NET_ARCH}, "arms": arms, "versions": versions, "machine": machine}


def report(data: dict[str, Any]) -> str:
    """The table."""
    lines = [
        "# Hindsight", "", "Made by `python benchmarks/her.py`.", "",
        (f"SAC on {ENV}, {SEEDS} seeds, {EPISODES} episodes of the best action at each point. Success: the point is at"
         f" the goal when the episode ends. Means over seeds; on {data['machine']}."),
        "", "| | " + " | ".join(f"{steps:,} steps" for steps in next(iter(data["arms"].values()))["steps"])
        + " | worst seed at the end |", "| --- |" + " ---: |" * (POINTS + 1),
    ]  # fmt: skip
    for name, arm in data["arms"].items():
        successes = np.array(arm["successes"])
        cells = [f"{100 * x:.0f} %" for x in (*successes.mean(axis=0), successes[:, -1].min())]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, unless only the table is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true")
    if not parser.parse_args().report:
        DATA.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    table = report(json.loads(DATA.read_text(encoding="utf-8")))
    TABLE.write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()

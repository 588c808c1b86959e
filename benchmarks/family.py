"""The family of DQN on CartPole and MinAtar, written in JAX: five seeds, by the protocol of `compare`.

    python benchmarks/family.py --task CartPole                        # all of them: a quarter of an hour
    python benchmarks/family.py --task Breakout --algorithm Rainbow    # a million steps: half an hour and more
    python benchmarks/family.py --report                               # family.md anew, from what is committed

Results go to `results/family/TASK/results.jsonl`, what is there is not trained again. MinAtar needs the extra `jax-envs`.
The settings of a task are the same for all, and nobody tuned them: CartPole's are those of the learning tests with more
steps, MinAtar's those of the ablation. Of each run the table has the last evaluation, the best one, which is what
`EvalCallback` would have kept, and the swing: the standard deviation over the later half of its evaluations.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"
FOLDER, TABLE = RESULTS / "family", RESULTS / "family.md"


class Task(NamedTuple):
    """An environment's id, and what all are trained and evaluated by."""

    env: str
    protocol: dict[str, Any]
    shared: dict[str, Any]
    atoms: dict[str, Any]
    epsilon: dict[str, Any]
    noisy: dict[str, Any]  # where noise explores


_MINATAR = Task(
    "",
    {"total_timesteps": 1_000_000, "evaluations": 10, "n_eval_episodes": 30, "seeds": 5},
    {
        "learning_rate": 2.5e-4, "learning_starts": 1_000, "buffer_size": 100_000, "target_update_interval": 1_000,
        "policy_kwargs": {"net_arch": [128]},
    },
    {"v_min": 0, "v_max": 30},
    {"exploration_fraction": 0.1, "exploration_final_eps": 0.01},
    {},
)  # fmt: skip
TASKS = {
    "CartPole": Task(
        "advantage/CartPole-v1",
        {"total_timesteps": 50_000, "evaluations": 20, "n_eval_episodes": 20, "seeds": 5},
        {
            "learning_rate": "linear_0.001", "batch_size": 64, "buffer_size": 50_000, "learning_starts": 500,
            "target_update_interval": 250, "train_freq": 4, "gradient_steps": 4, "n_steps": 3,
            "policy_kwargs": {"net_arch": [64, 64]},
        },
        {"v_min": 0, "v_max": 100},
        {"exploration_fraction": 0.2, "exploration_final_eps": 0.02},
        {"exploration_initial_eps": 0, "exploration_final_eps": 0},
    ),
    "Breakout": _MINATAR._replace(env="gymnax/Breakout-MinAtar"),
    "Asterix": _MINATAR._replace(env="gymnax/Asterix-MinAtar"),
}  # fmt: skip
ALGORITHMS = ("DQN", "DoubleDQN", "DuelingDQN", "C51", "QRDQN", "IQN", "Rainbow")


def settings_of(algorithm: str, task: Task) -> dict[str, Any]:
    """The task's settings, as far as an algorithm has them."""
    atoms = task.atoms if algorithm in ("C51", "Rainbow") else {}
    return task.shared | atoms | (task.noisy if algorithm == "Rainbow" else task.epsilon)


def train(name: str, algorithms: list[str]) -> None:
    """What is not there yet."""
    from advantage.experiments.compare import compare

    task = TASKS[name]
    for algorithm in algorithms:
        print(name, algorithm, flush=True)
        settings = {algorithm: settings_of(algorithm, task)}
        compare([algorithm], task.env, out=FOLDER / name, settings=settings, **task.protocol)


def report() -> str:
    """A table for each task that has results."""
    from advantage.experiments.results import read_results
    from advantage.experiments.statistics import bootstrap_interval, iqm

    def shown(scores: np.ndarray) -> str:
        low, high = bootstrap_interval(scores)
        return f"{iqm(scores):.1f} [{low:.1f}, {high:.1f}]"

    lines = ["# The family of DQN", "", "Protocol and settings: `benchmarks/family.py`. Interquartile means over seeds, with 95 % intervals."]
    for name, task in TASKS.items():
        results = read_results(FOLDER / name)
        if not results.algorithms:
            continue
        steps = task.protocol["total_timesteps"]
        lines += [
            "", f"## {name}", "", f"`{task.env}`, {steps:,} steps.", "",
            "| | seeds | last evaluation | best evaluation of each run | swing | steps/s of all seeds |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]  # fmt: skip
        here = results.on(task.env)
        for algorithm in sorted(here.algorithms, key=ALGORITHMS.index):
            returns = here.returns(algorithm)  # [seeds, evaluations]
            swing = returns[:, returns.shape[1] // 2 :].std(axis=1).mean()
            lines.append(
                f"| {algorithm} | {len(returns)} | {shown(returns[:, -1])} | {shown(returns.max(axis=1))} | {swing:.1f}"
                f" | {here.speed(algorithm):,.0f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train what is asked for and not there yet, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", choices=TASKS, help="only this; may be repeated")
    parser.add_argument("--algorithm", action="append", choices=ALGORITHMS, help="only this; may be repeated")
    parser.add_argument("--report", action="store_true", help="no training: the table anew")
    options = parser.parse_args()
    for name in () if options.report else options.task or TASKS:
        train(name, options.algorithm or list(ALGORITHMS))
    TABLE.write_text(report(), encoding="utf-8")


if __name__ == "__main__":
    main()

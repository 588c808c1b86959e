"""Pong from the pixels of the real game, to a playing agent in the time one has.

    python benchmarks/pong.py --job cpu               # one core: DQN with a small network, within two hours
    python benchmarks/pong.py --job gpu --minutes 15  # a GPU: PPO with Mnih et al.'s network, 64 games at once
    python benchmarks/pong.py --report                 # pong.md and the picture, from what is committed

The protocol of Mnih et al. (2015): random idle frames at the start, no sticky actions, rewards are points
anyway. Ten evaluations of ten whole games, and thirty at the end; the best action, but every hundredth at random, since
two players without chance play one game only. `seconds` are of training, without evaluations, and with compiling.
Random play scores -20.7. A run ends at its number of steps or when `--minutes` of training are over, and says which.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import time
from pathlib import Path
from typing import Any, NamedTuple

import jobs
import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"
DATA, TABLE, PICTURE = RESULTS / "pong.json", RESULTS / "pong.md", RESULTS / "pong.png"
ENV, POINTS, GAMES, LAST_GAMES, EPSILON, RANDOM = "ALE/Pong-v5", 10, 10, 30, 0.01, -20.7
DATA_EFFICIENT = {"layers": [(32, 5, 5), (64, 5, 5)], "features_dim": 256}


class Job(NamedTuple):
    """`steps` of training at most, with an algorithm's `settings`."""

    algorithm: str
    steps: int
    settings: dict[str, Any]


JOBS = {
    "cpu": Job(
        "DoubleDQN", 500_000,
        {"learning_rate": 2e-4, "n_steps": 3, "train_freq": 4, "gradient_steps": 2, "buffer_size": 100_000,
         "learning_starts": 5_000, "target_update_interval": 2_000, "exploration_fraction": 0.1,
         "exploration_final_eps": 0.02, "policy_kwargs": {"features_extractor_kwargs": DATA_EFFICIENT}},
    ),
    "gpu": Job(
        "PPO", 3_000_000,
        {"n_envs": 64, "n_steps": 64, "batch_size": 1024, "n_epochs": 4, "learning_rate": 7e-4, "ent_coef": 0.01,
         "clip_range": 0.1, "vf_coef": 0.5},
    ),
}  # fmt: skip


class Curve:
    """A callback: evaluates at evenly spaced steps, keeps a clock that stands still meanwhile, and ends in time."""

    def __init__(self, model: Any, steps: int, minutes: float):
        self.model, self.steps, self.minutes = model, steps, minutes
        self.rows: list[dict[str, float]] = []
        self.seconds, self.since = 0.0, time.perf_counter()

    def __call__(self, locals_: Any, globals_: Any) -> bool:
        """Called after every vector step."""
        done, clock = self.model.num_timesteps, self.seconds + time.perf_counter() - self.since
        if done >= self.steps * (len(self.rows) + 1) / POINTS:
            self.seconds = clock
            scores = play(self.model, GAMES)
            self.rows.append({"steps": done, "seconds": round(clock, 1), "scores": scores})
            print(f"{done:,} steps, {clock:.0f} s: {np.mean(scores):.1f}", flush=True)
            self.since = time.perf_counter()
        return clock < 60 * self.minutes


def play(model: Any, games: int) -> list[float]:
    """Raw scores of whole games."""
    from advantage import evaluate_policy

    scores, _ = evaluate_policy(model, ENV, n_eval_episodes=games, epsilon=EPSILON, return_episode_rewards=True)
    return [float(score) for score in scores]


def train(name: str, minutes: float, steps: int | None, model_file: Path | None) -> dict[str, Any]:
    """One run, from nothing to thirty whole games."""
    import advantage
    import jax

    job = JOBS[name]
    total, began = steps or job.steps, time.perf_counter()
    settings = job.settings | {"learning_rate": jobs.linear(job.settings["learning_rate"])}
    model = getattr(advantage, job.algorithm)("CnnPolicy", ENV, seed=0, **settings)
    curve = Curve(model, total, minutes)
    curve.since = began
    model.learn(total, callback=curve)
    curve.seconds += time.perf_counter() - curve.since
    if model_file is not None:
        model.save(model_file)
    versions = {package: importlib.metadata.version(package) for package in ("jax", "equinox", "gymnasium", "ale-py")}
    device = jax.devices()[0]
    return {
        "algorithm": job.algorithm, "settings": job.settings, "steps": model.num_timesteps, "seconds": round(curve.seconds, 1), "curve": curve.rows,
        "last": play(model, LAST_GAMES), "epsilon": EPSILON, "versions": versions, "load": os.getloadavg()[0],
        "machine": f"{device.device_kind}, {len(os.sched_getaffinity(0))} core(s) of {platform.machine()}",
        "command": f"python benchmarks/pong.py --job {name} --minutes {minutes:g}",
    }  # fmt: skip


def interval(scores: list[float]) -> tuple[float, float]:
    """A 95 % bootstrap interval of the mean."""
    means = np.random.default_rng(0).choice(scores, (10_000, len(scores))).mean(axis=1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def report(data: dict[str, Any]) -> str:
    """The table."""
    lines = [
        "# Pong from pixels", "",
        f"One run each; protocol in the head of `benchmarks/pong.py`. Random play: {RANDOM}.", "",
        "| job | machine | steps | training | steps/s | score of 30 games | interval | lowest |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for name, run in data.items():
        low, high = interval(run["last"])
        lines.append(
            f"| `{run['command']}` | {run['machine']} | {run['steps']:,} | {run['seconds'] / 60:.1f} min"
            f" | {run['steps'] / run['seconds']:,.0f} | {np.mean(run['last']):.1f} | {low:.1f} to {high:.1f}"
            f" | {min(run['last']):.0f} |"
        )
    for name, run in data.items():
        settings = {key: value for key, value in run["settings"].items()}
        lines += ["", f"## {name}", "", f"{run['algorithm']}: `{settings}`", "", "| steps | minutes | mean of ten games | interval |",
                  "| ---: | ---: | ---: | ---: |"]  # fmt: skip
        for row in run["curve"]:
            low, high = interval(row["scores"])
            lines.append(
                f"| {row['steps']:,} | {row['seconds'] / 60:.1f} | {np.mean(row['scores']):.1f} | {low:.1f} to {high:.1f} |"
            )
        lines += ["", ", ".join(f"{package} {version}" for package, version in run["versions"].items()) + "."]
    return "\n".join(lines) + "\n"


def picture(data: dict[str, Any], path: Path) -> None:
    """Scores over minutes of training, each with its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, run in data.items():
        minutes = [row["seconds"] / 60 for row in run["curve"]]
        low, high = zip(*(interval(row["scores"]) for row in run["curve"]), strict=True)
        axes.plot(minutes, [np.mean(row["scores"]) for row in run["curve"]], marker="o", label=f"{run['algorithm']}, {run['machine']}")
        axes.fill_between(minutes, low, high, alpha=0.2)
    axes.axhline(RANDOM, color="grey", linestyle=":", label="random play")
    axes.set(xlabel="minutes of training", ylabel="score, mean of ten games", title="Pong from pixels")
    axes.legend()
    figure.savefig(path, dpi=130)


def main() -> None:
    """Train or report, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", choices=list(JOBS), help="which to train")
    parser.add_argument("--minutes", type=float, default=120.0, help="of training at most (120)")
    parser.add_argument("--steps", type=int, help="other than the job's")
    parser.add_argument("--data", type=Path, default=DATA, help="file of the results")
    parser.add_argument("--model", type=Path, help="also save the model there")
    parser.add_argument("--report", action="store_true", help="no training: the table and the picture")
    options = parser.parse_args()
    data = json.loads(options.data.read_text(encoding="utf-8")) if options.data.exists() else {}
    if options.job:
        data[options.job] = train(options.job, options.minutes, options.steps, options.model)
        options.data.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    if options.report:
        TABLE.write_text(report(data), encoding="utf-8")
        picture(data, PICTURE)


if __name__ == "__main__":
    main()

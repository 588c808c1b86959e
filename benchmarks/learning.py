"""Learning curves beside Stable-Baselines3's, with the same settings and protocol.

    python benchmarks/learning.py [--job NAME ...] [--seeds 5]  # trains; lines into learning.jsonl
    python benchmarks/learning.py --full --seeds 3              # a million steps of MuJoCo: a day, or a GPU
    python benchmarks/learning.py --report                      # learning.md and a picture per job
    python benchmarks/learning.py --copy-sb3 FILE               # SB3's lines of our jobs into sb3.jsonl

Protocol: ten evenly spaced evaluations, at `steps * (k + 1) / 10` environment steps; each is 20 whole
episodes (10 of MuJoCo's) of the deterministic policy, episode i on a fresh `gymnasium.make(env)` reset with seed 10_000 + i.
`final` is one more, after the last update. Settings: `LEARNING` in `jobs.py`. All seeds of a job train at
once, in one process (`seeds=K`), on environments from Gymnasium; `seconds` is the training of all of them
together, without the evaluations. A line of `learning.jsonl` is one seed, in the shape of SB3's lines.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import jobs
import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"
Line = dict[str, Any]


def main() -> None:
    """Train, copy or report, as the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--job", action="append", choices=list(jobs.EVERY), help="only this; may be repeated"
    )
    parser.add_argument("--full", action="store_true", help="the long jobs, a million steps each")
    parser.add_argument("--seeds", type=int, default=5, help="agents trained at once (5)")
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="also save what was trained, a file a job")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument(
        "--report", action="store_true", help="no training: tables and pictures from the results"
    )
    parser.add_argument(
        "--copy-sb3", type=Path, metavar="FILE", help="no training: take SB3's lines from this file"
    )
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    chosen = options.job or list(jobs.FULL if options.full else jobs.LEARNING)
    if options.copy_sb3:
        copy_sb3(options.copy_sb3, options.results / "sb3.jsonl")
    elif options.report:
        report(options.results)
    else:
        for job in chosen:
            replace_lines(options.results / "learning.jsonl", job, train(job, options.seeds, models=options.models))


# -- training ----------------------------------------------------------------------------------------


def train(name: str, seeds: int, steps: int | None = None, models: Path | None = None) -> list[Line]:
    """Train the job's seeds at once; one line per seed. `steps`: other than the job's, to try it out."""
    import advantage

    job = jobs.EVERY[name]
    steps = steps or job.steps
    model = getattr(advantage, job.algorithm)(
        jobs.policy_of(job.algorithm), job.env, n_envs=job.n_envs, seed=0, seeds=seeds, **job.settings
    )
    evaluations = Evaluations(model, job, seeds, steps)
    model.learn(steps, callback=evaluations)
    seconds = evaluations.stop_clock()
    if models is not None:
        models.mkdir(parents=True, exist_ok=True)
        model.save(models / f"{name}.zip")
    final = [evaluate(model, job.env, index, job.episodes) for index in range(seeds)]
    versions = {"advantage": advantage.__version__}
    versions |= {package: importlib.metadata.version(package) for package in ("jax", "equinox", "gymnasium")}
    lines = [
        {
            "job": name, "algo": job.algorithm, "env": job.env, "seed": index, "n_envs": job.n_envs,
            "at": evaluations.at, "returns": [row[index] for row in evaluations.returns],
            "final": final[index], "seconds": round(seconds, 1), "trained_together": seeds, **versions,
        }
        for index in range(seeds)
    ]  # fmt: skip
    print(f"{name}: final {final}, {seconds:.0f} s for {seeds} seeds", flush=True)
    return lines


class Evaluations:
    """A callback: evaluates every seed at evenly spaced steps, and keeps a clock that stands still meanwhile.

    Attributes:
        at: environment steps of each evaluation.
        returns: mean return of each evaluation, `[evaluations][seeds]`.
    """

    def __init__(self, model: Any, job: jobs.Learning, seeds: int, steps: int):
        self.model, self.job, self.seeds, self.steps = model, job, seeds, steps
        self.at: list[int] = []
        self.returns: list[list[float]] = []
        self.seconds, self.since = 0.0, time.perf_counter()

    def __call__(self, locals_: Any, globals_: Any) -> bool:
        """Called after every vector step."""
        if self.model.num_timesteps >= self.steps * (len(self.at) + 1) / jobs.EVALUATIONS:
            self.stop_clock()
            self.at.append(self.model.num_timesteps)
            self.returns.append([evaluate(self.model, self.job.env, index, self.job.episodes) for index in range(self.seeds)])
            self.since = time.perf_counter()
        return True

    def stop_clock(self) -> float:
        """The seconds of training until now."""
        self.seconds += time.perf_counter() - self.since
        return self.seconds


def evaluate(model: Any, env_id: str, seed_index: int, episodes: int) -> float:
    """Mean return of the deterministic policy; the episodes run side by side, for one `predict` a step.

    Which episodes are still running changes nothing for the others, and finished ones keep their last
    observation, so that the batch has one shape.
    """
    envs = [gymnasium.make(env_id) for _ in range(episodes)]
    obs = np.stack([env.reset(seed=jobs.EVALUATION_SEED + index)[0] for index, env in enumerate(envs)])
    returns, running, memory = np.zeros(episodes), list(range(episodes)), None
    while running:
        actions, memory = model.predict(obs, state=memory, deterministic=True, seed_index=seed_index)
        for index in list(running):
            obs[index], reward, terminated, truncated, _ = envs[index].step(actions[index])
            returns[index] += float(reward)
            if terminated or truncated:
                running.remove(index)
    for env in envs:
        env.close()
    return round(float(returns.mean()), 2)


# -- lines -------------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[Line]:
    """The lines of a file; none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def write_lines(path: Path, lines: list[Line]) -> None:
    """In the order of the jobs, then of the seeds."""
    order = list(jobs.EVERY)
    lines = sorted(lines, key=lambda line: (order.index(line["job"]), line["seed"]))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def replace_lines(path: Path, job: str, lines: list[Line]) -> None:
    """Put a job's lines in place of its former ones."""
    write_lines(path, [line for line in read_lines(path) if line["job"] != job] + lines)


def plain(env_id: str) -> str:
    """An id without the module that registers it."""
    return env_id.rpartition(":")[2]


def copy_sb3(source: Path, target: Path) -> None:
    """SB3's lines of our jobs, so that the report needs nothing outside this repository."""
    write_lines(target, [line for line in read_lines(source) if line["job"] in jobs.EVERY])


# -- report ------------------------------------------------------------------------------------------

MEASURES: dict[str, Callable[[Line], float]] = {
    "final evaluation": lambda line: line["final"],
    "mean of the last five": lambda line: float(np.mean(line["returns"][-5:])),
    "best evaluation": lambda line: max(line["returns"]),
    "swing (std of the last five)": lambda line: float(np.std(line["returns"][-5:])),
}


def report(folder: Path) -> None:
    """`learning.md` and one picture per job that has been trained."""
    from advantage.experiments.plots import learning_curve

    ours, sb3 = read_lines(folder / "learning.jsonl"), read_lines(folder / "sb3.jsonl")
    parts = [
        "# Learning, beside Stable-Baselines3\n\n"
        "`python benchmarks/learning.py`, then `--report`; protocol in the head of that file, settings in "
        "`benchmarks/jobs.py`. Interquartile means over seeds with 95 % bootstrap intervals in brackets; "
        "with 5 seeds or fewer such intervals are a hint. SB3's lines (`sb3.jsonl`) were made by the same "
        "protocol at another time.\n"
    ]
    for name, job in jobs.EVERY.items():
        groups = {
            label: [line for line in lines if line["job"] == name]
            for label, lines in (("advantage", ours), ("SB3", sb3))
        }
        groups = {label: lines for label, lines in groups.items() if lines}
        if "advantage" not in groups:
            continue
        picture = f"learning-{name}.png"
        reference = None if job.solved is None else {"solved": job.solved}
        title = f"{job.algorithm} on {plain(job.env)} ({name})"
        learning_curve(
            {label: curve(lines) for label, lines in groups.items()}, folder / picture, title, reference
        )
        parts.append(section(name, job, groups, picture))
    parts.append(side_by_side(ours, sb3))
    (folder / "learning.md").write_text("\n".join(parts), encoding="utf-8")
    print("\n".join(parts))


def side_by_side(ours: list[Line], sb3: list[Line]) -> str:
    """Algorithms of continuous control by environment: one table."""
    from advantage.experiments.statistics import bootstrap_interval, iqm

    def cell(lines: list[Line]) -> str:
        if not lines:
            return "not measured"
        scores = [MEASURES["mean of the last five"](line) for line in lines]
        low, high = bootstrap_interval(scores)
        return f"{iqm(scores):.0f} [{low:.0f}, {high:.0f}], {len(lines)} seeds"

    rows = ["| environment | steps | algorithm | advantage | SB3 |", "| --- | ---: | --- | ---: | ---: |"]
    chosen = [(name, job) for name, job in jobs.EVERY.items() if job.algorithm in jobs.CONTINUOUS_CONTROL]
    for name, job in sorted(chosen, key=lambda pair: (pair[1].env, pair[1].steps)):
        groups = [[line for line in lines if line["job"] == name] for lines in (ours, sb3)]
        if groups[0]:
            cells = " | ".join(map(cell, groups))
            rows.append(f"| {job.env} | {job.steps:,} | {job.algorithm} | {cells} |")
    table = "\n".join(rows)
    return f"## which-continuous\n\nInterquartile mean of each run's last five evaluations.\n\n{table}\n"


def curve(lines: list[Line]) -> tuple[list[int], list[list[float]]]:
    """`(steps [points], returns [seeds, points])`."""
    return lines[0]["at"], [line["returns"] for line in lines]


def section(name: str, job: jobs.Learning, groups: dict[str, list[Line]], picture: str) -> str:
    """A job's heading, table and picture."""
    from advantage.experiments.statistics import bootstrap_interval, iqm

    heads = [f"{label}, {len(lines)} seeds" for label, lines in groups.items()]
    rows = [f"| {job.steps:,} steps | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(groups)}"]
    for measure, of in MEASURES.items():
        cells = []
        for lines in groups.values():
            scores = [of(line) for line in lines]
            low, high = bootstrap_interval(scores)
            cells.append(f"{iqm(scores):.1f} [{low:.1f}, {high:.1f}]")
        rows.append(f"| {measure} | {' | '.join(cells)} |")
    first = groups["advantage"][0]
    note = (
        f"Training took {first['seconds']:.0f} s of wall time for all {first['trained_together']} seeds "
        f"together (advantage {first['advantage']}, jax {first['jax']}, gymnasium {first['gymnasium']})."
    )
    table = "\n".join(rows)
    return f"## {name}\n\n{table}\n\n{note}\n\n![{job.algorithm} on {plain(job.env)}, learning curves]({picture})\n"


if __name__ == "__main__":
    main()

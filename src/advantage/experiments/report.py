"""What a comparison says: tables, a verdict in words, and pictures."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advantage.experiments.plots import intervals_picture, learning_curve, profile_picture, tasks_curve
from advantage.experiments.results import Results
from advantage.experiments.statistics import (
    AGGREGATES,
    CONFIDENCE,
    FEWEST_SEEDS,
    MOST_SEEDS,
    Estimate,
    aggregate,
    chance_if_equal,
    probability_of_improvement,
    sample_efficiency,
    seeds_needed,
)
from advantage.experiments.tasks import Tasks, tasks_of

TEXT = "report.md"


@dataclasses.dataclass(frozen=True)
class Report:
    """A comparison in words and numbers.

    Attributes:
        results: all stored lines.
        verdicts: a sentence for each pair of algorithms; with several environments first over all of them, then on
            each.
        text: everything, as Markdown; `print(report)` shows it.
        files: what was written.
    """

    results: Results
    verdicts: tuple[str, ...]
    text: str
    files: tuple[Path, ...]

    def __str__(self) -> str:
        return self.text


def write_report(results: Results, out: str | os.PathLike[str], against: str | None = None) -> Report:
    """Write `report.md` and the pictures (PNG and SVG) into a folder.

    Verdicts are of every pair of algorithms, or of each `against` one of them. Without matplotlib there are no
    pictures, and the report says so.

    Raises:
        ValueError: there are no results.
    """
    if results.protocol is None:
        raise ValueError(f"out={os.fspath(out)!r} holds no results: train some first")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    tasks = tasks_of(results)
    try:
        pictures, missing = _draw(results, tasks, out), ""
    except ImportError as error:
        pictures, missing = [], f"No pictures: {error}"
    verdicts = tuple(_verdicts(results, tasks, against))
    shown = [f"![{path.stem.replace('_', ' ')}]({path.name})" for path in pictures if path.suffix == ".png"]
    parts = [f"# {_title(results)}", _protocol(results)]
    if verdicts:
        parts += ["## Verdict", "\n".join(f"- {verdict}." for verdict in verdicts), _caution(results)]
    if tasks:
        parts += [f"## Over {len(tasks.envs)} environments", _scales(tasks), _tasks_table(tasks)]
    for env in results.envs:
        parts += _sections(results.on(env), f" on {env}" if len(results.envs) > 1 else "")
    parts += ["## Pictures", *shown, missing]
    text = "\n\n".join(filter(None, parts))
    path = out / TEXT
    path.write_text(text + "\n", encoding="utf-8")
    return Report(results, verdicts, text, (path, *pictures))


def _sections(results: Results, where: str) -> list[str]:
    """What there is to say about one environment."""
    parts = [
        f"## Final return{where}",
        _final_table(results),
        f"## Return over training{where}",
        _curve_table(results),
    ]
    return [*parts, f"## Seeds{where}", _seed_table(results)]


def verdict(name_x: str, x: npt.ArrayLike, name_y: str, y: npt.ArrayLike) -> str:
    """Which of two algorithms is better, in words, or how many seeds would be needed to say so.

    One is better where the 95% interval of P(X > Y) leaves out one half and two equal algorithms would
    differ as much in at most one of 20 comparisons (`chance_if_equal`): with few seeds the interval alone
    sees differences where there are none. Otherwise the seeds needed are estimated by `seeds_needed`, which
    draws more and more seeds from those at hand until the interval leaves out one half.

    Args:
        x, y: final scores `[seeds]`, or normalised ones `[seeds, tasks]`.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    chance = probability_of_improvement(x, y)
    if chance.value < 0.5:
        x, y, name_x, name_y, chance = y, x, name_y, name_x, probability_of_improvement(y, x)
    number = _number_of_seeds({len(x), len(y)})
    if chance.low is None:
        few = f"{number} {'is' if len(x) == len(y) == 1 else 'are'} too few for an interval"
        return f"{name_x} and {name_y}: no verdict, {few}; give at least {FEWEST_SEEDS}, better 10"
    interval = f"{chance.value:.2f} (interval {chance.low:.2f} to {chance.high:.2f})"
    equal = chance_if_equal(x, y)
    if chance.low > 0.5 and equal <= 1 - CONFIDENCE:
        words = f"{name_x} > {name_y} with probability {interval}"
        if chance.low == 1.0:  # no resample can differ from this
            words += f"; every run of the one is above every run of the other, by chance in {equal:.1%} of comparisons"
        return words
    words = f"{name_x} and {name_y}: not distinguishable at {number}; {_needed(x, y)} would be needed."
    words += f" {name_x} > {name_y} with probability {interval}"
    if chance.low > 0.5:
        words += f", but equal algorithms differ as much in {equal:.1%} of comparisons"
    return words


def _needed(x: np.ndarray, y: np.ndarray) -> str:
    needed = seeds_needed(x, y)
    if needed is None:
        return f"more than {MOST_SEEDS:,}"
    needed = max(needed, len(x) + 1, len(y) + 1)
    # More digits would promise more than such an estimate holds.
    size = 10 ** (len(str(needed)) - 1) if needed > 20 else 1
    return f"about {-(-needed // size) * size:,}"


def _verdicts(results: Results, tasks: Tasks | None, against: str | None) -> Iterator[str]:
    def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
        return [pair for pair in itertools.combinations(names, 2) if against in (None, *pair)]

    if tasks:
        for x, y in pairs(results.algorithms):
            yield f"Over {len(tasks.envs)} environments: {verdict(x, tasks.final[x], y, tasks.final[y])}"
    for env in results.envs:
        here, where = results.on(env), f"On {env}: " if len(results.envs) > 1 else ""
        for x, y in pairs(here.algorithms):
            yield where + verdict(x, here.final(x), y, here.final(y))


def _caution(results: Results) -> str:
    """Where many pairs are compared, some differ by chance."""
    if len(results.algorithms) < 3 and len(results.envs) == 1:
        return ""
    return "Each pair is judged alone: of 20 pairs of equal algorithms, about one looks different by chance."


def _title(results: Results) -> str:
    envs, names = results.envs, results.algorithms
    shown = ", ".join(names) if len(names) <= 5 else f"{len(names)} algorithms"
    return f"{shown} on {envs[0] if len(envs) == 1 else f'{len(envs)} environments'}"


def _protocol(results: Results) -> str:
    protocol = results.protocol
    actions = "best" if protocol.deterministic else "sampled"
    lines = [
        f"{protocol.total_timesteps:,} environment steps for each seed; {protocol.evaluations} evaluations, evenly"
        f" spaced, of {protocol.n_eval_episodes} episodes each on separate environments (seeds from"
        f" {protocol.evaluation_seed}), with the {actions} actions. Trained on {', '.join(results.devices())}."
    ]
    for name in results.algorithms:
        parts = {env: results.on(env) for env in results.envs}
        given = {
            env: _settings(part.settings(name)) for env, part in parts.items() if name in part.algorithms
        }
        if len({*given.values()}) == 1:
            lines.append(f"{name}: {next(iter(given.values()))}.")
        else:
            lines += [f"{name} on {env}: {settings}." for env, settings in given.items()]
    return "  \n".join(lines)


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in settings.items()) or "default settings"


def _scales(tasks: Tasks) -> str:
    """What 0 and 1 are."""
    lines = ["Normalised scores; an environment counts as much as another."]
    for env, (low, high, known) in tasks.scales.items():
        ends = (
            "random actions to the best published"
            if known
            else "the lowest to the highest final return in here"
        )
        lines.append(f"{env}: 0 to 1 is {low:,.1f} to {high:,.1f}, {ends}.")
    if not all(scale.known for scale in tasks.scales.values()):
        lines.append("Scales taken from the runs themselves change with every run that is added.")
    return "  \n".join([*lines, *tasks.left_out])


def _tasks_table(tasks: Tasks) -> str:
    """IQM on each environment, and every aggregate over all."""
    rows = [["normalised", *tasks.final]]
    for index, env in enumerate(tasks.envs):
        rows.append([f"IQM on {env}", *(_estimate(aggregate(x[:, index]), 2) for x in tasks.final.values())])
    for statistic in AGGREGATES:
        label = {"iqm": "IQM", "optimality_gap": "optimality gap"}.get(statistic, statistic)
        rows.append(
            [f"{label} over all", *(_estimate(aggregate(x, statistic), 2) for x in tasks.final.values())]
        )
    note = "Of the last evaluation, with 95% intervals. Optimality gap: what is missing to 1; less is better."
    return f"{_table(rows)}\n\n{note}"


def _estimate(estimate: Estimate, digits: int) -> str:
    # Adding 0 makes -0 a 0.
    value, *bounds = (None if x is None else f"{round(x, digits) + 0.0:,.{digits}f}" for x in estimate)
    return f"{value} ({bounds[0]} to {bounds[1]})" if bounds[0] is not None else str(value)


def _final_table(results: Results) -> str:
    rows = [["algorithm", "seeds", "IQM", "95% interval", "mean", "worst", "best", "steps/s", "wall time"]]
    for name in results.algorithms:
        final = results.final(name)
        estimate = aggregate(final)
        numbers = (estimate.value, final.mean(), final.min(), final.max())
        middle, mean, worst, best = (f"{x:,.1f}" for x in numbers)
        speed, seconds = f"{results.speed(name):,.0f}", f"{results.seconds(name):,.1f} s"
        rows.append(
            [
                name,
                str(final.size),
                middle,
                _interval(estimate, final.size),
                mean,
                worst,
                best,
                speed,
                seconds,
            ]
        )
    note = "IQM: interquartile mean over seeds of the last evaluation's mean return. Steps/s and wall time: of all"
    return f"{_table(rows)}\n\n{note} seeds together, with compilation, without evaluations."


def _curve_table(results: Results) -> str:
    rows = [["steps", *results.algorithms]]
    curves = [sample_efficiency(results.returns(name)[:, None, :]) for name in results.algorithms]
    for k, step in enumerate(results.protocol.steps()):
        cells = [
            f"{c.value[k]:,.1f}" + ("" if c.low is None else f" ({_bounds(c.low[k], c.high[k])})")
            for c in curves
        ]
        rows.append([f"{step:,}", *cells])
    return f"{_table(rows)}\n\nIQM over seeds, with its 95% interval from {FEWEST_SEEDS} seeds on."


def _seed_table(results: Results) -> str:
    rows = [["seed", *results.algorithms]]
    final = {
        name: dict(zip(results.seeds(name), results.final(name), strict=True)) for name in results.algorithms
    }
    for seed in sorted({seed for scores in final.values() for seed in scores}):
        rows.append([str(seed), *(f"{s[seed]:,.1f}" if seed in s else "-" for s in final.values())])
    return f"{_table(rows)}\n\nMean return of the last evaluation."


def _interval(estimate: Estimate, seeds: int) -> str:
    if estimate.low is None:
        return f"none: {_number_of_seeds({seeds})}, at least {FEWEST_SEEDS} needed"
    return _bounds(estimate.low, estimate.high)


def _bounds(low: float, high: float) -> str:
    return f"{low:,.1f} to {high:,.1f}"


def _number_of_seeds(sizes: set[int]) -> str:
    few, many = min(sizes), max(sizes)
    return f"{few} seed{'s' * (few > 1)}" if few == many else f"{few} and {many} seeds"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown that also reads well as text: names left, numbers right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(cells)} |")
    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([lines[0], f"| {' | '.join(rule)} |", *lines[1:]])


def _draw(results: Results, tasks: Tasks | None, out: Path) -> list[Path]:
    paths, several = [], len(results.envs) > 1
    for suffix in (".png", ".svg"):
        if tasks:
            paths += _draw_tasks(results, tasks, out, suffix)
        for env in results.envs:
            here, ending = results.on(env), "_" + re.sub(r"[^A-Za-z0-9.-]+", "-", env) if several else ""
            efficiency, profile = (
                out / f"{name}{ending}{suffix}" for name in ("sample_efficiency", "performance_profile")
            )
            curves = {name: (here.protocol.steps(), here.returns(name)) for name in here.algorithms}
            learning_curve(curves, efficiency, _title(here))
            final = {name: here.final(name) for name in here.algorithms}
            profile_picture(final, profile, f"{_title(here)}: final returns")
            paths += [efficiency, profile]
    return paths


def _draw_tasks(results: Results, tasks: Tasks, out: Path, suffix: str) -> list[Path]:
    """The pictures over all environments."""
    names = ("intervals", "sample_efficiency", "performance_profile")
    intervals, efficiency, profile = paths = [out / f"{name}{suffix}" for name in names]
    title = f"{', '.join(tasks.final)} on {len(tasks.envs)} environments"
    rows = {
        env: {name: aggregate(x[:, index]) for name, x in tasks.final.items()}
        for index, env in enumerate(tasks.envs)
    }
    rows["all"] = {name: aggregate(x) for name, x in tasks.final.items()}
    note = f"interquartile mean of {_number_of_seeds({len(x) for x in tasks.final.values()})}, 95% interval"
    intervals_picture(rows, intervals, f"{title}: final scores", note)
    steps = results.protocol.steps()
    tasks_curve({name: (steps, curve) for name, curve in tasks.curves.items()}, efficiency, title)
    profile_picture(tasks.final, profile, f"{title}: final scores", "normalised score")
    return paths

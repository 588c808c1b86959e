"""What a comparison says: tables, a verdict in words, and pictures."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from advantage.experiments.plots import learning_curve, profile_picture
from advantage.experiments.results import Results
from advantage.experiments.statistics import (
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

TEXT = "report.md"
PICTURES = ("sample_efficiency", "performance_profile")


@dataclasses.dataclass(frozen=True)
class Report:
    """A comparison in words and numbers.

    Attributes:
        results: all stored lines.
        verdicts: a sentence for each pair of algorithms.
        text: everything, as Markdown; `print(report)` shows it.
        files: what was written.
    """

    results: Results
    verdicts: tuple[str, ...]
    text: str
    files: tuple[Path, ...]

    def __str__(self) -> str:
        return self.text


def write_report(results: Results, out: str | os.PathLike[str]) -> Report:
    """Write `report.md` and the pictures (PNG and SVG) into a folder.

    Without matplotlib there are no pictures, and the report says so.

    Raises:
        ValueError: there are no results.
    """
    if results.protocol is None:
        raise ValueError(f"out={os.fspath(out)!r} holds no results: train some first")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        pictures, missing = _draw(results, out), ""
    except ImportError as error:
        pictures, missing = [], f"No pictures: {error}"
    verdicts = tuple(_verdicts(results))
    shown = [f"![{path.stem.replace('_', ' ')}]({path.name})" for path in pictures if path.suffix == ".png"]
    parts = [f"# {_title(results)}", _protocol(results)]
    if verdicts:
        parts += ["## Verdict", "\n".join(f"- {verdict}." for verdict in verdicts), _caution(results)]
    parts += ["## Final return", _final_table(results), "## Return over training", _curve_table(results)]
    parts += ["## Seeds", _seed_table(results), "## Pictures", *shown, missing]
    text = "\n\n".join(filter(None, parts))
    path = out / TEXT
    path.write_text(text + "\n", encoding="utf-8")
    return Report(results, verdicts, text, (path, *pictures))


def verdict(name_x: str, x: npt.ArrayLike, name_y: str, y: npt.ArrayLike) -> str:
    """Which of two algorithms is better, in words, or how many seeds would be needed to say so.

    One is better where the 95% interval of P(X > Y) leaves out one half and two equal algorithms would
    differ as much in at most one of 20 comparisons (`chance_if_equal`): with few seeds the interval alone
    sees differences where there are none. Otherwise the seeds needed are estimated by `seeds_needed`, which
    draws more and more seeds from those at hand until the interval leaves out one half.

    Args:
        x, y: final scores `[seeds]`.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    chance = probability_of_improvement(x, y)
    if chance.value < 0.5:
        x, y, name_x, name_y, chance = y, x, name_y, name_x, probability_of_improvement(y, x)
    number = _number_of_seeds({x.size, y.size})
    if chance.low is None:
        few = f"{number} {'is' if x.size == y.size == 1 else 'are'} too few for an interval"
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
    needed = max(needed, x.size + 1, y.size + 1)
    # More digits would promise more than such an estimate holds.
    size = 10 ** (len(str(needed)) - 1) if needed > 20 else 1
    return f"about {-(-needed // size) * size:,}"


def _verdicts(results: Results) -> Iterator[str]:
    for x, y in itertools.combinations(results.algorithms, 2):
        yield verdict(x, results.final(x), y, results.final(y))


def _caution(results: Results) -> str:
    """Where many pairs are compared, some differ by chance."""
    if len(results.algorithms) < 3:
        return ""
    return "Each pair is judged alone: of 20 pairs of equal algorithms, about one looks different by chance."


def _title(results: Results) -> str:
    return f"{', '.join(results.algorithms)} on {results.protocol.env}"


def _protocol(results: Results) -> str:
    protocol = results.protocol
    actions = "best" if protocol.deterministic else "sampled"
    lines = [
        f"{protocol.total_timesteps:,} environment steps for each seed; {protocol.evaluations} evaluations, evenly"
        f" spaced, of {protocol.n_eval_episodes} episodes each on separate environments (seeds from"
        f" {protocol.evaluation_seed}), with the {actions} actions. Trained on {', '.join(results.devices())}."
    ]
    for name in results.algorithms:
        settings = ", ".join(f"{key}={value!r}" for key, value in results.settings(name).items())
        lines.append(f"{name}: {settings or 'default settings'}.")
    return "  \n".join(lines)


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


def _draw(results: Results, out: Path) -> list[Path]:
    curves = {name: (results.protocol.steps(), results.returns(name)) for name in results.algorithms}
    final = {name: results.final(name) for name in results.algorithms}
    paths = []
    for suffix in (".png", ".svg"):
        efficiency, profile = (out / f"{name}{suffix}" for name in PICTURES)
        learning_curve(curves, efficiency, _title(results))
        profile_picture(final, profile, f"{_title(results)}: final returns")
        paths += [efficiency, profile]
    return paths

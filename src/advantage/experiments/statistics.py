"""Statistics over seeds and tasks (Agarwal et al., 2021).

Deep RL at the edge of the statistical precipice: https://arxiv.org/abs/2108.13264

Scores are `[seeds, tasks]`, or `[seeds]` for a single task; the higher the better. Tasks of different scales
have to be normalised first. Resampling is stratified: each task's seeds are drawn with replacement from that
task's own. A function that gives an `Estimate` leaves its bounds None with fewer than 3 seeds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

FEWEST_SEEDS = 3
"""With fewer, resampling knows too few outcomes for an interval: none is given."""
SAMPLES = 10_000
CONFIDENCE = 0.95
MOST_SEEDS = 1_000
"""Where `seeds_needed` gives up."""
NUMBERS_AT_ONCE = 4_000_000
"""Resampled scores held at a time: 32 MB."""


class Estimate(NamedTuple):
    """A statistic and its interval; all three are numbers, or arrays of one shape.

    `low` and `high` are None where there are fewer than 3 seeds, and NaN only where a score is.
    """

    value: Any
    low: Any
    high: Any


def iqm(x: npt.ArrayLike, axis: int | None = None) -> Any:
    """Interquartile mean: the mean of what is left without the lowest and highest quarter.

    `floor(n / 4)` values are cut at each end, so with fewer than 4 it is the mean. NaN gives NaN.

    Args:
        x: scores, any shape.
        axis: the axis to reduce; None takes all values together.

    Returns:
        A float64 scalar, or an array without `axis`.

    Raises:
        ValueError: there are no scores along `axis`.
    """
    x = np.asarray(x, dtype=np.float64)
    if x.size == 0:
        raise ValueError(f"iqm needs at least one score, got an array of shape {x.shape}")
    result = stats.trim_mean(x, 0.25, axis=axis)
    # Sorting puts NaN last, where trimming would silently drop it: a diverged seed must show.
    return np.where(np.isnan(x).any(axis=axis), np.nan, result)[()]


def bootstrap_interval(
    per_seed_scores: npt.ArrayLike,
    statistic: Callable[..., Any] = iqm,
    confidence: float | int = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic over seeds.

    Seeds are drawn with replacement, `samples` times; the interval holds the middle `confidence` of the
    statistic's values. With few seeds such intervals are too narrow (3 seeds: treat them as a hint).

    Args:
        per_seed_scores: one score per seed, shape `[seeds]`.
        statistic: called as `statistic(scores [samples, seeds], axis=-1)`, must give `[samples]`.
        confidence: between 0 and 1.
        samples: number of resamples.
        seed: of the resampling: the same scores always give the same interval.

    Returns:
        `(low, high)`. `(nan, nan)` for a single seed, which says nothing about the spread, and where a
        score is NaN.

    Raises:
        ValueError: the scores are not of shape `[seeds]`, or `confidence` is not between 0 and 1.
    """
    scores = np.asarray(per_seed_scores, dtype=np.float64)
    if scores.ndim != 1 or scores.size == 0:
        raise ValueError(f"expected one score per seed, shape [seeds], got shape {scores.shape}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    if scores.size == 1:
        return float("nan"), float("nan")
    drawn = np.random.default_rng(seed).integers(scores.size, size=(samples, scores.size))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(statistic(scores[drawn], axis=-1), [tail, 1.0 - tail])
    return float(low), float(high)


def mean(scores: npt.ArrayLike) -> Any:
    """Mean over seeds and tasks.

    Args:
        scores: `[..., seeds, tasks]`.

    Returns:
        `[...]`, float64.
    """
    return np.mean(np.asarray(scores, np.float64), axis=(-2, -1))


def median(scores: npt.ArrayLike) -> Any:
    """Median over tasks of the mean over seeds.

    Args:
        scores: `[..., seeds, tasks]`.

    Returns:
        `[...]`, float64.
    """
    return np.median(np.mean(np.asarray(scores, np.float64), axis=-2), axis=-1)


def optimality_gap(scores: npt.ArrayLike, target: float | int = 1.0) -> Any:
    """How far scores fall short of `target` on average; what exceeds it does not make up for the others.

    Args:
        scores: `[..., seeds, tasks]`, in `target`'s unit.
        target: the score that is good enough.

    Returns:
        `[...]`, float64, at least 0: the lower the better.
    """
    return target - np.mean(np.minimum(np.asarray(scores, np.float64), target), axis=(-2, -1))


def _iqm(scores: np.ndarray) -> Any:
    """Interquartile mean over seeds and tasks together, of `[..., seeds, tasks]`."""
    return iqm(scores.reshape(*scores.shape[:-2], -1), axis=-1)


AGGREGATES: dict[str, Callable[..., Any]] = {
    "iqm": _iqm,
    "mean": mean,
    "median": median,
    "optimality_gap": optimality_gap,
}


def aggregate(
    scores: npt.ArrayLike,
    statistic: str | Callable[..., Any] = "iqm",
    confidence: float | int = CONFIDENCE,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Estimate:
    """An aggregate over seeds and tasks with its stratified percentile bootstrap interval.

    Args:
        scores: `[seeds, tasks]` or `[seeds]`.
        statistic: "iqm", "mean", "median" or "optimality_gap" (to 1), or a function of scores
            `[samples, seeds, tasks]` that gives `[samples]`.
        confidence: between 0 and 1.
        samples: number of resamples.
        seed: of the resampling: the same scores always give the same interval.

    Returns:
        Floats.

    Raises:
        ValueError: scores of another shape or none, an unknown statistic, or a number out of its range.
    """
    function = _aggregate(statistic)
    scores = _checked("scores", scores, (1, 2))
    curve = _curve(scores[..., None], function, confidence, samples, seed)
    return Estimate(*(None if x is None else float(x[0]) for x in curve))


def sample_efficiency(
    scores: npt.ArrayLike,
    statistic: str | Callable[..., Any] = "iqm",
    confidence: float | int = CONFIDENCE,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Estimate:
    """An aggregate at each time point of training, with pointwise intervals.

    A resample draws whole runs: the same at every point.

    Args:
        scores: `[seeds, tasks, points]`.
        statistic, confidence, samples, seed: as for `aggregate`.

    Returns:
        Arrays `[points]`.

    Raises:
        ValueError: as `aggregate`.
    """
    scores = _checked("scores", scores, (3,))
    return _curve(scores, _aggregate(statistic), confidence, samples, seed)


def performance_profile(
    scores: npt.ArrayLike,
    thresholds: npt.ArrayLike,
    confidence: float | int = CONFIDENCE,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Estimate:
    """The share of runs with a score above each threshold, with pointwise intervals (the paper's eq. 3).

    Args:
        scores: `[seeds, tasks]` or `[seeds]`.
        thresholds: `[thresholds]`, in the scores' unit.
        confidence, samples, seed: as for `aggregate`.

    Returns:
        Arrays `[thresholds]` between 0 and 1.

    Raises:
        ValueError: scores or thresholds of another shape, none or NaN, or a number out of its range.
    """
    scores = _without_nan("scores", _checked("scores", scores, (1, 2)))
    thresholds = _without_nan("thresholds", np.asarray(thresholds, np.float64))
    if thresholds.ndim != 1 or thresholds.size == 0:
        raise ValueError(
            f"thresholds has shape {thresholds.shape}: give a list of numbers, shape [thresholds]"
        )
    above = (scores[..., None] > thresholds).reshape(scores.size, -1).astype(np.float64)
    value = above.mean(axis=0)
    _check_resampling(confidence, samples)
    if len(scores) < FEWEST_SEEDS:
        return Estimate(value, None, None)
    times = _times_drawn(np.random.default_rng(seed), samples, *scores.shape, len(scores))
    drawn = times.reshape(samples, -1) @ above / scores.size
    return Estimate(value, *_percentiles(drawn, confidence))


def probability_of_improvement(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    confidence: float | int = CONFIDENCE,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Estimate:
    """P(X > Y): how likely a run of X scores above a run of Y, on a task drawn at random.

    Ties count as one half, so that P(X > Y) + P(Y > X) = 1. Each side's seeds are resampled on their own.
    Where every run of X lies above every run of Y, so does each resample, and the interval is 1 to 1:
    see `chance_if_equal`.

    Args:
        x: `[seeds of X, tasks]` or `[seeds of X]`.
        y: `[seeds of Y, tasks]` or `[seeds of Y]`, of the same tasks.
        confidence, samples, seed: as for `aggregate`.

    Returns:
        Floats between 0 and 1; the bounds are None where either side has fewer than 3 seeds.

    Raises:
        ValueError: scores of another shape, none or NaN, different tasks, or a number out of its range.
    """
    wins = _wins(x, y)
    _check_resampling(confidence, samples)
    value = float(wins.mean())
    if min(wins.shape[:2]) < FEWEST_SEEDS:
        return Estimate(value, None, None)
    drawn = _resampled_wins(wins, wins.shape[:2], samples, seed)
    low, high = _percentiles(drawn, confidence)
    return Estimate(value, float(low), float(high))


def seeds_needed(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    confidence: float | int = CONFIDENCE,
    samples: int = 2_000,
    seed: int = 0,
) -> int | None:
    """About how many seeds of each would show which of X and Y is better.

    The seeds at hand stand for all that could be drawn: m of each are drawn from them with replacement,
    and the answer is the smallest m for which the bootstrap interval of P(X > Y) lies on one side of one
    half; at least 4 with 95% confidence, since 3 separate by chance too often. This takes today's difference
    for the true one, and at m such an interval still touches one half about every second time: read it as
    an order of magnitude.

    Args:
        x, y, confidence, samples, seed: as for `probability_of_improvement`.

    Returns:
        Seeds of each algorithm; None where 1,000 would not be enough.

    Raises:
        ValueError: as `probability_of_improvement`.
    """
    wins = _wins(x, y)
    _check_resampling(confidence, samples)

    def enough(seeds: int) -> bool:
        low, high = _percentiles(_resampled_wins(wins, (seeds, seeds), samples, seed), confidence)
        return bool(low > 0.5 or high < 0.5)

    few, many = _fewest_to_tell(confidence), MOST_SEEDS
    if not enough(many):
        return None
    while few < many:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(middle) else (middle + 1, many)
    return few


def chance_if_equal(x: npt.ArrayLike, y: npt.ArrayLike, samples: int = SAMPLES, seed: int = 0) -> float:
    """How likely two equal algorithms differ at least as much as X and Y do.

    The two-sided permutation test of P(X > Y) = 1/2 (Mann and Whitney, 1947,
    https://doi.org/10.1214/aoms/1177730491; ties have their mean rank): the runs of each task are dealt out anew,
    in every way where there are one task and at most `samples` ways, else `samples` times by chance. With fewer than
    about 10 seeds the bootstrap interval leaves out one half more often than it promises; this does not.

    Args:
        x: `[seeds of X, tasks]` or `[seeds of X]`.
        y: `[seeds of Y, tasks]` or `[seeds of Y]`, of the same tasks.
        samples, seed: of the dealing.

    Returns:
        A probability above 0: on one task 1 in 10 where 3 runs of X lie above 3 of Y, 1 in 35 for 4.

    Raises:
        ValueError: scores of another shape, none or NaN, or different tasks.
    """
    x, y = _same_tasks(x, y)
    ranks, count = stats.rankdata(np.concatenate([x, y]), axis=0), len(x)  # [runs, tasks]
    middle = count * ranks.mean(axis=0).sum()
    seen = abs(ranks[:count].sum() - middle)
    if ranks.shape[1] == 1 and math.comb(len(ranks), count) <= samples:
        dealt = ranks[:, 0][np.array(list(itertools.combinations(range(len(ranks)), count)))]
        extra = 0  # the runs as they are, are among them
    else:
        rows = np.broadcast_to(ranks, (samples, *ranks.shape))
        dealt = np.random.default_rng(seed).permuted(rows, axis=1)[:, :count].reshape(samples, -1)
        extra = 1
    # Mean ranks are halves, which are exact; their mean need not be.
    as_far = np.abs(dealt.sum(axis=1) - middle) >= seen - 1e-9
    return float((as_far.sum() + extra) / (len(dealt) + extra))


def _fewest_to_tell(confidence: float | int) -> int:
    """Seeds of each with which a complete separation is no longer likely by chance."""
    seeds = FEWEST_SEEDS
    while 2.0 / math.comb(2 * seeds, seeds) > 1.0 - confidence:
        seeds += 1
    return seeds


def _aggregate(statistic: str | Callable[..., Any]) -> Callable[..., Any]:
    if callable(statistic):
        return statistic
    if statistic not in AGGREGATES:
        raise ValueError(f"statistic={statistic!r} is not known: choose from {', '.join(AGGREGATES)}")
    return AGGREGATES[statistic]


def _curve(
    scores: np.ndarray, function: Callable[..., Any], confidence: float | int, samples: int, seed: int
) -> Estimate:
    """`function` of scores `[seeds, tasks, points]` at each point, with its interval."""
    _check_resampling(confidence, samples)
    points = np.moveaxis(scores, -1, 0)
    value = np.asarray(function(points), np.float64)
    if len(scores) < FEWEST_SEEDS:
        return Estimate(value, None, None)
    drawn = [np.empty((0, len(points)))]
    for rows in _drawn_seeds(np.random.default_rng(seed), samples, *scores.shape[:2]):
        tasks = np.arange(scores.shape[1])
        # Point by point: together they would take `points` times the memory.
        drawn.append(np.stack([np.asarray(function(point[rows, tasks])) for point in points], axis=-1))
    return Estimate(value, *_percentiles(np.concatenate(drawn), confidence))


def _drawn_seeds(rng: np.random.Generator, samples: int, seeds: int, tasks: int) -> Iterator[np.ndarray]:
    """Indices of the seeds drawn for each task, `[some samples, seeds, tasks]`, a part at a time."""
    part = max(1, NUMBERS_AT_ONCE // (seeds * tasks))
    for begin in range(0, samples, part):
        yield rng.integers(seeds, size=(min(part, samples - begin), seeds, tasks))


def _times_drawn(rng: np.random.Generator, samples: int, seeds: int, tasks: int, draws: int) -> np.ndarray:
    """How often each seed of each task is drawn, `[samples, seeds, tasks]`, when `draws` are."""
    times = rng.multinomial(draws, np.full(seeds, 1.0 / seeds), size=(samples, tasks))
    return np.swapaxes(times, 1, 2).astype(np.float64)


def _wins(x: npt.ArrayLike, y: npt.ArrayLike) -> np.ndarray:
    """`[seeds of X, seeds of Y, tasks]`: 1 where X is above Y, one half where they tie."""
    x, y = _same_tasks(x, y)
    x, y = x[:, None], y[None, :]
    return (x > y) + 0.5 * (x == y)


def _same_tasks(x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both as `[seeds, tasks]`."""
    x, y = (_without_nan(n, _checked(n, v, (1, 2))) for n, v in (("x", x), ("y", y)))
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x has {x.shape[1]} tasks and y has {y.shape[1]}: compare scores of the same tasks")
    return x, y


def _resampled_wins(wins: np.ndarray, draws: tuple[int, ...], samples: int, seed: int) -> np.ndarray:
    """P(X > Y) in each resample of `draws` seeds of X and of Y, `[samples]`."""
    rng = np.random.default_rng(seed)
    seeds_x, seeds_y, tasks = wins.shape
    times_x = _times_drawn(rng, samples, seeds_x, tasks, draws[0])
    times_y = _times_drawn(rng, samples, seeds_y, tasks, draws[1])
    total = np.einsum("bit,ijt,bjt->b", times_x, wins, times_y, optimize=True)
    return total / (draws[0] * draws[1] * tasks)


def _percentiles(drawn: np.ndarray, confidence: float | int) -> tuple[Any, Any]:
    """The bounds of the middle `confidence` of `[samples, ...]`."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(drawn, [tail, 1.0 - tail], axis=0)
    return low, high


def _checked(name: str, scores: npt.ArrayLike, dimensions: tuple[int, ...]) -> np.ndarray:
    """Scores as `[seeds, tasks, ...]`."""
    scores = np.asarray(scores, np.float64)
    if scores.ndim not in dimensions or scores.size == 0:
        expected = " or ".join(
            ("[seeds]", "[seeds, tasks]", "[seeds, tasks, points]")[d - 1] for d in dimensions
        )
        raise ValueError(f"{name} has shape {scores.shape}: give at least one score, shape {expected}")
    return scores[:, None] if scores.ndim == 1 else scores


def _without_nan(name: str, values: np.ndarray) -> np.ndarray:
    """NaN is neither above nor below anything: comparing would count it silently."""
    if np.isnan(values).any():
        place = tuple(np.argwhere(np.isnan(values))[0].tolist())
        raise ValueError(f"{name} is NaN at {place}: leave that run out, or give it its worst score")
    return values


def _check_resampling(confidence: float | int, samples: int) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence={confidence} has to lie between 0 and 1: 0.95 is usual")
    if samples < 1:
        raise ValueError(f"samples={samples} has to be at least 1: {SAMPLES} is usual")

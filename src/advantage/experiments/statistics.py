"""Statistics over seeds: interquartile mean and bootstrap interval (Agarwal et al., 2021).

Deep RL at the edge of the statistical precipice: https://arxiv.org/abs/2108.13264
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats


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

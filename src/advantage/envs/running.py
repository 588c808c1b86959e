"""What `VecNormalize` keeps, running statistics, and what it gives, observations that are marked as normalised."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from advantage.equations.moments import PRIOR, combined


class RunningMeanStd:
    """Mean and variance of what has been seen, in float64, as SB3's of this name."""

    def __init__(self, epsilon: float = PRIOR, shape: tuple[int, ...] = ()):
        self.mean, self.var, self.count = np.zeros(shape), np.ones(shape), float(epsilon)

    def update(self, arr: np.ndarray) -> None:
        """See a batch `[N, *shape]`."""
        arr = np.asarray(arr)
        mean, var = (np.asarray(x, np.float64) for x in (arr.mean(axis=0), arr.var(axis=0)))
        self.update_from_moments(mean, var, len(arr))

    def update_from_moments(self, batch_mean: np.ndarray, batch_var: np.ndarray, batch_count: int | float) -> None:
        """See a batch of which mean, variance and length are known."""
        mean, var = combined(self.mean, self.var, self.count, batch_mean, batch_var, float(batch_count))
        self.mean, self.var = np.asarray(mean), np.asarray(var)
        self.count += batch_count

    def combine(self, other: RunningMeanStd) -> None:
        """See what another has seen."""
        self.update_from_moments(other.mean, other.var, other.count)

    def copy(self) -> RunningMeanStd:
        """A copy of its own."""
        return copy.deepcopy(self)


class NormalisedArray(np.ndarray):
    """Observations that are normalised already: `predict` leaves them as they are.

    Views of it (`obs[0]`) are marked too; what is computed from it is a plain array.
    """

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = (), **kwargs: Any) -> Any:
        inputs = tuple(x.view(np.ndarray) if isinstance(x, NormalisedArray) else x for x in inputs)
        if out:
            kwargs["out"] = tuple(x.view(np.ndarray) if isinstance(x, NormalisedArray) else x for x in out)
        return getattr(ufunc, method)(*inputs, **kwargs)


def is_normalised(obs: Any) -> bool:
    """Whether observations come from a `VecNormalize`."""
    return any(isinstance(x, NormalisedArray) for x in (obs.values() if isinstance(obs, Mapping) else (obs,)))


def check_shapes(given: Mapping[str, Any], expected: Mapping[str, RunningMeanStd], what: str) -> None:
    """Raise `ValueError` unless these are statistics of arrays of these keys and shapes."""

    def shapes(statistics: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return {name: np.shape(rms.mean) for name, rms in statistics.items()}

    found, wanted = shapes(given), shapes(expected)
    if found != wanted:
        name = next(k for k in {**wanted, **found} if found.get(k) != wanted.get(k))
        of = f" of {name!r}" if name not in ("", "obs") else ""
        raise ValueError(
            f"{what}: statistics{of} have shape {found.get(name, 'none')}, the environment's observations"
            f" {wanted.get(name, 'none')}: give statistics of the same observation space"
        )

"""What the drivers share: random streams, scheduled hyper-parameters, reports."""

import collections
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, UInt32

from advantage.equations.schedules import Schedule


class Report(NamedTuple):
    """What a driver says after an update (host) or a segment of updates (fused)."""

    steps: int  # environment steps done by the seed that has done the least
    updates: int  # updates since the last report
    metrics: Mapping[str, Any]  # [S] each, of the last update; those of `fused` on the device until read


class Recent(NamedTuple):
    """The last finished episodes of one seed, oldest first."""

    returns: np.ndarray  # [episodes]
    lengths: np.ndarray  # [episodes]
    total: int  # episodes finished so far


UNSUMMED = 64
"""Rows of rewards added up at once: one by one they would take 3 us a step."""


class Episodes:
    """Running and finished episodes of host environments `[S, N]`."""

    def __init__(self, num_seeds: int, num_envs: int, window: int):
        self.returns, self.unsummed = np.zeros((num_seeds, num_envs)), []
        # Lengths are differences: to count one row for all is cheaper than one for each.
        self.rows, self.began = 0, np.zeros((num_seeds, num_envs), np.int64)
        self.finished = [collections.deque(maxlen=window) for _ in range(num_seeds)]
        self.totals = [0] * num_seeds

    def begin(self) -> None:
        """New episodes everywhere."""
        self.unsummed.clear()
        self.returns[:], self.began[:] = 0.0, self.rows

    def count(
        self, reward: np.ndarray, valid: np.ndarray | None, done: np.ndarray | None, begun: np.ndarray | None = None
    ) -> None:
        """Add a row `[S, N]`; `valid` is None where all count, `done` where none ended.

        `begun` says where an episode begins after the row: if the row does not count, what went on is lost.
        """
        self.rows += 1
        lost = None if valid is None or begun is None else begun & ~valid
        if valid is not None:
            self.began += ~valid
        self.unsummed.append(reward.copy() if valid is None else np.where(valid, reward, 0.0))
        if done is None and lost is None and len(self.unsummed) < UNSUMMED:
            return
        self.returns += np.sum(self.unsummed, axis=0, dtype=np.float64)
        self.unsummed.clear()
        if lost is not None:
            self.returns[lost], self.began[lost] = 0.0, self.rows
        if done is None:
            return
        for s, n in zip(*np.nonzero(done if valid is None else done & valid), strict=True):
            self.finished[s].append((self.returns[s, n], self.rows - self.began[s, n]))
            self.totals[s] += 1
            self.returns[s, n], self.began[s, n] = 0.0, self.rows

    def recent(self, seed_index: int) -> Recent:
        """The last finished episodes of a seed."""
        finished = np.array(self.finished[seed_index], np.float64).reshape(-1, 2)
        return Recent(finished[:, 0], finished[:, 1], self.totals[seed_index])


def streams(seed: int) -> UInt32[np.ndarray, "3 2"]:
    """Independent keys of one seed for initialisation, acting and the environments.

    Every seed has its own, whatever others run beside it; nothing else draws from them. Hashed by NumPy:
    JAX would compile three small programs for it.
    """
    return np.random.SeedSequence(seed, spawn_key=(0,)).generate_state(6).reshape(3, 2)


def environment_seeds(seed: int, num_envs: int) -> np.ndarray:
    """Reset seeds of one seed's host environments `[N]`, hashed so that neighbouring seeds share none."""
    return np.random.SeedSequence(seed).generate_state(num_envs).astype(np.int64) & 0x7FFFFFFF


def resolve(config: Any, names: tuple[str, ...], values: Float[Array, " K"]) -> Any:
    """The config with its scheduled fields set to numbers."""
    return dataclasses.replace(config, **{name: values[i] for i, name in enumerate(names)})


def scheduled_values(
    schedules: Mapping[str, Schedule], progress_remaining: np.ndarray
) -> Float[np.ndarray, "*points K"]:
    """Each schedule (sorted by name) at each remaining progress; last axis K, of length 0 without any."""
    names = sorted(schedules)
    if not names:
        return np.zeros((*progress_remaining.shape, 0), np.float32)
    rows = [[float(schedules[name](p)) for name in names] for p in progress_remaining.ravel().tolist()]
    return np.array(rows, np.float32).reshape(*progress_remaining.shape, len(names))


def compiled_quickly(function: Callable, **options: Any) -> Callable:
    """`jax.jit` for what runs once: not optimised, it compiles in half the time."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)


def over_seeds(num_seeds: int) -> Callable[[Callable], Callable]:
    """Map over the seeds axis; a single seed runs the plain function, which compiles to faster code."""
    if num_seeds > 1:
        return jax.vmap

    def single(function: Callable) -> Callable:
        def mapped(*arguments):
            out = function(*jax.tree.map(lambda x: x[0], arguments))
            return jax.tree.map(lambda x: x[None], out)

        return mapped

    return single

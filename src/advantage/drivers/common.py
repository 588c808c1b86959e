"""What the drivers share: random streams, scheduled hyper-parameters, reports."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, UInt32

from advantage.equations.schedules import Schedule
from advantage.types import Metrics


class Report(NamedTuple):
    """What a driver says after an update (host) or a segment of updates (fused)."""

    steps: int  # environment steps done by the seed that has done the least
    updates: int  # updates since the last report
    metrics: Metrics  # [S] each, of the last update; on the device until read


class Recent(NamedTuple):
    """The last finished episodes of one seed, oldest first."""

    returns: np.ndarray  # [episodes]
    lengths: np.ndarray  # [episodes]
    total: int  # episodes finished so far


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
    rows = [[float(schedules[name](p)) for name in names] for p in progress_remaining.ravel().tolist()]
    return np.array(rows, np.float32).reshape(*progress_remaining.shape, len(names))


def compiled_quickly(function: Callable, **options: Any) -> Callable:
    """`jax.jit` for what runs once: not optimised, it compiles in half the time."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)

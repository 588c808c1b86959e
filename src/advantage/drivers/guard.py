"""What is done where something is NaN or infinite: it is named, never learned from, and kept for a second look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from advantage.envs.check import first_bad_row
from advantage.envs.vector import EnvironmentFailure

if TYPE_CHECKING:
    from advantage.drivers.fused import FusedDriver
    from advantage.drivers.host import HostDriver


class NotFinite(EnvironmentFailure):
    """An environment gave NaN or infinity: `what` it gave to which agent, at which step."""

    seed_index: int
    what: str
    step: int


class Failing(NamedTuple):
    """What an agent could not learn from."""

    state: PyTree  # of the seed, before
    given: PyTree  # a chunk, or a minibatch where the algorithm learns from its memory
    memory: PyTree = ()  # beside a chunk


def bad_row(rollout: Any, seeds: Sequence[int], steps: np.ndarray) -> NotFinite | None:
    """The first row `[S, T, N]` of a rollout that is not finite; `steps [S]` were taken at its end."""
    for s, seed in enumerate(seeds):
        chunk = jax.tree.map(lambda x, s=s: x[s], rollout).chunk(())
        if (found := first_bad_row(chunk)) is not None:
            taken, n, name = found
            step = int(steps[s] - chunk.valid.sum()) + taken
            return not_finite(s, f"env {n} of seed {seed} gave {'a' if name == 'reward' else 'an'} {name}", step)
    return None


def not_finite(seed_index: int, gave: str, step: int) -> NotFinite:
    """The error for what an environment `gave`."""
    failure = NotFinite(
        f"{gave} that is NaN or infinite, at step {step:,}: the agent has not learned from it; mend the environment"
    )
    failure.seed_index, failure.what, failure.step = seed_index, gave, step
    return failure


def failing_on_host(driver: HostDriver, config: Any, seed_index: int, learned: bool) -> Failing:
    """What the last update failed on; or, where nothing was `learned`, the chunk that was refused."""
    if learned and driver.agent.drawn is not None:
        # In the program: a seed's memory would be copied.
        drawn = jax.jit(lambda held: driver.agent.drawn(config, *jax.tree.map(lambda x: x[seed_index], held)))
        return Failing(*drawn((driver.state, driver.memory)))
    before = map(np.asarray, driver._before)  # on the device a program would be compiled for each leaf
    state, memory = driver._layout.unpack(tuple(before)) if learned else (driver.state, ())
    rows = driver._spare
    held = (state, memory, rows.arrays, rows.carry)
    state, memory, arrays, carry = jax.tree.map(lambda x: np.array(x[seed_index]), held)
    return Failing(state, arrays.chunk(carry), memory)


def failing_on_device(driver: FusedDriver, config: Any, names: tuple[str, ...], seed_index: int) -> Failing:
    """What the last update failed on: the segment is repeated up to it."""
    from advantage.drivers.fused import _collect, resolve

    group, place = divmod(seed_index, driver.width)

    def one(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x[place], tree)

    if driver.agent.drawn is not None:
        run = one(driver._groups[group])
        return Failing(*jax.jit(lambda state, memory: driver.agent.drawn(config, state, memory))(run.state, run.memory))
    runs, values, remaining = driver._before
    last = int(driver._done[seed_index]) - 1
    bounds = driver._place(np.full(driver.width, last, np.int32))
    run, _ = driver._programs(config, names).segment(runs[group], values, bounds, remaining)
    per_update = config.steps_per_update * driver.num_envs
    acting = resolve(config, names, jnp.asarray(values[last]))
    collect = jax.jit(lambda run, left, offset: _collect(driver.agent, acting, driver.env, run, left, offset))
    run, chunk = collect(one(run), remaining - last * per_update, np.int32(last * per_update))
    return Failing(run.state, chunk, run.memory)

"""The update of off-policy algorithms: remember a chunk, then learn from what is remembered."""

import fractions
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from advantage.equations.threefry import written_out
from advantage.memory import uniform
from advantage.types import NONFINITE, Chunk, Metrics, Spec, require


def frequency(config: Any) -> tuple[int, str]:
    """`train_freq` as `(k, unit)`.

    Raises:
        ValueError: it is neither a positive number nor such a pair.
    """
    given = config.train_freq
    pair = (given, "step") if isinstance(given, int) else given
    fits = isinstance(pair, tuple) and len(pair) == 2 and type(pair[0]) is int and pair[1] in ("step", "episode")
    if not fits or pair[0] < 1:
        raise ValueError(
            f"train_freq={given!r} is not understood: give a positive number of steps, (k, 'step') or (k, 'episode')"
        )
    return pair


def steps_per_update(config: Any) -> int:
    """T, in steps of the whole vector of environments (the least, where episodes are counted)."""
    count, unit = frequency(config)
    return count if unit == "step" else 1


def episodes_per_update(config: Any) -> int | None:
    """Episodes that make an update, where `train_freq` counts episodes."""
    count, unit = frequency(config)
    return count if unit == "episode" else None


def observe(config: Any, state: Any, chunk: Chunk) -> Any:
    """Count a chunk's steps in `state.steps`, up to 2^31 - 1."""
    collected = jnp.sum(chunk.valid, dtype=jnp.int32)
    return state._replace(steps=state.steps + jnp.minimum(collected, jnp.iinfo(jnp.int32).max - state.steps))


def check_replay(config: Any, num_envs: int) -> None:
    """Raise `ValueError` for settings of replay and of its updates that cannot work."""
    require(config, 1, math.inf, "buffer_size", "batch_size", "n_steps")
    require(config, 0, math.inf, "learning_starts")
    require(config, -1, math.inf, "gradient_steps")
    if config.buffer_size < config.batch_size:
        raise ValueError(
            f"batch_size={config.batch_size} is larger than buffer_size={config.buffer_size}:"
            " raise buffer_size or lower batch_size"
        )
    rows = config.buffer_size // num_envs
    if rows < max(config.steps_per_update, config.n_steps):
        raise ValueError(
            f"buffer_size={config.buffer_size} holds {rows} rows for each of"
            f" {num_envs} environments, fewer than one update collects ({config.steps_per_update}) or"
            f" n_steps={config.n_steps} needs: raise buffer_size"
        )
    if config.updates_per_step is not None and not 1 / FINEST <= config.updates_per_step <= MOST_UPDATES:
        raise ValueError(
            f"updates_per_step={config.updates_per_step!r} is out of range: give gradient steps for each environment"
            f" step, between {1 / FINEST} and {MOST_UPDATES}, or None"
        )


def gradient_steps(config: Any, before: Array, collected: Array) -> Array:
    """How many gradient steps follow `collected` environment steps, of which `before` came earlier.

    By `updates_per_step` what is owed after all steps, less what was owed before: fractions are not lost.
    """
    if config.updates_per_step is None:
        return collected if config.gradient_steps < 0 else jnp.int32(config.gradient_steps)
    ratio = fractions.Fraction(config.updates_per_step).limit_denominator(FINEST)
    top, bottom = ratio.numerator, ratio.denominator
    within = before % bottom  # as good as `before`, and no product overflows
    return (within + collected) * top // bottom - within * top // bottom


def init_memory(config: Any, spec: Spec, num_envs: int) -> uniform.Replay:
    """An empty uniform replay of `config.buffer_size` rows over all environments."""
    return uniform.init(spec, num_envs, config.buffer_size)


def drawn(config: Any, state: Any, memory: uniform.Replay) -> tuple[Any, uniform.Batch]:
    """What the next call of `learn` gets: the state with its key moved on, and a minibatch."""
    key, sample_key = jax.random.split(written_out(state.key))
    batch = uniform.sample(memory, sample_key, config.batch_size, config.n_steps, config.gamma)
    return state._replace(key=jax.random.key_data(key)), batch


def remember(algorithm: Any, config: Any, acted: Any, memory: uniform.Replay, chunk: Chunk) -> uniform.Replay:
    """Append a chunk's valid rows; `acted`, the state that acted, matters to policies with a memory only."""
    return uniform.push(memory, chunk)


MOST_UPDATES, FINEST = 1000, 1000  # per step, and parts of one that are told apart


@functools.cache
def replayed_update(
    algorithm: Any, remember: Callable[..., Any] = remember, drawn: Callable[..., Any] = drawn
) -> Callable[..., tuple[Any, uniform.Replay, Metrics]]:
    """`update(config, state, memory, chunk)` of an off-policy algorithm (see `types.Algorithm`).

    `observe`, `push`, then `sample` and `learn` for `config.gradient_steps` times (-1: as often as rows were
    collected), or by `config.updates_per_step`; none before more than `config.learning_starts` rows are remembered. One loop with a traced
    bound: neither compile time nor a branch depends on the number of steps. `remember` and `drawn` are those of the
    memory: single steps, or windows of them (`sequences`).
    """

    def update(config: Any, state: Any, memory: uniform.Replay, chunk: Chunk):
        acted, before = state, state.steps
        state = algorithm.observe(config, state, chunk)
        memory = remember(algorithm, config, acted, memory, chunk)
        collected = jnp.sum(chunk.valid.astype(jnp.int32))
        wanted = gradient_steps(config, before, collected)
        # What counts is what is remembered: a model loaded from a file comes without its memory. Rows relabelled in
        # hindsight are remembered too, and are no steps.
        held, capacity = jnp.sum(memory.size), memory.reward.shape[0]
        begun = jnp.minimum(held, state.steps) > config.learning_starts
        # A ring that cannot hold as many as `learning_starts` begins when steps could have filled it.
        full = (held == capacity) & (state.steps >= min(capacity, config.learning_starts + 1))
        # Nothing collected, nothing to learn from: an all-invalid chunk changes no bit.
        ready = (begun | full) & (collected > 0)
        bound = jnp.where(ready, wanted, 0)

        def learn_once(before: Any) -> tuple[Any, Metrics]:
            state, metrics = algorithm.learn(config, *drawn(config, before, memory))
            # A batch with which nothing can be learned is drawn again and again, so that it is found in the end.
            bad = metrics[NONFINITE] > 0
            return state._replace(key=jnp.where(bad, before.key, state.key)), metrics

        def step(_: Array, carry: tuple[Any, Metrics]) -> tuple[Any, Metrics]:
            state, metrics = learn_once(carry[0])
            return state, jax.tree.map(jnp.add, carry[1], metrics)

        _, metrics = jax.eval_shape(learn_once, state)
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)
        state, total = jax.lax.fori_loop(0, bound, step, (state, zero))
        done = bound.astype(jnp.float32)  # 0 / 0: NaN, shown as nothing, where nothing was learned
        # The count of steps left out stays a count: drivers add it up over updates.
        metrics = {name: x if name == NONFINITE else x / done for name, x in total.items()}
        metrics["train/n_updates"] = state.n_updates.astype(jnp.float32)
        return state, memory, metrics

    return update

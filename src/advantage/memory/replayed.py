"""The update of off-policy algorithms: remember a chunk, then learn from what is remembered."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from advantage.equations.threefry import written_out
from advantage.memory import uniform
from advantage.types import NONFINITE, Chunk, Metrics, Spec


def init_memory(config: Any, spec: Spec, num_envs: int) -> uniform.Replay:
    """An empty uniform replay of `config.buffer_size` rows over all environments."""
    return uniform.init(spec, num_envs, config.buffer_size)


def drawn(config: Any, state: Any, memory: uniform.Replay) -> tuple[Any, uniform.Batch]:
    """What the next call of `learn` gets: the state with its key moved on, and a minibatch."""
    key, sample_key = jax.random.split(written_out(state.key))
    batch = uniform.sample(memory, sample_key, config.batch_size, config.n_steps, config.gamma)
    return state._replace(key=jax.random.key_data(key)), batch


@functools.cache
def replayed_update(algorithm: Any) -> Callable[..., tuple[Any, uniform.Replay, Metrics]]:
    """`update(config, state, memory, chunk)` of an off-policy algorithm (see `types.Algorithm`).

    `observe`, `push`, then `sample` and `learn` for `config.gradient_steps` times (-1: as often as rows were
    collected), none before more than `config.learning_starts` rows are remembered. One loop with a traced
    bound: neither compile time nor a branch depends on the number of steps.
    """

    def update(config: Any, state: Any, memory: uniform.Replay, chunk: Chunk):
        state = algorithm.observe(config, state, chunk)
        memory = uniform.push(memory, chunk)
        collected = jnp.sum(chunk.valid.astype(jnp.int32))
        wanted = collected if config.gradient_steps < 0 else jnp.int32(config.gradient_steps)
        # What counts is what is remembered: a model loaded from a file comes without its memory.
        held, capacity = jnp.sum(memory.size), memory.reward.shape[0]
        # Nothing collected, nothing to learn from: an all-invalid chunk changes no bit.
        ready = ((held > config.learning_starts) | (held == capacity)) & (collected > 0)
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

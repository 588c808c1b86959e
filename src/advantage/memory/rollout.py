"""What on-policy algorithms make of a rollout: advantages and returns, flat rows, minibatches in random order."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from advantage.equations.distributions import Key
from advantage.equations.objectives import explained_variance
from advantage.equations.returns import Scalar, generalised_advantage
from advantage.types import Chunk, Metrics, successor_values


class Estimates(NamedTuple):
    """What the value function says of each row of a chunk."""

    value: Float[Array, "T N"]
    advantage: Float[Array, "T N"]
    returns: Float[Array, "T N"]  # what the value function is to learn


def estimates(
    value_fn: Callable[[PyTree], Float[Array, "..."]], chunk: Chunk, gamma: Scalar, gae_lambda: Scalar
) -> Estimates:
    """Generalised advantages of a sanitised chunk, by the value function that acted.

    With `gae_lambda` 1 the returns are rewards-to-go: sums of all that followed, in which the value function stands
    for what would have followed where an episode or the chunk was cut.
    """
    value, next_value = successor_values(value_fn, chunk)
    # Nothing is known beyond the last valid row: what follows it counts for nothing but its own value.
    ended = chunk.terminated | chunk.truncated | ~chunk.valid
    value, next_value = jax.tree.map(lambda x: jnp.where(chunk.valid, x, 0.0), (value, next_value))
    advantage = generalised_advantage(chunk.reward, value, next_value, ended, gamma, gae_lambda)
    return Estimates(value, advantage, advantage + value)


def policy_actions(chunk: Chunk) -> Array:
    """The actions `[T, N]` or `[T, N, D]`: distributions hold components along one axis, whatever the space's shape."""
    return chunk.action.reshape(*chunk.valid.shape, -1) if chunk.action.ndim > 2 else chunk.action


def flat_rows(rows: PyTree[Array]) -> PyTree[Array]:
    """`[T, N, ...]` to `[T*N, ...]`."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)


def rollout_metrics(network: Any, rows: Any, n_updates: Array) -> Metrics:
    """What is logged of a whole rollout: its `rows` hold value, returns and weight, `network` is the one after it."""
    metrics = {"train/explained_variance": explained_variance(rows.value, rows.returns, rows.weight)}
    if network.actor.log_std is not None:
        metrics["train/std"] = jnp.mean(network.actor.std())
    return metrics | {"train/n_updates": n_updates.astype(jnp.float32)}


def shuffled(key: Key, weight: Float[Array, " R"], n_epochs: int, batch_size: int) -> Int[Array, "M B"]:
    """Row numbers of every minibatch: all rows in each epoch, in a random order, full minibatches first.

    Rows of weight 0 come last, and then the padding of the last minibatch, numbers from R on.
    """
    count = weight.shape[0] + -weight.shape[0] % batch_size
    drawn = jax.random.bits(key, (n_epochs * count,)).reshape(n_epochs, count) >> 1
    drawn = jnp.where(pad(weight, count - weight.shape[0])[None] > 0, drawn, jnp.uint32(0xFFFFFFFF))
    index_bits = (count - 1).bit_length()
    if index_bits > 15:  # too few bits would be left to draw: equal ones keep their order
        return jnp.argsort(drawn, axis=1).reshape(-1, batch_size)
    # A row's number rides in the low bits of what was drawn: numbers sort six times faster than pairs.
    mask = jnp.uint32(2**index_bits - 1)
    order = jnp.sort(drawn & ~mask | jnp.arange(count, dtype=jnp.uint32)[None], axis=1) & mask
    return order.astype(jnp.int32).reshape(-1, batch_size)


def padded(rows: PyTree[Array], batch_size: int) -> PyTree[Array]:
    """Rows `[R, ...]` with zeros behind them up to a whole number of minibatches: what `shuffled` counts in."""
    return jax.tree.map(lambda x: pad(x, -x.shape[0] % batch_size), rows)


def pad(x: Array, count: int) -> Array:
    """`x` with `count` rows of zeros behind it."""
    return jnp.concatenate([x, jnp.zeros((count, *x.shape[1:]), x.dtype)]) if count else x

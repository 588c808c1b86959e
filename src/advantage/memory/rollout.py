"""What on-policy algorithms make of a rollout: advantages and returns, flat rows, minibatches in random order."""

import math
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


def in_minibatches(config: Any, key: Key, rows: Any) -> tuple[Int[Array, "M B"], Any]:
    """The row numbers of `n_epochs` passes in minibatches, and the rows `[R, ...]` with zeros behind them.

    Rows of a policy that remembers stay together: a minibatch holds as many whole windows as `batch_size` allows.
    """
    if config.recurrence is None:
        chosen = shuffled(key, rows.weight, config.n_epochs, config.batch_size)
        return chosen, padded(rows, config.batch_size)
    length = sequence_length(config)
    chosen = shuffled_windows(key, rows.weight, config.n_epochs, config.batch_size // length, config.n_steps, length)
    return chosen, jax.tree.map(lambda x: pad(x, 1), rows)


def shuffled_windows(
    key: Key, weight: Float[Array, " R"], n_epochs: int, count: int, n_steps: int, length: int
) -> Int[Array, "M LB"]:
    """As `shuffled`, minibatches of `count` windows of `length` steps of one environment, step by step.

    Rows that a window has beyond the rollout's end, and those of the padding, have number R.
    """
    num_envs, starts = weight.shape[0] // n_steps, -(-n_steps // length)
    there = pad(weight, (starts * length - n_steps) * num_envs).reshape(starts, length, num_envs)
    window = shuffled(key, jnp.max(there, axis=1).reshape(-1), n_epochs, count)
    step = (window // num_envs * length)[:, None] + jnp.arange(length, dtype=jnp.int32)[None, :, None]
    row = step * num_envs + (window % num_envs)[:, None]
    return jnp.minimum(row, weight.shape[0]).reshape(window.shape[0], -1)


def sequence_length(config: Any) -> int:
    """Steps of a sequence along which a policy that remembers learns.

    Algorithms with minibatches cut a rollout into as few equal windows as can be of at most `sequence_length` steps;
    others learn along the whole rollout.
    """
    longest = config.recurrence.sequence_length if hasattr(config, "batch_size") else config.n_steps
    return -(-config.n_steps // -(-config.n_steps // longest))


def check_sequences(config: Any) -> None:
    """Raise `ValueError` for settings with which a policy that remembers cannot learn."""
    if config.recurrence is None:
        return
    if config.net_arch.shared:
        raise ValueError(
            f"net_arch shares layers {config.net_arch.shared}, and policy and value function of a recurrent policy"
            " remember for themselves: give net_arch=dict(pi=[...], vf=[...])"
        )
    if getattr(config, "batch_size", math.inf) < sequence_length(config):
        raise ValueError(
            f"batch_size={config.batch_size} counts steps, and is less than one window of {sequence_length(config)}"
            " steps: raise batch_size or lower policy_kwargs['sequence_length']"
        )


def odd_minibatch(config: Any, num_envs: int) -> list[str]:
    """A note where the last minibatch of each epoch is smaller than the others."""
    if config.recurrence is None:
        unit, rows, size = "rows", config.n_steps * num_envs, config.batch_size
    else:
        length = sequence_length(config)
        unit, rows, size = f"windows of {length} steps", -(-config.n_steps // length) * num_envs, config.batch_size // length
    if rows % size == 0:
        return []
    return [
        f"batch_size={config.batch_size} does not divide the rollout of {rows} {unit}: the last"
        f" minibatch of each epoch has {rows % size}"
    ]


def padded(rows: PyTree[Array], batch_size: int) -> PyTree[Array]:
    """Rows `[R, ...]` with zeros behind them up to a whole number of minibatches: what `shuffled` counts in."""
    return jax.tree.map(lambda x: pad(x, -x.shape[0] % batch_size), rows)


def pad(x: Array, count: int) -> Array:
    """`x` with `count` rows of zeros behind it."""
    return jnp.concatenate([x, jnp.zeros((count, *x.shape[1:]), x.dtype)]) if count else x

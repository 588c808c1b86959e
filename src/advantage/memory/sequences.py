"""Replay for policies that remember: windows of consecutive rows, each with what the actor remembered before it.

Stored state and burn-in (Kapturowski et al., 2019, https://openreview.net/forum?id=r1lyTjAqYX): a window begins with
the carry that acted, and its first `burn_in` rows bring the memories up to the parameters of today.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from advantage.equations.distributions import Key
from advantage.equations.returns import Scalar
from advantage.memory import frames, uniform
from advantage.memory.uniform import Batch, Replay
from advantage.networks.recurrent import Carry, Windows, empty_carry
from advantage.types import Chunk, Observed, Spec, sanitise


def check_windows(config: Any, num_envs: int) -> None:
    """Raise `ValueError` for settings with which a policy that remembers cannot learn."""
    length, burn_in = config.recurrence.sequence_length, config.recurrence.burn_in
    if config.n_steps > 1:
        raise ValueError(f"n_steps={config.n_steps} cannot be used with a recurrent policy: leave n_steps out")
    if getattr(config, "use_sde", False):
        raise ValueError("use_sde=True cannot be used with a recurrent policy: leave use_sde out, or give action_noise")
    if config.batch_size < length:
        raise ValueError(
            f"batch_size={config.batch_size} counts steps, and is less than one window of"
            f" sequence_length={length}: raise batch_size or lower policy_kwargs['sequence_length']"
        )
    rows = config.buffer_size // num_envs
    if rows < burn_in + length:
        raise ValueError(
            f"buffer_size={config.buffer_size} holds {rows} rows for each of {num_envs} environments, fewer than"
            f" burn_in={burn_in} and sequence_length={length} need: raise buffer_size"
        )


def init_memory(config: Any, spec: Spec, num_envs: int) -> Replay:
    """An empty uniform replay of `config.buffer_size` rows over all environments, with a carry beside each."""
    memory = uniform.init(spec, num_envs, config.buffer_size)
    return memory._replace(carry=empty_carry(config.recurrence, memory.reward.shape[0]))


def remember(algorithm: Any, config: Any, acted: Any, memory: Replay, chunk: Chunk) -> Replay:
    """Append a chunk's valid rows; `acted` is the state that acted."""
    return uniform.push(memory, chunk, carries(algorithm, config, acted, chunk))


def carries(algorithm: Any, config: Any, state: Any, chunk: Chunk) -> Carry:
    """What the actor remembered before each row `[T, N, H]`.

    A chunk has it for its first row; for the others acting is repeated, which moves the memory as it did then.
    """
    actor, chunk = algorithm.actor(config, state), sanitise(chunk)
    seen = jax.tree.map(lambda x: x[:-1], Observed(chunk.obs, chunk.is_first, chunk.action_mask))

    def act(carry: Any, observed: Observed) -> tuple[Any, Carry]:
        _, carry = algorithm.act(config, actor, carry, observed, state.key, False)
        return carry, carry.memory

    _, after = jax.lax.scan(act, chunk.carry, seen)
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), chunk.carry.memory, after)


def sample(config: Any, memory: Replay, key: Key) -> Batch:
    """A minibatch of as many windows as `batch_size` holds."""
    length, burn_in = config.recurrence.sequence_length, config.recurrence.burn_in
    return sample_windows(memory, key, config.batch_size // length, burn_in, length, config.gamma)


def sample_windows(
    memory: Replay, key: Key, count: int, burn_in: int, length: int, gamma: Scalar
) -> Batch:
    """The `length * B` rows of B windows, whose observations are `Windows`; every row is as likely to be the first.

    A window may go on over an episode's end: there the memory begins anew, and each row bootstraps from what followed
    it. Rows past the newest one have weight 0, those before the oldest do not warm anything up.
    """
    env, age = uniform.draw_rows(memory, key, count)
    size, head = memory.size[env], memory.head[env]
    first = size - 1 - age  # 0 is the environment's oldest row
    place = first[None] + jnp.arange(-burn_in, length, dtype=jnp.int32)[:, None]  # [P+L, B]
    held = (place >= 0) & (place < size[None])
    capacity = memory.reward.shape[0] // memory.head.shape[0]

    def row(place: Array) -> Array:
        return env * capacity + (head - size + place) % capacity

    rows = jax.vmap(row)(place)
    learned = rows[burn_in:].reshape(-1)
    flags, begun = memory.flags[rows], row(jnp.maximum(first - burn_in, 0))
    windows = Windows(
        obs=frames.seen(memory, rows),
        is_first=(flags & uniform.FIRST) > 0,
        held=held,
        carry=jax.tree.map(lambda x: x[begun], memory.carry),
    )
    weight = held[burn_in:].reshape(-1).astype(jnp.float32)
    terminated = (memory.flags[learned] & uniform.TERMINATED) > 0
    return Batch(
        obs=windows,
        action=memory.action[learned],
        reward=memory.reward[learned],
        discount=jnp.where(terminated, 0.0, gamma),
        next_obs=windows._replace(following=frames.followed(memory, rows[burn_in:])),
        mask=jax.tree.map(lambda x: x[learned], memory.mask),
        next_mask=jax.tree.map(lambda x: x[learned], memory.next_mask),
        # Scaled so that a mean over all rows is the mean over those that exist.
        weight=weight * (weight.size / jnp.sum(weight)),
    )

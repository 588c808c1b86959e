"""Uniform replay on the device: a ring of single steps with a write head per environment.

Rows of one environment stay in time order, so n-step returns are formed when sampled; they stop at an
episode's end and at the newest row, whose successor is stored with it (Lin, 1992; Mnih et al., 2015).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt8

from advantage.equations.distributions import Key
from advantage.equations.returns import Scalar, n_step_return
from advantage.memory import frames, pieces
from advantage.types import Chunk, Space, Spec, legal_next, legal_now, sanitise, successor

FIRST, TERMINATED, TRUNCATED = np.uint8(1), np.uint8(2), np.uint8(4)


class Replay(NamedTuple):
    """N rings of C rows each, flat: row `n * C + slot`."""

    obs: PyTree  # [N*C, ...]; `Frames` where these are stacked
    next_obs: PyTree  # [N*C, ...]; () beside `Frames`
    action: Array  # [N*C, ...]
    reward: Float[Array, " NC"]
    flags: UInt8[Array, " NC"]  # FIRST, TERMINATED and TRUNCATED, added up
    head: Int[Array, " N"]  # the slot written next
    size: Int[Array, " N"]  # rows held, at most C
    mask: Bool[Array, "NC A"] | None = None  # what was legal in `obs`, where environments say so
    next_mask: Bool[Array, "NC A"] | None = None  # and in `next_obs`
    carry: PyTree = ()  # [N*C, ...]: what the policy remembered before each row, where it remembers (see `sequences`)


class Batch(NamedTuple):
    """B transitions over one or more steps."""

    obs: PyTree  # [B, ...]
    action: Array  # [B, ...]
    reward: Float[Array, " B"]  # discounted sum over the steps
    discount: Float[Array, " B"]  # gamma^steps, 0 after a termination
    next_obs: PyTree  # [B, ...]
    mask: Array | None = None  # [B, A] bool: what was legal in `obs`; None: everything
    next_mask: Array | None = None  # [B, A] bool: what is legal in `next_obs`
    weight: Array | float = 1.0  # [B]: what each one's loss counts; the mean loss is `mean(weight * loss)`


def init(spec: Spec, num_envs: int, capacity: int) -> Replay:
    """An empty memory of `capacity // num_envs` rows for each of `num_envs` environments."""
    rows = num_envs * (capacity // num_envs)

    def zeros(space: Space, make: Any = pieces.zeros) -> PyTree:
        # By shape: NumPy's zeros would be allocated even where only the sizes are asked for.
        return jax.tree.map(lambda x: make(rows, x.shape, x.dtype), space.zeros())

    counters = [jnp.zeros(num_envs, jnp.int32) for _ in range(2)]
    plain = [zeros(spec.observation) for _ in range(2)] if not spec.stacked else None
    obs, next_obs = plain or (frames.init(spec.observation, num_envs, rows // num_envs), ())
    # All legal where nothing was remembered: what is computed there is thrown away, and has to be finite.
    masks = [jnp.ones((rows, spec.choices), bool) if spec.masked else None for _ in range(2)]
    action = zeros(spec.action, lambda n, shape, dtype: jnp.zeros((n, *shape), dtype))
    return Replay(obs, next_obs, action, jnp.zeros(rows, jnp.float32), jnp.zeros(rows, jnp.uint8), *counters, *masks)


def places(memory: Replay, valid: Bool[Array, "T N"]) -> Int[Array, "T N"]:
    """The row that each of a chunk's rows is written to; past the last where it is not remembered.

    Each environment's at its own head, over the oldest. Of more rows than a ring holds (long episodes can be a chunk)
    the newest stay.
    """
    num_envs, capacity = _sizes(memory)
    counted = valid.astype(jnp.int32)
    before = jnp.cumsum(counted, axis=0) - counted
    slot = (memory.head[None] + before) % capacity
    row = jnp.arange(num_envs, dtype=jnp.int32)[None] * capacity + slot
    kept = valid & (before >= jnp.sum(counted, axis=0)[None] - capacity)  # two rows of one slot: either might win
    return jnp.where(kept, row, num_envs * capacity)  # out of range: dropped


def push(memory: Replay, chunk: Chunk, carry: PyTree = ()) -> Replay:
    """Append a chunk's valid rows (see `places`), with the `carry` of each."""
    # Asked first: an invalid row that holds a successor holds its mask too.
    mask, next_mask = (None, None) if memory.mask is None else (legal_now(chunk), legal_next(chunk))
    chunk = sanitise(chunk)
    num_envs, capacity = _sizes(memory)
    row = places(memory, chunk.valid)
    written = jnp.sum(chunk.valid, axis=0, dtype=jnp.int32)
    # XLA would rewrite a scatter of one row so that it copies the ring: it gets another one to drop.
    alone = row.size == 1
    row = jnp.pad(row, ((0, 1), (0, 0)), constant_values=num_envs * capacity) if alone else row
    # A row after one that was left out goes on with nothing that is remembered.
    after_gap = jnp.concatenate([jnp.zeros_like(chunk.valid[:1]), ~chunk.valid[:-1]])
    begins = chunk.is_first | after_gap
    flags = jnp.where(begins, FIRST, 0) | jnp.where(chunk.terminated, TERMINATED, 0)
    flags |= jnp.where(chunk.truncated, TRUNCATED, 0)

    def write(ring: Any, new: Array) -> Any:
        new = jnp.concatenate([new, new]) if alone else new
        return pieces.put(ring, row, new.astype(jax.tree.leaves(ring)[0].dtype))

    new = Replay(
        obs=frames.plain(write, memory.obs, chunk.obs),
        next_obs=frames.plain(write, memory.next_obs, successor(chunk)),
        action=write(memory.action, chunk.action),
        reward=write(memory.reward, chunk.reward),
        flags=write(memory.flags, flags),
        head=(memory.head + written) % capacity,
        size=jnp.minimum(memory.size + written, capacity),
        mask=jax.tree.map(write, memory.mask, mask),
        next_mask=jax.tree.map(write, memory.next_mask, next_mask),
        carry=jax.tree.map(write, memory.carry, carry),
    )
    return frames.push(memory, new, chunk, begins, row) if isinstance(memory.obs, frames.Frames) else new


def sample(memory: Replay, key: Key, batch_size: int, n_steps: int, gamma: Scalar) -> Batch:
    """B transitions over up to `n_steps` steps, every row equally likely, with replacement."""
    env, age = draw_rows(memory, key, batch_size)
    return transitions(memory, env, age, n_steps, gamma)._replace(weight=jnp.ones(batch_size))


def transitions(
    memory: Replay, env: Int[Array, " B"], age: Int[Array, " B"], n_steps: int, gamma: Scalar
) -> Batch:
    """The transitions that begin with the rows of these environments and ages; a row of age 0 is its environment's newest."""
    _, capacity = _sizes(memory)
    steps = jnp.arange(n_steps, dtype=jnp.int32)
    slot = (memory.head[env, None] - 1 - age[:, None] + steps[None]) % capacity
    row = env[:, None] * capacity + slot  # [B, n]; rows past the newest are never counted

    flags = memory.flags[row]
    ended = (flags & (TERMINATED | TRUNCATED)) > 0
    # A reset from outside leaves an episode without an end: the next row's is_first shows it.
    restarted = (memory.flags[env[:, None] * capacity + (slot + 1) % capacity] & FIRST) > 0
    recorded = steps[None] < age[:, None]
    going_on = recorded & ~ended & ~restarted
    reward, discount = n_step_return(memory.reward[row], going_on, gamma)
    last = jnp.sum(jnp.cumprod(going_on[:, :-1].astype(jnp.int32), axis=1), axis=1)
    last_row = jnp.take_along_axis(row, last[:, None], axis=1)[:, 0]
    return Batch(
        obs=frames.seen(memory, row[:, 0]),
        action=memory.action[row[:, 0]],
        reward=reward,
        discount=jnp.where((memory.flags[last_row] & TERMINATED) > 0, 0.0, discount),
        next_obs=frames.followed(memory, last_row),
        mask=jax.tree.map(lambda x: x[row[:, 0]], memory.mask),
        next_mask=jax.tree.map(lambda x: x[last_row], memory.next_mask),
    )


def draw_rows(memory: Replay, key: Key, count: int) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    """`(env, age)` of rows, every one equally likely, with replacement; age 0 is the environment's newest."""
    ends = jnp.cumsum(memory.size)
    # Some rows are likelier by at most one part in 2^32 / rows: nothing, for half the draws of `randint`.
    drawn = jax.random.bits(key, (count,)) % jnp.maximum(ends[-1], 1).astype(jnp.uint32)
    drawn = drawn.astype(jnp.int32)
    env = jnp.searchsorted(ends, drawn, side="right").astype(jnp.int32)
    return env, ends[env] - 1 - drawn


def _sizes(memory: Replay) -> tuple[int, int]:
    num_envs = memory.head.shape[0]
    return num_envs, memory.reward.shape[0] // num_envs

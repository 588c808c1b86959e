"""Observations that are stacks of the last k frames, kept with each frame once: a quarter of the memory for four.

An environment's frames are in a ring of their own, in the order of time. A step adds the frame that followed it; where
the stack is not the one before with a frame more (a game began) all k of it are written. So what is read is what was
observed, whatever an environment puts before its first frame.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree, Shaped, UInt32

from advantage.memory import pieces
from advantage.types import Chunk, Space, successor


class Frames(NamedTuple):
    """N rings of P frames each, flat: frame `n * P + number % P`, where an environment's frames are numbered."""

    ring: Shaped[Array, "NP H W"] | pieces.Pieces
    count: UInt32[Array, " N"]  # frames written so far: an environment has up to 2^32
    newest: UInt32[Array, " NC"]  # of each row's observation: the number of its last frame; the next one followed
    back: UInt32[Array, " k"]  # from there to each frame of a stack: k - 1, ..., 1, 0


def init(space: Space, num_envs: int, rows: int) -> Frames:
    """No frames yet, and room for `rows` rows of each environment and for the k frames more that each of its games needs.

    A thirty-second more than rows is enough for games of 32 k steps and longer; of shorter ones fewer rows are held.
    """
    depth = space.shape[0]
    room = rows + rows // 32 + 2 * depth
    return Frames(
        ring=pieces.zeros(num_envs * room, space.shape[1:], space.dtype),
        count=jnp.zeros(num_envs, jnp.uint32),
        newest=jnp.zeros(num_envs * rows, jnp.uint32),
        back=jnp.arange(depth, dtype=jnp.uint32)[::-1],
    )


def push(memory: Any, new: Any, chunk: Chunk, begins: Bool[Array, "T N"], row: Int[Array, "rows N"]) -> Any:
    """The replay `new`, with the frames of a chunk that `memory` did not have; `row` is where its rows are written.

    `begins` says which rows are not the stack before with a frame more.
    """
    size, capacity = new.size, _rows(memory.obs)
    begins |= (jnp.cumsum(chunk.valid, axis=0) == 1) & ~_goes_on(memory, chunk)[None]
    kept = write(memory.obs, chunk.obs, successor(chunk), begins, chunk.valid, row[: len(begins)])
    age = jnp.arange(min(most_forgotten(memory, len(begins)), capacity), dtype=jnp.int32)[:, None]  # from the oldest
    oldest = _first_row(kept) + (new.head[None] - size[None] + age) % capacity
    gone = jnp.sum(lost(kept, oldest) & (age < size[None]), axis=0, dtype=jnp.int32)
    return new._replace(obs=kept, size=size - gone)


def plain(write: Callable[[Array, Array], Array], kept: PyTree, new: PyTree) -> PyTree:
    """Observations kept as they are; what belongs to `Frames` stays as it is."""
    beside = isinstance(kept, tuple) and not kept  # nothing of what followed is kept beside `Frames`
    return kept if isinstance(kept, Frames) or beside else jax.tree.map(write, kept, new, is_leaf=pieces.is_pieces)


def seen(memory: Any, row: Int[Array, "*B"]) -> PyTree:
    """The observations of a replay's rows."""
    return stacks(memory.obs, row) if isinstance(memory.obs, Frames) else pieces.rows_of(memory.obs, row)


def followed(memory: Any, row: Int[Array, "*B"]) -> PyTree:
    """What followed a replay's rows."""
    if isinstance(memory.obs, Frames):
        return stacks(memory.obs, row, after=1)
    return pieces.rows_of(memory.next_obs, row)


def most_forgotten(memory: Any, length: int) -> int:
    """Rows of an environment that a chunk of some length may push out: one for each frame."""
    return length * (len(memory.obs.back) + 1)


def before_oldest(memory: Any, most: int) -> tuple[Int[Array, " R"], Bool[Array, " R"]]:
    """`(places, whether nothing is remembered there)` of up to `most` places of each environment before its oldest row."""
    capacity = _rows(memory.obs)
    before = jnp.arange(1, min(most, capacity) + 1, dtype=jnp.int32)[:, None]
    place = _first_row(memory.obs) + (memory.head[None] - memory.size[None] - before) % capacity
    return place.reshape(-1), (before <= capacity - memory.size[None]).reshape(-1)


def write(
    frames: Frames,
    obs: Shaped[Array, "T N k H W"],
    following: Shaped[Array, "T N k H W"],
    begins: Bool[Array, "T N"],
    valid: Bool[Array, "T N"],
    row: Int[Array, "T N"],
) -> Frames:
    """Add the frames of rows that are `valid`; those that `begins` are not the stack before with a frame more."""
    depth, room = len(frames.back), _room(frames)
    taken = jnp.where(valid, jnp.where(begins, jnp.uint32(depth + 1), jnp.uint32(1)), jnp.uint32(0))
    newest = frames.count[None] + jnp.cumsum(taken, axis=0) - 2  # the row's own frame, before the one that followed
    count = frames.count + jnp.sum(taken, axis=0)
    number = jnp.concatenate([_numbers(frames, newest), newest[..., None] + 1], axis=-1)  # [T, N, k + 1]
    written = valid[..., None] & (begins[..., None] | (jnp.arange(depth + 1) == depth)[None, None])
    written &= count[None, :, None] - number <= room  # of more than a ring holds the last stay
    place = jnp.arange(len(count), dtype=jnp.uint32)[None, :, None] * room + number % room
    place = jnp.where(written, place, jnp.uint32(pieces.length(frames.ring)))  # out of range: dropped
    new = jnp.concatenate([obs, following[:, :, -1:]], axis=2)
    return frames._replace(
        ring=pieces.put(frames.ring, place, new),
        count=count,
        newest=frames.newest.at[row].set(newest, mode="drop"),
    )


def stacks(frames: Frames, row: Int[Array, "*B"], after: int = 0) -> Shaped[Array, "*B k H W"]:
    """The observations of rows, or with `after=1` what followed them."""
    env = jax.lax.div(row, jnp.int32(_rows(frames))).astype(jnp.uint32)
    number = _numbers(frames, frames.newest[row]) + jnp.uint32(after)
    return pieces.take(frames.ring, env[..., None] * jnp.uint32(_room(frames)) + number % _room(frames))


def lost(frames: Frames, rows: Int[Array, "M N"]) -> Bool[Array, "M N"]:
    """Whether a frame of these rows (of each environment) was written over."""
    oldest = frames.newest[rows] - frames.back[0]
    return frames.count[None] - oldest > _room(frames)


def _numbers(frames: Frames, newest: UInt32[Array, "*B"]) -> UInt32[Array, "*B k"]:
    """Of the frames of stacks, by that of the newest."""
    return newest[..., None] - frames.back.reshape((1,) * newest.ndim + (-1,))


def _goes_on(memory: Any, chunk: Chunk) -> Bool[Array, " N"]:
    """Whether the first valid row of each environment is what followed the newest row that is remembered."""
    num_envs = len(memory.head)
    newest = _first_row(memory.obs)[0] + (memory.head - 1) % _rows(memory.obs)
    first = chunk.obs[jnp.argmax(chunk.valid, axis=0), jnp.arange(num_envs, dtype=jnp.int32)]
    return (memory.size > 0) & jnp.all((first == followed(memory, newest)).reshape(num_envs, -1), axis=1)


def _first_row(frames: Frames) -> Int[Array, "1 N"]:
    return jnp.arange(len(frames.count), dtype=jnp.int32)[None] * _rows(frames)


def _rows(frames: Frames) -> int:
    return len(frames.newest) // len(frames.count)


def _room(frames: Frames) -> int:
    return pieces.length(frames.ring) // len(frames.count)

"""Long arrays in pieces: a kernel gives no array that is longer than the machine's memory, though the whole may be.

What is not that long is a plain array, and costs nothing.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped, UInt32

LONGEST = 8 * 2**30
"""Bytes of a piece."""


class Pieces(NamedTuple):
    """Rows `[R, ...]` behind each other in arrays of as many rows each, the last of fewer."""

    parts: tuple[Shaped[Array, "..."], ...]


Rows = Int[Array, "*B"] | UInt32[Array, "*B"]


def zeros(rows: int, shape: tuple[int, ...], dtype: Any) -> Array | Pieces:
    """`rows` rows of zeros."""
    most = max(1, LONGEST // max(1, math.prod(shape) * jnp.dtype(dtype).itemsize))
    if rows <= most:
        return jnp.zeros((rows, *shape), dtype)
    return Pieces(tuple(jnp.zeros((min(most, rows - begin), *shape), dtype) for begin in range(0, rows, most)))


def length(held: Array | Pieces) -> int:
    """The number of rows."""
    return sum(map(len, held.parts)) if isinstance(held, Pieces) else len(held)


def put(held: Array | Pieces, row: Rows, new: Shaped[Array, "..."]) -> Array | Pieces:
    """`new` `[*B, ...]` written to rows; those past the last are dropped."""
    if not isinstance(held, Pieces):
        return held.at[row].set(new, mode="drop")
    placed = zip(held.parts, _within(held, row), strict=True)
    return Pieces(tuple(part.at[place].set(new, mode="drop") for part, (place, _) in placed))


def take(held: Array | Pieces, row: Rows) -> Shaped[Array, "..."]:
    """Rows `[*B, ...]`."""
    if not isinstance(held, Pieces):
        return held[row]
    first, *others = zip(held.parts, _within(held, row), strict=True)
    taken = first[0][first[1][0]]
    for part, (place, inside) in others:
        taken = jnp.where(inside.reshape(inside.shape + (1,) * (part.ndim - 1)), part[place], taken)
    return taken


def is_pieces(held: Any) -> bool:
    """For `jax.tree.map`'s `is_leaf`."""
    return isinstance(held, Pieces)


def rows_of(held: Any, row: Rows) -> Any:
    """`take` from each array of a tree."""
    return jax.tree.map(lambda x: take(x, row), held, is_leaf=is_pieces)


def _within(held: Pieces, row: Rows) -> list[tuple[Array, Array]]:
    """`(the place in it, whether there is one)` of rows in each piece; a place past the piece's end for others."""
    found, begin = [], 0
    for part in held.parts:
        inside = (row >= begin) & (row < begin + len(part))
        found.append((jnp.where(inside, row - row.dtype.type(begin), row.dtype.type(len(part))), inside))
        begin += len(part)
    return found

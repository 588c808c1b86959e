"""Strings that end an answer, found while tokens are drawn: one finite automaton a string, over tokens instead of bytes."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int


class Stops(NamedTuple):
    """How much of each of K strings has been written, as a number, and where a token leads from there."""

    following: Int[Array, "K V M"]
    whole: Int[Array, " K"]  # the number of a string that has been written

    def after(self, state: Int[Array, "B K"], token: Int[Array, " B"]) -> Int[Array, "B K"]:
        """The numbers once a token was added."""
        return self.following[jnp.arange(self.whole.shape[0], dtype=jnp.int32)[None], token[:, None], state].astype(jnp.int32)

    def stopped(self, state: Int[Array, "B K"]) -> Bool[Array, " B"]:
        """Whether any string has been written."""
        return jnp.any(state == self.whole[None], axis=-1)


def stops(strings: Sequence[str], token_bytes: Sequence[bytes]) -> Stops:
    """The automata of some strings (Knuth, Morris & Pratt, 1977, https://doi.org/10.1137/0206024).

    Raises:
        ValueError: a string that is empty: it would end every answer.
    """
    if any(not string for string in strings):
        raise ValueError(f"stop_strings={list(strings)!r}: an empty string would end every answer at once")
    written = [string.encode() for string in strings]
    states = max((len(string) for string in written), default=0) + 1
    following = np.zeros((len(written), len(token_bytes), states), np.int16)
    lengths = np.array([len(piece) for piece in token_bytes])
    pieces = np.zeros((len(token_bytes), max(lengths, default=0)), np.uint8)
    for row, piece in enumerate(token_bytes):
        pieces[row, : len(piece)] = np.frombuffer(piece, np.uint8)
    for number, string in enumerate(written):
        table = _automaton(string)
        for state in range(len(string) + 1):
            here = np.full(len(token_bytes), state)
            for place in range(pieces.shape[1]):
                rows = np.flatnonzero(lengths > place)  # the long ones are few
                here[rows] = table[here[rows], pieces[rows, place]]
            following[number, :, state] = here
    return Stops(jnp.asarray(following), jnp.asarray([len(string) for string in written], jnp.int32))


def _automaton(string: bytes) -> Int[np.ndarray, "M 256"]:
    """Where each byte leads from each number of bytes that match; from all of them nowhere else."""
    table = np.zeros((len(string) + 1, 256), np.int64)
    fallback = 0
    for state, byte in enumerate(string):
        table[state] = table[fallback]
        table[state, byte] = state + 1
        if state:
            fallback = table[fallback, byte]
    table[len(string)] = len(string)
    return table

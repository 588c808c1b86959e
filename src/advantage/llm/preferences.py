"""Pairs of answers of which one is preferred: rows to tokens, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from advantage.llm.dataset import Dataset, Example, Row, common, encoded, fitted, padded_right, read_rows, require, slots_for, until_end
from advantage.llm.tokenizer import Tokenizer


class Pair(NamedTuple):
    """Two texts; what is learned of them is where they are answers, which may differ."""

    chosen: Example
    rejected: Example


class Pairs(NamedTuple):
    """B pairs, padded on the right; of length 0 where a row is empty."""

    chosen: Int[np.ndarray | Array, "*parts B T"]
    chosen_answer: Bool[np.ndarray | Array, "*parts B T"]
    chosen_length: Int[np.ndarray | Array, "*parts B"]
    rejected: Int[np.ndarray | Array, "*parts B T"]
    rejected_answer: Bool[np.ndarray | Array, "*parts B T"]
    rejected_length: Int[np.ndarray | Array, "*parts B"]


def pairs_of(tokenizer: Tokenizer, dataset: Dataset, length: int, truncate: bool) -> list[Pair]:
    """All rows' tokens.

    Raises:
        ValueError: a row without `chosen` or `rejected`, or with both the same within `length` tokens; a text that is longer
            and must not be cut.
    """
    rows = read_rows(dataset)
    require(rows, ("chosen", "rejected"))
    if "prompt" in rows[0]:
        require(rows, ("prompt",))
    sides = [fitted([_whole(tokenizer, row, side) for row in rows], length, truncate) for side in ("chosen", "rejected")]
    pairs = [Pair(*both) for both in zip(*sides, strict=True)]
    for number, pair in enumerate(pairs):
        if pair.chosen.tokens == pair.rejected.tokens:
            raise ValueError(f"row {number} of the dataset has the same chosen and rejected within {length} tokens: leave it out")
    return [pair if _prompted(row) else _answers_alone(pair) for row, pair in zip(rows, pairs, strict=True)]


def longest(pairs: Sequence[Pair]) -> int:
    """Tokens of a text at most."""
    return max(len(side.tokens) for pair in pairs for side in pair)


def _whole(tokenizer: Tokenizer, row: Row, side: str) -> Example:
    """A text from its prompt to its end."""
    prompt, answer = row.get("prompt"), row[side]
    if isinstance(answer, str) and isinstance(prompt, list):
        answer = [{"role": "assistant", "content": answer}]
    if isinstance(answer, str):
        form = ("text",) if prompt is None else ("prompt", "completion")
        return encoded(tokenizer, {"text": answer, "prompt": prompt, "completion": answer}, form, True, False)
    if isinstance(prompt, list):
        found = encoded(tokenizer, {"prompt": prompt, "completion": answer}, ("prompt", "completion"), True, False)
    else:  # whole chats; a prompt that is a text is there to be read by people
        found = encoded(tokenizer, {"messages": answer}, ("messages",), False, False)
    tokens = until_end(tokenizer, found.tokens)
    return Example(tokens, found.learned[: len(tokens)])


def _prompted(row: Row) -> bool:
    """Whether its prompt says where answers begin."""
    return isinstance(row.get("prompt"), list) or ("prompt" in row and isinstance(row["chosen"], str))


def _answers_alone(pair: Pair) -> Pair:
    """What both begin with is their prompt."""
    first = common(pair.chosen.tokens, pair.rejected.tokens)
    sides = [Example(side.tokens, [place >= first for place in range(len(side.tokens))]) for side in pair]
    return Pair(*sides)


def batch_of(pairs: Sequence[Pair], rows: int, slots: int) -> Pairs:
    """A batch of so many rows."""
    chosen, rejected = (padded_right([pair[side] for pair in pairs], rows, slots) for side in (0, 1))
    lengths = np.zeros((2, rows), np.int32)
    for side in (0, 1):
        lengths[side, : len(pairs)] = [len(pair[side].tokens) for pair in pairs]
    return Pairs(chosen.tokens, chosen.learned, lengths[0], rejected.tokens, rejected.learned, lengths[1])


def batches_of(parts: Sequence[Sequence[Pair]], rows: int, longest: int) -> Pairs:
    """A step's batches, stacked; all of one length."""
    slots = slots_for((len(side.tokens) for part in parts for pair in part for side in pair), longest)
    return jax.tree.map(lambda *arrays: np.stack(arrays), *[batch_of(part, rows, slots) for part in parts])

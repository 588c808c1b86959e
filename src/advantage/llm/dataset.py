"""Rows to learn from: lists of dicts, JSON lines, Parquet or a `datasets.Dataset`; texts and chats to tokens."""

from __future__ import annotations

import inspect
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from advantage.llm.generate import bucket
from advantage.llm.tokenizer import Tokenizer

Row = dict[str, Any]
Dataset = str | os.PathLike | Iterable[Any]
FORMS = (("text",), ("prompt", "completion"), ("messages",))


def taken(function: Callable[..., Any], known: Row) -> Row:
    """Those of the columns that a function takes by name: all where it takes any."""
    parameters = inspect.signature(function).parameters
    everything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return {name: value for name, value in known.items() if everything or name in parameters}


class Example(NamedTuple):
    """A text's tokens, and which of them are learned."""

    tokens: list[int]
    learned: list[bool]


class Batch(NamedTuple):
    """B texts, padded on the right."""

    tokens: Int[np.ndarray, "*parts B T"]
    learned: Bool[np.ndarray, "*parts B T"]  # False for padding, and for what is read only


def read_rows(dataset: Dataset) -> list[Row]:
    """All rows of a list of dicts, a `.jsonl`, `.json` or `.parquet` file, or a `datasets.Dataset`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another kind of file, a line that is no JSON, rows that are no dicts, or none.
        ImportError: Parquet without pyarrow.
    """
    rows = _read_file(pathlib.Path(dataset)) if isinstance(dataset, str | os.PathLike) else list(dataset)
    if not rows:
        raise ValueError("the dataset is empty: give at least one row")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} of the dataset is a {type(row).__name__}: give dicts, such as {{'text': ...}}")
    return rows


def _read_file(path: pathlib.Path) -> list[Row]:
    if not path.is_file():
        raise FileNotFoundError(f"no dataset at {path}: give a local .jsonl, .json or .parquet file; nothing is downloaded")
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError("Parquet files need pyarrow: pip install pyarrow") from error
        return pyarrow.parquet.read_table(path).to_pylist()
    if path.suffix not in (".jsonl", ".json"):
        raise ValueError(f"{path} is no dataset that can be read: give .jsonl, .json or .parquet")
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".json":
            return json.loads(text)
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not {path.suffix[1:].upper()}: {error}") from error


def form_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """The columns that say what is learned: text, prompt and completion, or messages.

    Raises:
        ValueError: none of these forms, or a row without its columns.
    """
    form = next((form for form in FORMS if all(column in rows[0] for column in form)), None)
    if form is None:
        wanted = "; ".join(" and ".join(form) for form in FORMS)
        raise ValueError(f"the dataset has the columns {', '.join(rows[0]) or 'none'}: needed are {wanted}")
    require(rows, form)
    return form


def require(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Raise `ValueError` for a row without these columns."""
    for number, row in enumerate(rows):
        for column in columns:
            if row.get(column) is None:
                raise ValueError(f"row {number} of the dataset has no {column!r}: every row needs {', '.join(columns)}")


def encoded(tokenizer: Tokenizer, row: Row, form: tuple[str, ...], completion_only: bool, assistant_only: bool) -> Example:
    """A row's tokens; a text that is no chat gets the token that ends it."""
    if form == ("messages",):
        return _chat(tokenizer, row["messages"], assistant_only)
    if form == ("text",):
        tokens = ended(tokenizer, tokenizer.encode(row["text"]))
        return Example(tokens, [True] * len(tokens))
    if isinstance(row["prompt"], str):
        prompt, whole = tokenizer.encode(row["prompt"]), ended(tokenizer, tokenizer.encode(row["prompt"] + row["completion"]))
    else:
        prompt = tokenizer.encode(tokenizer.chat(row["prompt"], add_generation_prompt=True), special=False)
        whole = tokenizer.encode(tokenizer.chat([*row["prompt"], *row["completion"]]), special=False)
    read_only = common(prompt, whole) if completion_only else 0
    return Example(whole, [place >= read_only for place in range(len(whole))])


def ended(tokenizer: Tokenizer, tokens: list[int]) -> list[int]:
    """With a token that ends a text, if it has none."""
    return tokens if tokens and tokens[-1] in tokenizer.eos_ids else [*tokens, tokenizer.eos_id]


def until_end(tokenizer: Tokenizer, tokens: list[int]) -> list[int]:
    """Without what a template puts behind the last token that ends an answer, such as a line break: no answer has it."""
    ends = [place for place, token in enumerate(tokens) if token in tokenizer.eos_ids]
    return tokens[: ends[-1] + 1] if ends else tokens


def _chat(tokenizer: Tokenizer, messages: Sequence[dict[str, Any]], assistant_only: bool) -> Example:
    """What the assistant said begins where its turn was opened, and goes on until the next message."""
    whole = tokenizer.encode(tokenizer.chat(messages), special=False)
    learned = [not assistant_only] * len(whole)
    for number, message in enumerate(messages if assistant_only else ()):
        if message["role"] == "assistant":
            before = tokenizer.encode(tokenizer.chat(messages[:number], add_generation_prompt=True), special=False)
            after = tokenizer.encode(tokenizer.chat(messages[: number + 1]), special=False)
            first, last = common(before, whole), common(after, whole)
            learned[first:last] = [True] * (last - first)
    return Example(whole, learned)


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with: where a word goes on over the boundary, its token is another."""
    return next((place for place, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), min(len(a), len(b)))


def fitted(examples: Sequence[Example], length: int, truncate: bool) -> list[Example]:
    """Those of at most so many tokens.

    Raises:
        ValueError: one is longer and must not be cut, has nothing to learn from, or loses all of it by the cut.
    """
    out = []
    for number, example in enumerate(examples):
        if len(example.tokens) > length and not truncate:
            raise ValueError(
                f"row {number} of the dataset has {len(example.tokens)} tokens, and max_length is {length}: "
                "give a larger max_length, shorter rows, or truncate=True, which drops what is behind"
            )
        cut = Example(example.tokens[:length], example.learned[:length])
        # The first token is told by nothing.
        if not any(cut.learned[1:]):
            raise ValueError(f"row {number} of the dataset has no token to learn from within {length} tokens: leave it out")
        out.append(cut)
    return out


def slots_for(lengths: Iterable[int], longest: int) -> int:
    """The next of few lengths, so that few are compiled."""
    return min(bucket(max(lengths)), longest)


def padded_right(examples: Sequence[Example], rows: int, slots: int) -> Batch:
    """A batch of so many rows, of which those without an example are empty."""
    tokens, length = texts_right([example.tokens for example in examples], rows, slots)
    learned = np.zeros((rows, slots), bool)
    for number, example in enumerate(examples):
        learned[number, : length[number]] = example.learned
    return Batch(tokens, learned)


def texts_right(texts: Sequence[Sequence[int]], rows: int, slots: int) -> tuple[Int[np.ndarray, "B T"], Int[np.ndarray, " B"]]:
    """`(tokens padded on the right, lengths)` of so many rows, of which those without a text are empty."""
    tokens, length = np.zeros((rows, slots), np.int32), np.zeros(rows, np.int32)
    for number, text in enumerate(texts):
        tokens[number, : len(text)] = text
        length[number] = len(text)
    return tokens, length

"""Datasets: what is read, which tokens are learned, what is refused."""

import json

import numpy as np
import pytest

from advantage.llm.dataset import Example, encoded, fitted, form_of, padded_right, read_rows, slots_for

USER, ANSWER = {"role": "user", "content": "The fox"}, {"role": "assistant", "content": "jumps over"}


def learned(tokenizer, example):
    """The text that is learned."""
    return tokenizer.decode([token for token, wanted in zip(*example, strict=True) if wanted], special=True)


def test_files(tmp_path):
    rows = [{"text": "a"}, {"text": "é"}]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    (tmp_path / "x.json").write_text(json.dumps(rows), encoding="utf-8")
    assert read_rows(tmp_path / "x.jsonl") == read_rows(str(tmp_path / "x.json")) == read_rows(iter(rows)) == rows


def test_text(tokenizer):
    """All of it, and the end, once."""
    for text in ("The fox", "The fox</s>"):
        assert learned(tokenizer, encoded(tokenizer, {"text": text}, ("text",), True, False)) == "The fox</s>"


def test_prompt_and_completion(tokenizer):
    form = ("prompt", "completion")
    row = {"prompt": "The fox", "completion": " jumps"}
    assert learned(tokenizer, encoded(tokenizer, row, form, True, False)) == " jumps</s>"
    assert learned(tokenizer, encoded(tokenizer, row, form, False, False)) == "The fox jumps</s>"
    chat = {"prompt": [USER], "completion": [ANSWER]}
    found = encoded(tokenizer, chat, form, True, False)
    assert learned(tokenizer, found) == "jumps over</s>\n" and len(found.tokens) > 20


def test_a_token_over_the_boundary_is_learned(tokenizer):
    """`again` is one token: with a prompt that ends within it, all of it is new."""
    whole = tokenizer.encode("over again")
    row = {"prompt": "over ag", "completion": "ain"}
    found = encoded(tokenizer, row, ("prompt", "completion"), True, False)
    assert found.tokens[:-1] == whole
    first = found.learned.index(True)
    assert tokenizer.decode(found.tokens[:first]) in "over ag" and all(found.learned[first:])


def test_messages(tokenizer):
    """Everything, or what the assistant said, each time and no more."""
    messages = [USER, ANSWER, {"role": "user", "content": "Again"}, {"role": "assistant", "content": "Twice"}]
    whole = encoded(tokenizer, {"messages": messages}, ("messages",), True, False)
    assert learned(tokenizer, whole) == tokenizer.chat(messages) and all(whole.learned)
    only = encoded(tokenizer, {"messages": messages}, ("messages",), True, True)
    assert only.tokens == whole.tokens and learned(tokenizer, only) == "jumps over</s>\nTwice</s>\n"


def test_batches():
    examples = [Example([5, 6, 7], [False, True, True]), Example([8], [True])]
    batch = padded_right(examples, 3, slots_for([len(e.tokens) for e in examples], 100))
    np.testing.assert_array_equal(batch.tokens[:, :4], [[5, 6, 7, 0], [8, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(batch.learned.sum(axis=1), [2, 1, 0])
    assert batch.tokens.shape == (3, 8) and slots_for([len(e.tokens) for e in examples], 4) == 4


def test_rows_that_are_too_long():
    row = Example([1, 2, 3, 4], [False, False, True, True])
    assert fitted([row], 4, False) == [row]
    assert fitted([row], 3, True) == [Example([1, 2, 3], [False, False, True])]
    with pytest.raises(ValueError, match="row 0 of the dataset has 4 tokens, and max_length is 3: .* truncate=True"):
        fitted([row], 3, False)
    with pytest.raises(ValueError, match="row 0 of the dataset has no token to learn from within 2 tokens"):
        fitted([row], 2, True)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "the dataset is empty"),
        (["a text"], "row 0 of the dataset is a str: give dicts"),
        ([{"question": "x"}], "the dataset has the columns question: needed are text; prompt and completion; messages"),
        ([{"text": "x"}, {"text": None}], "row 1 of the dataset has no 'text'"),
    ],
)
def test_rows_that_cannot_be_learned(rows, message):
    with pytest.raises(ValueError, match=message):
        form_of(read_rows(rows))


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
        read_rows("trl-lib/tldr")
    (tmp_path / "x.csv").write_text("a,b")
    with pytest.raises(ValueError, match="give .jsonl, .json or .parquet"):
        read_rows(tmp_path / "x.csv")
    (tmp_path / "x.jsonl").write_text("{'a': 1}")
    with pytest.raises(ValueError, match="is not JSONL"):
        read_rows(tmp_path / "x.jsonl")

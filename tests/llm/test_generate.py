"""Whole answers: those of transformers, ends, lengths, log-probabilities, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.llm import generate as generating
from advantage.llm.folder import read_decoder
from advantage.llm.generate import GenerationConfig, bucket, generate
from advantage.llm.likelihood import likelihood, of_targets

from .conftest import ANSWERS, FAMILIES, FOLDERS

PROMPTS = [row[start:].tolist() for row, start in zip(ANSWERS["tokens"], ANSWERS["start"], strict=True)]
KEY = jax.random.key(0)
NEVER = [63]  # a token that these prompts never draw greedily


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_answers_are_those_of_transformers(name):
    decoder, _ = read_decoder(FOLDERS / name)
    expected = ANSWERS[f"{name}/greedy"]
    never = [next(token for token in range(64) if token not in expected)]
    found = generate(decoder, PROMPTS, GenerationConfig(max_new_tokens=expected.shape[1], temperature=0), never, KEY)
    np.testing.assert_array_equal(found.tokens[:, found.prompt_slots :], expected)
    assert not found.ended.any() and (found.length == expected.shape[1]).all()


def test_answers_end_at_their_end(small):
    """Behind it there is nothing: no token, no probability; and the loop stops when all have ended."""
    free = generate(small, PROMPTS, GenerationConfig(max_new_tokens=20), NEVER, KEY)
    ends = sorted({int(row[free.prompt_slots + at]) for row, at in zip(free.tokens, (2, 5, 7), strict=True)})
    found = generate(small, PROMPTS, GenerationConfig(max_new_tokens=20), ends, KEY)
    for row, length, ended, other in zip(found.tokens, found.length, found.ended, free.tokens, strict=True):
        written, same = row[found.prompt_slots :], other[free.prompt_slots :]
        first = next(at for at, token in enumerate(same) if token in ends)
        assert ended and length == first + 1
        np.testing.assert_array_equal(written[: first + 1], same[: first + 1])
        assert not written[first + 1 :].any()
    behind = np.arange(20)[None] >= found.length[:, None]
    assert not found.log_prob[behind].any() and found.log_prob[~behind].all()
    assert [len(answer) for answer in found.answers()] == found.length.tolist()


def test_no_answer_ends_too_early(small):
    config = GenerationConfig(max_new_tokens=12, min_new_tokens=9)
    found = generate(small, PROMPTS, config, list(range(32)), KEY)
    assert (found.length >= 10).all()
    assert (found.tokens[:, found.prompt_slots : found.prompt_slots + 9] >= 32).all()


def test_log_probabilities_are_those_of_the_trainer(small):
    """Of the model, even where no end is allowed yet; and of what was drawn from, temperature included: both to 1e-4."""
    masked = generate(small, PROMPTS, GenerationConfig(max_new_tokens=16, min_new_tokens=16), list(range(32)), KEY)
    whole = likelihood(small, jnp.asarray(masked.tokens), jnp.asarray(masked.start), masked.prompt_slots)
    np.testing.assert_allclose(masked.log_prob, whole.log_prob, atol=1e-4)
    assert (masked.sampled_log_prob - masked.log_prob).min() > 0.001  # half of the words could not be drawn
    found = generate(small, PROMPTS, GenerationConfig(max_new_tokens=16, temperature=0.7), NEVER, KEY)
    for log_prob, temperature in ((found.log_prob, 1.0), (found.sampled_log_prob, 0.7)):
        expected = likelihood(small, jnp.asarray(found.tokens), jnp.asarray(found.start), found.prompt_slots, temperature)
        there = np.arange(16)[None] < found.length[:, None]
        np.testing.assert_allclose(np.where(there, log_prob, 0), np.where(there, expected.log_prob, 0), atol=1e-4)
    assert np.abs(found.log_prob - found.sampled_log_prob).max() > 0.1


def test_likelihood_in_parts(small, monkeypatch):
    """A few rows of logits at a time: the same numbers and gradients."""
    hidden, target = jax.random.normal(KEY, (3, 5, 16)), jnp.asarray(ANSWERS["tokens"][:, :5], jnp.int32)

    def both(hidden):
        def value(hidden):
            return jnp.sum(jnp.sin(of_targets(small, hidden, target, 0.8).log_prob))

        return of_targets(small, hidden, target, 0.8), jax.grad(value)(hidden)

    whole = both(hidden)
    monkeypatch.setattr("advantage.llm.likelihood.LOGITS", 4 * 64)
    parts = both(hidden)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    logits = np.asarray(hidden @ small.head.T) / 0.8
    probs = np.asarray(jax.nn.softmax(logits, axis=-1))
    np.testing.assert_allclose(whole[0].entropy, -(probs * np.log(probs)).sum(-1), rtol=1e-4)
    chosen = np.take_along_axis(probs, np.asarray(target)[..., None], -1)[..., 0]
    np.testing.assert_allclose(whole[0].log_prob, np.log(chosen), rtol=1e-4)


def test_stop_strings(small, tokenizer):
    """An answer ends with the token that completes one."""
    pieces = tokenizer.token_bytes[:64]
    free = generate(small, PROMPTS, GenerationConfig(max_new_tokens=16), NEVER, KEY)
    text = b"".join(pieces[token] for token in free.answers()[0])
    string = text[4:6].decode()
    found = generate(small, PROMPTS, GenerationConfig(max_new_tokens=16, stop_strings=(string,)), NEVER, KEY, pieces)
    stopped = b"".join(pieces[token] for token in found.answers()[0])
    assert text.startswith(stopped) and stopped.endswith(string.encode()) and string.encode() not in stopped[:-1]
    assert found.ended[0]


def test_few_lengths_are_compiled(small):
    """Prompts of 9 to 12 tokens are one program, and so are other temperatures and another k."""
    generating.COMPILED.clear()
    for length, temperature, k in ((9, 1.0, 3), (12, 0.5, 3), (10, 0.9, 7)):
        generate(small, [list(range(length))], GenerationConfig(max_new_tokens=4, temperature=temperature, top_k=k), NEVER, KEY)
    assert generating.COMPILED == {(1, 12, 4): 1}
    assert [bucket(n) for n in (1, 8, 9, 13, 17, 25, 33, 97)] == [8, 8, 12, 16, 24, 32, 48, 128]


def test_prompts_up_to_the_context(small):
    """64 slots: a prompt of 50 is not rounded up to where 14 new tokens have no room."""
    found = generate(small, [list(range(50))], GenerationConfig(max_new_tokens=14), NEVER, KEY)
    assert found.prompt_slots == 50 and found.length[0] <= 14


@pytest.mark.parametrize(
    ("prompts", "config", "ends", "message"),
    [
        ([], {}, [1], "prompts is empty"),
        ([[3], []], {}, [1], "prompt 1 is empty: give at least one token"),
        ([[3] * 60], {"max_new_tokens": 5}, [1], "prompt 0 has 60 tokens, which with max_new_tokens=5 is more than the model's context of 64"),
        ([[64]], {}, [1], "prompt 0 has tokens from 64 to 64, and the model's vocabulary is 64"),
        ([[-3, 4]], {}, [1], "prompt 0 has tokens from -3 to 4"),
        ([[3]], {}, [64], "eos_ids has 64, and the model's vocabulary is 64"),
        ([[3]], {}, [], "no answer would ever end"),
        ([[3]], {"stop_strings": ("x",)}, [1], "stop_strings need the tokenizer's token_bytes"),
    ],
)
def test_prompts_that_cannot_be_answered(prompts, config, ends, message, small):
    with pytest.raises(ValueError, match=message):
        generate(small, prompts, GenerationConfig(**{"max_new_tokens": 2} | config), ends, KEY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 has to be at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0 has to be at least 0"),
        ({"top_p": 0.0}, "top_p=0.0 has to be above 0"),
        ({"top_k": -1}, "top_k=-1 has to be at least 0"),
        ({"min_new_tokens": 65}, "min_new_tokens=65 has to be between 0 and max_new_tokens"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"max_new_tokens": True}, "max_new_tokens=True has to be a whole number"),
    ],
)
def test_settings_that_cannot_work(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(GenerationConfig(), **changes)

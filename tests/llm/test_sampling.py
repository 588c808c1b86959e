"""What may be drawn, how often, and how likely that was: beside NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.llm import sampling
from advantage.llm.stopping import stops

LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(5, 37)) * 2, jnp.float32)


def nucleus(logits, p):
    """Sorted, as the paper has it."""
    probs = np.exp(logits - logits.max(-1, keepdims=True), dtype=np.float64)
    probs /= probs.sum(-1, keepdims=True)
    kept = np.zeros(logits.shape, bool)
    for row, row_probs in enumerate(probs):
        order = np.argsort(-row_probs)
        count = np.searchsorted(np.cumsum(row_probs[order]), p) + 1
        kept[row, order[:count]] = True
    return kept


@pytest.mark.parametrize("k", [1, 3, 37, 50])
def test_top_k(k):
    kept = np.isfinite(sampling.top_k(LOGITS, k))
    threshold = np.sort(np.asarray(LOGITS), axis=-1)[:, -min(k, 37)]
    np.testing.assert_array_equal(kept, np.asarray(LOGITS) >= threshold[:, None])
    assert (kept.sum(-1) == min(k, 37)).all()


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9, 0.999])
def test_top_p(p):
    kept = np.isfinite(sampling.top_p(LOGITS, p))
    np.testing.assert_array_equal(kept, nucleus(np.asarray(LOGITS), p))


def test_top_p_after_top_k():
    """The nucleus is that of what the k most likely are among themselves; negative numbers and -inf are in order."""
    some = np.asarray(sampling.top_k(LOGITS - 100.0, 4))
    kept = np.isfinite(sampling.top_p(jnp.asarray(some), 0.7))
    np.testing.assert_array_equal(kept, nucleus(some, 0.7))
    assert (kept.sum(-1) < 4).any()


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits = jnp.broadcast_to(LOGITS[:1], (20_000, 37))
    distribution = sampling.top_k(logits / 0.7, 5)
    chosen = sampling.drawn(logits, distribution, jax.random.key(0))
    probs = np.asarray(jax.nn.softmax(distribution[0]))
    found = np.bincount(np.asarray(chosen.token), minlength=37) / len(logits)
    np.testing.assert_allclose(found, probs, atol=0.02)
    np.testing.assert_allclose(chosen.sampled_log_prob, np.log(probs[np.asarray(chosen.token)]), rtol=1e-4)
    np.testing.assert_allclose(chosen.log_prob, np.asarray(jax.nn.log_softmax(LOGITS[0]))[np.asarray(chosen.token)], rtol=1e-4)


def test_greedy_is_certain():
    chosen = sampling.greedy(LOGITS, LOGITS)
    np.testing.assert_array_equal(chosen.token, np.argmax(LOGITS, axis=-1))
    assert not chosen.sampled_log_prob.any() and (np.asarray(chosen.log_prob) < 0).all()


PIECES = [b"a", b"b", b"ab", b"aab", b"", "é".encode()[:1], "é".encode()[1:], b"ba", b"caabaa"]


@pytest.mark.parametrize("strings", [["aab"], ["abab", "é"], ["a"], ["aabaa", "bb"]])
def test_stop_strings_are_found_across_tokens(strings):
    """Whenever the text so far has one, and never before: ten thousand tokens against `in`."""
    rng, automata = np.random.default_rng(0), stops(strings, PIECES)
    after = jax.jit(automata.after)
    for _ in range(40):
        state, text = jnp.zeros((1, len(strings)), jnp.int32), b""
        for token in rng.integers(0, len(PIECES), 12):
            state, text = after(state, jnp.asarray([token], jnp.int32)), text + PIECES[token]
            stopped = bool(automata.stopped(state)[0])
            assert stopped == any(string.encode() in text for string in strings), text
            if stopped:
                break


def test_special_tokens_stop_by_their_names(tokenizer):
    automata = stops(["<s>"], tokenizer.token_bytes)
    assert bool(automata.stopped(automata.after(jnp.zeros((1, 1), jnp.int32), jnp.array([0], jnp.int32)))[0])


def test_an_empty_stop_string():
    with pytest.raises(ValueError, match="an empty string would end every answer"):
        stops(["x", ""], PIECES)

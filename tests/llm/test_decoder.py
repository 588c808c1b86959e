"""The decoder beside transformers, and what holds for any of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.llm import decoder as decoders
from advantage.llm.decoder import DecoderConfig, hidden_states, init, logits
from advantage.llm.families import config_of, json_of
from advantage.llm.folder import read_decoder
from advantage.llm.rope import Rope, frequencies

from .conftest import ANSWERS, FAMILIES, FOLDERS, SMALL, real

TOKENS, START = jnp.asarray(ANSWERS["tokens"], jnp.int32), jnp.asarray(ANSWERS["start"], jnp.int32)


def cached_logits(decoder, tokens, start, first):
    """Logits of each token: the first ones at once, the others one by one."""
    caches = decoders.empty_caches(decoder.config, tokens.shape[0], tokens.shape[1], jnp.dtype("float32"))
    layers, parts = decoders.unstacked(decoder), []
    for at, until in [(0, first), *((t, t + 1) for t in range(first, tokens.shape[1]))]:
        hidden, caches = decoders.hidden_states_cached(decoder, layers, tokens[:, at:until], start, caches, at)
        parts.append(hidden)
    return logits(decoder, jnp.concatenate(parts, axis=1))


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers(name):
    """Every family and kind of position, padded batches, whole and token by token."""
    decoder, _ = read_decoder(FOLDERS / name)
    expected, there = ANSWERS[f"{name}/logits"], real(ANSWERS["start"], TOKENS.shape[1])
    found = logits(decoder, hidden_states(decoder, TOKENS, START))
    np.testing.assert_allclose(np.where(there, found, 0), np.where(there, expected, 0), atol=1e-4)
    assert np.ptp(expected) > 2  # not the near constant of fresh weights
    by_token = cached_logits(decoder, TOKENS, START, 5)
    np.testing.assert_allclose(np.where(there, by_token, 0), np.where(there, expected, 0), atol=1e-4)


def test_padding_changes_nothing(llama):
    """Neither its amount nor its tokens, on either side."""
    row = TOKENS[:1, 4:]
    alone = logits(llama, hidden_states(llama, row, jnp.zeros(1, jnp.int32)))
    for left, right, token in ((3, 0, 1), (5, 2, 40)):
        padded = jnp.pad(row, ((0, 0), (left, right)), constant_values=token)
        found = logits(llama, hidden_states(llama, padded, jnp.array([left], jnp.int32)))
        np.testing.assert_allclose(found[:, left : left + row.shape[1]], alone, atol=1e-5)


def test_gradients_with_and_without_recomputation(small):
    def loss(decoder, remat):
        return jnp.sum(jnp.square(hidden_states(decoder, TOKENS, START, remat)))

    plain, recomputed = (jax.grad(loss)(small, remat) for remat in (False, True))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(recomputed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(plain))


def test_initial_weights_are_the_families_own():
    gemma = init(dataclasses.replace(SMALL, norm_offset=1.0, qkv_bias=True), jax.random.key(0))
    assert np.all(np.asarray(gemma.norm) == 0) and np.all(np.asarray(gemma.blocks.query.bias) == 0)
    plain = init(dataclasses.replace(SMALL, hidden_size=128), jax.random.key(0))
    assert np.all(np.asarray(plain.norm) == 1)
    assert np.std(np.asarray(plain.blocks.gate.weight)) == pytest.approx(0.02, rel=0.05)


def test_llama3_frequencies_by_hand():
    """Llama 3's rule at its three cases: kept, slowed by the factor, and between."""
    rope = Rope(10_000.0, "llama3", 8.0, 64, 1.0, 4.0)
    scaled, _ = frequencies(rope, 8)
    plain, _ = frequencies(Rope(10_000.0), 8)
    turns = 64 * plain / (2 * np.pi)  # 10.19, 1.019, 0.102, 0.0102
    between = (turns[1] - 1) / 3
    expected = [plain[0], plain[1] * ((1 - between) / 8 + between), plain[2] / 8, plain[3] / 8]
    np.testing.assert_allclose(scaled, expected, rtol=1e-5)


def test_yarn_makes_the_context_longer():
    """By Qwen's recipe: the file says how long it was, and by what factor it is stretched."""
    given = json_of(dataclasses.replace(SMALL, model_type="qwen2", qkv_bias=True), "float32")
    given["rope_scaling"] = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    assert config_of(given).max_position_embeddings == 256
    with pytest.raises(ValueError, match="mscale of yarn is not supported"):
        config_of(given | {"rope_scaling": given["rope_scaling"] | {"mscale": 0.7}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 3}, "num_attention_heads=2 has to be a multiple of num_key_value_heads=3"),
        ({"head_dim": 7}, "head_dim=7 has to be even"),
        ({"hidden_act": "relu6"}, "hidden_act='relu6' is not known"),
    ],
)
def test_sizes_that_do_not_go_together(changes, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**{**{f.name: getattr(SMALL, f.name) for f in dataclasses.fields(SMALL)}, **changes})

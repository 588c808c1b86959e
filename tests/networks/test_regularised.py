"""LayerNorm, dropout and residual blocks: by hand, by their keys, and where they are put."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage import SAC, TD3, TQC
from advantage.algorithms import sac, td3, tqc
from advantage.memory.uniform import Batch
from advantage.networks.continuous import Widths, critics, gaussian_actor
from advantage.networks.mlp import MLP, dense_layers
from advantage.networks.regularised import LayerNorm, RegularisedMLP, SimBa, dropout, hidden_layers, layer_norm
from advantage.types import Observed, Space, Spec

SPEC = Spec(Space("box", (4,), low=-np.inf, high=np.inf), Space("box", (2,), low=-1.0, high=1.0))
KEY, OTHER = jax.random.PRNGKey(0), jax.random.PRNGKey(1)
NET = Widths((8,), (32, 32))
DROQ = {"net_arch": NET, "dropout_rate": 0.5, "layer_norm": True}  # a rate that shows


def rows(size, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(1.0, 3.0, (16, size)), jnp.float32)


def given():
    return Batch(rows(4), jnp.tanh(rows(2)), rows(1)[:, 0], jnp.full(16, 0.9), rows(4, 1))


@functools.cache
def fresh(algorithm, config):
    return jax.jit(algorithm.init, static_argnums=(0, 1))(config, SPEC, KEY)


def test_layer_norm_by_hand():
    """Rows of mean 0 and variance 1, scaled and shifted."""
    norm = LayerNorm(jnp.array([1.0, 2.0, 3.0]), jnp.array([0.0, 0.0, 1.0]))
    np.testing.assert_allclose(norm(jnp.array([[0.0, 3.0, 6.0]])), [[-1.5**0.5, 0.0, 1 + 3 * 1.5**0.5]], rtol=1e-5)


def test_dropout_keeps_the_mean():
    """A quarter becomes zero, the rest grows so that the expectation stays."""
    out = np.asarray(dropout(jnp.ones((200, 200)), 0.25, KEY))
    assert set(np.unique(out)) == {0.0, np.float32(1 / 0.75)}
    np.testing.assert_allclose(out.mean(), 1.0, atol=0.02)


def test_droqs_layers_in_their_order():
    """Linear, dropout, LayerNorm, activation: the mask comes before the norm, whose rows stay normalised."""
    hidden, _ = hidden_layers("dense", True, 0.5)(KEY, 3, (64,), 1, lambda x: x)
    x = rows(3)
    out = hidden(x, OTHER)
    np.testing.assert_allclose(jnp.mean(out, axis=-1), 0.0, atol=1e-5)
    np.testing.assert_allclose(jnp.var(out, axis=-1), 1.0, rtol=1e-3)
    plain = np.asarray(layer_norm(64)(hidden.layers[0](x)))
    np.testing.assert_allclose(hidden(x), plain, rtol=1e-5, atol=1e-5)
    assert not np.allclose(out, plain, atol=0.1)


def test_masks_are_those_of_the_key():
    """One key, one answer; another key another; no key, no mask; each critic has masks of its own."""
    state = fresh(sac, sac.Config(**DROQ))
    batch = given()
    values = [state.critics(batch.obs, batch.action, key) for key in (KEY, KEY, OTHER, None, None)]
    np.testing.assert_array_equal(values[0], values[1])
    assert not np.allclose(values[0], values[2]) and not np.allclose(values[0], values[3])
    np.testing.assert_array_equal(values[3], values[4])
    twins = jax.tree.map(lambda x: jnp.stack([x[0], x[0]]), (state.critics.hidden, state.critics.head))
    twins = dataclasses.replace(state.critics, hidden=twins[0], head=twins[1])
    first, second = twins(batch.obs, batch.action, KEY)
    assert not np.allclose(first, second)
    first, second = twins(batch.obs, batch.action)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("algorithm", [sac, tqc, td3])
def test_every_gradient_step_has_masks_of_its_own(algorithm, monkeypatch):
    """Target, critics and actor draw from keys that differ from each other and from those of the next step."""
    keys = []
    plain = RegularisedMLP.__call__

    def heard(self, x, key=None):
        assert key is not None
        jax.debug.callback(lambda key: keys.append(tuple(np.ravel(key).tolist())), key)
        return plain(self, x, key)

    monkeypatch.setattr(RegularisedMLP, "__call__", heard)
    config = algorithm.Config(**DROQ, **({"policy_delay": 1} if algorithm is td3 else {}))
    state = fresh(algorithm, config)
    learn = jax.jit(lambda state, batch: algorithm.learn(config, state, batch))  # traced anew
    counts = []
    for _ in range(2):
        state, *_ = learn(state, given())
        jax.effects_barrier()
        counts.append(len(set(keys)))
    # Of the target and the critics' loss two critics each; of the actor's two, in TD3 the first alone.
    each = 5 if algorithm is td3 else 6
    assert counts == [each, 2 * each]


def test_acting_drops_nothing():
    """Two calls with other keys choose the same best action, and the actor has no dropout at all."""
    config = sac.Config(**DROQ)
    state = fresh(sac, config)
    assert isinstance(state.actor.hidden, MLP) and isinstance(state.critics.hidden, RegularisedMLP)
    actor, carry = sac.actor(config, state), sac.initial_carry(config, SPEC, 16)
    observed = Observed(rows(4), jnp.zeros(16, bool), None)
    first, second = (sac.act(config, actor, carry, observed, key, False)[0] for key in (KEY, OTHER))
    np.testing.assert_array_equal(first, second)


def test_simba_by_hand():
    """Embedding, blocks that add to what passes by, a norm at the end; in NumPy."""
    hidden, head = hidden_layers("simba")(KEY, 3, (8, 8), 5, jax.nn.relu)
    assert isinstance(hidden, SimBa) and len(hidden.blocks) == 2 and head.weight.shape == (8, 5)
    assert hidden.blocks[0].up.weight.shape == (8, 32)

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)

    x = np.asarray(rows(3), np.float64) @ np.asarray(hidden.embedding.weight)
    for block in hidden.blocks:
        x = x + np.maximum(norm(x) @ np.asarray(block.up.weight), 0) @ np.asarray(block.down.weight)
    np.testing.assert_allclose(hidden(rows(3)), norm(x), rtol=1e-4, atol=1e-4)


def test_simbas_weights_have_their_scale():
    """He's in the blocks, where ReLU halves the variance."""
    hidden, _ = hidden_layers("simba")(KEY, 64, (64,), 1, jax.nn.relu)
    np.testing.assert_allclose(jnp.std(hidden.embedding.weight), 1 / 8, rtol=0.05)
    np.testing.assert_allclose(jnp.std(hidden.blocks[0].up.weight), (2 / 64) ** 0.5, rtol=0.05)
    np.testing.assert_allclose(jnp.std(hidden.blocks[0].down.weight), (2 / 256) ** 0.5, rtol=0.05)


def test_plain_layers_are_what_they_were():
    """Without these words the same function builds the same networks from the same key."""
    assert hidden_layers("dense") is dense_layers
    plain, same = (critics(SPEC, KEY, net_arch=(8,), **kwargs) for kwargs in ({}, {"layers": hidden_layers("dense")}))
    for x, y in zip(jax.tree.leaves(plain), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(plain(rows(4), rows(2)), plain(rows(4), rows(2), KEY))
    assert isinstance(gaussian_actor(SPEC, KEY, net_arch=(8,)).hidden, MLP)


@pytest.mark.parametrize("face", [SAC, TQC, TD3])
def test_the_words_reach_the_networks(face):
    """By `policy_kwargs`: SimBa for actor and critics, dropout and LayerNorm for critics alone."""
    words = {"net_arch": [8], "block": "simba"}
    model = face("MlpPolicy", "advantage/ProbeContinuousTarget-v0", policy_kwargs=words, buffer_size=300)
    state = model._seed_state(0)
    assert isinstance(state.actor.hidden, SimBa) and isinstance(state.critics.hidden, SimBa)
    model = face("MlpPolicy", policy_kwargs={"dropout_rate": 0.01, "layer_norm": True})
    assert (model.dropout_rate, model.layer_norm) == (0.01, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"block": "resnet"}, "'dense' or 'simba'"),
        ({"dropout_rate": 1.0}, "below 1"),
        ({"block": "simba", "layer_norm": True}, "leave out layer_norm"),
        ({"block": "simba", "net_arch": Widths((8,), (8, 16))}, "one for each block"),
        ({"block": "simba", "net_arch": Widths((), (8, 8))}, "one for each block"),
    ],
)
def test_words_that_do_not_go_together(words, said):
    """Refused before training, with what to do."""
    with pytest.raises(ValueError, match=said):
        sac.Config(**words).check(SPEC, 1)

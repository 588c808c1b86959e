"""IQN: its network by hand, its loss by rlax, the fractions it draws, and files."""

import functools
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage import IQN
from advantage.algorithms import dqn, iqn
from advantage.algorithms.double_dqn import double_action
from advantage.memory.uniform import Batch
from advantage.networks.implicit import ImplicitNetwork, implicit_network
from advantage.types import Space, Spec

RLAX = np.load(Path(__file__).parents[1] / "oracles" / "rlax.npz")
SPEC = Spec(Space("box", (4,), low=-np.inf, high=np.inf), Space("discrete", (), "int32", n=(3,), start=(0,)))
KEY = jax.random.PRNGKey(0)


def test_quantiles_by_hand():
    """One layer before the fraction, one after: in float64, with cosines of pi i tau for i = 0, 1, ..."""
    network = implicit_network(SPEC, KEY, samples=4, embedding=5, net_arch=(6, 7))
    obs, fractions = jax.random.normal(KEY, (2, 4)), jnp.array([[0.1, 0.9, 0.5], [0.3, 0.3, 1.0]])
    parts = (network.shared.layers[0], network.embedding, network.hidden.layers[0], network.head)
    before, embed, after, head = (
        lambda x, w=np.asarray(layer.weight, np.float64), b=np.asarray(layer.bias, np.float64): x @ w + b for layer in parts
    )
    expected = np.empty((2, 3, 3))
    for i, (x, taus) in enumerate(zip(np.asarray(obs, np.float64), np.asarray(fractions, np.float64), strict=True)):
        state = np.maximum(before(x), 0)
        for j, tau in enumerate(taus):
            phi = np.maximum(embed(np.cos(np.pi * np.arange(5) * tau)), 0)
            expected[i, :, j] = head(np.maximum(after(state * phi), 0))
    np.testing.assert_allclose(network.quantiles(obs, fractions), expected, rtol=1e-4, atol=1e-5)
    midpoints = jnp.broadcast_to(jnp.array([[0.125, 0.375, 0.625, 0.875]]), (2, 4))
    np.testing.assert_allclose(network(obs), network.quantiles(obs, midpoints).mean(axis=-1), rtol=1e-5)


class Table(eqx.Module):
    """rlax's quantiles, whatever fractions are asked for; means choose."""

    quantiles_of: jax.Array  # [rows, N, A]
    chooser: jax.Array  # [rows, A]

    def __call__(self, obs):
        return self.chooser[obs]

    def quantiles(self, obs, fractions):
        return jnp.moveaxis(self.quantiles_of[obs], 1, 2)


def test_the_loss_is_rlaxs(monkeypatch):
    """At fractions that rlax got too, of the action that the target's means choose."""
    rows = len(RLAX["td/rewards"])
    both = np.concatenate([RLAX["quantile/quantiles"], RLAX["quantile/next_quantiles"]])
    network = Table(jnp.asarray(both), jnp.asarray(both.mean(axis=1)))
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.asarray(RLAX["implicit/fractions"]))
    batch = Batch(
        jnp.arange(rows), jnp.asarray(RLAX["td/actions"], jnp.int32), jnp.asarray(RLAX["td/rewards"]),
        jnp.asarray(RLAX["td/discounts"]), jnp.arange(rows, 2 * rows),
    )  # fmt: skip
    total, (metrics, error) = getattr(iqn.loss, "__wrapped__", iqn.loss)(iqn.Config(n_tau_samples=11), network, network, batch, KEY)
    np.testing.assert_allclose(error, RLAX["implicit/losses"], rtol=1e-4)
    np.testing.assert_allclose(total, RLAX["implicit/losses"].mean(), rtol=1e-4)
    assert np.abs(RLAX["implicit/losses"] - RLAX["quantile/losses"]).max() > 0.1


def test_fractions_are_drawn_anew():
    """For each sample, for prediction and target apart, and in every gradient step; all between 0 and 1."""
    asked = []

    def note(fractions):
        asked.append(np.asarray(fractions))

    class Noting(ImplicitNetwork):
        def quantiles(self, obs, fractions):
            jax.debug.callback(note, fractions)
            return super().quantiles(obs, fractions)

    def network(*arguments, **options):
        made = implicit_network(*arguments, **options)
        return Noting(made.features, made.shared, made.embedding, made.hidden, made.head, made.samples)

    config = iqn.Config(net_arch=(4,), network=network, n_tau_samples=3, n_tau_prime_samples=5, quantile_embedding_dim=4)
    state = iqn.init(config, SPEC, KEY)
    obs, after = jax.random.normal(KEY, (2, 8, 4))
    batch = Batch(obs, jnp.zeros(8, jnp.int32), jnp.ones(8), jnp.full(8, 0.9), after)
    for seed in (1, 2):
        iqn.learn(config, state._replace(key=jax.random.PRNGKey(seed)), batch)
    jax.effects_barrier()
    numbers = np.concatenate([x.ravel() for x in asked])
    assert sorted(x.shape for x in asked) == [(8, 3), (8, 3), (8, 5), (8, 5)]
    assert len(np.unique(numbers)) == len(numbers) and 0 <= numbers.min() < numbers.max() <= 1


@functools.cache
def trained():
    return IQN(
        "MlpPolicy", "advantage/CartPole-v1", learning_starts=16, buffer_size=256, batch_size=16, train_freq=16,
        n_tau_samples=4, n_tau_prime_samples=4, quantile_embedding_dim=8, policy_kwargs={"net_arch": [8]}, seed=0,
        next_action=double_action,
    ).learn(256)  # fmt: skip


def test_files(tmp_path):
    """A loaded model has the same settings and chooses alike; a function that is not the default is given again."""
    trained().save(tmp_path / "model")
    loaded = IQN.load(tmp_path / "model", next_action=double_action)
    assert loaded._config == trained()._config
    obs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], trained().predict(obs, deterministic=True)[0])


def test_what_learns():
    """Every layer, the embedding of fractions too; and the values that act are those of the network."""
    model = trained()
    state, fresh = model._seed_state(0), iqn.init(model._config, SPEC, KEY)
    assert jax.tree.structure(state.network.head) == jax.tree.structure(fresh.network.head)
    gradients = jax.grad(lambda n: iqn.loss(model._config, n, n, model_batch(), KEY)[0])(jax.tree.map(jnp.asarray, state.network))
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(gradients))


def model_batch():
    obs, after = jax.random.normal(KEY, (2, 64, 4))
    return Batch(obs, jnp.arange(64, dtype=jnp.int32) % 2, jnp.ones(64), jnp.full(64, 0.9), after)


def test_bad_input():
    for name in ("n_tau_samples", "n_tau_prime_samples", "n_quantile_samples", "quantile_embedding_dim"):
        with pytest.raises(ValueError, match=f"{name}=0 is out of range: give a number at least 1"):
            IQN("MlpPolicy", "advantage/CartPole-v1", **{name: 0})


def test_a_step_is_dqns():
    """All but the loss: counters, clipping and the optimiser."""
    config = iqn.Config(net_arch=(4,), quantile_embedding_dim=4, learning_rate=0.0)
    state = iqn.init(config, SPEC, KEY)
    after, metrics, errors = jax.jit(lambda s: iqn.learn(config, s, model_batch()))(state)
    assert int(after.n_updates) == 1 and errors.shape == (64,) and float(metrics["train/loss"]) > 0
    for x, y in zip(*map(jax.tree.leaves, (state.network, after.network)), strict=True):
        np.testing.assert_array_equal(x, y)
    assert iqn.observe is dqn.observe and iqn.act is dqn.act

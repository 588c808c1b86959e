"""TQC: gradient steps of sb3-contrib, the truncated target, what the actor climbs, endings."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage import TQC
from advantage.algorithms import tqc
from advantage.equations.soft import SquashedGaussian
from advantage.memory.uniform import Batch
from advantage.networks import optimisers
from advantage.networks.continuous import GaussianActor, QuantileCritics, Widths
from advantage.networks.features import Flatten
from advantage.networks.mlp import MLP, Linear
from advantage.types import NONFINITE, Space, Spec

CONTRIB = np.load(Path(__file__).parents[1] / "oracles" / "sb3_contrib.npz")
OBS, ACTION = Space("box", (4,), low=-np.inf, high=np.inf), Space("box", (2,), low=-1.0, high=1.0)
SPEC = Spec(OBS, ACTION)
KEY = jax.random.PRNGKey(0)
SMALL = tqc.Config(net_arch=Widths((4,), (4,)), n_quantiles=3, top_quantiles_to_drop_per_net=1)


def linear(prefix):
    """One of sb3-contrib's layers."""
    return Linear(jnp.asarray(CONTRIB[f"{prefix}.weight"].T), jnp.asarray(CONTRIB[f"{prefix}.bias"]))


def actor_of(prefix):
    """sb3-contrib's actor as ours: its two output layers are one here."""
    hidden = MLP(tuple(linear(f"{prefix}/actor.latent_pi.{i}") for i in (0, 2)), jax.nn.relu)
    heads = [linear(f"{prefix}/actor.{name}") for name in ("mu", "log_std")]
    head = jax.tree.map(lambda *x: jnp.concatenate(x, axis=-1), *heads)
    return GaussianActor(Flatten(OBS), hidden, head, None, ACTION)


def critics_of(prefix):
    """sb3-contrib's three critics side by side."""
    ones = [(MLP((linear(f"{q}.0"), linear(f"{q}.2")), jax.nn.relu), linear(f"{q}.4")) for q in
            (f"{prefix}.qf{i}" for i in range(3))]  # fmt: skip
    return QuantileCritics(Flatten(OBS), *jax.tree.map(lambda *x: jnp.stack(x), *ones))


def assert_close(a, b, atol):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)


def given_batch():
    rows = {name: jnp.asarray(CONTRIB[f"tqc/{name}"]) for name in ("obs", "actions", "rewards", "next_obs")}
    discount = np.where(CONTRIB["tqc/terminated"], 0.0, CONTRIB["tqc/settings/gamma"]).astype(np.float32)
    return Batch(rows["obs"], rows["actions"], rows["rewards"], jnp.asarray(discount), rows["next_obs"])


@functools.cache
def fresh(config=SMALL):
    return jax.jit(tqc.init, static_argnums=(0, 1))(config, SPEC, KEY)


def random_batch():
    rng = np.random.default_rng(0)
    obs, next_obs = jnp.asarray(rng.normal(size=(2, 8, 4)), jnp.float32)
    action = jnp.asarray(rng.uniform(-1, 1, (8, 2)), jnp.float32)
    return Batch(obs, action, jnp.asarray(rng.normal(size=8), jnp.float32), jnp.full(8, 0.9), next_obs)


# -- against sb3-contrib -------------------------------------------------------------------------------


@pytest.fixture
def noise_of_contrib(monkeypatch):
    """Actions come from the normal numbers that sb3-contrib had."""

    def sample_and_log_prob(distribution, key):
        before = distribution.mean + jnp.exp(distribution.log_std) * jnp.asarray(CONTRIB["tqc/noise"])
        return jnp.tanh(before), distribution._log_prob(before)

    monkeypatch.setattr(SquashedGaussian, "sample_and_log_prob", sample_and_log_prob)


def test_learning_is_that_of_sb3_contrib(noise_of_contrib):
    """Three gradient steps of critics, actor, temperature and targets, from its weights on its batch."""
    settings = {name: float(CONTRIB[f"tqc/settings/{name}"]) for name in ("learning_rate", "gamma", "tau")}
    config = tqc.Config(**settings)
    actor, critics = actor_of("tqc/before"), critics_of("tqc/before/critic")
    log_alpha = jnp.float32(0.0)
    states = (optimisers.init(optimisers.adam, x) for x in (actor, critics, log_alpha))
    counters = jnp.int32(0), jnp.int32(0), KEY
    state = tqc.State(
        actor, critics, critics_of("tqc/before/critic_target"), log_alpha, tqc.Optimizers(*states), *counters
    )
    learn = jax.jit(tqc.learn)
    for step in range(3):
        state, metrics, _ = learn(config, state, given_batch())
        for name in ("critic_loss", "actor_loss", "ent_coef", "ent_coef_loss"):
            expected = CONTRIB[f"tqc/log/{name}"][step]
            np.testing.assert_allclose(metrics[f"train/{name}"], expected, rtol=1e-5, atol=1e-5, err_msg=name)
        if step in (0, 2):
            after = f"tqc/after{step + 1}"
            assert_close(state.actor, actor_of(after), 1e-4)
            assert_close(state.critics, critics_of(f"{after}/critic"), 1e-4)
            assert_close(state.target_critics, critics_of(f"{after}/critic_target"), 1e-4)
            np.testing.assert_allclose(state.log_alpha, CONTRIB[f"{after}/log_ent_coef"][0], rtol=1e-5)


# -- the target and the losses -------------------------------------------------------------------------


def test_the_target_is_truncated():
    """`C (N - drop)` numbers: reward and discount of the lowest quantiles, less the entropy's share."""
    config, state, batch = SMALL, fresh(), random_batch()
    target = tqc.soft_target(config, state.actor, state.target_critics, jnp.float32(0.5), batch, KEY)
    action, log_prob = state.actor.distribution(state.actor.latent(batch.next_obs)).sample_and_log_prob(KEY)
    quantiles = np.asarray(state.target_critics(batch.next_obs, action))
    lowest = np.sort(quantiles.transpose(1, 0, 2).reshape(8, 6), axis=-1)[:, :4]
    expected = np.asarray(batch.reward)[:, None] + 0.9 * (lowest - 0.5 * np.asarray(log_prob)[:, None])
    np.testing.assert_allclose(target, expected, rtol=1e-5, atol=1e-6)


def test_nothing_follows_a_termination():
    """With a discount of 0 the target is the reward alone, in each of its numbers."""
    state, batch = fresh(), random_batch()._replace(discount=jnp.zeros(8))
    target = tqc.soft_target(SMALL, state.actor, state.target_critics, jnp.float32(0.5), batch, KEY)
    np.testing.assert_allclose(target, np.repeat(np.asarray(batch.reward)[:, None], 4, axis=1))


def test_the_actor_climbs_the_mean_of_all_quantiles():
    """Unlike SAC's least critic: all quantiles of all critics count, the largest too."""
    state, batch = fresh(), random_batch()
    loss, log_prob = tqc.actor_loss(SMALL, state.actor, state.critics, jnp.float32(0.5), batch, KEY)
    action, _ = state.actor.distribution(state.actor.latent(batch.obs)).sample_and_log_prob(KEY)
    value = np.asarray(state.critics(batch.obs, action)).mean(axis=(0, 2))
    np.testing.assert_allclose(loss, np.mean(0.5 * np.asarray(log_prob) - value), rtol=1e-5)


def test_a_batch_that_is_not_finite_changes_nothing():
    """A NaN reward is counted, and neither critics nor their targets move."""
    state, batch = fresh(), random_batch()
    new, metrics, _ = jax.jit(tqc.learn)(SMALL, state, batch._replace(reward=batch.reward.at[0].set(jnp.nan)))
    assert metrics[NONFINITE] == 1
    assert_close(new.critics, state.critics, 0)
    assert_close(new.target_critics, state.target_critics, 0)


# -- settings ------------------------------------------------------------------------------------------


def test_networks_have_the_sizes_asked_for():
    """C critics of N outputs each, and a target of its own for each."""
    state = fresh(dataclasses.replace(SMALL, n_critics=5, n_quantiles=7))
    assert state.critics.head.weight.shape == (5, 4, 7)
    assert state.critics(jnp.zeros((8, 4)), jnp.zeros((8, 2))).shape == (5, 8, 7)
    first = np.asarray(state.critics.head.weight)
    assert len(np.unique(first[:, 0, 0])) == 5  # nothing is shared


@pytest.mark.parametrize("drop", [-1, 25])
def test_something_has_to_be_left(drop):
    """All quantiles dropped, or fewer than none: refused, and told what fits."""
    config = tqc.Config(top_quantiles_to_drop_per_net=drop)
    with pytest.raises(ValueError, match="top_quantiles_to_drop_per_net"):
        config.check(SPEC, 1)


def test_the_signature_is_sb3_contribs():
    """Names and order of hyper-parameters up to ours."""
    names = ("learning_rate buffer_size learning_starts batch_size tau gamma train_freq"
        " gradient_steps action_noise n_steps ent_coef target_update_interval target_entropy"
        " top_quantiles_to_drop_per_net use_sde sde_sample_freq use_sde_at_warmup").split()  # fmt: skip
    fields = [field.name for field in dataclasses.fields(tqc.Config)]
    assert fields[: len(names)] == names
    model = TQC("MlpPolicy", policy_kwargs={"n_quantiles": 9, "n_critics": 3, "net_arch": [8]})
    assert (model.n_quantiles, model.n_critics, model.top_quantiles_to_drop_per_net) == (9, 3, 2)

"""Actors and critics of continuous control: shapes, torch's initialisation, critics that share nothing but features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.networks.continuous import critics, deterministic_actor, gaussian_actor
from advantage.types import Space, Spec

BOX = Space("box", (3,), low=-np.inf, high=np.inf)
SPEC = Spec(BOX, Space("box", (2, 2), low=-1.0, high=1.0))  # four numbers
KEY = jax.random.PRNGKey(0)
OBS = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)

pytestmark = pytest.mark.usefixtures("strict")


@pytest.mark.parametrize("obs", [OBS, OBS[0], OBS[None]])
def test_shapes(obs):
    """Any batch axes: numbers of an action side by side, a value of each critic."""
    gaussian, deterministic = gaussian_actor(SPEC, KEY, net_arch=(8,)), deterministic_actor(SPEC, KEY, net_arch=(8,))
    distribution = gaussian.distribution(gaussian.latent(obs))
    assert distribution.mean.shape == distribution.log_std.shape == deterministic(obs).shape == (*obs.shape[:-1], 4)
    action = deterministic(obs)
    three = critics(SPEC, KEY, net_arch=(8,), n_critics=3)
    assert three(obs, action).shape == (3, *obs.shape[:-1])
    np.testing.assert_allclose(three.first(obs, action), three(obs, action)[0], rtol=1e-5, atol=1e-7)


def test_initialisation_is_torchs():
    """Uniform within 1 / sqrt(inputs) in every layer, biases too; no critic is another's copy."""
    for network, inputs in ((deterministic_actor(SPEC, KEY), (3, 256, 256)), (critics(SPEC, KEY), (7, 256, 256))):
        for layer, fan_in in zip([*network.hidden.layers, network.head], inputs, strict=True):
            for x in (layer.weight, layer.bias):
                assert np.abs(x).max() <= fan_in**-0.5
            assert np.abs(layer.weight).max() > 0.95 * fan_in**-0.5
    two = critics(SPEC, KEY)
    assert not np.any(np.asarray(two.head.weight[0]) == np.asarray(two.head.weight[1]))


def test_each_critic_learns_alone():
    """The gradient of one critic's value is zero in the other's layers."""
    two, action = critics(SPEC, KEY, net_arch=(8,)), jnp.zeros((5, 4))
    gradient = jax.grad(lambda two: jnp.sum(two(OBS, action)[0]))(two)
    for x in jax.tree.leaves(gradient):
        assert np.abs(x[0]).max() > 0
        np.testing.assert_array_equal(x[1], np.zeros_like(x[1]))


def test_deviations_are_bounded():
    """As in SB3: log deviations within -20..2; with gSDE the mean within ±2, or free."""
    plain = gaussian_actor(SPEC, KEY, net_arch=())
    latent = 1e3 * OBS
    log_std = plain.distribution(latent).log_std
    assert np.unique(log_std).tolist() == [-20.0, 2.0]
    assert np.abs(plain.distribution(latent).mean).max() > 100
    for clip_mean, expected in ((2.0, 2.0), (0.5, 0.5)):
        bounded = gaussian_actor(SPEC, KEY, net_arch=(), use_sde=True, clip_mean=clip_mean)
        assert np.abs(bounded.distribution(latent).mean).max() == expected
    free = gaussian_actor(SPEC, KEY, net_arch=(), use_sde=True, clip_mean=0.0)
    assert np.abs(free.distribution(latent).mean).max() > 100


def test_gsde_deviations():
    """exp of the matrix, or expln, which is 1 + log(1 + x) above 0."""
    for use_expln, expected in ((False, np.exp(0.5)), (True, 1 + np.log(1.5))):
        actor = gaussian_actor(SPEC, KEY, net_arch=(8,), use_sde=True, log_std_init=0.5, use_expln=use_expln)
        np.testing.assert_allclose(actor.std(), np.full((8, 4), expected), rtol=1e-6)
        latent = actor.latent(OBS)
        variance = np.square(latent).sum(axis=1, keepdims=True) * expected**2 + 1e-6
        np.testing.assert_allclose(np.exp(2 * actor.distribution(latent).log_std), np.tile(variance, 4), rtol=1e-5)

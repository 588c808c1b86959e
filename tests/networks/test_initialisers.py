"""Initialisers: SB3's orthogonal layers and torch's defaults, every layer of a network at once."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from advantage.networks.actor_critic import Architecture, actor_critic
from advantage.networks.initialisers import orthogonal, uniform_fan_in
from advantage.networks.mlp import dense_networks
from advantage.networks.q_network import q_network
from advantage.types import Space, Spec

SB3 = np.load(Path(__file__).parents[1] / "oracles" / "sb3.npz")

pytestmark = pytest.mark.usefixtures("strict")
KEY = jax.random.PRNGKey(3)
BOX, TWO = Space("box", (4,), low=-np.inf, high=np.inf), Space("discrete", (), "int32", n=(2,), start=(0,))
SIZES = [(4, 16), (16, 16), (16, 2), (16, 1), (3, 3)]


@pytest.fixture(scope="module")
def network():
    return jax.jit(lambda key: actor_critic(Spec(BOX, TWO), key))(KEY)


def layers_by_name(network):
    """Our layers under SB3's names."""
    policy, value = network.actor.hidden.layers, network.hidden.layers
    return {
        "mlp_extractor.policy_net.0": policy[0],
        "mlp_extractor.policy_net.2": policy[1],
        "mlp_extractor.value_net.0": value[0],
        "mlp_extractor.value_net.2": value[1],
        "action_net": network.actor.head,
        "value_net": network.head,
    }


def test_gains_are_those_of_sb3(network):
    """Shapes, singular values and zero biases of all six layers: sqrt(2), 0.01 (policy), 1 (value)."""
    for name, layer in layers_by_name(network).items():
        expected = {key: SB3[f"ortho/{name}/{key}"] for key in ("shape", "singular_values", "bias_abs_max")}
        assert layer.weight.shape == tuple(expected["shape"][::-1])
        found = np.linalg.svd(np.asarray(layer.weight), compute_uv=False)
        np.testing.assert_allclose(found, expected["singular_values"], rtol=1e-4)
        assert np.abs(layer.bias).max() == expected["bias_abs_max"]


def test_layers_differ(network):
    """Policy and value layers of one shape are drawn independently."""
    assert not np.allclose(network.actor.hidden.layers[0].weight, network.hidden.layers[0].weight)
    assert not np.allclose(network.actor.hidden.layers[1].weight, network.hidden.layers[1].weight)


def test_orthogonal_shorter_side():
    """The vectors of the shorter side are orthogonal and of the gain's length, wide or tall."""
    gains = [1.0, 2.0, 0.01, 1.0, 3.0]
    layers = jax.jit(lambda key: orthogonal(key, SIZES, gains))(KEY)
    for (weight, bias), (fan_in, fan_out), gain in zip(layers, SIZES, gains, strict=True):
        assert weight.shape == (fan_in, fan_out)
        gram = weight @ weight.T if fan_in <= fan_out else weight.T @ weight
        np.testing.assert_allclose(gram, gain**2 * np.eye(len(gram)), atol=1e-5 * max(gain**2, 1e-2))
        np.testing.assert_array_equal(bias, np.zeros(fan_out))


def test_orthogonal_leans_nowhere():
    """Over many draws each entry of a matrix has mean 0: the decomposition's choice of signs is undone."""
    keys = jax.random.split(KEY, 800)
    draws = np.asarray(jax.jit(jax.vmap(lambda key: orthogonal(key, [(2, 2)], [1.0])[0][0]))(keys))
    assert np.abs(draws.mean(axis=0)).max() < 4 * np.sqrt(0.5 / 800)
    assert 0.4 < np.mean(np.linalg.det(draws) > 0) < 0.6


def test_uniform_fan_in_is_torch_default():
    """Weights and biases are uniform within 1 / sqrt(fan_in)."""
    sizes = [(4, 64), (64, 64), (64, 2)]
    for (weight, bias), (fan_in, fan_out) in zip(uniform_fan_in(KEY, sizes, []), sizes, strict=True):
        assert (weight.shape, bias.shape) == ((fan_in, fan_out), (fan_out,))
        bound = fan_in**-0.5
        values = np.concatenate([np.ravel(weight), bias])
        assert scipy.stats.kstest(values, "uniform", (-bound, 2 * bound)).pvalue > 1e-3
        assert np.abs(values).max() <= bound


def test_q_network_starts_as_sb3s():
    """Bounds and spread of the Q-network's layers."""
    network = q_network(Spec(BOX, TWO), KEY)
    for name, layer in zip(("0", "2", "4"), (*network.hidden.layers, network.head), strict=True):
        prefix = f"dqn_init/q_net.{name}"
        assert layer.weight.shape == tuple(SB3[f"{prefix}/shape"][::-1])
        np.testing.assert_allclose(np.std(layer.weight), SB3[f"{prefix}/weight_std"], rtol=0.15)
        np.testing.assert_allclose(np.abs(layer.weight).max(), SB3[f"{prefix}/weight_abs_max"], rtol=0.1)
        assert np.abs(layer.bias).max() > 0


def test_mlp_by_hand():
    """Two layers: `relu(relu(x W1 + b1) W2 + b2)`, over any batch axes; no layers: the input."""
    (mlp, none), _ = dense_networks(KEY, [(3, (4, 2)), (3, ())], [(2, 1, 1.0)], jax.nn.relu, False)
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    expected = x
    for layer in mlp.layers:
        expected = np.maximum(expected @ np.asarray(layer.weight) + np.asarray(layer.bias), 0)
    np.testing.assert_allclose(mlp(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(none(jnp.asarray(x)), x)


def test_shared_trunk():
    """`net_arch=[8, dict(pi=[4], vf=[])]`: both heads see the trunk, and its gradient comes from both."""
    arch = Architecture((8,), (4,), ())
    network = jax.jit(lambda key: actor_critic(Spec(BOX, TWO), key, net_arch=arch))(KEY)
    assert network.actor.head.weight.shape == (4, 2) and network.head.weight.shape == (8, 1)
    obs = jnp.ones((3, 4))

    def value(network):
        return jnp.sum(network.value(obs))

    def policy(network):
        return jnp.sum(network.both(obs, None)[0].log_prob(jnp.zeros(3, jnp.int32)))

    for head in (value, policy):
        gradient = jax.jit(jax.grad(head))(network)
        assert np.abs(gradient.actor.trunk.layers[0].weight).max() > 0
    np.testing.assert_allclose(network.both(obs, None)[1], network.value(obs), rtol=1e-6)

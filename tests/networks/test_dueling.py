"""The dueling network, by hand and by what no shift of its advantages may change."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.networks.dueling import dueling_network
from advantage.networks.features import Flatten
from advantage.types import Space, Spec

SPEC = Spec(Space("box", (2,), low=-np.inf, high=np.inf), Space("discrete", (), "int32", n=(3,), start=(0,)))
KEY = jax.random.PRNGKey(0)


def test_values_by_hand():
    """V = 1 + x, A = (3, 0, -6) + (x, x, x): Q is V plus A less its mean of -1 + x."""
    network = dueling_network(SPEC, KEY, net_arch=())
    weights = (jnp.array([[1.0], [0.0]]), jnp.array([1.0]), jnp.array([[1.0] * 3, [0.0] * 3]), jnp.array([3.0, 0.0, -6.0]))
    network = eqx.tree_at(
        lambda n: (n.value_head.weight, n.value_head.bias, n.advantage_head.weight, n.advantage_head.bias), network, weights
    )
    np.testing.assert_allclose(network(jnp.array([[2.0, 9.0]])), [[3 + 4, 3 + 1, 3 - 5]], rtol=1e-6)


@pytest.mark.parametrize("net_arch", [(), (5,), (6, 5)])
def test_the_values_mean_is_the_states_value(net_arch):
    """Whatever the advantages are; both streams learn."""
    network = jax.jit(lambda key: dueling_network(SPEC, key, net_arch=net_arch))(KEY)
    obs = jax.random.normal(jax.random.PRNGKey(1), (7, 2))
    shared = network.hidden(network.features(obs))
    value = network.value_head(network.value_stream(shared))
    np.testing.assert_allclose(jnp.mean(network(obs), axis=-1), value[:, 0], atol=1e-6)
    shifted = eqx.tree_at(lambda n: n.advantage_head.bias, network, network.advantage_head.bias + 5.0)
    np.testing.assert_allclose(shifted(obs), network(obs), atol=1e-5)
    gradients = jax.grad(lambda n: jnp.sum(jnp.square(n(obs)[:, 1] - 1.0)))(network)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves((gradients.value_head.weight, gradients.advantage_head.weight)))
    streams = [network.value_stream, network.advantage_stream]
    assert [len(x.layers) for x in (network.hidden, *streams)] == [max(len(net_arch) - 1, 0), *[len(net_arch[-1:])] * 2]


def test_on_top_of_other_features():
    """As `q_network`: `[*batch, ...]` through a module with a `size`."""
    network = dueling_network(SPEC, KEY, features=Flatten(SPEC.observation), net_arch=(4,))
    assert network(jnp.ones((3, 5, 2))).shape == (3, 5, 3)

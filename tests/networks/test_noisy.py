"""Noisy layers: their mean and variance, what is learned of them, and when noise is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.algorithms import dqn
from advantage.memory.uniform import Batch
from advantage.networks import optimisers
from advantage.networks.mlp import Linear
from advantage.networks.noisy import NoisyLinear, drawn, noisy_dueling_network, noisy_q_network
from advantage.networks.q_network import q_network
from advantage.types import Observed, Space, Spec

SPEC = Spec(Space("box", (4,), low=-np.inf, high=np.inf), Space("discrete", (), "int32", n=(3,), start=(0,)))
KEY = jax.random.PRNGKey(0)
CONFIG = dqn.Config(net_arch=(6,), network=noisy_q_network, buffer_size=64, batch_size=8)


def layers(network):
    return [x for x in jax.tree.leaves(network, is_leaf=lambda x: isinstance(x, NoisyLinear)) if isinstance(x, NoisyLinear)]


def test_at_rest_a_network_is_its_means():
    """The same weights as without noise, scales of 0.5 / sqrt(inputs), and what is drawn from is not changed."""
    network, plain = noisy_q_network(SPEC, KEY, net_arch=(6,)), q_network(SPEC, KEY, net_arch=(6,))
    obs = jax.random.normal(KEY, (5, 4))
    np.testing.assert_array_equal(network(obs), plain(obs))
    for layer, inputs in zip(layers(network), (4, 6), strict=True):
        np.testing.assert_allclose(layer.scale, 0.5 / np.sqrt(inputs), rtol=1e-6)
        np.testing.assert_allclose(layer.bias_scale, 0.5 / np.sqrt(inputs), rtol=1e-6)
    other = drawn(network, KEY)
    assert np.abs(other(obs) - network(obs)).max() > 0.1
    np.testing.assert_array_equal(network(obs), plain(obs))
    assert drawn(plain, KEY) is plain


@pytest.mark.usefixtures("strict")
def test_mean_and_variance_of_a_layer():
    """Over draws the output's mean is the mean weights', its variance that of factorised noise in closed form.

    A factor f = sign(e) sqrt|e| has mean 0 and variance E|e| = sqrt(2 / pi), so a weight's noise has 2 / pi and the
    bias's sqrt(2 / pi). Weights of one output share its factor, those of one input the other: with scales s and t the
    output's variance is `sqrt(2/pi) (sqrt(2/pi) sum (s x)^2 + t^2)`, and the covariance of two outputs is 0.
    """
    network = noisy_q_network(SPEC, KEY, net_arch=())
    (layer,) = layers(network)
    x = jnp.array([[0.3, -1.0, 2.0, 0.5]])
    found = jax.jit(jax.vmap(lambda key: drawn(network, key).head(x)[0]))(jax.random.split(KEY, 40_000))
    np.testing.assert_allclose(found.mean(axis=0), Linear(layer.weight, layer.bias)(x)[0], atol=0.02)
    half = np.sqrt(2 / np.pi)
    expected = half * (half * np.sum(np.square(np.asarray(layer.scale) * np.asarray(x).T), axis=0) + layer.bias_scale**2)
    np.testing.assert_allclose(found.var(axis=0), expected, rtol=0.05)
    covariance = np.cov(np.asarray(found).T)
    assert np.abs(covariance[~np.eye(3, dtype=bool)]).max() < 0.05 * expected[0]


def test_layers_have_noise_of_their_own():
    """No number is drawn twice, in whatever layer and whichever of its factors."""
    network = drawn(noisy_dueling_network(SPEC, KEY, net_arch=(6, 6)), KEY)
    factors = np.concatenate([np.ravel(x) for layer in layers(network) for x in (layer.noise.inputs, layer.noise.outputs)])
    assert len(layers(network)) == 5 and len(np.unique(factors)) == len(factors)


def acted(explore, key=KEY, scale=50.0):
    state = dqn.init(CONFIG, SPEC, KEY)
    network = jax.tree.map(lambda x: x, state.network)
    loud = jax.tree.map(
        lambda part: NoisyLinear(part.weight, part.bias, scale * part.scale, part.bias_scale, part.noise)
        if isinstance(part, NoisyLinear) else part, network, is_leaf=lambda x: isinstance(x, NoisyLinear),
    )  # fmt: skip
    observed = Observed(jnp.broadcast_to(jnp.array([[1.0, -1.0, 0.5, 2.0]]), (64, 4)), jnp.zeros(64, bool))
    action, _ = dqn.act(CONFIG, dqn.Actor(loud, jnp.float32(0.0)), (), observed, key, explore)
    return np.asarray(action), int(np.argmax(network(observed.obs[:1])))


def test_noise_explores_and_rests_where_nothing_is_explored():
    """Without epsilon actions differ from step to step, though all environments of one step share them; else the mean acts."""
    keys = jax.random.split(KEY, 50)
    steps = np.stack([acted(True, key)[0] for key in keys])
    assert (steps == steps[:, :1]).all() and set(steps[:, 0]) == {0, 1, 2}
    action, best = acted(False)
    assert (action == best).all()


def test_both_networks_learn_with_noise_that_is_not_learned():
    """The loss sees two networks with different noise, other ones in the next step; scales move, noise does not."""
    def loss(config, network, target_network, batch):
        total, (metrics, error) = dqn.loss(config, network, target_network, batch)
        noise = {name: layers(x)[0].noise.inputs[0] for name, x in (("online", network), ("target", target_network))}
        return total, (metrics | noise, error)

    config = dqn.Config(net_arch=(6,), network=noisy_q_network, loss=loss, learning_rate=0.01, max_grad_norm=0.5)
    state = dqn.init(config, SPEC, KEY)
    obs, after = jax.random.normal(KEY, (2, 8, 4))
    batch = Batch(obs, jnp.zeros(8, jnp.int32), jnp.ones(8), jnp.full(8, 0.9), after)
    new, first, _ = dqn.learn(config, state, batch)
    again, second, _ = dqn.learn(config, new._replace(key=jax.random.PRNGKey(7)), batch)
    assert len({float(metrics[name]) for metrics in (first, second) for name in ("online", "target")}) == 4
    for before, layer in zip(layers(state.network), layers(again.network), strict=True):
        assert not np.any(layer.noise.inputs) and not np.any(layer.noise.outputs)
        assert np.abs(layer.scale - before.scale).max() > 1e-3 and np.abs(layer.weight - before.weight).max() > 1e-3


def test_noise_does_not_count_in_the_gradients_norm():
    """Clipping is by what is learned: the step is that of a gradient without the noise's part."""
    state = dqn.init(CONFIG, SPEC, KEY)
    network = drawn(state.network, KEY)
    gradients = jax.grad(lambda n: jnp.sum(jnp.square(n(jnp.ones((1, 4))))))(network)
    assert max(float(np.abs(layer.noise.inputs).max()) for layer in layers(gradients)) > 0
    big = jax.tree.map(
        lambda part: NoisyLinear(part.weight, part.bias, part.scale, part.bias_scale, jax.tree.map(lambda x: 1e6 * x, part.noise))
        if isinstance(part, NoisyLinear) else part, gradients, is_leaf=lambda x: isinstance(x, NoisyLinear),
    )  # fmt: skip
    for_both = [optimisers.descend(optimisers.named("sgd"), 1.0, 1.0, state.network, g, optimisers.init(optimisers.named("sgd"), network))[0]
                for g in (gradients, big)]  # fmt: skip
    for x, y in zip(*map(jax.tree.leaves, for_both), strict=True):
        np.testing.assert_array_equal(x, y)

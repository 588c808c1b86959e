"""Optimisers: torch's formulas, and one flat clipped step that equals optax on the tree."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from advantage.networks import optimisers
from advantage.networks.optimisers import adam, adam_ppo, named

NETWORK = {"weight": jnp.arange(6.0).reshape(2, 3) / 3, "bias": (jnp.array([0.3, -2.0]), jnp.array([[1.0]]))}

descend = jax.jit(optimisers.descend, static_argnums=0)


def random_gradients(seed, scale):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(scale * rng.normal(size=x.shape), jnp.float32), NETWORK)


def assert_same_bits(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("make", [adam, adam_ppo, named("adamw"), named("rmsprop"), named("sgd")])
def test_descend_is_optax_on_the_tree(make):
    """Three steps, two of them with gradients far longer than the norm they are clipped to."""
    state = optimisers.init(make, NETWORK)
    reference = optax.chain(optax.clip_by_global_norm(0.5), make(0.1))
    tree_state, network, expected = reference.init(NETWORK), NETWORK, NETWORK
    for seed, scale in enumerate((10.0, 0.01, 3.0)):
        gradients = random_gradients(seed, scale)
        network, state, applied = descend(make, 0.1, 0.5, network, gradients, state)
        updates, tree_state = reference.update(gradients, tree_state, expected)
        expected = optax.apply_updates(expected, updates)
        assert applied
        for a, b in zip(jax.tree.leaves(network), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_gradients_are_clipped_by_their_global_norm():
    """The step of plain descent keeps the gradient's direction over all arrays and has the norm's length."""
    make = named("sgd")
    gradients = random_gradients(0, 100.0)
    after, _, _ = descend(make, 1.0, 0.5, NETWORK, gradients, optimisers.init(make, NETWORK))
    step = np.concatenate(
        [np.ravel(a - b) for a, b in zip(*map(jax.tree.leaves, (NETWORK, after)), strict=True)]
    )
    flat = np.concatenate([np.ravel(g) for g in jax.tree.leaves(gradients)])
    np.testing.assert_allclose(np.linalg.norm(step), 0.5, rtol=1e-4)
    np.testing.assert_allclose(step, 0.5 * flat / np.linalg.norm(flat), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("why", ["unwanted", "nan", "inf", "overflow"])
def test_descend_can_be_the_identity(why):
    """Not wanted, or not finite: parameters and the optimiser's state keep every bit."""
    _, state, _ = descend(adam, 0.1, 0.5, NETWORK, random_gradients(0, 1.0), optimisers.init(adam, NETWORK))
    gradients = random_gradients(1, 1.0)
    bad = {"unwanted": 0.0, "nan": np.nan, "inf": np.inf, "overflow": 3e38}[why]
    gradients["bias"] = (gradients["bias"][0].at[1].add(bad), gradients["bias"][1])
    network, after, applied = descend(adam, 0.1, 0.5, NETWORK, gradients, state, jnp.array(why != "unwanted"))
    assert not applied
    assert_same_bits(network, NETWORK)
    assert_same_bits(after, state)


TORCH = {
    # name, options: one step from (parameter, gradient, memory, count) to (parameter, memory)
    ("adam", ()): lambda p, g, m, t: adam_step(p, g, m, t, 1e-8, 0.0),
    ("adam", (("eps", 0.1),)): lambda p, g, m, t: adam_step(p, g, m, t, 0.1, 0.0),
    ("adamw", ()): lambda p, g, m, t: adam_step(p, g, m, t, 1e-8, 0.01),
    ("rmsprop", ()): lambda p, g, m, t: rmsprop_step(p, g, m, 0.99, 1e-8),
    ("rmsprop", (("alpha", 0.9), ("eps", 0.1))): lambda p, g, m, t: rmsprop_step(p, g, m, 0.9, 0.1),
    ("sgd", (("momentum", 0.9),)): lambda p, g, m, t: sgd_step(p, g, m, 0.9),
}
RATE = 0.05


def adam_step(p, g, m, t, eps, decay):
    first, second = 0.9 * m[0] + 0.1 * g, 0.999 * m[1] + 0.001 * g**2
    p = p * (1 - RATE * decay)
    return p - RATE * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + eps), (first, second)


def rmsprop_step(p, g, m, alpha, eps):
    second = alpha * m[1] + (1 - alpha) * g**2
    return p - RATE * g / (np.sqrt(second) + eps), (m[0], second)


def sgd_step(p, g, m, momentum):
    first = momentum * m[0] + g
    return p - RATE * first, (first, m[1])


@pytest.mark.parametrize("case", TORCH, ids=lambda case: f"{case[0]}-{dict(case[1])}")
def test_named_optimisers_are_torchs(case):
    """Four steps of `torch.optim`'s formulas, with torch's defaults."""
    make = named(*case)
    network, state = jnp.array([1.0, -2.0, 0.5]), None
    state = optimisers.init(make, network)
    expected, memory = np.array([1.0, -2.0, 0.5]), (np.zeros(3), np.zeros(3))
    for t in range(1, 5):
        gradient = np.array([0.3, -0.01, 2.0]) * t
        network, state, _ = descend(make, RATE, 1e9, network, jnp.asarray(gradient, jnp.float32), state)
        expected, memory = TORCH[case](expected, gradient, memory, t)
    np.testing.assert_allclose(network, expected, rtol=2e-5)


def test_names_are_cached():
    """Equal choices are one object, so that they share compiled programs."""
    assert named("adam", (("eps", 1e-7),)) is named("adam", (("eps", 1e-7),))


def test_learning_rate_is_an_argument():
    """Another rate does not compile again."""
    traces = []

    @jax.jit
    def step(rate, network, state):
        traces.append(rate)
        return descend(adam, rate, 0.5, network, jax.tree.map(jnp.ones_like, network), state)[:2]

    state = optimisers.init(adam, NETWORK)
    for rate in (0.1, 0.2, 0.0):
        step(jnp.float32(rate), NETWORK, state)
    assert len(traces) == 1

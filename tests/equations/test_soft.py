"""Squashed Gaussians against numerical integration and float64, temperature, slow and smooth targets by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from advantage.equations.distributions import Gaussian
from advantage.equations.soft import SquashedGaussian, smoothed, soft_update, temperature_objective
from advantage.types import Space, rescale_to_env

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.PRNGKey(0)
WIDE = Space("box", (2,), low=np.array([-3.0, 0.0], np.float32).tobytes(), high=np.array([5.0, 0.5], np.float32).tobytes())


def floats(*values):
    return jnp.asarray(values, jnp.float32)


def squashed(mean, log_std):
    return SquashedGaussian(floats(*mean), floats(*log_std))


@jax.jit
def density(distribution, actions):
    """Of actions `[G, D]` under one distribution."""
    return jax.vmap(lambda action: jnp.exp(distribution.log_prob(action)))(actions)


# -- the squashed Gaussian -----------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, -1.0), (0.7, -0.3), (-1.2, 0.2)])
def test_probabilities_are_those_of_the_normal_before_the_tangent(mean, log_std):
    """The density's integral up to any action is the Gaussian's up to its inverse tangent; over all, 1."""
    one = squashed([mean], [log_std])
    grid = np.linspace(-0.9999, 0.9999, 40_001)
    found = scipy.integrate.cumulative_simpson(np.asarray(density(one, floats(*grid)[:, None]), np.float64), x=grid)
    normal = scipy.stats.norm(mean, np.exp(log_std))
    expected = normal.cdf(np.arctanh(grid)) - normal.cdf(np.arctanh(grid[0]))
    np.testing.assert_allclose(found, expected[1:], atol=2e-4)
    assert abs(found[-1] - 1) < 1e-2


def test_components_are_one_action():
    """The log-probability of two components is the sum of those of each."""
    both = squashed([0.3, -0.8], [-0.5, 0.1])
    parts = [squashed([0.3], [-0.5]), squashed([-0.8], [0.1])]
    action = floats(0.9, -0.2)
    expected = sum(float(part.log_prob(action[i : i + 1])) for i, part in enumerate(parts))
    np.testing.assert_allclose(both.log_prob(action), expected, rtol=1e-6)


def test_density_over_the_environments_actions():
    """With bounds other than ±1 it is divided by half of each width: that integrates to 1, and is what is seen."""
    one = squashed([0.4, -0.3], [-0.7, -0.5])
    edges = np.linspace(-0.9999, 0.9999, 501)
    grid = floats(*np.stack(np.meshgrid(edges, edges, indexing="ij"), -1).reshape(-1, 2))
    stretched = np.asarray(rescale_to_env(WIDE, grid), np.float64).reshape(501, 501, 2)
    over_env = np.asarray(density(one, grid), np.float64).reshape(501, 501) / (4.0 * 0.25)
    inner = scipy.integrate.simpson(over_env, x=stretched[0, :, 1], axis=1)
    assert abs(scipy.integrate.simpson(inner, x=stretched[:, 0, 0]) - 1) < 2e-3
    # The slope of what the environment receives is half the width, whatever the action.
    _, slope = jax.jvp(lambda action: rescale_to_env(WIDE, action), (floats(0.2, -0.6),), (floats(1.0, 1.0),))
    np.testing.assert_allclose(slope, [4.0, 0.25], rtol=1e-6)
    actions = one.__class__(jnp.tile(one.mean, (20_000, 1)), jnp.tile(one.log_std, (20_000, 1))).sample(KEY)
    seen = np.asarray(rescale_to_env(WIDE, actions))
    below = scipy.stats.norm(0.4, np.exp(-0.7)).cdf(np.arctanh((3.0 - 1.0) / 4.0))
    assert abs((seen[:, 0] <= 3.0).mean() - below) < 0.015


def test_bounds_are_reached_and_not_left():
    """-1, 0 and 1 become the lower bound, the middle and the upper bound, in NumPy as in JAX."""
    action = np.array([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]], np.float32)
    expected = [[-3.0, 0.0], [1.0, 0.25], [5.0, 0.5]]
    np.testing.assert_allclose(rescale_to_env(WIDE, action), expected, rtol=1e-6)
    np.testing.assert_allclose(rescale_to_env(WIDE, jnp.asarray(action)), expected, rtol=1e-6)
    odd = Space("box", (1,), low=-0.1, high=0.7)
    space, many = odd.to_gymnasium(), np.linspace(-1, 1, 999, dtype=np.float32)
    assert all(space.contains(x) for x in rescale_to_env(odd, many[:, None]))


@pytest.mark.parametrize("mean", [8.0, -8.0, 0.3])
def test_near_saturation_it_is_that_of_float64(mean):
    """Where tanh rounds to ±1, log-probabilities of samples stay finite and right, and so do gradients."""
    means, log_stds = jnp.full((500, 2), mean), jnp.full((500, 2), -0.5)
    action, log_prob = SquashedGaussian(means, log_stds).sample_and_log_prob(KEY)
    np.testing.assert_array_equal(action, SquashedGaussian(means, log_stds).sample(KEY))
    before = np.asarray(Gaussian(means, log_stds).sample(KEY), np.float64)
    log_slope = 2 * np.log(2) - 2 * np.logaddexp(before, -before)  # log(1 / cosh(x)^2)
    terms = scipy.stats.norm(np.float32(mean), np.exp(-0.5)).logpdf(before) - log_slope
    np.testing.assert_allclose(log_prob, terms.sum(axis=1), rtol=2e-5, atol=2e-5)

    def total(mean, log_std):
        return jnp.sum(SquashedGaussian(mean, log_std).sample_and_log_prob(KEY)[1])

    # The sample moves with the mean, and with it the slope alone: d/dx of -log(1 / cosh(x)^2) is 2 tanh(x).
    gradients = jax.grad(total, argnums=(0, 1))(means, log_stds)
    np.testing.assert_allclose(gradients[0], 2 * np.tanh(before), rtol=1e-4, atol=1e-6)
    assert np.isfinite(gradients[1]).all()


def test_log_prob_of_a_sample_is_that_which_came_with_it():
    """Where tanh does not saturate both ways of asking agree; at the bounds the answer is finite."""
    one = SquashedGaussian(jnp.full((500, 2), 0.4), jnp.full((500, 2), -0.6))
    action, log_prob = one.sample_and_log_prob(KEY)
    np.testing.assert_allclose(one.log_prob(action), log_prob, rtol=1e-3, atol=1e-3)
    edges = squashed([8.0, -8.0], [0.0, 0.0])
    assert np.isfinite(edges.log_prob(floats(1.0, -1.0))) and np.isfinite(edges.log_prob(floats(-1.0, 1.0)))


def test_mode_is_the_tangent_of_the_mean():
    """Where SB3's SAC acts without exploring."""
    np.testing.assert_allclose(squashed([0.5, -2.0], [0.0, 1.0]).mode(), np.tanh([0.5, -2.0]), rtol=1e-6)


# -- temperature and targets ---------------------------------------------------------------------------


@pytest.mark.parametrize(("log_prob", "grows"), [(3.0, True), (1.0, False)])
def test_temperature_grows_while_entropy_is_below_its_target(log_prob, grows):
    """Target -2: an entropy of -3 is too low, one of -1 too high. The gradient is -(log_prob + target)."""

    def loss(log_alpha, log_prob):
        return jnp.mean(temperature_objective(log_alpha, log_prob, -2.0))

    log_probs = floats(log_prob - 0.5, log_prob + 0.5)
    value, (gradient, none) = jax.value_and_grad(loss, argnums=(0, 1))(jnp.float32(0.3), log_probs)
    np.testing.assert_allclose(value, -0.3 * (log_prob - 2.0), rtol=1e-6)
    np.testing.assert_allclose(gradient, 2.0 - log_prob, rtol=1e-6)
    assert (gradient < 0) == grows  # descent raises log(alpha)
    np.testing.assert_array_equal(none, [0.0, 0.0])  # the policy follows its own objective


def test_soft_update_by_hand():
    """A quarter of the way from target to online; tau 0 and 1 are one or the other, to the last bit."""
    target, online = {"a": floats(0.0, 4.0), "b": floats(1.7)}, {"a": floats(8.0, 0.0), "b": floats(-0.3)}
    found = soft_update(target, online, 0.25)
    np.testing.assert_allclose(found["a"], [2.0, 3.0])
    np.testing.assert_allclose(found["b"], [1.2], rtol=1e-6)
    for tau, expected in ((0.0, target), (1.0, online)):
        for x, y in zip(jax.tree.leaves(soft_update(target, online, tau)), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(x, y)


def test_smoothed_clips_the_noise_and_then_the_action():
    """Noise 0.7 counts as 0.5, and 0.9 + 0.5 as 1; noise -1.7 moves 0.9 to 0.4, not to the bound of noise."""
    action = floats(0.9, 0.9, -0.2, -0.8)[:, None]
    noise = floats(0.7, -1.7, 0.1, -0.4)[:, None]
    found = smoothed(action, noise, 0.5)[:, 0]
    np.testing.assert_allclose(found, [1.0, 0.4, -0.1, -1.0], rtol=1e-6)
    other_order = np.clip(np.clip(action + noise, -1, 1), -0.5, 0.5)[:, 0]
    assert np.abs(found - other_order).max() > 0.4

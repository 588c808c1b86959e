"""Batch renormalisation: against the paper's algorithm in NumPy, warm-up, bounds, running statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.networks.batch_norm import (
    BatchRenorm,
    Moments,
    batch_norm_layers,
    evaluated,
    fresh_statistics,
    train_actor,
    train_critics,
)
from advantage.networks.continuous import critics, gaussian_actor
from advantage.types import Space, Spec

SPEC = Spec(Space("box", (3,), low=-np.inf, high=np.inf), Space("box", (2,), low=-1.0, high=1.0))
MOMENTUM, EPS, WARMUP = 0.1, 1e-3, 5
NORM = BatchRenorm(jnp.array([1.5, -0.5, 2.0]), jnp.array([0.1, 0.2, -0.3]), MOMENTUM, EPS, WARMUP)
KEY = jax.random.PRNGKey(0)
pytestmark = pytest.mark.usefixtures("strict")


def rows(seed=0, count=16, scale=2.0, shift=0.5):
    rng = np.random.default_rng(seed)
    return (shift + scale * rng.normal(size=(count, 3))).astype(np.float32)


def moments(mean, var, steps):
    return Moments(jnp.full(3, mean, jnp.float32), jnp.full(3, var, jnp.float32), jnp.int32(steps))


def algorithm_1(x, running, r_max, d_max):
    """The paper's forward pass, in double precision: `(y, mean, variance)`, the latter two the new running ones."""
    x = x.astype(np.float64)
    mean, var = x.mean(axis=0), x.var(axis=0)
    std, running_std = np.sqrt(var + EPS), np.sqrt(np.asarray(running.var, np.float64) + EPS)
    r = np.clip(std / running_std, 1 / r_max, r_max)
    d = np.clip((mean - np.asarray(running.mean)) / running_std, -d_max, d_max)
    y = np.asarray(NORM.scale) * ((x - mean) / std * r + d) + np.asarray(NORM.bias)
    after = [(1 - MOMENTUM) * np.asarray(old) + MOMENTUM * new for old, new in ((running.mean, mean), (running.var, var))]
    return y, *after


@pytest.mark.parametrize(
    ("steps", "running", "r_max", "d_max"),
    [
        (WARMUP - 1, (1.0, 9.0), 1.0, 0.0),  # batch normalisation
        (WARMUP, (1.0, 9.0), 3.0, 5.0),  # corrected
        (WARMUP, (-4.0, 0.2), 3.0, 5.0),  # r and d above their bounds
        (WARMUP, (900.0, 400.0), 3.0, 5.0),  # and below
    ],
)
def test_training_is_algorithm_1(steps, running, r_max, d_max):
    """Outputs and running statistics before and after warm-up, within and at the bounds of r and d."""
    before, x = moments(*running, steps), rows()
    y, after = NORM.train(jnp.asarray(x), before)
    expected, mean, var = algorithm_1(x, before, r_max, d_max)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(after.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(after.var, var, rtol=1e-5)
    assert after.steps == steps + 1


def test_the_bounds_are_met():
    """The cases above reach them: what lies outside of 1/3..3 and -5..5 is cut."""
    x = rows()
    running_std = np.sqrt(0.2 + EPS)
    assert (x.std(axis=0) / running_std > 3).all() and ((x.mean(axis=0) + 4.0) / running_std > 5).all()
    running_std = np.sqrt(400.0 + EPS)
    assert (x.std(axis=0) / running_std < 1 / 3).all() and ((x.mean(axis=0) - 900.0) / running_std < -5).all()


def test_evaluation_uses_the_running_statistics():
    """No batch of any size changes how a row is seen."""
    running, x = moments(1.0, 4.0, 7), rows()
    expected = np.asarray(NORM.scale) * (x - 1.0) / np.sqrt(4.0 + EPS) + np.asarray(NORM.bias)
    np.testing.assert_allclose(NORM(jnp.asarray(x), running), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(NORM(jnp.asarray(x[3]), running), expected[3], rtol=1e-5, atol=1e-5)


def test_running_statistics_reach_those_of_the_data():
    """After many batches, evaluation normalises: mean 0 and variance 1 before scale and bias."""
    running = moments(0.0, 1.0, 0)
    for seed in range(100):
        _, running = NORM.train(jnp.asarray(rows(seed, 64)), running)
    np.testing.assert_allclose(running.mean, 0.5, atol=0.2)
    np.testing.assert_allclose(running.var, 4.0, rtol=0.1)


def test_gradients_pass_the_batch_and_not_r_d_or_the_running_statistics():
    """Batch normalisation's gradient: shifting all rows changes nothing; with r and d held as constants."""
    x, running = jnp.asarray(rows()), moments(1.0, 9.0, WARMUP)
    weights = jnp.asarray(rows(1))
    gradient = jax.grad(lambda x: jnp.sum(weights * NORM.train(x, running)[0]))(x)
    np.testing.assert_allclose(np.sum(gradient, axis=0), 0.0, atol=1e-4)
    through = jax.grad(lambda x: jnp.sum(NORM.train(x, running)[1].mean + NORM.train(x, running)[1].var))(x)
    np.testing.assert_array_equal(through, np.zeros_like(through))


def test_networks_in_training_and_evaluation():
    """Critics have statistics of their own each; a norm stands before every layer; evaluated twice is the same."""
    layers = batch_norm_layers(MOMENTUM, EPS, WARMUP)
    ours = critics(SPEC, KEY, net_arch=(8, 4), n_critics=2, layers=layers)
    obs, action = jnp.asarray(rows()), jnp.asarray(rows(1)[:, :2])
    fresh = fresh_statistics(ours)
    assert [m.mean.shape for m in fresh] == [(2, 5), (2, 8), (2, 4)]
    values, after = train_critics(ours, fresh, obs, action)
    assert values.shape == (2, 16) and after[1].steps.tolist() == [1, 1]
    assert not np.allclose(after[1].mean[0], after[1].mean[1])
    kept = evaluated(ours, after)
    np.testing.assert_allclose(kept(obs, action)[:, :3], kept(obs[:3], action[:3]), rtol=1e-5, atol=1e-6)
    actor = gaussian_actor(SPEC, KEY, net_arch=(8,), layers=layers)
    latent, after = train_actor(actor, fresh_statistics(actor), obs)
    np.testing.assert_allclose(np.mean(latent, axis=0), 0.0, atol=1e-5)  # the last norm is after the last activation
    assert evaluated(actor, after).latent(obs[:2]).shape == (2, 8)

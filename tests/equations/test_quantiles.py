"""Quantile regression: by hand, by sb3-contrib's answers, and what truncation keeps."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.equations.quantiles import quantile_huber, quantile_midpoints, truncated

CONTRIB = np.load(Path(__file__).parents[1] / "oracles" / "sb3_contrib.npz")
pytestmark = pytest.mark.usefixtures("strict")


def pairwise(quantiles, target):
    """The loss as the paper writes it, all pairs at once, in double precision."""
    error = target[..., None, :].astype(np.float64) - quantiles[..., :, None]
    size = np.abs(error)
    huber = np.where(size > 1, size - 0.5, 0.5 * error**2)
    share = (2 * np.arange(quantiles.shape[-1]) + 1) / (2 * quantiles.shape[-1])
    return np.mean(np.abs(share[:, None] - (error < 0)) * huber, axis=-1)


def test_midpoints_by_hand():
    """Each quantile stands for the middle of its share of probability."""
    np.testing.assert_allclose(quantile_midpoints(4), [0.125, 0.375, 0.625, 0.875], rtol=1e-6)


def test_quantile_huber_by_hand():
    """Two quantiles, shares 0.25 and 0.75, against the samples 0 and 3; inside and outside of 1, on both sides."""
    loss = quantile_huber(jnp.array([0.5, 2.5]), jnp.array([0.0, 3.0]))
    first = 0.75 * 0.125 + 0.25 * (2.5 - 0.5)  # errors -0.5 and 2.5
    second = 0.25 * (2.5 - 0.5) + 0.75 * 0.125  # errors -2.5 and 0.5
    np.testing.assert_allclose(loss, [first / 2, second / 2], rtol=1e-6)


def test_the_gradient_is_that_of_all_pairs():
    """Added up sample by sample, the gradient is what differentiation of the whole would give."""
    rng = np.random.default_rng(0)
    quantiles, target = rng.normal(scale=2, size=(2, 3, 5)), rng.normal(scale=2, size=(2, 3, 7))
    gradient = jax.grad(lambda q: jnp.sum(quantile_huber(q, jnp.float32(target))))(jnp.float32(quantiles))
    step = 1e-5
    for i in np.ndindex(quantiles.shape):
        moved = np.zeros_like(quantiles)
        moved[i] = step
        slope = (pairwise(quantiles + moved, target) - pairwise(quantiles - moved, target)).sum() / (2 * step)
        np.testing.assert_allclose(gradient[i], slope, atol=1e-5)


def test_no_gradient_reaches_the_target():
    """What the quantiles are to become does not move towards them."""
    gradient = jax.grad(lambda t: jnp.sum(quantile_huber(jnp.array([0.5, 2.5]), t)))(jnp.array([0.0, 3.0]))
    np.testing.assert_array_equal(gradient, np.zeros(2))


def test_quantile_huber_is_that_of_sb3_contrib():
    """TQC's mean over everything, and QR-DQN's sum over quantiles."""
    quantiles, target, single, single_target = (
        jnp.asarray(CONTRIB[f"quantile_huber/{name}"]) for name in ("quantiles", "target", "single", "single_target")
    )
    loss = jnp.mean(quantile_huber(quantiles, jnp.broadcast_to(target, (*quantiles.shape[:2], target.shape[2]))))
    np.testing.assert_allclose(loss, CONTRIB["quantile_huber/loss"], rtol=1e-5)
    loss = jnp.mean(jnp.sum(quantile_huber(single, single_target), axis=-1))
    np.testing.assert_allclose(loss, CONTRIB["quantile_huber/single_loss"], rtol=1e-5)


@pytest.mark.parametrize("drop", [0, 1, 2])
def test_exactly_the_largest_are_dropped(drop):
    """Of three critics' four quantiles, pooled, the `3 * drop` largest are missing, and nothing else."""
    quantiles = np.random.default_rng(1).normal(size=(3, 6, 4)).astype(np.float32)
    quantiles[0] += 5  # one critic's outliers go first, whichever critic they are of
    kept = truncated(jnp.asarray(quantiles), drop)
    expected = np.sort(quantiles.transpose(1, 0, 2).reshape(6, 12), axis=-1)[:, : 12 - 3 * drop]
    assert kept.shape == (6, 12 - 3 * drop)
    np.testing.assert_array_equal(kept, expected)


def test_equal_quantiles_are_counted():
    """Ties neither vanish nor stay twice; infinities are in their place; a NaN is not lost."""
    kept = truncated(jnp.array([[[1.0, 1.0, 2.0]], [[1.0, -jnp.inf, jnp.inf]]]), 1)
    np.testing.assert_array_equal(kept, [[-np.inf, 1.0, 1.0, 1.0]])
    assert jnp.isnan(truncated(jnp.array([[[1.0, jnp.nan, 2.0]]]), 1)).any()

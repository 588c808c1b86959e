"""Distributions over fixed returns: the projection by hand, by rlax and by what it keeps; entropies by hand."""

from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.equations.categorical import atoms, cross_entropy, divergence, projected

pytestmark = pytest.mark.usefixtures("strict")
RLAX = np.load(Path(__file__).parents[1] / "oracles" / "rlax.npz")


def test_atoms_by_hand():
    """Five from -2 to 2."""
    assert atoms(-2.0, 2.0, 5).tolist() == [-2, -1, 0, 1, 2]


def test_projection_by_hand():
    """On atoms 0, 1, 2: returns on an atom stay, 0.25 is shared 3 to 1, and what lies outside goes to the end."""
    probs = jnp.array([[0.2, 0.3, 0.5]])
    for returns, expected in (
        ([0.0, 1.0, 2.0], [0.2, 0.3, 0.5]),
        ([0.25, 1.0, 2.0], [0.15, 0.35, 0.5]),
        ([-7.0, 1.0, 9.0], [0.2, 0.3, 0.5]),
        ([1.5, 1.5, 1.5], [0.0, 0.5, 0.5]),
        ([2.0, 1.0, 0.0], [0.5, 0.3, 0.2]),
    ):
        np.testing.assert_allclose(projected(probs, jnp.array([returns]), atoms(0.0, 2.0, 3)), [expected], atol=1e-6)


def test_projection_is_that_of_rlax():
    """Random distributions over returns inside and outside the atoms."""
    given = (jnp.asarray(RLAX[f"categorical/{name}"]) for name in ("probs", "returns", "atoms"))
    np.testing.assert_allclose(projected(*given), RLAX["categorical/projected"], atol=1e-6)


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(seed=st.integers(0, 2**20), low=st.floats(-50, 0), width=st.floats(0.5, 100), count=st.integers(2, 60))
def test_projection_keeps_probability_and_the_mean(seed, low, width, count):
    """All of it stays, nothing is negative, and inside the atoms the mean does not move."""
    rng = np.random.default_rng(seed)
    support = atoms(low, low + width, count)
    probs = rng.dirichlet(np.ones(count), size=3).astype(np.float32)
    returns = rng.uniform(support[0], support[-1], (3, count)).astype(np.float32)
    found = np.asarray(projected(jnp.asarray(probs), jnp.asarray(returns), support), np.float64)
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-4)
    np.testing.assert_allclose(found @ np.asarray(support), (probs * returns).sum(axis=1), atol=1e-4 * (1 + abs(low) + width))


def test_entropies_by_hand():
    """KL((1/2, 1/2, 0) || (1/4, 1/4, 1/2)) = log 2, the cross-entropy twice that; of equal ones the divergence is 0."""
    target, log_probs = jnp.array([[0.5, 0.5, 0.0]]), jnp.log(jnp.array([[0.25, 0.25, 0.5]]))
    np.testing.assert_allclose(cross_entropy(target, log_probs), [2 * np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(divergence(target, log_probs), [np.log(2)], rtol=1e-6)
    same = jax.nn.softmax(jax.random.normal(jax.random.PRNGKey(0), (20, 51)))
    np.testing.assert_allclose(divergence(same, jnp.log(same)), np.zeros(20), atol=1e-5)
    assert (divergence(same, jnp.log(same)) >= 0).all()

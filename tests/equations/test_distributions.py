"""Distributions: against SciPy and SB3, samples against densities, masks, state-dependent noise."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from advantage.equations.distributions import (
    Bernoulli,
    Categorical,
    Gaussian,
    MultiCategorical,
    masked,
    positive_exponential,
    state_dependent_log_std,
)

SB3 = np.load(Path(__file__).parents[1] / "oracles" / "sb3.npz")

pytestmark = pytest.mark.usefixtures("strict")
KEY = jax.random.PRNGKey(7)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def oracle(name):
    return {key.rsplit("/", 1)[1]: SB3[key] for key in SB3.files if key.startswith(f"dist/{name}/")}


def built(name, data):
    """Our distribution of SB3's parameters, and the dtype of its actions."""
    if name == "categorical":
        return Categorical(jnp.asarray(data["logits"])), jnp.int32
    if name == "multi_discrete":
        parts = np.split(data["logits"], np.cumsum(data["nvec"])[:-1], axis=1)
        return MultiCategorical(tuple(Categorical(jnp.asarray(part)) for part in parts)), jnp.int32
    if name == "bernoulli":
        return Bernoulli(jnp.asarray(data["logits"])), jnp.int8
    mean = jnp.asarray(data["mean"])
    return Gaussian(mean, jnp.broadcast_to(jnp.asarray(data["log_std"]), mean.shape)), jnp.float32


@pytest.mark.parametrize("name", ["categorical", "multi_discrete", "bernoulli", "diag_gaussian"])
def test_densities_are_those_of_sb3(name):
    """Log-probability, entropy and mode; sums over an action's components."""
    data = oracle(name)
    distribution, dtype = built(name, data)
    close(distribution.log_prob(jnp.asarray(data["actions"], dtype)), data["log_prob"])
    close(distribution.entropy(), data["entropy"])
    np.testing.assert_array_equal(distribution.mode(), data["mode"])


def test_densities_are_those_of_scipy():
    """Normal and Bernoulli, also far out in the tails, where a naive logarithm is -inf."""
    mean, log_std = jnp.array([[0.0, 3.0]]), jnp.array([[-1.0, 0.5]])
    action, std = jnp.array([[2.0, -4.0]]), np.exp([-1.0, 0.5])
    normal = scipy.stats.norm(np.asarray(mean), std)
    close(Gaussian(mean, log_std).log_prob(action), normal.logpdf(action).sum(-1))
    close(Gaussian(mean, log_std).entropy(), normal.entropy().sum(-1))
    logits = np.array([-2.0, 0.5, 40.0])
    expected = [scipy.stats.bernoulli(1 / (1 + np.exp(-logits))).entropy()]
    close(Bernoulli(jnp.asarray(logits[None], jnp.float32)).entropy(), np.sum(expected, axis=-1))
    close(Bernoulli(jnp.array([[200.0]])).log_prob(jnp.array([[0]], jnp.int8)), [-200.0])


@pytest.mark.parametrize("name", ["categorical", "multi_discrete", "bernoulli"])
def test_samples_have_their_probabilities(name):
    """Chi-square of 4,000 samples against `exp(log_prob)`, over all joint actions."""
    data = oracle(name)
    distribution, dtype = built(name, {**data, "logits": data["logits"][:1]})
    many = jax.tree.map(lambda x: jnp.broadcast_to(x, (4000, *x.shape[1:])), distribution)
    drawn = np.asarray(many.sample(KEY)).reshape(4000, -1)
    assert drawn.dtype == dtype
    sizes = {"categorical": (3,), "multi_discrete": (3, 2, 4), "bernoulli": (2,) * 4}[name]
    actions = np.stack(np.unravel_index(np.arange(np.prod(sizes)), sizes), axis=-1)
    each = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(actions), *x.shape[1:])), distribution)
    given = jnp.asarray(actions[:, 0] if name == "categorical" else actions, dtype)
    probability = np.exp(np.asarray(each.log_prob(given), np.float64))
    close(probability.sum(), 1.0)
    counts = np.bincount(np.ravel_multi_index(drawn.T.astype(int), sizes), minlength=len(actions))
    assert scipy.stats.chisquare(counts, 4000 * probability / probability.sum()).pvalue > 1e-3


def test_normal_samples():
    """Kolmogorov-Smirnov of each component against its own mean and deviation; components independent."""
    mean, log_std = jnp.array([1.0, -2.0]), jnp.array([0.5, -1.0])
    many = Gaussian(jnp.broadcast_to(mean, (4000, 2)), jnp.broadcast_to(log_std, (4000, 2)))
    drawn = np.asarray(many.sample(KEY))
    for column, m, s in zip(drawn.T, mean, np.exp(log_std), strict=True):
        assert scipy.stats.kstest(column, "norm", (float(m), float(s))).pvalue > 1e-3
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.06


def test_extreme_logits_stay_finite():
    """Log-probabilities, entropies and their gradients of certain choices are numbers."""
    logits = jnp.array([[1e4, 0.0, -1e4]])

    def both(logits):
        distribution = Categorical(logits)
        return jnp.sum(distribution.entropy() + distribution.log_prob(jnp.array([0], jnp.int32)))

    assert np.isfinite(both(logits)) and np.isfinite(jax.grad(both)(logits)).all()

    def certain(logits):
        return jnp.sum(Bernoulli(logits).entropy())

    assert np.isfinite(jax.grad(certain)(jnp.array([[200.0, -200.0]]))).all()


def test_masks_renormalise_legal_actions():
    """Legal actions keep their ratios, illegal ones have no probability and no part in the entropy."""
    logits, mask = jnp.array([[1.0, 2.0, 3.0, 4.0]]), jnp.array([[True, False, True, False]])
    found = masked(Categorical(logits), mask)
    p = scipy.special.softmax([1.0, 3.0])
    close(found.log_prob(jnp.array([0], jnp.int32)), np.log(p[:1]))
    close(found.log_prob(jnp.array([2], jnp.int32)), np.log(p[1:]))
    close(found.entropy(), [scipy.stats.entropy(p)])
    assert float(found.log_prob(jnp.array([3], jnp.int32))[0]) < -1e6
    np.testing.assert_array_equal(found.mode(), [2])


def test_illegal_actions_are_never_sampled():
    """Not even where the illegal ones' logits are larger by far; legal ones in their proportions."""
    logits = jnp.broadcast_to(jnp.array([50.0, 0.0, 1.0, 50.0]), (3000, 4))
    mask = jnp.broadcast_to(jnp.array([False, True, True, False]), (3000, 4))
    drawn = np.asarray(masked(Categorical(logits), mask).sample(KEY))
    assert set(drawn) == {1, 2}
    assert scipy.stats.binomtest(int((drawn == 2).sum()), 3000, 1 / (1 + np.exp(-1.0))).pvalue > 1e-3


def test_masked_gradients_are_finite():
    """Of log-probability and entropy; illegal actions get none, also where only one or no action is legal."""
    mask = jnp.array([[True, False, True], [False, True, False], [False, False, False]])

    def total(logits):
        distribution = masked(Categorical(logits), mask)
        return jnp.sum(distribution.log_prob(jnp.array([0, 1, 2], jnp.int32)) + distribution.entropy())

    gradient = np.asarray(jax.grad(total)(jnp.array([[0.1, 9.0, 0.3], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])))
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[~np.asarray(mask)], 0.0)


def test_no_legal_action_is_uniform():
    """A distribution has to remain one."""
    found = masked(Categorical(jnp.array([[5.0, 0.0, -5.0]])), jnp.zeros((1, 3), bool))
    close(found.log_prob(jnp.array([2], jnp.int32)), [-np.log(3.0)])
    close(found.entropy(), [np.log(3.0)])


@pytest.mark.parametrize("kind", ["exp", "expln"])
@pytest.mark.parametrize("form", ["full", "reduced"])
def test_state_dependent_noise_is_that_of_sb3(form, kind):
    """Deviations, log-probability and entropy, with one column for each action or one for all."""
    log_std, latent = jnp.asarray(SB3[f"sde/log_std_{form}"]), jnp.asarray(SB3["sde/latent"])
    std = positive_exponential(log_std) if kind == "expln" else jnp.exp(log_std)
    std = jnp.broadcast_to(std, (6, 2))
    close(std, SB3[f"sde/{form}_{kind}/std"])
    distribution = Gaussian(jnp.asarray(SB3["sde/mean"]), state_dependent_log_std(latent, std))
    close(distribution.log_prob(jnp.asarray(SB3["sde/actions"])), SB3[f"sde/{form}_{kind}/log_prob"])
    close(distribution.entropy(), SB3[f"sde/{form}_{kind}/entropy"])


def test_positive_exponential_joins_smoothly():
    """1 at 0 with slope 1 from both sides, finite gradients far out on both."""
    slope = jax.vmap(jax.grad(positive_exponential))
    close(positive_exponential(jnp.array([-1.0, 0.0, np.e - 1])), [np.exp(-1.0), 1.0, 2.0])
    close(slope(jnp.array([-1e-6, 0.0, 1e-6])), [1.0, 1.0, 1.0])
    assert np.isfinite(slope(jnp.array([-200.0, 200.0]))).all()


@pytest.mark.parametrize("kind", ["categorical", "multi", "bernoulli", "gaussian"])
def test_kl_is_the_mean_log_ratio(kind):
    """By sums over all actions, or by a fine grid for the Gaussian; zero to itself, and not symmetric."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(1.5 * rng.normal(size=shape), jnp.float32)
    if kind == "gaussian":
        p, q = (Gaussian(draw(2), 0.2 * draw(2)) for _ in range(2))
        axis = np.linspace(-12, 12, 1201, dtype=np.float32)
        actions, cell = jnp.asarray(np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)), (axis[1] - axis[0]) ** 2
    else:
        make = {
            "categorical": lambda: Categorical(draw(4)),
            "multi": lambda: MultiCategorical((Categorical(draw(2)), Categorical(draw(3)))),
            "bernoulli": lambda: Bernoulli(draw(3)),
        }[kind]
        p, q, cell = make(), make(), 1.0
        choices = {"categorical": [range(4)], "multi": [range(2), range(3)], "bernoulli": [range(2)] * 3}[kind]
        actions = jnp.asarray(list(itertools.product(*choices)), jnp.int32)
        actions = actions[:, 0] if kind == "categorical" else actions
    many = lambda d: jax.tree.map(lambda x: jnp.broadcast_to(x, (len(actions), *x.shape)), d)
    log_p, log_q = (np.asarray(many(d).log_prob(actions), np.float64) for d in (p, q))
    expected = np.sum(np.exp(log_p) * (log_p - log_q)) * cell
    np.testing.assert_allclose(p.kl(q), expected, rtol=2e-4)
    np.testing.assert_allclose(p.kl(p), 0.0, atol=1e-6)
    assert abs(float(p.kl(q)) - float(q.kl(p))) > 1e-3

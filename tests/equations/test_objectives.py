"""Objectives: numbers by hand, and those of torch, SB3 and rlax."""

from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from advantage.equations import objectives
from advantage.equations.objectives import clip_by_global_norm, explained_variance, masked_mean, normalised

ORACLES = Path(__file__).parents[1] / "oracles"
SB3, RLAX = np.load(ORACLES / "sb3.npz"), np.load(ORACLES / "rlax.npz")

pytestmark = pytest.mark.usefixtures("strict")


def floats(*values):
    return jnp.asarray(values, jnp.float32)


def test_clipped_surrogate_by_hand():
    """Ratios 2 and 1/2, advantages of both signs, clip 0.2: pessimism clips only what would gain."""
    log_ratio = jnp.log(floats(2.0, 2.0, 0.5, 0.5, 1.1))
    found = objectives.clipped_surrogate(log_ratio, jnp.zeros(5), floats(1.0, -1.0, 1.0, -1.0, 3.0), 0.2)
    np.testing.assert_allclose(found, [1.2, -2.0, 0.5, -0.8, 3.3], rtol=1e-6)


def test_clipped_surrogate_has_no_gradient_outside():
    """Where clipping binds there is no push further out; elsewhere the slope is ratio * advantage."""

    def total(log_prob):
        return jnp.sum(objectives.clipped_surrogate(log_prob, jnp.zeros(3), floats(1.0, -1.0, 2.0), 0.2))

    gradient = jax.grad(total)(jnp.log(floats(2.0, 0.5, 1.1)))
    np.testing.assert_allclose(gradient, [0.0, 0.0, 2.2], rtol=1e-6)


def test_clipped_surrogate_is_that_of_rlax():
    """Its mean, negated, for three clip ranges."""
    log_ratio = jnp.log(RLAX["surrogate/ratio"])
    for epsilon, expected in zip(RLAX["surrogate/epsilons"], RLAX["surrogate/losses"], strict=True):
        advantage = jnp.asarray(RLAX["surrogate/advantages"])
        found = objectives.clipped_surrogate(log_ratio, jnp.zeros_like(log_ratio), advantage, float(epsilon))
        np.testing.assert_allclose(-jnp.mean(found), expected, rtol=1e-5)


def test_clipped_value_by_hand():
    """A value moves at most 0.2 from the one that acted."""
    found = objectives.clipped_value(floats(1.1, 3.0, -3.0), floats(1.0, 1.0, 1.0), 0.2)
    np.testing.assert_allclose(found, [1.1, 1.2, 0.8], rtol=1e-6)


def test_squared_error_has_no_half():
    """As torch's MSELoss."""
    np.testing.assert_array_equal(objectives.squared_error(floats(3.0), floats(1.0)), [4.0])


def test_columns_do_not_broadcast():
    """`[B]` against `[B, 1]` is refused and does not become `[B, B]`."""
    for function in (objectives.squared_error, objectives.clipped_value):
        extra = (0.2,) if function is objectives.clipped_value else ()
        with pytest.raises(jaxtyping.TypeCheckError):
            function(jnp.zeros(3), jnp.zeros((3, 1)), *extra)


def test_kl_estimate_by_hand():
    """`e^x - 1 - x`: 0 at 0, 1 - log 2 at log 2, never negative, accurate near 0."""
    found = objectives.kl_estimate(floats(0.0, np.log(2.0), -1.0, 1e-3))
    np.testing.assert_allclose(found, [0.0, 1 - np.log(2.0), np.exp(-1.0), 5.0e-7], rtol=2e-3)


def test_kl_estimate_is_unbiased():
    """Over samples of the old distribution its mean is KL(old || new)."""
    old, new = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.5, 0.3])
    found = objectives.kl_estimate(jnp.asarray(np.log(new / old), jnp.float32))
    np.testing.assert_allclose(np.sum(old * found), np.sum(old * np.log(old / new)), rtol=1e-5)


def test_td_error_is_that_of_rlax():
    """`target - Q(s, a)` with the maximum over next actions; the discount is 0 after a termination."""
    q, next_q = jnp.asarray(RLAX["td/q"]), jnp.asarray(RLAX["td/next_q"])
    reward, discount = jnp.asarray(RLAX["td/rewards"]), jnp.asarray(RLAX["td/discounts"])
    target = objectives.td_target(reward, discount, jnp.max(next_q, axis=-1))
    value = objectives.action_values(q, jnp.asarray(RLAX["td/actions"], jnp.int32))
    np.testing.assert_allclose(target - value, RLAX["td/errors"], rtol=1e-5, atol=1e-6)


def test_chosen_by_hand():
    """The entry named; its gradient reaches that entry alone, also beside infinities."""
    x = jnp.asarray([[1.0, 2.0, 3.0], [4.0, 5.0, -jnp.inf]])
    action = jnp.asarray([2, 0], jnp.int32)
    np.testing.assert_array_equal(objectives.chosen(x, action), [3.0, 4.0])
    gradient = jax.grad(lambda x: jnp.sum(objectives.chosen(x, action)))(x)
    np.testing.assert_array_equal(gradient, [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])


def test_huber_by_hand():
    """Quadratic within 1, linear outside, both at 1; slopes are clipped at 1."""
    errors = floats(0.0, 0.5, -0.5, 1.0, 3.0, -3.0)
    np.testing.assert_allclose(objectives.huber(errors), [0.0, 0.125, 0.125, 0.5, 2.5, 2.5], rtol=1e-6)
    slopes = jax.grad(lambda e: jnp.sum(objectives.huber(e)))(errors)
    np.testing.assert_allclose(slopes, [0.0, 0.5, -0.5, 1.0, 1.0, -1.0], rtol=1e-6)
    np.testing.assert_allclose(
        objectives.huber(jnp.asarray(RLAX["huber/errors"])), RLAX["huber/values"], rtol=1e-5
    )


@pytest.mark.parametrize("case", ["plain", "clipped"])
def test_huber_is_that_of_torch(case):
    """SB3's loss of its own predictions and targets (`torch.nn.functional.smooth_l1_loss`)."""
    current, target = SB3[f"dqn/{case}/current_q"], SB3[f"dqn/{case}/targets"]
    for now, wanted, expected in zip(current, target, SB3[f"dqn/{case}/losses"], strict=True):
        found = jnp.mean(objectives.huber(jnp.asarray(now - wanted)))
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_masked_mean_by_hand():
    """Only rows of weight 1 count; of nothing it is 0 and not NaN."""
    assert float(masked_mean(floats(1.0, 5.0, 9.0), floats(1.0, 1.0, 0.0))) == 3.0
    assert float(masked_mean(floats(1.0, 5.0), jnp.zeros(2))) == 0.0


def test_normalised_by_hand():
    """Mean 2, deviation of the sample (`n - 1`) 1."""
    np.testing.assert_allclose(normalised(floats(1.0, 2.0, 3.0), jnp.ones(3)), [-1.0, 0.0, 1.0], atol=1e-6)


def test_normalised_ignores_padding():
    """Rows of weight 0 change neither mean nor deviation, whatever they hold."""
    x = floats(1.0, 2.0, 6.0, 0.0, 1e6)
    found = normalised(x, floats(1.0, 1.0, 1.0, 0.0, 0.0))
    np.testing.assert_allclose(found[:3], normalised(x[:3], jnp.ones(3)), rtol=1e-6)


def test_normalised_of_equal_or_single_rows():
    """A constant minibatch gives zeros and no NaN; a single row has no deviation and stays."""
    np.testing.assert_array_equal(normalised(jnp.full(4, 0.3), jnp.ones(4)), np.zeros(4))
    np.testing.assert_array_equal(normalised(floats(5.0, 0.0), floats(1.0, 0.0))[0], 5.0)
    assert np.isfinite(normalised(floats(1.0, 2.0), jnp.zeros(2))).all()


def test_explained_variance_is_that_of_sb3():
    """Good, useless, perfect, worse than useless; NaN of a constant; padding does not count."""
    predicted, true = SB3["explained_variance/predicted"], SB3["explained_variance/true"]
    for p, t, expected in zip(predicted, true, SB3["explained_variance/value"], strict=True):
        weight = jnp.ones(p.shape[0])
        np.testing.assert_allclose(
            explained_variance(jnp.asarray(p), jnp.asarray(t), weight), expected, rtol=1e-4, atol=1e-6
        )
        padded = [jnp.asarray(np.append(x, y)) for x, y in ((p, 7.0), (t, -900.0), (weight, 0.0))]
        padded = [x.astype(jnp.float32) for x in padded]
        np.testing.assert_allclose(explained_variance(*padded), expected, rtol=1e-4, atol=1e-6)


def test_clip_by_global_norm_by_hand():
    """3 and 4 have the joint norm 5: clipped to 1 they are 0.6 and 0.8, and in proportion, not each to 1."""
    gradients = {"a": floats(3.0), "b": floats(4.0).reshape(1, 1)}
    clipped, norm = clip_by_global_norm(gradients, 1.0)
    np.testing.assert_allclose([norm, clipped["a"][0], clipped["b"][0, 0]], [5.0, 0.6, 0.8], rtol=1e-5)
    unchanged, _ = clip_by_global_norm(gradients, 6.0)
    np.testing.assert_array_equal([unchanged["a"][0], unchanged["b"][0, 0]], [3.0, 4.0])


def test_clip_by_global_norm_of_nothing():
    """A zero gradient stays zero."""
    clipped, norm = clip_by_global_norm(jnp.zeros(3), 0.5)
    np.testing.assert_array_equal([*clipped, norm], np.zeros(4))

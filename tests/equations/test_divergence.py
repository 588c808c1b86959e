"""The KL penalty and what follows the KL, by hand and in closed form."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.algorithms.ppo import Config
from advantage.equations.divergence import adapted, check_adapted, followed, penalised_surrogate

OLD = jnp.asarray([0.2, 0.5, 0.3])
LOGITS = jnp.asarray([0.3, -0.2, 0.4])


def test_penalised_surrogate_by_hand():
    """Ratio 2: the estimate is 2 - 1 - ln 2."""
    found = penalised_surrogate(jnp.log(jnp.array([0.6])), jnp.log(jnp.array([0.3])), jnp.array([-1.5]), 0.7)
    np.testing.assert_allclose(found, [2 * -1.5 - 0.7 * (2 - 1 - np.log(2))], rtol=1e-5)


def test_its_penalty_is_the_divergence_in_value_and_gradient():
    """The expectation over all actions of the old policy, against KL(old || new) = sum old log(old / new)."""
    zero = jnp.zeros(3)

    def estimated(logits):
        return -jnp.sum(OLD * penalised_surrogate(jax.nn.log_softmax(logits), jnp.log(OLD), zero, 1.0))

    def exact(logits):
        return jnp.sum(OLD * (jnp.log(OLD) - jax.nn.log_softmax(logits)))

    np.testing.assert_allclose(estimated(LOGITS), exact(LOGITS), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(estimated)(LOGITS), jax.grad(exact)(LOGITS), atol=1e-6)
    assert np.abs(jax.grad(exact)(LOGITS)).max() > 0.1


@pytest.mark.parametrize(
    ("adapts", "kl", "expected"),
    [
        ("learning_rate", 0.021, 1 / 1.5), ("learning_rate", 0.019, 1.0), ("learning_rate", 0.0051, 1.0),
        ("learning_rate", 0.0049, 1.5), ("kl_coef", 0.0151, 2.0), ("kl_coef", 0.0149, 1.0), ("kl_coef", 0.0068, 1.0),
        ("kl_coef", 0.0066, 0.5),
    ],
)  # fmt: skip
def test_what_follows_the_kl(adapts, kl, expected):
    """Around a KL of 0.01: a smaller learning rate, or a larger penalty, where it was too large."""
    config = types.SimpleNamespace(desired_kl=0.01, adapts=adapts)
    found = followed(config, {adapts: jnp.float32(1.0)}, jnp.float32(kl))
    np.testing.assert_allclose(found[adapts], expected, rtol=1e-6)


def test_nothing_follows_without_a_kl_to_aim_at():
    """Nor does a factor leave all bounds."""
    config = Config()
    assert adapted(config, {"learning_rate": jnp.float32(3.0)}) is config
    aiming = Config(desired_kl=0.01)
    np.testing.assert_allclose(adapted(aiming, {"learning_rate": jnp.float32(0.5)}).learning_rate, 1.5e-4)
    last = followed(aiming, {"learning_rate": jnp.float32(0.01)}, jnp.float32(1.0))
    np.testing.assert_allclose(last["learning_rate"], 0.01)


@pytest.mark.parametrize(
    ("settings", "penalised", "message"),
    [
        ({"adapts": "gamma"}, True, "adapts='gamma' is not known: choose from learning_rate, kl_coef"),
        ({"desired_kl": 0.0}, True, "desired_kl=0.0 has to be above 0"),
        ({"adapts": "kl_coef"}, True, "without desired_kl adapts nothing"),
        ({"adapts": "kl_coef", "desired_kl": 0.01}, False, "has no penalty: give loss=kl_penalty_loss"),
    ],
)
def test_what_cannot_follow_is_refused(settings, penalised, message):
    """By name, with what to give."""
    with pytest.raises(ValueError, match=message):
        check_adapted(Config(**settings), penalised)

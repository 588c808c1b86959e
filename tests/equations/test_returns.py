"""Returns and advantages: by hand, against rlax and SB3, and never over an episode's end."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from advantage.equations.returns import generalised_advantage, n_step_return

ORACLES = Path(__file__).parents[1] / "oracles"
SB3, RLAX = np.load(ORACLES / "sb3.npz"), np.load(ORACLES / "rlax.npz")

pytestmark = pytest.mark.usefixtures("strict")


def gae(reward, value, next_value, ended, gamma, lam):
    arrays = [jnp.asarray(x, jnp.float32) for x in (reward, value, next_value)]
    return np.asarray(generalised_advantage(*arrays, jnp.asarray(ended, bool), gamma, lam))


def test_gae_by_hand():
    """gamma 0.5, lambda 0.5: deltas 1.5, 3, 1; A_2 = 1, A_1 = 3 + 1/4, A_0 = 1.5 + 3.25/4."""
    found = gae([1.0, 2.0, 3.0], [0.5, 2.0, 4.0], [2.0, 6.0, 4.0], [False] * 3, 0.5, 0.5)
    np.testing.assert_allclose(found, [1.5 + 3.25 / 4, 3.25, 1.0], rtol=1e-6)


def test_gae_stops_at_an_end():
    """Row 1 ended: nothing after it reaches rows 0 and 1, while its own bootstrap stays."""
    found = gae([1.0, 2.0, 300.0], [0.5, 2.0, 4.0], [2.0, 6.0, 400.0], [False, True, False], 0.5, 0.5)
    np.testing.assert_allclose(found[:2], [1.5 + 3.0 / 4, 3.0], rtol=1e-6)


def test_gae_is_that_of_rlax():
    """One stream with terminations, three lambdas."""
    values, discounts = RLAX["gae/values"], RLAX["gae/discounts"]
    ended = discounts == 0
    following = np.where(ended, 0.0, values[1:])
    for lam, expected in zip(RLAX["gae/lambdas"], RLAX["gae/advantages"], strict=True):
        found = gae(RLAX["gae/rewards"], values[:-1], following, ended, 0.9, float(lam))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["", "bootstrapped_"])
def test_gae_is_that_of_sb3(kind):
    """Ends of both kinds in 4 environments; a truncation bootstraps from its final observation's value."""
    data = {name.removeprefix("gae/"): SB3[name] for name in SB3.files if name.startswith("gae/")}
    values, truncated = data["values"], data["truncated"]
    ended = data["terminated"] | truncated
    following = np.concatenate([values[1:], data["last_values"][None]])
    final = np.where(truncated, data["final_values"], 0.0) if kind else np.zeros_like(values)
    following = np.where(ended, final, following)
    for i, (gamma, lam) in enumerate(zip(data["gammas"], data["lambdas"], strict=True)):
        found = gae(data["rewards"], values, following, ended, float(gamma), float(lam))
        np.testing.assert_allclose(found, data[f"{kind}advantages"][i], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found + values, data[f"{kind}returns"][i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("going_on", "total", "power"),
    [
        ([True, True, True], 1 + 0.5 * 2 + 0.25 * 4, 0.125),
        ([True, True, False], 1 + 0.5 * 2 + 0.25 * 4, 0.125),  # it ends with the last row: all count
        ([True, False, True], 1 + 0.5 * 2, 0.25),
        ([False, True, True], 1.0, 0.5),
    ],
)
def test_n_step_return_stops(going_on, total, power):
    """The first row that does not go on is the last that counts; later rows count no more."""
    found = n_step_return(jnp.array([[1.0, 2.0, 4.0]]), jnp.array([going_on]), 0.5)
    np.testing.assert_allclose(found, [[total], [power]], rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_n_step_return_at_extreme_discounts(gamma):
    """gamma 0 leaves the first reward, gamma 1 the plain sum."""
    total, power = n_step_return(jnp.array([[1.0, 2.0]]), jnp.array([[True, True]]), gamma)
    np.testing.assert_array_equal([total[0], power[0]], [1 + 2 * gamma, gamma])


def test_n_step_targets_are_those_of_rlax():
    """Every start in a stream with terminations; at the stream's end it bootstraps from the last value."""
    reward, following = RLAX["n_step/rewards"], RLAX["n_step/next_values"]
    terminated = RLAX["n_step/discounts"] == 0
    count = len(reward)
    for n, expected in zip(RLAX["n_step/n"], RLAX["n_step/targets"], strict=True):
        rows = np.minimum(np.arange(count)[:, None] + np.arange(n), count - 1)
        going_on = ~terminated[rows] & (np.arange(count)[:, None] + np.arange(n) < count - 1)
        total, power = n_step_return(jnp.asarray(reward[rows]), jnp.asarray(going_on), 0.9)
        last = np.arange(count) + np.cumprod(going_on[:, :-1], axis=1).sum(axis=1, dtype=int)
        target = total + np.where(terminated[last], 0.0, power) * following[last]
        np.testing.assert_allclose(target, expected, rtol=1e-5, atol=1e-6)

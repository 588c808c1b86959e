"""Brax environments: `done` is a termination, the step limit a truncation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import advantage.platform

pytest.importorskip("brax")

from advantage.envs.brax import BraxEnv
from advantage.envs.jax import is_jax_env, make_jax, reset_envs, step_envs

pytestmark = pytest.mark.usefixtures("strict")


def run(env, steps, num_envs=3):
    state, observed = jax.jit(lambda keys: reset_envs(env, keys))(
        jax.random.split(jax.random.PRNGKey(0), num_envs)
    )
    step = jax.jit(lambda *args: step_envs(env, *args))
    action = jnp.full((num_envs, *env.spec.action.shape), 0.5, jnp.float32)
    for t in range(steps):
        state, ts = step(state, observed, action, jax.random.PRNGKey(t))
        yield observed, ts
        observed = ts.observed
    assert step._cache_size() == 1


def test_a_fall_is_a_termination_with_its_final_observation():
    env = make_jax("brax/inverted_pendulum")
    assert is_jax_env(env) and env.id == "brax/inverted_pendulum" and env.episode_length == 1000
    assert env.spec.observation.shape == (4,) and env.spec.action.bounds()[0] == [-1.0]
    ended = 0
    for _, ts in run(env, 40):
        np.testing.assert_array_equal(ts.terminated, abs(ts.final_obs[:, 1]) > 0.2)
        np.testing.assert_array_equal(ts.observed.is_first, ts.terminated)
        assert (abs(ts.observed.obs[ts.terminated]) <= 0.01).all() and not ts.truncated.any()
        assert ts.reward.dtype == jnp.float32
        ended += int(ts.terminated.sum())
    assert ended >= 3


def test_the_step_limit_is_a_truncation():
    env = make_jax("brax/fast")
    env = BraxEnv(env.env, env.id, episode_length=5)
    cuts = [(t, ts) for t, (_, ts) in enumerate(run(env, 11), 1) if ts.truncated.any()]
    assert [t for t, _ in cuts] == [5, 10]
    for _, ts in cuts:
        assert ts.truncated.all() and not ts.terminated.any() and ts.observed.is_first.all()
        assert not np.isclose(ts.final_obs, ts.observed.obs).all()


def test_unknown_names():
    with pytest.raises(ValueError, match="brax/halfcheetah"):
        make_jax("brax/HalfCheetah")

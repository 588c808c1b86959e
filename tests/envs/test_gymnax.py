"""gymnax environments: no autoreset of their own, and time limits told from terminations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import advantage.platform

pytest.importorskip("gymnax")

from advantage.envs.classic import CartPole, CartPoleState
from advantage.envs.jax import is_jax_env, make_jax, reset_envs, step_envs

pytestmark = pytest.mark.usefixtures("strict")


def run(env, action, steps, num_envs=3):
    """Step with one action for ever; yields what was observed before and the time step."""
    state, observed = jax.jit(lambda keys: reset_envs(env, keys))(
        jax.random.split(jax.random.PRNGKey(0), num_envs)
    )
    step = jax.jit(lambda *args: step_envs(env, *args))
    actions = jnp.broadcast_to(jnp.asarray(action), (num_envs, *np.shape(action)))
    for t in range(steps):
        state, ts = step(state, observed, actions, jax.random.PRNGKey(t))
        yield observed, ts
        observed = ts.observed
    assert step._cache_size() == 1


def test_a_time_limit_is_a_truncation():
    env = make_jax("gymnax/Pendulum-v1")
    assert is_jax_env(env) and env.id == "gymnax/Pendulum-v1"
    assert env.spec.action.bounds()[1] == [2.0]
    cuts = []
    for t, (_, ts) in enumerate(run(env, np.zeros(1, np.float32), 401), 1):
        assert not ts.terminated.any()
        np.testing.assert_array_equal(ts.observed.is_first, ts.truncated)
        if ts.truncated.any():
            assert ts.truncated.all()
            # The final observation is not the next episode's first.
            assert not np.isclose(ts.final_obs, ts.observed.obs).all()
            cuts.append(t)
    assert cuts == [200, 400]


def test_a_fall_is_a_termination():
    env, ours = make_jax("gymnax/CartPole-v1"), CartPole()
    ended = 0
    for observed, ts in run(env, np.int32(1), 40):
        states = CartPoleState(observed.obs, jnp.zeros(3, jnp.int32))
        keys = jnp.zeros((3, 2), jnp.uint32)
        _, mine = jax.vmap(ours.step)(states, jnp.ones(3, jnp.int32), keys)
        np.testing.assert_allclose(ts.final_obs, mine.obs, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(ts.terminated, mine.terminated)
        np.testing.assert_array_equal(ts.reward, mine.reward)
        assert not ts.truncated.any()
        ended += int(ts.terminated.sum())
    assert ended >= 6


@pytest.mark.parametrize(
    "name", ["Breakout-MinAtar", "FourRooms-misc", "FrozenLake-misc", "UmbrellaChain-bsuite"]
)
def test_observations_have_the_dtype_of_the_space(name):
    env = make_jax(f"gymnax/{name}")
    space = env.spec.observation
    for _, ts in run(env, np.int32(0), 12):
        assert ts.observed.obs.dtype == space.dtype and ts.observed.obs.shape == (3, *space.shape)
        assert ts.reward.dtype == jnp.float32 and ts.reward.shape == (3,)


def test_unknown_names():
    with pytest.raises(ValueError, match="gymnax/CartPole-v1"):
        make_jax("gymnax/CartPole-v0")

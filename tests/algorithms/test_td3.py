"""TD3: gradient steps of SB3, delayed updates, exploration."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.algorithms import td3
from advantage.equations.noise import NormalActionNoise
from advantage.memory.uniform import Batch
from advantage.networks import optimisers
from advantage.networks.continuous import Widths
from advantage.types import NONFINITE, Observed, Space, Spec

SPEC = Spec(Space("box", (3,), low=-np.inf, high=np.inf), Space("box", (2,), low=-1.0, high=1.0))
SMALL = td3.Config(net_arch=Widths((8,), (8,)), batch_size=8, buffer_size=64, learning_starts=0)
KEY = jax.random.PRNGKey(2)

learn = jax.jit(td3.learn)


@functools.cache
def fresh():
    return jax.jit(td3.init, static_argnums=(0, 1))(SMALL, SPEC, KEY)


def rows(seed=0):
    rng = np.random.default_rng(seed)
    obs, next_obs = jnp.asarray(rng.normal(size=(2, 8, 3)), jnp.float32)
    reward, action = rng.normal(size=8), rng.uniform(-1, 1, (8, 2))
    return Batch(obs, jnp.asarray(action, jnp.float32), jnp.asarray(reward, jnp.float32), jnp.full(8, 0.9), next_obs)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def state_of(sb3, config):
    """SB3's weights before the first step."""
    found = sb3.weights("td3", "before")
    actors = [sb3.deterministic_actor(found, network) for network in ("actor", "actor_target")]
    critics = [sb3.critics(found, network) for network in ("critic", "critic_target")]
    optimizers = td3.Optimizers(*[optimisers.init(config.optimizer, x) for x in (actors[0], critics[0])])
    return td3.State(*actors, *critics, optimizers, jnp.float32(0.0), jnp.int32(0), jnp.int32(0), KEY)


@pytest.mark.parametrize("case", ["td3/adam", "td3/sgd"])
def test_learning_is_that_of_sb3(sb3, case):
    """Three gradient steps on one batch with ends of both kinds, noise clipped in a fifth of its rows."""
    config = td3.Config(**sb3.settings(case))
    answers = sb3.learned(td3, config, state_of(sb3, config), case)
    sb3.assert_logged(answers, case, ["critic_loss"])
    # SB3's mean is over the steps at which the actor moved: here the second alone.
    np.testing.assert_allclose(answers[1][1]["train/actor_loss"], sb3.ORACLE[f"{case}/log3/actor_loss"], rtol=1e-5)
    for steps in (1, 3):
        found, state = sb3.weights("td3", f"{case[4:]}/after{steps}"), answers[steps - 1][0]
        sb3.assert_close(state.critics, sb3.critics(found), 1e-5)
        sb3.assert_close(state.target_critics, sb3.critics(found, "critic_target"), 1e-5)
        sb3.assert_close(state.actor, sb3.deterministic_actor(found), 1e-5)
        sb3.assert_close(state.target_actor, sb3.deterministic_actor(found, "actor_target"), 1e-5)
    assert int(answers[2][0].n_updates) == 3


def test_actor_and_targets_wait_for_the_critics():
    """With a delay of 3 they move at the third and sixth gradient step; the critics at each."""
    config, state = dataclasses.replace(SMALL, policy_delay=3), fresh()
    moved = {"critics": [], "actor": [], "target_critics": [], "target_actor": []}
    for _ in range(6):
        before = state
        state, *_ = learn(config, state, rows())
        for name, found in moved.items():
            found.append(not same(getattr(before, name), getattr(state, name)))
    third = [False, False, True] * 2
    assert moved == {"critics": [True] * 6, "actor": third, "target_critics": third, "target_actor": third}


def test_a_bad_batch_is_left_out():
    """Infinite rewards change no parameter, and are counted."""
    state = fresh()._replace(n_updates=jnp.int32(1))  # the actor is due
    after, metrics, _ = learn(SMALL, state, rows()._replace(reward=jnp.full(8, jnp.inf)))
    assert float(metrics[NONFINITE]) == 1.0
    assert same(after[:4], state[:4])


def test_exploration_adds_noise_to_the_actor():
    """Random at first, then the actor with noise within ±1; without exploring the actor alone."""
    config = dataclasses.replace(SMALL, learning_starts=10, action_noise=NormalActionNoise([0.0, 0.1], [0.02, 0.04]))
    obs = np.random.default_rng(1).normal(size=(4000, 3))
    seen = Observed(jnp.asarray(obs, jnp.float32), jnp.zeros(4000, bool))
    random, late = (td3.actor(config, fresh()._replace(steps=jnp.int32(n))) for n in (9, 10))
    own = np.asarray(fresh().actor(seen.obs))
    action, carry = td3.act(config, late, (), seen, KEY, True)
    assert carry == () and np.abs(action).max() <= 1
    inside = (np.abs(own) < 0.7).all(axis=1)
    assert inside.sum() > 1000
    np.testing.assert_allclose(np.mean((action - own)[inside], axis=0), [0.0, 0.1], atol=0.005)
    np.testing.assert_allclose(np.std((action - own)[inside], axis=0), [0.02, 0.04], rtol=0.1)
    plain = dataclasses.replace(config, action_noise=None)
    action, _ = td3.act(plain, random, (), seen, KEY, True)
    np.testing.assert_allclose(np.std(action, axis=0), [3**-0.5] * 2, rtol=0.05)
    for actor in (random, late):
        np.testing.assert_array_equal(td3.act(config, actor, (), seen, KEY, False)[0], own)
    np.testing.assert_array_equal(td3.act(plain, late, (), seen, KEY, True)[0], own)

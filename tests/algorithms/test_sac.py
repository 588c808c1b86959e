"""SAC: gradient steps of SB3, temperature, exploration, state-dependent noise."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.algorithms import sac
from advantage.networks.temperature import first_temperature, learns_temperature
from advantage.memory.uniform import Batch
from advantage.networks import optimisers
from advantage.networks.continuous import Widths
from advantage.types import NONFINITE, Observed, Space, Spec

SPEC = Spec(Space("box", (3,), low=-np.inf, high=np.inf), Space("box", (2,), low=-1.0, high=1.0))
SMALL = sac.Config(net_arch=Widths((8,), (8,)), batch_size=8, buffer_size=64, learning_starts=0)
KEY = jax.random.PRNGKey(2)

learn = jax.jit(sac.learn)


@functools.cache
def fresh(config=SMALL):
    return jax.jit(sac.init, static_argnums=(0, 1))(config, SPEC, KEY)


def rows(seed=0):
    rng = np.random.default_rng(seed)
    obs, next_obs = jnp.asarray(rng.normal(size=(2, 8, 3)), jnp.float32)
    reward, action = rng.normal(size=8), rng.uniform(-1, 1, (8, 2))
    return Batch(obs, jnp.asarray(action, jnp.float32), jnp.asarray(reward, jnp.float32), jnp.full(8, 0.9), next_obs)


def observed(num_envs=4, first=False):
    obs = np.random.default_rng(1).normal(size=(num_envs, 3))
    return Observed(jnp.asarray(obs, jnp.float32), jnp.full(num_envs, first))


def state_of(sb3, config):
    """SB3's weights before the first step."""
    found = sb3.weights("sac", "before")
    actor, critics, targets = sb3.gaussian_actor(found), sb3.critics(found), sb3.critics(found, "critic_target")
    learned = learns_temperature(config.ent_coef)
    log_alpha = jnp.float32(math.log(first_temperature(config.ent_coef)) if learned else 0.0)
    inits = [optimisers.init(config.optimizer, x) for x in (actor, critics)]
    optimizers = sac.Optimizers(*inits, optimisers.init(optimisers.adam, log_alpha))
    return sac.State(actor, critics, targets, log_alpha, optimizers, jnp.int32(0), jnp.int32(0), KEY)


@pytest.mark.parametrize("case", ["sac/adam", "sac/sgd"])
def test_learning_is_that_of_sb3(sb3, case):
    """Three gradient steps on one batch with ends of both kinds: losses, every weight, targets, temperature."""
    config = sac.Config(**sb3.settings(case))
    answers = sb3.learned(sac, config, state_of(sb3, config), case)
    names = ["critic_loss", "actor_loss", "ent_coef"] + ["ent_coef_loss"] * learns_temperature(config.ent_coef)
    sb3.assert_logged(answers, case, names)
    for steps in (1, 3):
        found, state = sb3.weights("sac", f"{case[4:]}/after{steps}"), answers[steps - 1][0]
        sb3.assert_close(state.critics, sb3.critics(found), 1e-5)
        sb3.assert_close(state.target_critics, sb3.critics(found, "critic_target"), 1e-5)
        sb3.assert_close(state.actor, sb3.gaussian_actor(found), 1e-5)
        if learns_temperature(config.ent_coef):
            np.testing.assert_allclose(state.log_alpha, sb3.ORACLE[f"{case}/log_ent_coef{steps}"], atol=1e-5)
    assert int(answers[2][0].n_updates) == 3


def test_actions_stretched_are_those_of_sb3(sb3):
    """To bounds that differ between components."""
    low, high, action, answer = (sb3.ORACLE[f"unscaled/{name}"] for name in ("low", "high", "action", "answer"))
    space = Space("box", (2,), low=low.tobytes(), high=high.tobytes())
    np.testing.assert_allclose(sac.to_env(space, action), answer, rtol=1e-6, atol=1e-6)


# -- the temperature -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("target_entropy", "grows"), [(50.0, True), (-50.0, False)])
def test_the_temperature_seeks_the_target_entropy(target_entropy, grows):
    """It rises while the policy is less random than wanted, and falls while it is more so."""
    config = dataclasses.replace(SMALL, target_entropy=target_entropy, ent_coef="auto_0.1")
    state, metrics, _ = learn(config, fresh(config), rows())
    np.testing.assert_allclose(metrics["train/ent_coef"], 0.1, rtol=1e-6)
    assert (float(state.log_alpha) > math.log(0.1)) == grows


def test_the_target_entropy_is_minus_the_numbers_of_an_action():
    """`auto` is the same as -2 for two of them."""
    auto, given = (learn(dataclasses.replace(SMALL, target_entropy=x), fresh(), rows()) for x in ("auto", -2.0))
    for x, y in zip(jax.tree.leaves(auto), jax.tree.leaves(given), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_fixed_temperature_stays():
    config = dataclasses.replace(SMALL, ent_coef=0.0)
    state, metrics, _ = learn(config, fresh(config), rows())
    assert float(state.log_alpha) == 0.0 and float(metrics["train/ent_coef"]) == 0.0


def test_a_bad_batch_is_left_out():
    """Infinite rewards change no parameter of the critics or their targets, and are counted."""
    bad = rows()._replace(reward=jnp.full(8, jnp.inf))
    state, metrics, _ = learn(SMALL, fresh(), bad)
    assert float(metrics[NONFINITE]) == 1.0
    for x, y in zip(jax.tree.leaves(state.critics), jax.tree.leaves(fresh().critics), strict=True):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(jax.tree.leaves(state.target_critics), jax.tree.leaves(fresh().target_critics), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


# -- acting --------------------------------------------------------------------------------------------


def test_random_until_learning_starts():
    """Uniform within ±1 before `learning_starts` steps, then the policy's; without exploring always its mode."""
    config = dataclasses.replace(SMALL, learning_starts=10)
    state, carry = fresh(config), sac.initial_carry(config, SPEC, 4000)
    seen = observed(4000)
    before, after = (sac.actor(config, state._replace(steps=jnp.int32(n))) for n in (9, 10))
    action, _ = sac.act(config, before, carry, seen, KEY, True)
    np.testing.assert_allclose(np.std(action, axis=0), [3**-0.5] * 2, rtol=0.05)
    assert np.abs(action).max() <= 1
    distribution = state.actor.distribution(state.actor.latent(seen.obs))
    action, _ = sac.act(config, after, carry, seen, KEY, True)
    before_tanh = (np.arctanh(action) - distribution.mean) / np.exp(distribution.log_std)
    np.testing.assert_allclose([before_tanh.mean(), before_tanh.std()], [0.0, 1.0], atol=0.05)
    for actor in (before, after):
        action, _ = sac.act(config, actor, carry, seen, KEY, False)
        np.testing.assert_array_equal(action, distribution.mode())


@pytest.mark.parametrize("at_warmup", [False, True])
def test_gsde_holds_its_noise(at_warmup):
    """Two steps with one matrix, then another; at warm-up only where asked for."""
    config = dataclasses.replace(
        SMALL, use_sde=True, sde_sample_freq=2, use_sde_at_warmup=at_warmup, learning_starts=10, log_std_init=0.0
    )
    state, carry, seen, actions = fresh(config), sac.initial_carry(config, SPEC, 4), observed(), []
    for key in jax.random.split(KEY, 4):
        action, carry = sac.act(config, sac.actor(config, state), carry, seen, key, True)
        actions.append(np.asarray(action))
    alike = [np.array_equal(a, b) for a, b in zip(actions, actions[1:], strict=False)]
    assert alike == ([True, False, True] if at_warmup else [False] * 3)


def test_gsde_learns():
    """Its matrix of deviations is part of the actor, and moves."""
    config = dataclasses.replace(SMALL, use_sde=True)
    state, metrics, _ = learn(config, fresh(config), rows())
    assert np.abs(state.actor.log_std - fresh(config).actor.log_std).max() > 1e-5
    assert float(metrics[NONFINITE]) == 0.0

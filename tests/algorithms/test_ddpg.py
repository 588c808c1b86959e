"""DDPG: gradient steps of SB3, which is TD3 with one critic, no delay and no smoothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.algorithms import ddpg, td3
from advantage.networks import optimisers
from advantage.networks.continuous import Widths

KEY = jax.random.PRNGKey(2)


def networks(sb3):
    """SB3's actor, its target, critic and its target, before the first step."""
    found = sb3.weights("ddpg", "before")
    actors = [sb3.deterministic_actor(found, network) for network in ("actor", "actor_target")]
    return [*actors, *[sb3.critics(found, network, 1) for network in ("critic", "critic_target")]]


def state_of(sb3, config):
    found = networks(sb3)
    optimizers = ddpg.Optimizers(*[optimisers.init(config.optimizer, x) for x in (found[0], found[2])])
    return ddpg.State(*found, optimizers, jnp.int32(0), jnp.int32(0), KEY)


@pytest.mark.parametrize("case", ["ddpg/adam", "ddpg/sgd"])
def test_learning_is_that_of_sb3(sb3, case):
    """Three gradient steps on one batch with ends of both kinds."""
    config = ddpg.Config(**sb3.settings(case))
    answers = sb3.learned(ddpg, config, state_of(sb3, config), case)
    sb3.assert_logged(answers, case, ["critic_loss", "actor_loss"])
    for steps in (1, 3):
        found, state = sb3.weights("ddpg", f"{case[5:]}/after{steps}"), answers[steps - 1][0]
        sb3.assert_close(state.critics, sb3.critics(found, count=1), 1e-5)
        sb3.assert_close(state.target_critics, sb3.critics(found, "critic_target", 1), 1e-5)
        sb3.assert_close(state.actor, sb3.deterministic_actor(found), 1e-5)
        sb3.assert_close(state.target_actor, sb3.deterministic_actor(found, "actor_target"), 1e-5)
    assert int(answers[2][0].n_updates) == 3


def test_it_is_td3_without_its_three_additions(sb3):
    """One critic, an actor that moves at every step, a target without noise: the same weights."""
    common = {"learning_rate": 0.01, "gamma": 0.9, "tau": 0.1, "net_arch": Widths((16, 16), (16, 16))}
    plain = ddpg.Config(**common)
    other = td3.Config(policy_delay=1, target_policy_noise=0.0, target_noise_clip=0.0, n_critics=1, **common)
    one = state_of(sb3, plain)
    two = td3.State(*one[:4], td3.Optimizers(*one.optimizer), jnp.float32(0.0), *one[5:])
    learn = {algorithm: jax.jit(algorithm.learn) for algorithm in (ddpg, td3)}
    for _ in range(3):
        one, *_ = learn[ddpg](plain, one, sb3.batch(0.9))
        two, *_ = learn[td3](other, two, sb3.batch(0.9))
    for x, y in zip(jax.tree.leaves(one[:4]), jax.tree.leaves(two[:4]), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)

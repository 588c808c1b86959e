"""Endings, closed form, with a policy that remembers: the values it learns are those of one that does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.algorithms import a2c, ddpg, ppo
from advantage.algorithms.recurrent import Recurrent, RecurrentOnPolicy
from advantage.drivers.fused import FusedDriver
from advantage.drivers.host import HostDriver
from advantage.envs.jax import make_jax
from advantage.envs.probes import Endings
from advantage.models import agent_of
from advantage.networks.actor_critic import Architecture
from advantage.networks.continuous import Widths
from advantage.networks.recurrent import Recurrence, Steps, Windows, empty_carry

GAMMA, BURN_IN = 0.8, 2
CONFIG = ddpg.Config(
    action_noise=0.5, learning_rate=0.03, buffer_size=600, learning_starts=50, batch_size=32, train_freq=8,
    gradient_steps=8, gamma=GAMMA, tau=0.3, net_arch=Widths((4,), ()), recurrence=Recurrence(8, 1, "gru", 4, BURN_IN),
)  # fmt: skip


def values(state):
    """Of the five places where an episode begins in them, where the policy acts."""
    rows = jnp.concatenate([jnp.zeros((BURN_IN, 5, 5)), jnp.eye(5)[None]])
    real = jnp.concatenate([jnp.zeros((BURN_IN, 5), bool), jnp.ones((1, 5), bool)])
    windows = Windows(rows, real, real, empty_carry(CONFIG.recurrence, 5))
    return np.asarray(state.critics.first(windows, state.actor(windows)))


def test_learned_values_are_the_true_ones(toys):
    """Over windows that cross ends of both kinds, and past dummy rows, which are not remembered."""
    driver = HostDriver(agent_of(Recurrent(ddpg)), toys.vector_envs("next", 1, 2, toys.EndingsBoxGym), 5)
    driver.init(CONFIG)
    list(driver.run(CONFIG, {"learning_rate": lambda left: 0.03 * left}, 0, 1601))
    np.testing.assert_allclose(values(driver.seed_state(0)), Endings().value(np.eye(5), GAMMA), atol=0.2)


WORDS = {"gamma": GAMMA, "learning_rate": 0.03, "max_grad_norm": 10.0, "net_arch": Architecture((), (), ())}
ON_POLICY = {
    "ppo": ppo.Config(n_steps=16, batch_size=32, n_epochs=4, gae_lambda=0.9, recurrence=Recurrence(8, 1, "gru", 6), **WORDS),
    "a2c": a2c.Config(n_steps=8, use_rms_prop=False, recurrence=Recurrence(8, 1, "lstm"), **WORDS),
}
AGENTS = {"ppo": agent_of(RecurrentOnPolicy(ppo)), "a2c": agent_of(RecurrentOnPolicy(a2c))}


def values_from_nothing(config, state):
    """Of the five places where an episode begins in them."""
    empty = (empty_carry(config.recurrence, 5),) * 2
    return np.asarray(state.network.value(Steps(jnp.eye(5), jnp.ones(5, bool), empty)))


@pytest.mark.parametrize(("name", "kind"), [("ppo", "next"), ("ppo", "same"), ("a2c", "next"), ("a2c", "jax")])
def test_learned_values_are_the_true_ones_on_policy(toys, name, kind):
    """Sequences cross ends of both kinds and dummy rows, and begin in the middle of episodes."""
    config, agent = ON_POLICY[name], AGENTS[name]
    if kind == "jax":
        driver = FusedDriver(agent, Endings(), 5, 1, 4, devices=jax.local_devices()[:1])
    else:
        driver = HostDriver(agent, toys.vector_envs(kind, 1, 4, toys.EndingsGym), 5)
    driver.init(config)
    list(driver.run(config, {"learning_rate": lambda left: 0.03 * left}, 0, {"ppo": 64 * 30, "a2c": 8_000}[name]))
    found = values_from_nothing(config, driver.seed_state(0))
    np.testing.assert_allclose(found, Endings().value(np.eye(5), GAMMA), atol=0.12)


@pytest.mark.parametrize("name", AGENTS)
def test_both_drivers_agree(toys, name):
    """Three updates and a part of one, in which what is remembered crosses chunks."""
    config, env = ON_POLICY[name], make_jax("advantage/ProbeEndings-v0")
    host = HostDriver(AGENTS[name], toys.JaxHostEnvs(env, (3,), 2), 3)
    fused = FusedDriver(AGENTS[name], env, 3, 1, 2, devices=jax.local_devices()[:1])
    for driver in (host, fused):
        driver.init(config)
        list(driver.run(config, {}, 0, 3 * config.n_steps * 2 + 7))
    for x, y in zip(jax.tree.leaves(host.state), jax.tree.leaves(fused.state), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)

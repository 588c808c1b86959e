"""Endings, closed form, with a policy that remembers: the values it learns are those of one that does not."""

import jax.numpy as jnp
import numpy as np

from advantage.algorithms import ddpg
from advantage.algorithms.recurrent import Recurrent
from advantage.drivers.host import HostDriver
from advantage.envs.probes import Endings
from advantage.models import agent_of
from advantage.networks.continuous import Widths
from advantage.networks.recurrent import Recurrence, Windows, empty_carry

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

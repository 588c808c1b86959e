"""The same algorithm file runs under both drivers: one JAX environment gives the same updates in each."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from advantage.algorithms import a2c, crossq, ddpg, dqn, ppo, reinforce, sac, td3, tqc, trpo
from advantage.drivers.fused import FusedDriver
from advantage.drivers.host import HostDriver
from advantage.envs.jax import make_jax
from advantage.envs.shaping import PotentialShaping
from advantage.envs.wrappers import FrameStack, StickyActions, TimeLimit
from advantage.equations.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from advantage.equations.schedules import Linear
from advantage.networks.continuous import Widths

PPO = ppo.Config(n_steps=16, batch_size=16, n_epochs=2, learning_rate=3e-3, net_arch=ppo.Architecture((), (8,), (8,)))
DQN = dqn.Config(
    learning_rate=3e-3, buffer_size=200, learning_starts=8, batch_size=8, train_freq=8, gradient_steps=2,
    target_update_interval=16, net_arch=(8,), exploration_fraction=0.9, n_steps=2,
)  # fmt: skip
SMALL = {"learning_rate": 3e-3, "net_arch": ppo.Architecture((), (8,), (8,))}
CONFIGS = {
    "ppo": PPO, "dqn": DQN, "a2c": a2c.Config(n_steps=5, **SMALL), "reinforce": reinforce.Config(train_freq=8, **SMALL),
    "trpo": trpo.Config(n_steps=16, batch_size=16, n_critic_updates=2, target_kl=0.1, **SMALL),
}  # fmt: skip

REPLAY = {
    "learning_rate": 3e-3, "buffer_size": 200, "learning_starts": 8, "batch_size": 8, "train_freq": 8,
    "net_arch": Widths((8,), (8,)),
}  # fmt: skip
# Noise that lasts from step to step, from chunk to chunk, and none.
CONTINUOUS = {
    "sac": sac.Config(gradient_steps=2, n_steps=2, use_sde=True, sde_sample_freq=3, **REPLAY),
    "td3": td3.Config(updates_per_step=0.25, action_noise=OrnsteinUhlenbeckActionNoise(0.0, 0.3, dt=0.1), **REPLAY),
    "ddpg": ddpg.Config(gradient_steps=2, action_noise=NormalActionNoise(0.0, 0.1), **REPLAY),
    "tqc": tqc.Config(gradient_steps=2, n_quantiles=5, use_sde=True, sde_sample_freq=-1, **REPLAY),
    "crossq": crossq.Config(gradient_steps=2, policy_delay=2, action_noise=NormalActionNoise(0.0, 0.1), **REPLAY),
}


def both(toys, env, agent, config, schedules, total, seeds=(3,)):
    """States after the same training under the host and the fused driver."""
    host = HostDriver(agent, toys.JaxHostEnvs(env, seeds, 2), seeds[0])
    fused = FusedDriver(agent, env, seeds[0], len(seeds), 2, devices=jax.local_devices()[:1])
    for driver in (host, fused):
        driver.init(config)
        reports = list(driver.run(config, schedules, 0, total))
        assert reports[-1].steps == total
    return host, fused


def assert_close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "id"),
    [
        *itertools.product(["ppo", "dqn"], ["advantage/CartPole-v1", "advantage/ProbeEndings-v0"]),
        *itertools.product(["a2c", "trpo", "reinforce"], ["advantage/ProbeEndings-v0"]),
    ],
)
def test_three_updates_agree(toys, id, name):
    """Network, optimiser, counters and key are equal to 1e-5 after three updates, schedules included."""
    config = CONFIGS[name]
    schedules = {"learning_rate": Linear(3e-3), **getattr(toys, name).algorithm.schedules(config)}
    total = 3 * config.steps_per_update * 2
    host, fused = both(toys, make_jax(id), getattr(toys, name), config, schedules, total)
    assert int(host.seed_state(0).n_updates) == int(fused.seed_state(0).n_updates) > 0
    assert_close(host.state, fused.state)
    assert_close(host.memory, fused.memory)
    assert host.recent(0).total == fused.recent(0).total > 0
    np.testing.assert_allclose(host.recent(0).returns, fused.recent(0).returns, rtol=1e-5)
    np.testing.assert_array_equal(host.recent(0).lengths, fused.recent(0).lengths)


def test_wrapped_environments_agree(toys):
    """Shaping, sticky actions, frames and a time limit: the wrappers' states go through both drivers alike."""
    inner = TimeLimit(StickyActions(make_jax("advantage/CartPole-v1")), 7)
    env = FrameStack(PotentialShaping(inner, lambda obs: 3.0 * abs(obs[2]), 0.99), 2)
    host, fused = both(toys, env, toys.ppo, PPO, {}, 3 * PPO.steps_per_update * 2)
    assert_close(host.state, fused.state)
    assert host.recent(0).total == fused.recent(0).total >= 12
    np.testing.assert_allclose(host.recent(0).returns, fused.recent(0).returns, rtol=1e-5)


@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_partial_chunk_agrees(toys, name):
    """The last chunk, cut in mid-row (2 does not divide the total) and mid-chunk, teaches both the same."""
    config = {"ppo": PPO, "dqn": DQN}[name]
    env = make_jax("advantage/ProbeEndings-v0")
    schedules = getattr(toys, name).algorithm.schedules(config)
    total = 2 * config.steps_per_update * 2 + 7
    host, fused = both(toys, env, getattr(toys, name), config, schedules, total, seeds=(3, 4))
    assert_close(host.state, fused.state)
    if name == "dqn":
        assert int(host.seed_state(0).steps) == total


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_actions_agree(toys, name):
    """Three updates and a part of a fourth with actions stretched to other bounds and noise that is carried on."""
    config, env = CONTINUOUS[name], make_jax("advantage/Pendulum-v1")
    host, fused = both(toys, env, getattr(toys, name), config, {}, 3 * 16 + 7)
    assert int(host.seed_state(0).n_updates) == int(fused.seed_state(0).n_updates) > 4
    assert_close(host.state, fused.state)
    assert_close(host.memory, fused.memory)
    assert int(host.seed_state(0).steps) == 3 * 16 + 7


def test_gsde_noise_agrees(toys):
    """Both carry gSDE's noise from step to step and from chunk to chunk."""
    config = dataclasses.replace(PPO, use_sde=True, sde_sample_freq=5)
    env = make_jax("advantage/ProbeEndingsContinuous-v0")
    host, fused = both(toys, env, toys.ppo, config, {}, 3 * 32)
    assert_close(host.state, fused.state)

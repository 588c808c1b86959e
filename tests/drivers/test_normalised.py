"""Normalised algorithms in the drivers: what acts is what learns, both agree, and seeds share nothing."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.algorithms import dqn, ppo
from advantage.algorithms.normalised import Memory, Normalised
from advantage.drivers.fused import FusedDriver
from advantage.drivers.host import HostDriver
from advantage.envs.jax import make_jax
from advantage.envs.vector import SyncEnvs
from advantage.equations.normalisation import Normalisation
from advantage.models import agent_of
from advantage.types import Chunk

T, N = 4, 2
PPO = ppo.Config(n_steps=T, batch_size=8, n_epochs=2, net_arch=ppo.Architecture((), (4,), (4,)))
DQN = dqn.Config(net_arch=(4,), batch_size=4, buffer_size=64, learning_starts=0, train_freq=T)
SETTINGS = Normalisation(clip_obs=5.0, clip_reward=5.0, gamma=0.5)
BOTH = {"ppo": (ppo, PPO), "dqn": (dqn, DQN)}


class Echoing(gymnasium.ActionWrapper):
    """A Gymnasium environment whose actions may be anything."""

    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (5,), np.float32)

    def action(self, action):
        return int(action[0] > 0)


def empty(spec):
    flags = [jnp.zeros((T, N), bool) for _ in range(4)]
    obs, last = (jnp.asarray(spec.observation.zeros(x)) for x in ((T, N), (N,)))
    return Chunk(obs, flags[0], None, obs, jnp.zeros((T, N), jnp.float32), *flags[1:], obs, last)


def assert_close(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **{"rtol": 1e-5, "atol": 1e-5, **tolerance})


def test_the_ratio_is_one(toys, mirror):
    """A chunk is learned from as it was seen when acting, also in chunks during which statistics have changed."""
    algorithm = Normalised(mirror, SETTINGS)
    envs = SyncEnvs([[Echoing(toys.EndingsGym()) for _ in range(N)]])
    agent = agent_of(algorithm)._replace(init_memory=lambda config, spec, n: Memory(empty(spec), jnp.zeros(n)))
    driver = HostDriver(agent, envs, 0)
    config = mirror.Config(n_steps=T)
    driver.init(config)
    means = []
    for _ in driver.run(config, {}, 0, 5 * T * N):
        seen = jax.tree.map(lambda x: x[0], driver.memory.inner)
        np.testing.assert_allclose(seen.action, seen.obs, rtol=1e-6, atol=1e-6)
        means.append(np.asarray(driver.state.normaliser.obs["obs"].mean))
    assert len({m.tobytes() for m in means}) == 5


@pytest.mark.parametrize("name", BOTH)
def test_drivers_agree(toys, name):
    """One JAX environment, three updates and a cut chunk: the same agents, statistics and raw episode returns."""
    algorithm, config = BOTH[name]
    env, agent = make_jax("advantage/CartPole-v1"), agent_of(Normalised(algorithm, SETTINGS))
    host = HostDriver(agent, toys.JaxHostEnvs(env, (3, 4), N), 3)
    fused = FusedDriver(agent, env, 3, 2, N, devices=jax.local_devices()[:1])
    for driver in (host, fused):
        driver.init(config)
        list(driver.run(config, algorithm.schedules(config), 0, 25 * T * N + 3))
    assert_close(host.state.normaliser, fused.state.normaliser, rtol=1e-4)
    assert_close(host.memory.returns, fused.memory.returns, rtol=1e-4)
    assert host.state.normaliser.returns.count.tolist() == [[0, 25 * T * N + 3]] * 2
    for s in range(2):
        np.testing.assert_allclose(host.recent(s).returns, fused.recent(s).returns)
        np.testing.assert_array_equal(host.recent(s).returns, host.recent(s).lengths)  # raw: 1 a step
    assert not np.array_equal(host.state.normaliser.obs["obs"].mean[0], host.state.normaliser.obs["obs"].mean[1])


@pytest.mark.parametrize("name", BOTH)
def test_seeds_share_no_statistics(toys, name):
    """On an environment that no action changes, each seed among three has the statistics that it has alone."""
    algorithm, config = BOTH[name]
    agent = agent_of(Normalised(algorithm, SETTINGS))

    def statistics(seed, seeds):
        envs = SyncEnvs([[toys.EndingsGym() for _ in range(N)] for _ in range(seeds)])
        driver = HostDriver(agent, envs, seed)
        driver.init(config)
        list(driver.run(config, algorithm.schedules(config), 0, 6 * T * N))
        return driver.state.normaliser

    among = statistics(5, 3)
    for s in range(3):
        assert_close(jax.tree.map(lambda x, s=s: x[s], among), jax.tree.map(lambda x: x[0], statistics(5 + s, 1)))
    assert len({x.tobytes() for x in np.asarray(among.obs["obs"].mean)}) == 3

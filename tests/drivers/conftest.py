"""Environments and agents made to be watched: `toys.Name` in the tests of the drivers."""

import types
from typing import NamedTuple

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from advantage.algorithms import a2c, c51, crossq, ddpg, discrete_sac, dqn, iqn, ppo, qrdqn, reinforce, sac, td3, tqc, trpo
from advantage.drivers.common import streams
from advantage.envs.jax import Transition, reset_envs, step_envs
from advantage.envs.vec_env import DummyVecEnv
from advantage.envs.vector import SyncEnvs, VectorEnvs
from advantage.models import agent_of
from advantage.training.callbacks import BaseCallback
from advantage.types import NONFINITE, Agent, Space, Spec

FOLLOWING, REWARDS, LIMIT = (1, 2, 3, 4, 3), (0.0, 0.0, 1.0, 1.0, 0.0), 3


class EndingsGym(gymnasium.Env):
    """`probes.Endings` for Gymnasium: terminations, truncations and both at once (see there)."""

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (5,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = int(self.np_random.integers(5)), 0
        return self._obs(), {}

    def step(self, action):
        reward, terminated = REWARDS[self.place], self.place == 2
        self.place, self.steps = FOLLOWING[self.place], self.steps + 1
        return self._obs(), reward, terminated, self.steps >= LIMIT, {}

    def _obs(self):
        return np.eye(5, dtype=np.float32)[self.place]


class EndingsBoxGym(EndingsGym):
    """The same with a Box action, which nothing depends on either."""

    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))


class MaskedEndingsGym(EndingsGym):
    """The same, where the only legal action is the place's parity; another is an error."""

    def action_masks(self):
        return np.arange(2) == self.place % 2

    def step(self, action):
        assert self.action_masks()[action], "an illegal action"
        return super().step(action)


class Echo(gymnasium.Env):
    """Notes every action in `log`; an episode lasts `length` steps, one of a constant observation."""

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,))

    def __init__(self, action_space, length=1, log=None):
        self.action_space, self.length = action_space, length
        self.log = [] if log is None else log

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.ones(1, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.log.append(np.array(action))
        self.steps += 1
        return np.ones(1, np.float32), float(np.ravel(action)[0]), self.steps >= self.length, False, {}


class EchoJax:
    """One-step episodes whose reward is the action's first number: `driver.recent` lists the actions."""

    def __init__(self, action):
        self.id, self.spec = "test/Echo", Spec(Space("box", (1,), low=0.0, high=1.0), action)

    def reset(self, key):
        return jnp.int32(0), jnp.ones(1, jnp.float32)

    def step(self, env_state, action, key):
        reward = action.reshape(-1)[0].astype(jnp.float32)
        return env_state, Transition(jnp.ones(1, jnp.float32), reward, jnp.bool_(True), jnp.bool_(False))


class Faulty(gymnasium.Env):
    """Goes wrong once: at the `at`-th step counted over all episodes, or at the `at`-th reset."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, fault=None, at=None, length=5):
        self.fault, self.at, self.length = fault, at, length
        self.count, self.resets, self.steps = 0, 0, 0

    def arm(self, fault, at):
        self.fault, self.at, self.count, self.resets = fault, at, 0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        self.resets += 1
        if self.fault == "reset" and self.resets == self.at:
            raise ZeroDivisionError("reset went wrong")
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.count += 1
        self.steps += 1
        now = self.count == self.at
        if now and self.fault == "step":
            raise ZeroDivisionError("step went wrong")
        obs = np.full(2, np.nan if now and self.fault == "obs" else 0.1, np.float32)
        reward = np.inf if now and self.fault == "reward" else 1.0
        return obs, reward, False, self.steps >= self.length, {}


class Counting(gymnasium.Env):
    """Observes the number of steps of the episode, which ends at `length`."""

    observation_space = gymnasium.spaces.Box(0.0, 1000.0, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, length):
        self.length, self.steps = length, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.full(1, self.steps, np.float32), 1.0, self.steps >= self.length, False, {}


class JaxHostEnvs:
    """A JAX environment as host environments, with exactly the fused driver's keys."""

    def __init__(self, env, seeds, num_envs):
        self.env, self.spec, self.num_seeds, self.num_envs = env, env.spec, len(seeds), num_envs
        self.keys = jnp.stack([streams(seed)[2] for seed in seeds])
        self.begin = jax.jit(jax.vmap(self._begin))
        self.go = jax.jit(jax.vmap(self._go))

    def _begin(self, key):
        key, now = jax.random.split(key)
        state, observed = reset_envs(self.env, jax.random.split(now, self.num_envs))
        return key, state, observed

    def _go(self, key, state, observed, action):
        key, now = jax.random.split(key)
        state, out = step_envs(self.env, state, observed, action, now)
        return key, state, out

    def reset(self, seeds):
        self.keys, self.state, self.observed = self.begin(self.keys)
        return jax.tree.map(np.asarray, self.observed)

    def step(self, action):
        self.keys, self.state, out = self.go(self.keys, self.state, self.observed, action)
        self.observed = out.observed
        return jax.tree.map(np.asarray, out)

    def close(self):
        pass


class RecorderState(NamedTuple):
    updates: jax.Array
    seen: jax.Array  # valid rows so far


class RecorderConfig(eqx.Module):
    n_steps: int = eqx.field(static=True, default=4)

    @property
    def steps_per_update(self):
        return self.n_steps


class Recorder:
    """An algorithm that learns nothing: its memory is the last chunk."""

    Config = RecorderConfig
    init = staticmethod(lambda config, spec, key: RecorderState(jnp.int32(0), jnp.int32(0)))
    initial_carry = staticmethod(lambda config, spec, num_envs: ())
    actor = staticmethod(lambda config, state: state.updates)
    schedules = staticmethod(lambda config: {})
    to_env = staticmethod(lambda space, action: action)

    @staticmethod
    def act(config, actor, carry, observed, key, explore):
        return jax.random.randint(key, observed.is_first.shape, 0, 2, jnp.int32), carry

    @staticmethod
    def update(config, state, memory, chunk):
        seen = state.seen + jnp.sum(chunk.valid, dtype=jnp.int32)
        return RecorderState(state.updates + 1, seen), chunk._replace(carry=()), {NONFINITE: jnp.float32(0.0)}


def empty_chunk(config, spec, num_envs):
    from advantage.types import Chunk

    lead = (config.n_steps, num_envs)
    flags = [jnp.zeros(lead, bool) for _ in range(4)]
    obs = spec.observation.zeros(lead)
    arrays = [obs, flags[0], None, spec.action.zeros(lead), np.zeros(lead, np.float32), *flags[1:]]
    return jax.tree.map(jnp.asarray, Chunk(*arrays, obs, spec.observation.zeros((num_envs,))))


def vector_envs(kind, num_seeds, num_envs, make=EndingsGym):
    """Host environments of one kind: `sync` is ours, the others Gymnasium's three autoreset modes."""
    if kind == "sync":
        return SyncEnvs([[make() for _ in range(num_envs)] for _ in range(num_seeds)])
    mode = {"same": AutoresetMode.SAME_STEP, "next": AutoresetMode.NEXT_STEP, "disabled": AutoresetMode.DISABLED}
    return VectorEnvs([SyncVectorEnv([make] * num_envs, autoreset_mode=mode[kind]) for _ in range(num_seeds)])


def stop_at(step):
    """A callback that stops at a step, and the steps it saw."""
    seen = []

    def callback(locals, globals):
        seen.append(locals["self"].num_timesteps)
        return seen[-1] < step

    return callback, seen


def leaves(model, seed_index=0):
    """Every array of a seed's agent."""
    parts = model.get_parameters(seed_index).values()
    return {name: x for part in parts for name, x in part.items()}


def same(ours, theirs):
    """Whether two dictionaries of arrays agree in every bit."""
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[k], theirs[k]) for k in ours)


@pytest.fixture(scope="session")
def toys():
    """What this file defines."""
    learners = {"ppo": ppo, "dqn": dqn, "double": dqn, "c51": c51, "qrdqn": qrdqn, "iqn": iqn, "sac": sac, "td3": td3, "ddpg": ddpg, "discrete_sac": discrete_sac, "tqc": tqc, "crossq": crossq}
    learners |= {"a2c": a2c, "trpo": trpo, "reinforce": reinforce}
    agents = {name: agent_of(algorithm) for name, algorithm in learners.items()}
    agents["recorder"] = Agent(Recorder, Recorder.update, empty_chunk)
    agents |= {"BaseCallback": BaseCallback, "DummyVecEnv": DummyVecEnv}
    return types.SimpleNamespace(**{**globals(), **agents})

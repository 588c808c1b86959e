"""gymnax environments as JAX environments (https://github.com/RobertTLange/gymnax, version 1.0 or newer).

gymnax's `step` resets by itself and `step_env` does not: we use the latter, and ask `is_truncated` for
the time limit, so that a cut episode keeps its final observation and its value.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from advantage.envs.jax import EnvState, Transition, lenient, like, missing
from advantage.types import Spec

try:
    import gymnax
except ImportError as error:
    raise missing("gymnax", error) from error


class GymnaxEnv:
    """One gymnax environment with its parameters.

    Raises:
        ImportError: the environment follows gymnax's API before 1.0, in which a time limit cannot be
            told from a termination.
    """

    def __init__(self, env: Any, params: Any, id: str):
        if not hasattr(env, "is_truncated"):
            raise ImportError(f'{id} needs gymnax>=1.0: pip install --upgrade "advantage[jax-envs]"')
        self.env, self.params, self.id = env, params, id
        self.spec = Spec.from_gymnasium(
            to_gymnasium(env.observation_space(params)), to_gymnasium(env.action_space(params))
        )
        self.state_types = self._state_types()

    @lenient
    def reset(self, key: PRNGKeyArray) -> tuple[EnvState, PyTree]:
        """Begin an episode."""
        obs, state = self.env.reset_env(key, self.params)
        return like(state, self.state_types), obs

    @lenient
    def step(self, env_state: EnvState, action: Array, key: PRNGKeyArray) -> tuple[EnvState, Transition]:
        """Take one action; `truncated` where `params.max_steps_in_episode` is reached."""
        obs, state, reward, terminated, _ = self.env.step_env(key, env_state, action, self.params)
        truncated = self.env.is_truncated(state, self.params)
        return like(state, self.state_types), Transition(
            obs,
            jnp.asarray(reward, jnp.float32).reshape(()),
            jnp.asarray(terminated, bool).reshape(()),
            jnp.asarray(truncated, bool).reshape(()),
        )

    @lenient
    def _state_types(self) -> PyTree:
        """The state's dtypes after a step: after a reset gymnax's states hold Python numbers."""

        def stepped(key: PRNGKeyArray, action: Array) -> PyTree:
            state = self.env.reset_env(key, self.params)[1]
            return self.env.step_env(key, state, action, self.params)[1]

        action = jnp.asarray(self.spec.action.zeros())
        return jax.eval_shape(stepped, jax.random.PRNGKey(0), action)


@lenient
def make(name: str) -> GymnaxEnv:
    """The gymnax environment called `name`, with gymnax's default parameters."""
    env, params = gymnax.make(name)
    return GymnaxEnv(env, params, f"gymnax/{name}")


def names() -> list[str]:
    """Every environment gymnax knows."""
    return list(gymnax.registered_envs)


def to_gymnasium(space: Any) -> gymnasium.Space:
    """A gymnax space as a Gymnasium space.

    Raises:
        TypeError: the space is of no kind that gymnax itself defines.
    """
    kind = type(space).__name__
    if kind == "Discrete":
        return gymnasium.spaces.Discrete(int(space.n))
    if kind == "Box":
        low, high = (
            np.broadcast_to(np.asarray(x, space.dtype), space.shape) for x in (space.low, space.high)
        )
        return gymnasium.spaces.Box(low, high, dtype=np.dtype(space.dtype).type)
    if kind == "Dict":
        return gymnasium.spaces.Dict({name: to_gymnasium(part) for name, part in space.spaces.items()})
    if kind == "Tuple":
        return gymnasium.spaces.Tuple([to_gymnasium(part) for part in space.spaces])
    raise TypeError(f"gymnax space {space!r} is not supported: use Discrete, Box, Dict or Tuple")

"""Brax environments as JAX environments (https://github.com/google/brax).

The raw environment is used: Brax's wrappers reset by themselves and forget the final observation. Time
is counted here, so `done` means termination and the step limit means truncation.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from advantage.envs.jax import EnvState, Transition, lenient, like, missing
from advantage.types import Space, Spec

try:
    # Its dependencies announce their end of life when imported.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import brax.envs
except ImportError as error:
    raise missing("brax", error) from error


class BraxState(NamedTuple):
    """Brax's own state and the steps taken in this episode."""

    state: PyTree
    steps: Int[Array, ""]


class BraxEnv:
    """One Brax environment, cut after `episode_length` steps; actions in [-1, 1]."""

    def __init__(self, env: Any, id: str, episode_length: int = 1000):
        self.env, self.id, self.episode_length = env, id, episode_length
        self.state_types = self._state_types()
        inf = float("inf")
        obs = self.state_types.obs
        if isinstance(obs, Mapping):
            parts = tuple((n, Space("box", x.shape, low=-inf, high=inf)) for n, x in sorted(obs.items()))
            observation = Space("dict", parts=parts)
        else:
            observation = Space("box", obs.shape, low=-inf, high=inf)
        self.spec = Spec(observation, Space("box", (env.action_size,), low=-1.0, high=1.0))

    @lenient
    def reset(self, key: PRNGKeyArray) -> tuple[EnvState, PyTree]:
        """Begin an episode."""
        state = like(self.env.reset(key), self.state_types)
        return BraxState(state, jnp.int32(0)), state.obs

    @lenient
    def step(self, env_state: BraxState, action: Array, key: PRNGKeyArray) -> tuple[EnvState, Transition]:
        """Take one action; Brax's dynamics draw no random numbers from `key`."""
        state = like(self.env.step(env_state.state, action), self.state_types)
        steps = env_state.steps + jnp.int32(1)
        terminated = state.done > 0.5
        # As Brax's EpisodeWrapper: an episode that ends by itself at the limit was not cut.
        truncated = (steps >= self.episode_length) & ~terminated
        reward = jnp.asarray(state.reward, jnp.float32)
        return BraxState(state, steps), Transition(state.obs, reward, terminated, truncated)

    def render(self, env_state: BraxState) -> np.ndarray:
        """Brax's own picture of a state (needs MuJoCo's renderer)."""
        return np.asarray(self.env.render([env_state.state.pipeline_state])[0])

    @lenient
    def _state_types(self) -> PyTree:
        def stepped(key: PRNGKeyArray, action: Array) -> PyTree:
            return self.env.step(self.env.reset(key), action)

        return jax.eval_shape(stepped, jax.random.PRNGKey(0), jnp.zeros(self.env.action_size))


@lenient
def make(name: str) -> BraxEnv:
    """The Brax environment called `name`, on its default physics backend."""
    return BraxEnv(brax.envs.get_environment(name), f"brax/{name}")


def names() -> list[str]:
    """Every environment Brax knows (it has no public list)."""
    return list(brax.envs._envs)

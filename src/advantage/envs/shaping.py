"""Potential-based reward shaping: advice that cannot change which policy is best.

Ng, Harada & Russell, "Policy Invariance Under Reward Transformations", ICML 1999
(https://people.eecs.berkeley.edu/~pabbeel/cs287-fa09/readings/NgHaradaRussell-shaping-ICML1999.pdf).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from advantage import platform
from advantage.envs.jax import Transition, as_space, is_ours, linear_algebra
from advantage.envs.wrapping import JaxWrapper, Wrapped, real, strong_reward, wraps_jax

Potential = Callable[[Any], Any]
"""A function of one observation, as the environment gives it, to one finite number."""


def PotentialShaping(env: Any, potential: Potential, gamma: float | int) -> ShapedEnv | JaxShapedEnv:
    """Add `gamma * potential(s') - potential(s)` to every reward of an environment.

    Where an episode terminates, the potential of what follows is 0; where it is cut (`truncated`), the
    final observation keeps its potential, since the task goes on there. So an episode's discounted return
    changes by `-potential(s_0)`, plus the discounted potential of the final observation if it was cut: no
    policy gains on another.

    Args:
        env: a Gymnasium environment, or a JAX environment. The info of a Gymnasium one keeps the reward
            without shaping as `true_reward` and the episode's sum of these so far as `true_return`.
        potential: a function of one observation `[*shape]` (as the space has it, a dict or tuple too) to
            one finite number, in units of return. In NumPy for a Gymnasium environment; in JAX, and
            hashable as functions are, for a JAX environment.
        gamma: the discount of the algorithm that trains on it, in (0, 1]: with another the guarantee is lost.

    Raises:
        ValueError: an argument that cannot be used. The potential's value is checked at every reset and
            step of a Gymnasium environment; of a JAX environment once, here, on a first observation.
    """
    gamma = real("gamma", gamma, lambda x: 0.0 < x <= 1.0, "give the algorithm's discount, in (0, 1]")
    _check_callable(potential)
    if wraps_jax("PotentialShaping", env):
        return JaxShapedEnv(env, potential, gamma)
    return ShapedEnv(env, potential, gamma)


class ShapedEnv(gymnasium.Wrapper, gymnasium.utils.RecordConstructorArgs):
    """A Gymnasium environment with a shaped reward: what `PotentialShaping` gives."""

    def __init__(self, env: gymnasium.Env, potential: Potential, gamma: float):
        # The arguments are kept so that copies for further seeds can be built from `spec`.
        gymnasium.utils.RecordConstructorArgs.__init__(
            self, potential=potential, gamma=gamma, _disable_deepcopy=True
        )
        gymnasium.Wrapper.__init__(self, env)
        self.potential, self.gamma = potential, gamma
        # A number and not the observation: environments may write the next one into the same array.
        self._before = 0.0
        self._true_return = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Begin an episode."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._before, self._true_return = self._potential_of(obs), 0.0
        return obs, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        """Take a step; `info["true_reward"]` is the environment's own reward, `info["true_return"]` their sum."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        after = 0.0 if terminated else self._potential_of(obs)
        shaped = float(reward) + self.gamma * after - self._before
        self._before = after
        self._true_return += float(reward)
        # Shaped twice, the inner one knows: what `info` has already stays.
        info = {"true_reward": float(reward), "true_return": self._true_return, **info}
        return obs, shaped, terminated, truncated, info

    def _potential_of(self, obs: Any) -> float:
        try:
            value = np.asarray(self.potential(obs))
        except Exception as error:
            raise ValueError(_raised(self.potential, error)) from error
        _check_type(self.potential, value.shape, value.dtype)
        if not np.isfinite(value):
            raise ValueError(_not_finite(self.potential, value, obs))
        return float(value)


@dataclasses.dataclass(frozen=True)
class JaxShapedEnv(JaxWrapper):
    """A JAX environment with a shaped reward: what `PotentialShaping` gives. `own` is the potential now."""

    potential: Potential
    gamma: float

    def __post_init__(self) -> None:
        try:
            hash(self.potential)
        except TypeError:
            raise ValueError(
                f"potential={_name(self.potential)} cannot be hashed, and programs are compiled for it: put it"
                " into a function, lambda obs: potential(obs)"
            ) from None
        self._check()

    def reset(self, key: PRNGKeyArray) -> tuple[Wrapped, PyTree]:
        """Begin an episode."""
        inner, obs = self.env.reset(key)
        return Wrapped(inner, self._potential_of(obs)), obs

    def step(self, env_state: Wrapped, action: Array, key: PRNGKeyArray) -> tuple[Wrapped, Transition]:
        """Take a step for the shaped reward."""
        inner, transition = self.env.step(env_state.inner, action, key)
        potential = self._potential_of(transition.obs)
        after = jnp.where(transition.terminated, jnp.zeros_like(potential), potential)
        reward = strong_reward(transition) + self.gamma * after - env_state.own
        return Wrapped(inner, after), transition._replace(reward=reward)

    def _potential_of(self, obs: PyTree) -> Float[Array, ""]:
        return jnp.asarray(self.potential(as_space(self.env.spec.observation, obs)), jnp.float32)

    @functools.cached_property
    def is_ours(self) -> bool:
        """Whether XLA needs no spare threads for it (see `envs.jax.is_ours`): a potential may be anything."""
        return is_ours(self.env) and not linear_algebra(self._first, np.zeros(2, np.uint32))

    def _first(self, key: PRNGKeyArray) -> tuple[PyTree, Any]:
        """A first observation and its potential."""
        obs = as_space(self.env.spec.observation, self.env.reset(key)[1])
        return obs, self.potential(obs)

    def _check(self) -> None:
        """Raise `ValueError` unless the potential of a first observation is one finite number."""
        key, given = np.zeros(2, np.uint32), []
        try:
            jax.eval_shape(lambda key: given.append(self._first(key)[1]), key)
        except Exception as error:
            raise ValueError(_raised(self.potential, error)) from error
        # What is no array yet (a number, None, a string) tells its type as NumPy sees it.
        value = given[0] if isinstance(given[0], jax.Array) else np.asarray(given[0])
        _check_type(self.potential, value.shape, value.dtype)
        if not self.is_ours:
            platform.spare_threads()  # while there is time: what follows uses JAX
        obs, value = jax.tree.map(np.asarray, jax.jit(self._first)(key))
        if not np.isfinite(value):
            raise ValueError(_not_finite(self.potential, value, obs))


def _check_callable(potential: Any) -> None:
    if not callable(potential):
        raise ValueError(f"potential={potential!r} cannot be called: give a function of one observation")


def _check_type(potential: Potential, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raise `ValueError` unless a value of this shape and dtype is one real number."""
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer) or dtype == bool):
        raise ValueError(f"{_gave(potential)} a value of type {dtype}, not a number: return one finite number")
    if shape != ():
        raise ValueError(
            f"{_gave(potential)} an array of shape {shape}: return one number for one observation, such as"
            " values[0] or values.sum()"
        )


def _not_finite(potential: Potential, value: Any, obs: Any) -> str:
    shown = " ".join(repr(obs).split())
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return (
        f"{_gave(potential)} {value} for the observation {shown}: return a finite number for every observation"
        " (look for divisions by 0 and logarithms)"
    )


def _raised(potential: Potential, error: Exception) -> str:
    said = " ".join(str(error).split())
    said = said if len(said) <= 200 else said[:197] + "..."
    return (
        f"potential {_name(potential)} raised {type(error).__name__}: {said}: it has to take one observation"
        " as the environment gives it"
    )


def _gave(potential: Potential) -> str:
    return f"potential {_name(potential)} gave"


def _name(potential: Potential) -> str:
    return getattr(potential, "__name__", type(potential).__name__)

"""What wrappers of environments share: the checks of their arguments, and the JAX wrappers' common part.

A public wrapper such as `FrameStack` is a function: it gives a Gymnasium wrapper for a Gymnasium
environment and a `JaxWrapper` for a JAX environment.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from advantage.envs.jax import EnvState, JaxEnv, Transition, is_jax_env, is_ours
from advantage.types import Spec


class Wrapped(NamedTuple):
    """A JAX wrapper's state: that of the environment inside, and what the wrapper itself remembers."""

    inner: EnvState
    own: PyTree


@dataclasses.dataclass(frozen=True)
class JaxWrapper:
    """A JAX environment around another: hashable where that is, pure, under any number of `vmap`s.

    Subclasses write `step`, and `reset` if they remember anything; states are `Wrapped`. `id` and `spec` are the
    inner environment's, as are `action_mask` and `render` where it has them.
    """

    env: JaxEnv

    @property
    def id(self) -> str:
        """The inner environment's id, as a Gymnasium wrapper has its environment's spec."""
        return self.env.id

    @property
    def spec(self) -> Spec:
        return self.env.spec

    @property
    def is_ours(self) -> bool:
        """See `envs.jax.is_ours`: a wrapper computes no linear algebra of its own."""
        return is_ours(self.env)

    def reset(self, key: PRNGKeyArray) -> tuple[Wrapped, PyTree]:
        """Begin an episode."""
        inner, obs = self.env.reset(key)
        return Wrapped(inner, ()), obs

    def __getattr__(self, name: str) -> Callable[[Wrapped], Any]:
        # The protocol's optional methods: there only where the inner environment has them.
        if name not in ("action_mask", "render"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        method = getattr(self.env, name)
        return lambda env_state: method(env_state.inner)


def strong_reward(transition: Transition) -> Array:
    """A transition's reward as a float32 array `[]`, whatever the environment returned."""
    return jnp.asarray(transition.reward, jnp.float32)


def select(condition: Array, chosen: PyTree, other: PyTree) -> PyTree:
    """`chosen` where the condition `[]` holds, else `other`, leaf by leaf in the dtypes of `other`."""
    return jax.tree.map(lambda x, y: jnp.where(condition, jnp.asarray(x, y.dtype), y), chosen, other)


def wraps_jax(wrapper: str, env: Any) -> bool:
    """Whether `env` is a JAX environment (True) or a single Gymnasium one (False).

    Raises:
        ValueError: it is neither; the message says what to give.
    """
    if is_jax_env(env):
        return True
    if isinstance(env, gymnasium.Env):
        return False
    remedy = "give gymnasium.make(id) or make_jax(id)"
    if not isinstance(env, str | type):
        remedy = f"wrap each environment: make_vec_env(..., wrapper_class={wrapper}, wrapper_kwargs=...)"
    given = repr(env) if isinstance(env, str | type) else f"a {type(env).__name__}"
    raise ValueError(f"{wrapper}: env is {given}, not a Gymnasium or JAX environment: {remedy}")


def refuse_masks(wrapper: str, env: Any) -> None:
    """Raise `ValueError` for an environment with action masks: an action taken later may be illegal then."""
    on_host = isinstance(env, gymnasium.Env)
    if env.has_wrapper_attr("action_masks") if on_host else hasattr(env, "action_mask"):
        raise ValueError(
            f"{wrapper}: env has action masks, and an action taken again may be illegal by then: repeat"
            " actions inside the environment, where it can be checked"
        )


def whole(name: str, value: Any, least: int) -> int:
    """`value` as an int; raises `ValueError` unless it is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name}={value!r} has to be a whole number: give {least} or more")
    return int(value)


def real(name: str, value: Any, allowed: Callable[[float], bool], remedy: str) -> float:
    """`value` as a float; raises `ValueError` with the remedy unless it is an allowed number, not NaN."""
    good = isinstance(value, numbers.Real) and not isinstance(value, bool) and not math.isnan(value)
    if not good or not allowed(float(value)):
        raise ValueError(f"{name}={value!r} cannot be used: {remedy}")
    return float(value)

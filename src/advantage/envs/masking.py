"""Which actions are legal: wrappers and questions by SB3-contrib's names, and the check of every answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from advantage.envs.jax import is_jax_env
from advantage.envs.jax import spec_of as jax_spec
from advantage.envs.normalise import taken_off
from advantage.envs.single import has_masks, mask_row
from advantage.envs.subproc import SubprocVecEnv
from advantage.envs.vec_env import DummyVecEnv
from advantage.envs.vector import legal, vector_spec
from advantage.types import Space, Spec


class ActionMasker(gymnasium.Wrapper, gymnasium.utils.RecordConstructorArgs):
    """Gives an environment the method `action_masks`, by a function of it, a method of it, or its `info`.

    Args:
        env: an environment with Discrete or MultiDiscrete actions.
        action_mask_fn: a function of `env`, or the name of its method, that answers `[choices]` bool, True where an
            action is legal now (the components of MultiDiscrete side by side). None: what `reset` and `step` say last
            under `info["action_mask"]`, as Gymnasium's own environments do.

    Raises:
        ValueError: there is no such method, or `info` has no mask.
    """

    def __init__(self, env: gymnasium.Env, action_mask_fn: Callable[[gymnasium.Env], np.ndarray] | str | None = None):
        gymnasium.utils.RecordConstructorArgs.__init__(self, action_mask_fn=action_mask_fn)
        super().__init__(env)
        self._info: dict[str, Any] = {}
        self._function = action_mask_fn  # called with `self.env`, which in a copy is the copy's
        if isinstance(action_mask_fn, str) and not env.has_wrapper_attr(action_mask_fn):
            raise ValueError(f"action_mask_fn={action_mask_fn!r}: {env} has no such method: give a function of env")

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """As the environment's."""
        obs, self._info = self.env.reset(**options)
        return obs, self._info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment's."""
        *answer, self._info = self.env.step(action)
        return *answer, self._info

    def action_masks(self) -> np.ndarray:
        """`[choices]` bool: True where an action is legal now."""
        if isinstance(self._function, str):
            return self.env.get_wrapper_attr(self._function)()
        if self._function is not None:
            return self._function(self.env)
        if "action_mask" not in self._info:
            raise ValueError(
                f"ActionMasker: info of {self.env} has no 'action_mask', only {sorted(self._info)}: give action_mask_fn"
            )
        return self._info["action_mask"]


def is_masking_supported(env: Any) -> bool:
    """Whether every environment says which actions are legal: by a method `action_masks()`, JAX environments by
    `action_mask(env_state)`. Only actions that are choices, Discrete and MultiDiscrete, can be illegal."""
    env, _ = taken_off(env)
    if isinstance(env, str):
        raise TypeError(f"env={env!r} is an id: give the environment, such as gymnasium.make({env!r})")
    if is_jax_env(env):
        return hasattr(env, "action_mask")
    if isinstance(env, SubprocVecEnv):
        return env.host.spec.masked
    choices = isinstance(env.action_space, gymnasium.spaces.Discrete | gymnasium.spaces.MultiDiscrete)
    return choices and all(map(has_masks, env.envs if isinstance(env, DummyVecEnv) else [env]))


def spec_of(env: Any) -> Spec:
    """The spaces of what `resolve_env` gives, and whether it says which actions are legal."""
    if is_jax_env(env):
        return jax_spec(env)
    if isinstance(env, gymnasium.vector.VectorEnv):
        return vector_spec(env)
    spec = Spec.from_gymnasium(env.observation_space, env.action_space)
    return dataclasses.replace(spec, masked=is_masking_supported(env))


def get_action_masks(env: Any) -> np.ndarray:
    """What is legal now, for `predict(obs, action_masks=...)`: `[choices]` bool, or `[N, choices]` of a vector of N.

    The choices of MultiDiscrete components are side by side.

    Raises:
        TypeError: an id and no environment.
        ValueError: the environment does not say, or says it of another number of choices.
    """
    env, _ = taken_off(env)
    if is_jax_env(env):
        raise ValueError(f"{env!r} is a JAX environment: ask env.action_mask(env_state)")
    require_masks(env, "get_action_masks")
    choices = sum(Space.from_gymnasium(env.action_space).n)
    if isinstance(env, gymnasium.Env):
        return mask_row(env.get_wrapper_attr("action_masks")(), choices)
    return np.stack([mask_row(mask, choices) for mask in env.env_method("action_masks")])


def require_masks(env: Any, who: str) -> None:
    """Raise `ValueError` unless every environment says which actions are legal."""
    if not is_masking_supported(env):
        raise ValueError(
            f"{who}: env={getattr(env, 'envs', [env])[0]!r} does not say which actions are legal: give it a method"
            " action_masks(), wrap it in ActionMasker(env, function), or use PPO; only Discrete and MultiDiscrete actions can be illegal"
        )


def given_masks(masks: Any, space: Space, count: int) -> np.ndarray:
    """What `predict` was given as `action_masks`, as rows `[count, choices]`.

    Raises:
        ValueError: they are not one for each choice, or nothing is legal.
    """
    choices = sum(space.n)
    if not choices:
        raise ValueError(f"action_masks is for Discrete and MultiDiscrete actions, not {space.to_gymnasium()}: leave it out")
    if isinstance(masks, np.ndarray) and masks.shape not in [(count, choices), (choices,) * (count == 1)]:
        raise ValueError(
            f"action_masks has shape {masks.shape}: expected ({count}, {choices}), an entry for each choice of"
            f" {space.to_gymnasium()}"
        )
    each = [masks] if count == 1 else masks
    if len(each) != count:
        raise ValueError(f"action_masks has {len(each)} rows for {count} observations: give one for each")
    try:
        rows = np.stack([mask_row(mask, choices) for mask in each])
    except ValueError as error:
        raise ValueError(f"action_masks: {error}") from None
    if not (allowed := legal(rows, space.n)).all():
        raise ValueError(f"action_masks allows no action in row {int(np.argmin(allowed.all(axis=1)))}: leave one legal")
    return rows

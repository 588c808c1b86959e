"""What environments with goals would pay for goals other than their own; checked before anything is trained."""

from __future__ import annotations

from typing import Any

import numpy as np

from advantage.envs.goals import KEYS
from advantage.envs.single import call_method, has_attribute
from advantage.envs.vector import EnvironmentFailure
from advantage.types import Spec


class GoalRewards:
    """`compute_reward` of host environments, in their own processes."""

    def __init__(self, envs: Any):
        """
        Args:
            envs: `HostEnvs` that can be asked one by one.

        Raises:
            ValueError: they have no goals; all that is missing is named.
        """
        if not hasattr(envs, "each"):
            raise ValueError(
                "HerReplayBuffer asks single environments for rewards, and a gymnasium.vector environment cannot be"
                " asked: give an id with n_envs, or make_vec_env(...)"
            )
        missing = _missing(envs.spec)
        if not all(envs.each(has_attribute, [("compute_reward",)], [0])):
            missing.append("no method compute_reward(achieved_goal, desired_goal, info)")
        if missing:
            raise ValueError(
                f"HerReplayBuffer needs an environment with goals, and env has {', '.join(missing)}: give one such as"
                " Gymnasium-Robotics has (see the page on hindsight)"
            )
        self.envs = envs
        goals = dict(envs.spec.observation.parts)["desired_goal"].zeros((2,))
        try:
            self(0, goals, goals)
        except EnvironmentFailure as error:
            raise ValueError(f"{error}; it has to take batches of goals") from error.__cause__

    def __call__(self, place: int, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        """Rewards `[R]` for goals `[R, ...]`, by the environment at this place among all seeds'.

        Raises:
            EnvironmentFailure: it raised, or answered anything but R finite numbers.
        """
        infos = [{} for _ in range(len(achieved))]
        asked = [("compute_reward", (achieved, desired, infos), {})]
        name = f"compute_reward of goals {list(achieved.shape)}"
        try:
            reward = np.asarray(self.envs.each(call_method, asked, [place])[0], np.float32)
        except Exception as error:
            raise EnvironmentFailure(f"{name} raised {type(error).__name__}: {error}") from error
        if reward.shape != (len(achieved),):
            raise EnvironmentFailure(f"{name} answered shape {list(reward.shape)}, expected [{len(achieved)}]")
        if not np.isfinite(reward).all():
            raise EnvironmentFailure(f"{name} answered a reward that is NaN or infinite")
        return reward


def _missing(spec: Spec) -> list[str]:
    """What keeps observations from being those of an environment with goals."""
    space = spec.observation
    if space.kind != "dict":
        return [f"{space.kind} observations in place of a Dict with {', '.join(KEYS)}"]
    parts = dict(space.parts)
    missing = [f"no {name!r} among its observations" for name in KEYS if name not in parts]
    if not missing:
        ours, theirs = (parts[name] for name in KEYS[1:])
        if (ours.kind, ours.shape, ours.dtype, ours.n) != (theirs.kind, theirs.shape, theirs.dtype, theirs.n):
            missing.append("an 'achieved_goal' of another space than its 'desired_goal'")
        elif ours.kind in ("dict", "tuple"):
            missing.append("goals that are no arrays")
    return missing

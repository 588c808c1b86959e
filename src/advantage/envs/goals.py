"""Environments with goals: two small ones of our own.

As Gymnasium-Robotics has them: observations are dictionaries of `observation`, `achieved_goal` and `desired_goal`,
and `compute_reward(achieved_goal, desired_goal, info)` takes batches of goals. Imports no JAX.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

KEYS = ("observation", "achieved_goal", "desired_goal")


class PointReach(gymnasium.Env):
    """A point in a square goes to a goal; each step costs 1 until it is within `tolerance` of it.

    The action is the velocity. Start and goal are drawn anew in every episode, which lasts `max_steps` steps whatever
    happens; `info["is_success"]` says whether the point is at the goal. By chance it rarely is.
    """

    metadata = {"render_modes": []}
    SPEED = 0.1

    def __init__(self, tolerance: float = 0.05, max_steps: int = 50):
        square = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = gymnasium.spaces.Dict({name: square for name in KEYS})
        self.action_space = square
        self.tolerance, self.max_steps = tolerance, max_steps

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """A new start and a new goal."""
        super().reset(seed=seed)
        self.position, self.goal = self.np_random.uniform(-1.0, 1.0, (2, 2)).astype(np.float32)
        self.taken = 0
        return self._seen(), {"is_success": self._reached()}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """Move, and stay within the square."""
        velocity = np.clip(np.asarray(action, np.float32), -1.0, 1.0)
        self.position = np.clip(self.position + self.SPEED * velocity, -1.0, 1.0).astype(np.float32)
        self.taken += 1
        reward = float(self.compute_reward(self.position, self.goal, {}))
        return self._seen(), reward, False, self.taken >= self.max_steps, {"is_success": self._reached()}

    def compute_reward(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> np.ndarray | np.floating:
        """0 at the goal and -1 elsewhere, for goals `[..., 2]`."""
        away = np.linalg.norm(np.asarray(achieved_goal) - np.asarray(desired_goal), axis=-1)
        return -(away > self.tolerance).astype(np.float32)

    def _seen(self) -> dict[str, np.ndarray]:
        # Copies: nobody can move the point from outside.
        return {name: np.copy(self.goal if name == "desired_goal" else self.position) for name in KEYS}

    def _reached(self) -> bool:
        return float(self.compute_reward(self.position, self.goal, {})) == 0.0


class BitFlip(gymnasium.Env):
    """n bits, one of which each action flips, until they are those of the goal (Andrychowicz et al., 2017, section 3.1).

    Each step costs 1, except the one that reaches the goal and ends the episode; after n steps it is cut.
    """

    metadata = {"render_modes": []}

    def __init__(self, n_bits: int = 8):
        bits = gymnasium.spaces.MultiBinary(n_bits)
        self.observation_space = gymnasium.spaces.Dict({name: bits for name in KEYS})
        self.action_space = gymnasium.spaces.Discrete(n_bits)
        self.n_bits = n_bits

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """New bits, and a goal that is not reached yet."""
        super().reset(seed=seed)
        self.bits, self.goal = self.np_random.integers(0, 2, (2, self.n_bits)).astype(np.int8)
        if np.array_equal(self.bits, self.goal):
            self.goal[self.np_random.integers(self.n_bits)] ^= 1
        self.taken = 0
        return self._seen(), {"is_success": False}

    def step(self, action: int | np.integer) -> tuple[dict, float, bool, bool, dict]:
        """Flip one bit."""
        self.bits[int(action)] ^= 1
        self.taken += 1
        reward = float(self.compute_reward(self.bits, self.goal, {}))
        reached = reward == 0.0
        return self._seen(), reward, reached, self.taken >= self.n_bits and not reached, {"is_success": reached}

    def compute_reward(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> np.ndarray | np.floating:
        """0 at the goal and -1 elsewhere, for goals `[..., n]`."""
        different = np.asarray(achieved_goal) != np.asarray(desired_goal)
        return -np.any(different, axis=-1).astype(np.float32)

    def _seen(self) -> dict[str, np.ndarray]:
        return {name: np.copy(self.goal if name == "desired_goal" else self.bits) for name in KEYS}


for _id, _class in (("goals/PointReach-v0", "PointReach"), ("goals/BitFlip-v0", "BitFlip")):
    if _id not in gymnasium.registry:
        gymnasium.register(_id, f"advantage.envs.goals:{_class}")

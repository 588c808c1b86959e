"""Environments that step all their copies in one call: Gymnasium's own vectorised ones, and EnvPool's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space


def make_native(env_id: str, n_envs: int, **kwargs: Any) -> gymnasium.vector.VectorEnv:
    """The vectorised form that an environment brings along itself.

    Raises:
        ValueError: no such id, or it has no such form.
    """
    spec = gymnasium.registry.get(env_id)
    if spec is not None and spec.vector_entry_point is None:
        raise ValueError(
            f"vec_env='native': {env_id} has no vectorised form of its own (vector_entry_point):"
            " use vec_env='sync' or 'async'"
        )
    try:
        return gymnasium.make_vec(env_id, n_envs, vectorization_mode="vector_entry_point", **kwargs)
    except gymnasium.error.Error as error:
        raise ValueError(f"vec_env='native': {env_id!r} cannot be made: {' '.join(str(error).split())}") from None


class EnvPool(gymnasium.vector.VectorEnv):
    """A pool of EnvPool as Gymnasium describes vector environments; it resets ended episodes in the next step.

    EnvPool fixes seeds when a pool is made, so `reset(seed=...)` makes another pool. In the step after an end its
    environments ignore the action and answer with a first observation: Gymnasium's `NEXT_STEP`.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, env_id: str, n_envs: int, **kwargs: Any):
        """
        Args:
            env_id: a task of `envpool.list_all_envs()`.
            n_envs: environments in the pool.
            kwargs: what `envpool.make` takes, such as `num_threads`.

        Raises:
            ImportError: EnvPool is not installed.
            ValueError: it has no such task, or `batch_size` asks for only a part of the environments.
        """
        make = _envpool()
        if kwargs.get("batch_size", n_envs) != n_envs:
            given = kwargs["batch_size"]
            raise ValueError(f"batch_size={given} has to be n_envs={n_envs}: every step is of all of them")
        self.env_id, self.num_envs, self._kwargs = env_id, n_envs, kwargs
        self._make: Callable[..., Any] = lambda seed: make(env_id, num_envs=n_envs, **{**kwargs, "seed": seed})
        self._seed = kwargs.get("seed", 42)  # EnvPool's default
        try:
            self._pool = self._make(self._seed)
        except AssertionError as error:
            raise ValueError(f"vec_env='envpool': {error}") from None
        self.single_observation_space, self.single_action_space = self._pool.observation_space, self._pool.action_space
        self.observation_space = batch_space(self.single_observation_space, n_envs)
        self.action_space = batch_space(self.single_action_space, n_envs)

    @property
    def id(self) -> str:
        """The task."""
        return self.env_id

    def copy(self) -> EnvPool:
        """Another pool like this."""
        return EnvPool(self.env_id, self.num_envs, **self._kwargs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """New episodes everywhere; with a seed, in a pool made with it."""
        if seed is not None and seed != self._seed:
            self._pool.close()
            self._pool, self._seed = self._make(seed), seed
        obs, info = self._pool.reset()
        return self._in_order(obs, info), info

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step all environments."""
        obs, reward, terminated, truncated, info = self._pool.step(np.asarray(actions, self.single_action_space.dtype))
        rows = (self._in_order(x, info) for x in (obs, reward, terminated, truncated))
        return (*rows, info)

    def close(self, **kwargs: Any) -> None:
        """End the pool's threads."""
        self._pool.close()

    def _in_order(self, rows: Any, info: dict[str, Any]) -> Any:
        """By environment: a pool says to whom each row belongs."""
        order = np.argsort(info["env_id"], kind="stable")
        if isinstance(rows, dict):
            return {name: self._in_order(x, info) for name, x in rows.items()}
        return tuple(self._in_order(x, info) for x in rows) if isinstance(rows, tuple) else np.asarray(rows)[order]


def _envpool() -> Callable[..., Any]:
    try:
        import envpool
    except ImportError:
        raise ImportError('vec_env="envpool" needs EnvPool: pip install "advantage[envpool]"') from None
    return envpool.make_gymnasium

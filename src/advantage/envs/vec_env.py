"""SB3's vector environment: several Gymnasium environments behind `reset() -> obs` and `step -> 4 values`.

A thin view: training steps the environments inside it directly, at the speed of `SyncEnvs`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np

from advantage.envs.atari import is_atari_id
from advantage.envs.native import EnvPool, make_native
from advantage.envs.single import is_wrapped, make_wrapped
from advantage.envs.subproc import SubprocVecEnv
from advantage.envs.vector import Writer
from advantage.types import Space


class DummyVecEnv:
    """Environments stepped one by one in this process, reset as soon as an episode ends.

    `step` returns `(obs, rewards, dones, infos)`, all with a leading axis `[N]`; where an episode ended,
    `infos[i]` holds `terminal_observation`, `TimeLimit.truncated` and `episode` (`r` return, `l` length).
    """

    def __init__(self, env_fns: Sequence[Callable[[], gymnasium.Env]]):
        self.env_fns = list(env_fns)
        self.envs = [make() for make in self.env_fns]
        self.num_envs = len(self.envs)
        self.observation_space = self.envs[0].observation_space
        self.action_space = self.envs[0].action_space
        self.first_seed: int | None = None
        self._seeds: list[int | None] = [None] * self.num_envs
        self._rows = Writer(Space.from_gymnasium(self.observation_space), (self.num_envs,))
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._actions: Any = None

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Environment i restarts its random stream from `seed + i` at the next `reset`."""
        self.first_seed = seed
        self._seeds = [None if seed is None else seed + i for i in range(self.num_envs)]
        return list(self._seeds)

    def reset(self) -> Any:
        """First observations `[N, ...]` of new episodes everywhere."""
        rows = self._rows.empty()
        for i, env in enumerate(self.envs):
            self._rows.write(rows, i, env.reset(seed=self._seeds[i])[0])
        self._seeds = [None] * self.num_envs
        self._returns[:], self._lengths[:] = 0.0, 0
        return rows

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Step every environment."""
        rows = self._rows.empty()
        rewards, dones = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool)
        infos = []
        for i, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
            obs, rewards[i], terminated, truncated, info = env.step(action)
            info = dict(info)
            self._returns[i] += rewards[i]
            self._lengths[i] += 1
            dones[i] = terminated or truncated
            info["TimeLimit.truncated"] = bool(truncated and not terminated)
            if dones[i]:
                info["terminal_observation"] = obs
                info["episode"] = {"r": float(self._returns[i]), "l": int(self._lengths[i])}
                self._returns[i], self._lengths[i] = 0.0, 0
                obs = env.reset()[0]
            self._rows.write(rows, i, obs)
            infos.append(info)
        return rows, rewards, dones, infos

    def step_async(self, actions: Any) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Step with the actions given to `step_async`."""
        return self.step(self._actions)

    def render(self, mode: str | None = None) -> Any:
        """The first environment's picture, or None where it draws its own window."""
        return self.envs[0].render()

    def close(self) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of every environment, looked up through its wrappers."""
        return [env.get_wrapper_attr(attr_name) for env in self._chosen(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of every environment."""
        for env in self._chosen(indices):
            env.set_wrapper_attr(attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Call a method of every environment."""
        return [env.get_wrapper_attr(method_name)(*args, **kwargs) for env in self._chosen(indices)]

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """Whether each environment has a wrapper of this class."""
        return [is_wrapped(env, wrapper_class) for env in self._chosen(indices)]

    def _chosen(self, indices: Any) -> list[gymnasium.Env]:
        if indices is None:
            return self.envs
        return [self.envs[i] for i in np.atleast_1d(indices)]

    @property
    def unwrapped(self) -> DummyVecEnv:
        """Itself."""
        return self


VECTOR_KINDS = ("sync", "async", "native", "envpool")


def make_vec_env(
    env_id: str | Callable[..., gymnasium.Env],
    n_envs: int = 1,
    seed: int | None = None,
    *,
    wrapper_class: Callable[..., gymnasium.Env] | None = None,
    env_kwargs: dict[str, Any] | None = None,
    wrapper_kwargs: dict[str, Any] | None = None,
    vec_env_cls: type[DummyVecEnv] | type[SubprocVecEnv] | None = None,
    vec_env_kwargs: dict[str, Any] | None = None,
    vec_env: str = "sync",
) -> DummyVecEnv | SubprocVecEnv | gymnasium.vector.VectorEnv:
    """`n_envs` copies of an environment as one vector environment, as SB3's function of this name.

    Args:
        env_id: a Gymnasium id, or a function that makes one environment.
        n_envs: how many.
        seed: environment i starts from `seed + i`.
        wrapper_class: wraps each environment, called with it and `wrapper_kwargs`.
        env_kwargs: passed to the id's or function's constructor.
        vec_env_cls: the class of the result, instead of `vec_env`.
        vec_env_kwargs: passed to it.
        vec_env: `"sync"`: one after the other in this process (`DummyVecEnv`). `"async"`: in worker processes
            (`SubprocVecEnv`). `"native"`: the id's own vectorised form in Gymnasium. `"envpool"`: the id's task in
            EnvPool. The last two give a `gymnasium.vector.VectorEnv`.

    Raises:
        ValueError: `n_envs` is not positive, or what is given does not go with the kind of `vec_env`.
        ImportError: EnvPool is not installed.
    """
    if n_envs < 1:
        raise ValueError(f"n_envs={n_envs} has to be at least 1")
    known_kind(vec_env)
    if vec_env_cls is not None and vec_env != "sync":
        raise ValueError(f"vec_env_cls={vec_env_cls.__name__} and vec_env={vec_env!r} both choose: give one of them")
    if vec_env in ("native", "envpool"):
        if not isinstance(env_id, str) or wrapper_class is not None:
            given = "wrapper_class wraps single environments" if isinstance(env_id, str) else "env_id is a function"
            raise ValueError(
                f"vec_env={vec_env!r} steps all copies of an id in one call, and {given}: use 'sync' or 'async'"
            )
        made = make_at_once(vec_env, env_id, n_envs, **(env_kwargs or {}), **(vec_env_kwargs or {}))
        made.first_seed = seed
        return made
    if is_atari_id(env_id):
        raise ValueError(
            f"env_id={env_id!r}: use make_atari({env_id!r}, n_envs={n_envs}), which prepares Atari games; for Gymnasium's own"
            " give a function, make_vec_env(lambda: gymnasium.make(...))"
        )
    make = functools.partial(make_wrapped, env_id, env_kwargs or {}, wrapper_class, wrapper_kwargs or {})
    kind = vec_env_cls or (SubprocVecEnv if vec_env == "async" else DummyVecEnv)
    venv = kind([make] * n_envs, **(vec_env_kwargs or {}))
    venv.seed(seed)
    return venv


def known_kind(vec_env: Any) -> str:
    """`vec_env`; raises `ValueError` unless this is a kind of vector environment."""
    if vec_env not in VECTOR_KINDS:
        raise ValueError(f"vec_env={vec_env!r} is not known: choose from {', '.join(VECTOR_KINDS)}")
    return vec_env


def make_at_once(vec_env: str, env_id: str, n_envs: int, **kwargs: Any) -> gymnasium.vector.VectorEnv:
    """The kinds that step all copies in one call; see `envs.native`."""
    return make_native(env_id, n_envs, **kwargs) if vec_env == "native" else EnvPool(env_id, n_envs, **kwargs)

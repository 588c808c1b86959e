"""SB3's `SubprocVecEnv`: `DummyVecEnv`'s face for environments in processes of their own."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium
import jax
import numpy as np

from advantage.envs import single
from advantage.envs.async_envs import AsyncEnvs
from advantage.envs.process import Make


class SubprocVecEnv:
    """Environments in worker processes, reset as soon as an episode ends.

    Steps and infos are `DummyVecEnv`'s; training steps the processes directly. Functions are sent to the workers,
    also lambdas and those of a notebook, and the script is not run again in there.
    """

    def __init__(
        self,
        env_fns: Sequence[Make | gymnasium.Env],  # the latter is refused, with the remedy
        start_method: str | None = None,
        *,
        num_workers: int | None = None,
        max_restarts: int = 3,
        timeout: float | None = None,
    ):
        """
        Args:
            env_fns: each makes one environment.
            start_method: processes are always started anew ("spawn"); SB3's others warn.
            num_workers: processes; by default one for each core, or for each environment if these are fewer.
            max_restarts: deaths of workers after which training stops.
            timeout: seconds after which a worker that does not answer is taken for dead; None: never.

        Raises:
            ValueError: a function cannot be sent to another process, or a number is out of range.
            Exception: whatever an environment raised when it was made.
        """
        if start_method not in (None, "spawn", "fork", "forkserver"):
            raise ValueError(f"start_method={start_method!r} is not known: leave it out")
        if start_method not in (None, "spawn"):
            warnings.warn(
                f"start_method={start_method!r} is not used: a fork of a process in which JAX has started may hang,"
                " so workers are spawned",
                UserWarning,
                stacklevel=2,
            )
        self.env_fns, self.num_envs = list(env_fns), len(env_fns)
        self.options = {"num_workers": num_workers, "max_restarts": max_restarts, "timeout": timeout}
        self.host = AsyncEnvs([self.env_fns], **self.options)
        self.observation_space, self.action_space = self.host.hello.observation_space, self.host.hello.action_space
        self.id, self.render_mode = self.host.hello.env_id, self.host.hello.render_mode
        self.first_seed: int | None = None
        self._seeds: list[int | None] = [None] * self.num_envs
        self._returns, self._lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, np.int64)

    def for_seeds(self, num_seeds: int) -> AsyncEnvs:
        """Host environments for so many seeds; the first seed's are these."""
        if num_seeds == 1:
            return self.host
        return AsyncEnvs([self.env_fns] * num_seeds, **self.options, begun=self.host.workers)

    def copy(self) -> SubprocVecEnv:
        """The same environments once more, in processes of their own."""
        return SubprocVecEnv(self.env_fns, **self.options)

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Environment i restarts its random stream from `seed + i` at the next `reset`."""
        self.first_seed = seed
        self._seeds = [None if seed is None else seed + i for i in range(self.num_envs)]
        return list(self._seeds)

    def reset(self) -> Any:
        """First observations `[N, ...]` of new episodes everywhere."""
        seeds = None if self._seeds[0] is None else np.asarray([self._seeds])
        self._seeds = [None] * self.num_envs
        self._returns[:], self._lengths[:] = 0.0, 0
        return _first(self.host.reset(seeds).obs)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Step every environment."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: Any) -> None:
        """The workers begin to step with these actions."""
        self.host.send(np.asarray(actions)[None])

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """What the step begun by `step_async` gave."""
        step = self.host.receive()
        reward, terminated, truncated = step.reward[0], step.terminated[0], step.truncated[0]
        dones, infos = terminated | truncated, [dict(info) for info in self.host.infos]
        self._returns += reward
        self._lengths += 1
        for i, info in enumerate(infos):
            info["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
            if dones[i]:
                info["terminal_observation"] = jax.tree.map(lambda x, i=i: x[0, i], step.final_obs)
                info["episode"] = {"r": float(self._returns[i]), "l": int(self._lengths[i])}
        self._returns[dones], self._lengths[dones] = 0.0, 0
        return _first(step.observed.obs), reward, dones, infos

    def render(self, mode: str | None = None) -> Any:
        """The first environment's picture, or None where it draws its own window."""
        return self.host.each(single.render_env, [()], [0])[0]

    def close(self) -> None:
        """Close every environment and end the processes."""
        self.host.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of every environment, looked up through its wrappers."""
        return self._each(single.get_attribute, indices, attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of every environment."""
        self._each(single.set_attribute, indices, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Call a method of every environment."""
        return self._each(single.call_method, indices, method_name, args, kwargs)

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """Whether each environment has a wrapper of this class."""
        return self._each(single.is_wrapped, indices, wrapper_class)

    def _each(self, function: Any, indices: Any, *args: Any) -> list[Any]:
        places = range(self.num_envs) if indices is None else np.arange(self.num_envs)[np.atleast_1d(indices)].tolist()
        return self.host.each(function, [args] * len(places), places)

    @property
    def unwrapped(self) -> SubprocVecEnv:
        """Itself."""
        return self


def _first(obs: Any) -> Any:
    """Without the axis of seeds."""
    return jax.tree.map(lambda x: x[0], obs)

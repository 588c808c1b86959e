"""`VecNormalize`: a vector environment with normalised observations and rewards, as SB3's of this name.

Alone it keeps its statistics itself. Given to a model as its environment it is taken off: the model trains on
the environments inside, its State holds the statistics, and this object becomes a view of them.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
import safetensors
import safetensors.numpy

from advantage.disk import replace_file
from advantage.envs.running import NormalisedArray, RunningMeanStd, check_shapes
from advantage.equations.normalisation import Normalisation, normalisation
from advantage.types import Space, Spec

SETTINGS = ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys")
SWITCHES = ("training", "norm_reward")


ObsStatistics = RunningMeanStd | dict[str, RunningMeanStd]


@runtime_checkable
class Holder(Protocol):
    """Who holds the statistics in place of a `VecNormalize`: a model."""

    def read_normaliser(self) -> dict[str, Any]:
        """`obs_rms` by key, `ret_rms`, `training` and `norm_reward` now; copies."""
        ...

    def write_normaliser(self, **values: Any) -> None:
        """Set some of these."""
        ...


class VecNormalize:
    """A vector environment with normalised observations and rewards (Engstrom et al., 2020; as in SB3).

    Observations become `(obs - mean) / sqrt(var + epsilon)`, rewards `reward / sqrt(var_of_returns + epsilon)`,
    both clipped, with running statistics of what has been seen. Given to a model it is taken off and becomes a
    view of the model's statistics, of its first seed: `obs_rms`, `ret_rms`, `training` and `norm_reward` are
    then the model's. Stepping it by hand changes the model's statistics never.

    Args:
        venv: a `DummyVecEnv`, such as `make_vec_env` gives, or anything with its methods.
        training: whether statistics go on changing.
        norm_obs: whether observations are normalised.
        norm_reward: whether rewards are.
        clip_obs, clip_reward: the largest magnitudes after normalisation.
        gamma: the discount of the return that scales rewards.
        epsilon: added to variances.
        norm_obs_keys: the keys of Dict observations to normalise; every Box that is no picture by default.

    Raises:
        TypeError: `venv` is no vector environment of this kind.
        ValueError: a number out of range, a key that is not there, or nothing to normalise.
    """

    def __init__(
        self,
        venv: Any,
        training: bool = True,
        norm_obs: bool = True,
        norm_reward: bool = True,
        clip_obs: int | float = 10.0,
        clip_reward: int | float = 10.0,
        gamma: int | float = 0.99,
        epsilon: int | float = 1e-8,
        norm_obs_keys: Sequence[str] | None = None,
    ):
        settings = normalisation(
            norm_obs=norm_obs, norm_reward=norm_reward, clip_obs=clip_obs, clip_reward=clip_reward, gamma=gamma,
            epsilon=epsilon, norm_obs_keys=norm_obs_keys,
        )  # fmt: skip
        self._holder: Holder | None = None
        self._own: dict[str, Any] = {"training": bool(training), "norm_reward": settings.norm_reward}
        self._own["loaded"] = False  # whether the statistics come from a file
        self._settings = settings
        self.venv: Any = None
        self.set_venv(venv)
        parts = settings.parts(self._space)
        self._own["obs_rms"] = {name: RunningMeanStd(shape=part.shape) for name, part in parts.items()}
        self._own["ret_rms"] = RunningMeanStd()

    @classmethod
    def view(cls, holder: Holder, settings: Normalisation, venv: Any, num_envs: int, spec: Spec) -> VecNormalize:
        """The view of a model whose environments were given without a `VecNormalize`; they may be of any kind."""
        made = cls.__new__(cls)
        made._holder, made._settings, made._own = holder, settings, {}
        made.observation_space, made.action_space = spec.to_gymnasium()
        made._around(venv, num_envs, spec.observation)
        return made

    # -- the statistics, wherever they are --------------------------------------------------------

    @property
    def settings(self) -> Normalisation:
        """How it normalises."""
        return self._settings

    @property
    def obs_rms(self) -> ObsStatistics:
        """Statistics of observations: by key, where these are a Dict. Of a model's: a copy."""
        found = self.now()["obs_rms"]
        if not found:
            raise AttributeError("norm_obs=False: there are no statistics of observations")
        return found if self._space.kind == "dict" else found["obs"]

    @obs_rms.setter
    def obs_rms(self, value: ObsStatistics) -> None:
        given = value if isinstance(value, Mapping) else {"obs": value}
        check_shapes(given, self.now()["obs_rms"], "obs_rms")
        self._put(obs_rms=dict(given))

    @property
    def ret_rms(self) -> RunningMeanStd:
        """Statistics of discounted returns. Of a model's: a copy."""
        return self.now()["ret_rms"]

    @ret_rms.setter
    def ret_rms(self, value: RunningMeanStd) -> None:
        check_shapes({"": value}, {"": RunningMeanStd()}, "ret_rms")
        self._put(ret_rms=value)

    @property
    def training(self) -> bool:
        """Whether statistics go on changing."""
        return self.now()["training"]

    @training.setter
    def training(self, value: bool) -> None:
        self._put(training=bool(value))

    @property
    def norm_reward(self) -> bool:
        """Whether rewards are normalised."""
        return self.now()["norm_reward"]

    @norm_reward.setter
    def norm_reward(self, value: bool) -> None:
        self._put(norm_reward=bool(value))

    def now(self) -> dict[str, Any]:
        """`obs_rms` by key, `ret_rms`, `training`, `norm_reward`, and whether they were `loaded` from a file."""
        return self._own if self._holder is None else self._holder.read_normaliser() | {"loaded": False}

    def _put(self, **values: Any) -> None:
        if self._holder is None:
            self._own.update(values)
        else:
            self._holder.write_normaliser(**values)

    def attach(self, holder: Holder | None) -> None:
        """Become a view of a model's statistics; with None keep those of this moment, as its own."""
        if self._holder is not None:
            self._own = copy.deepcopy(self.now())
        self._holder = holder

    # -- normalising -------------------------------------------------------------------------------

    def normalize_obs(self, obs: Any) -> Any:
        """Observations `[N, *shape]` or `[*shape]`, normalised; the given ones stay as they are."""
        return self._each(obs, self._normalised)

    def unnormalize_obs(self, obs: Any) -> Any:
        """The observations that these were, but for clipping."""
        return self._each(obs, lambda x, rms: x * np.sqrt(rms.var + self.epsilon) + rms.mean)

    def normalize_reward(self, reward: np.ndarray) -> np.ndarray:
        """Rewards by the scale of returns."""
        now = self.now()
        if now["norm_reward"]:
            scale = np.sqrt(now["ret_rms"].var + self.epsilon)
            reward = np.clip(np.asarray(reward) / scale, -self.clip_reward, self.clip_reward)
        return np.asarray(reward).astype(np.float32)

    def unnormalize_reward(self, reward: np.ndarray) -> np.ndarray:
        """The rewards that these were, but for clipping."""
        now = self.now()
        return reward * np.sqrt(now["ret_rms"].var + self.epsilon) if now["norm_reward"] else reward

    def get_original_obs(self) -> Any:
        """The last observations, as they were."""
        return copy.deepcopy(self._last_obs)

    def get_original_reward(self) -> np.ndarray:
        """The last rewards, as they were."""
        return self._last_reward.copy()

    def _normalised(self, x: np.ndarray, rms: RunningMeanStd) -> NormalisedArray:
        scaled = (np.asarray(x) - rms.mean) / np.sqrt(rms.var + self.epsilon)
        return np.clip(scaled, -self.clip_obs, self.clip_obs).astype(np.float32).view(NormalisedArray)

    def _each(self, obs: Any, function: Any) -> Any:
        statistics = self.now()["obs_rms"]
        if isinstance(obs, Mapping):
            done = {name: function(np.asarray(obs[name]), rms) for name, rms in statistics.items()}
            return {name: done.get(name, x) for name, x in obs.items()}
        return function(np.asarray(obs), statistics["obs"]) if statistics else copy.deepcopy(obs)

    # -- stepping ------------------------------------------------------------------------------------

    def reset(self) -> Any:
        """First observations `[N, ...]` of new episodes everywhere, normalised."""
        obs = self.venv.reset()
        self._returns = np.zeros(self.num_envs)
        self._see(obs)
        return self.normalize_obs(obs)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Step every environment; observations and rewards are normalised."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: Any) -> None:
        """Keep the actions for `step_wait`."""
        self.venv.step_async(actions)

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Step with the actions given to `step_async`."""
        obs, rewards, dones, infos = self.venv.step_wait()
        self._last_reward = rewards
        self._see(obs)
        if self._learns():
            self._returns = self._returns * self.gamma + rewards
            self._own["ret_rms"].update(self._returns)
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = self.normalize_obs(info["terminal_observation"])
        self._returns[dones] = 0.0
        return self.normalize_obs(obs), self.normalize_reward(rewards), dones, infos

    def _see(self, obs: Any) -> None:
        self._last_obs = obs
        if self._learns():
            for name, rms in self._own["obs_rms"].items():
                rms.update(obs[name] if isinstance(obs, Mapping) else obs)

    def _learns(self) -> bool:
        """A model's statistics change by training only."""
        return self._holder is None and self._own["training"]

    # -- files and the environments inside ---------------------------------------------------------

    def save(self, save_path: str | os.PathLike[str]) -> None:
        """Write settings and statistics to a file of numbers (safetensors, whatever its name ends in).

        Raises:
            OSError: the path cannot be written.
        """
        now, settings = self.now(), {name: getattr(self._settings, name) for name in SETTINGS}
        settings |= {name: now[name] for name in SWITCHES}
        arrays = {}
        for name, rms in [("ret", now["ret_rms"]), *((f"obs/{k}", rms) for k, rms in now["obs_rms"].items())]:
            arrays |= {f"{name}/{k}": np.array(getattr(rms, k), np.float64) for k in ("mean", "var", "count")}
        data = safetensors.numpy.save(arrays, {"vec_normalize": json.dumps(settings)})
        path = Path(save_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, data)

    @classmethod
    def load(cls, load_path: str | os.PathLike[str], venv: Any) -> VecNormalize:
        """What `save` wrote, around `venv`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it was not written by `save` here, or `venv` has observations of another shape.
        """
        if not Path(load_path).is_file():
            raise FileNotFoundError(f"no file of VecNormalize at {load_path}: check the path")
        try:
            with safetensors.safe_open(load_path, "np") as file:
                settings = json.loads((file.metadata() or {})["vec_normalize"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
            training = settings.pop("training")
            loaded = {k: _restored(arrays, f"obs/{k}") for k in _keys(arrays)} | {"": _restored(arrays, "ret")}
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{load_path} was not written by VecNormalize.save of this library ({type(error).__name__}: {error});"
                " pickles of Stable-Baselines3 are not read: train anew, or set obs_rms by hand"
            ) from None
        made = cls(venv, training, **settings)
        ret_rms = loaded.pop("")
        check_shapes(loaded, made._own["obs_rms"], str(load_path))
        made._own |= {"obs_rms": loaded, "ret_rms": ret_rms, "loaded": True}
        return made

    def set_venv(self, venv: Any) -> None:
        """Wrap these environments; once, as in SB3.

        Raises:
            TypeError, ValueError: they are of another kind, or some are wrapped already.
        """
        if self.venv is not None:
            raise ValueError("this VecNormalize wraps environments already: make another, or use VecNormalize.load")
        if isinstance(venv, gymnasium.vector.VectorEnv) or not hasattr(venv, "step_wait"):
            raise TypeError(
                f"venv is a {type(venv).__name__}, not a vector environment as make_vec_env(...) gives it; for"
                " other environments give the model normalize=True"
            )
        self.observation_space, self.action_space = venv.observation_space, venv.action_space
        self._around(venv, venv.num_envs, Space.from_gymnasium(venv.observation_space))

    def _around(self, venv: Any, num_envs: int, space: Space) -> None:
        self.venv, self.num_envs, self._space = venv, num_envs, space
        self._returns = np.zeros(num_envs)
        self._last_obs, self._last_reward = None, np.zeros(0, np.float32)

    @property
    def unwrapped(self) -> Any:
        """The environments inside."""
        return self.venv.unwrapped

    def __getattr__(self, name: str) -> Any:
        # What it does not do itself is done by the environments inside.
        if name.startswith("_") or "venv" not in self.__dict__:
            raise AttributeError(f"'VecNormalize' object has no attribute {name!r}")
        return getattr(self._settings if name in SETTINGS else self.venv, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in SETTINGS or name == "norm_reward":
            object.__setattr__(self, name, value)
        elif self._holder is not None or name in ("norm_obs", "norm_obs_keys"):
            raise ValueError(f"{name} is built in: make a new VecNormalize, and a new model with it")
        else:
            self._settings = normalisation(**{k: getattr(self._settings, k) for k in SETTINGS} | {name: value})


def taken_off(env: Any) -> tuple[Any, VecNormalize | None]:
    """`(the environments inside, the VecNormalize around them)`, or what was given and None.

    Raises:
        ValueError: there are two, one around the other.
    """
    if not isinstance(env, VecNormalize):
        return env, None
    if isinstance(env.venv, VecNormalize):
        raise ValueError("env is normalised twice, a VecNormalize around another: leave one out")
    return env.venv, env


def sync_envs_normalization(env: Any, eval_env: Any) -> None:
    """Copy the statistics of a training environment to one for evaluation, where both are normalised.

    Not needed with this library's models and callbacks, which evaluate by the model's own statistics.
    """
    if isinstance(env, VecNormalize) and isinstance(eval_env, VecNormalize):
        now = copy.deepcopy(env.now())
        if eval_env.settings.norm_obs and env.settings.norm_obs:
            check_shapes(now["obs_rms"], eval_env.now()["obs_rms"], "sync_envs_normalization")
            eval_env._put(obs_rms=now["obs_rms"])
        eval_env._put(ret_rms=now["ret_rms"])


def _keys(arrays: Mapping[str, np.ndarray]) -> list[str]:
    return [name[len("obs/") : -len("/mean")] for name in arrays if name.startswith("obs/") and name.endswith("/mean")]


def _restored(arrays: Mapping[str, np.ndarray], name: str) -> RunningMeanStd:
    rms = RunningMeanStd()
    rms.mean, rms.var, rms.count = arrays[f"{name}/mean"], arrays[f"{name}/var"], float(arrays[f"{name}/count"])
    if rms.mean.shape != rms.var.shape:
        raise ValueError(f"{name} has a mean of shape {rms.mean.shape} and a variance of {rms.var.shape}")
    return rms

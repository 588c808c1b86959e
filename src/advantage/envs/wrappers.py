"""Wrappers by one name for Gymnasium and for JAX environments, and SB3's monitor file.

For a Gymnasium environment each gives Gymnasium's own wrapper; for a JAX environment a pure one that
answers step for step as that does.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import math
import operator
import os
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
from gymnasium.vector.utils import batch_space
from jaxtyping import Array, PRNGKeyArray, PyTree

from advantage.envs.jax import JaxEnv, Transition, as_space
from advantage.envs.wrapping import (
    JaxWrapper,
    Wrapped,
    real,
    refuse_masks,
    select,
    strong_reward,
    whole,
    wraps_jax,
)
from advantage.types import Space, Spec

AnyEnv = gymnasium.Env | JaxEnv


def FrameStack(env: Any, stack_size: int) -> AnyEnv:
    """Observe the last `stack_size` observations, oldest first: `[stack_size, *shape]`, leaf by leaf.

    At an episode's beginning the first observation fills them all: nothing leaks over a reset.

    Args:
        env: a Gymnasium or a JAX environment.
        stack_size: how many observations, at least 1.

    Raises:
        ValueError: an argument that cannot be used.
    """
    stack_size = whole("stack_size", stack_size, 1)
    if wraps_jax("FrameStack", env):
        return JaxFrameStack(env, stack_size)
    return gymnasium.wrappers.FrameStackObservation(env, stack_size)


def TimeLimit(env: Any, max_episode_steps: int) -> AnyEnv:
    """Cut an episode after `max_episode_steps` steps: `truncated`, so that its end keeps its value.

    An end of the environment's own in the same step is reported beside it.

    Args:
        env: a Gymnasium or a JAX environment.
        max_episode_steps: steps of this environment (not of one inside an `ActionRepeat`), at least 1.

    Raises:
        ValueError: an argument that cannot be used.
    """
    max_episode_steps = whole("max_episode_steps", max_episode_steps, 1)
    if wraps_jax("TimeLimit", env):
        return JaxTimeLimit(env, max_episode_steps)
    return gymnasium.wrappers.TimeLimit(env, max_episode_steps)


def ClipReward(env: Any, min_reward: float | int = -1.0, max_reward: float | int = 1.0) -> AnyEnv:
    """Clip every reward to `min_reward..max_reward` (as for Atari: Mnih et al., Nature 2015, Methods).

    Logs and evaluations of this environment then show clipped returns: evaluate without it.

    Args:
        env: a Gymnasium or a JAX environment.
        min_reward: the least reward; `-inf` for none.
        max_reward: the greatest reward; `inf` for none.

    Raises:
        ValueError: an argument that cannot be used, or `min_reward` not below `max_reward`.
    """
    low = real("min_reward", min_reward, lambda x: True, "give a number, or -inf for no bound")
    high = real("max_reward", max_reward, lambda x: x > low, f"give a number above min_reward={low}")
    if wraps_jax("ClipReward", env):
        return JaxClipReward(env, low, high)
    return gymnasium.wrappers.ClipReward(env, low, high)


def ScaleReward(env: Any, scale: float | int) -> AnyEnv:
    """Multiply every reward by a constant, so that returns become of order 1 to 100.

    Args:
        env: a Gymnasium or a JAX environment.
        scale: the factor, above 0 (a negative one would reward the opposite).

    Raises:
        ValueError: an argument that cannot be used.
    """
    scale = real("scale", scale, lambda x: 0.0 < x < math.inf, "give a number above 0")
    if wraps_jax("ScaleReward", env):
        return JaxScaleReward(env, scale)
    # A partial and not a lambda: copies for further seeds are built from the wrapper's arguments.
    return gymnasium.wrappers.TransformReward(env, functools.partial(operator.mul, scale))


def ActionRepeat(env: Any, num_repeats: int) -> AnyEnv:
    """Take each action `num_repeats` times; the reward is the sum, the observation the last one.

    Stops early where the episode ends. The discount then counts repeats, not the steps inside.

    Args:
        env: a Gymnasium or a JAX environment, without action masks.
        num_repeats: steps inside for each step outside, at least 1.

    Raises:
        ValueError: an argument that cannot be used.
        ImportError: a Gymnasium environment, and Gymnasium is older than 1.3.
    """
    num_repeats = whole("num_repeats", num_repeats, 1)
    on_jax = wraps_jax("ActionRepeat", env)
    refuse_masks("ActionRepeat", env)
    if on_jax:
        return JaxActionRepeat(env, num_repeats)
    if not hasattr(gymnasium.wrappers, "RepeatAction"):
        raise ImportError('ActionRepeat needs gymnasium>=1.3: pip install --upgrade "gymnasium>=1.3"')
    return gymnasium.wrappers.RepeatAction(env, num_repeats)


def StickyActions(env: Any, repeat_action_probability: float | int = 0.25) -> AnyEnv:
    """With a probability the environment takes its last action again, whatever the agent chose.

    Keeps an agent from learning a sequence of actions by heart (Machado et al., "Revisiting the Arcade
    Learning Environment", JAIR 2018, section 5.2, https://arxiv.org/abs/1709.06009). The first action of
    an episode is always the agent's.

    Args:
        env: a Gymnasium or a JAX environment, without action masks.
        repeat_action_probability: in [0, 1); 0.25 in the paper.

    Raises:
        ValueError: an argument that cannot be used.
    """
    probability = real(
        "repeat_action_probability", repeat_action_probability, lambda x: 0.0 <= x < 1.0,
        "give a probability of at least 0 and below 1",
    )  # fmt: skip
    on_jax = wraps_jax("StickyActions", env)
    refuse_masks("StickyActions", env)
    if on_jax:
        return JaxStickyActions(env, probability)
    return gymnasium.wrappers.StickyAction(env, probability)


# -- for JAX environments --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class JaxFrameStack(JaxWrapper):
    """See `FrameStack`. `own` is the stack itself."""

    stack_size: int

    @functools.cached_property
    def spec(self) -> Spec:
        space = batch_space(self.env.spec.observation.to_gymnasium(), self.stack_size)
        return Spec(Space.from_gymnasium(space), self.env.spec.action)

    def reset(self, key: PRNGKeyArray) -> tuple[Wrapped, PyTree]:
        """Begin an episode, its first observation in every frame."""
        inner, obs = self.env.reset(key)
        obs = as_space(self.env.spec.observation, obs)
        frames = jax.tree.map(lambda x: jnp.stack([x] * self.stack_size), obs)
        return Wrapped(inner, frames), frames

    def step(self, env_state: Wrapped, action: Array, key: PRNGKeyArray) -> tuple[Wrapped, Transition]:
        """Take a step; the oldest frame makes room for the newest."""
        inner, transition = self.env.step(env_state.inner, action, key)
        obs = as_space(self.env.spec.observation, transition.obs)
        frames = jax.tree.map(lambda old, x: jnp.concatenate([old[1:], x[None]]), env_state.own, obs)
        return Wrapped(inner, frames), transition._replace(obs=frames)


@dataclasses.dataclass(frozen=True)
class JaxTimeLimit(JaxWrapper):
    """See `TimeLimit`. `own` counts the episode's steps."""

    max_episode_steps: int

    def reset(self, key: PRNGKeyArray) -> tuple[Wrapped, PyTree]:
        """Begin an episode."""
        inner, obs = self.env.reset(key)
        return Wrapped(inner, jnp.int32(0)), obs

    def step(self, env_state: Wrapped, action: Array, key: PRNGKeyArray) -> tuple[Wrapped, Transition]:
        """Take a step, the last one at the limit."""
        inner, transition = self.env.step(env_state.inner, action, key)
        steps = env_state.own + jnp.int32(1)
        cut = jnp.asarray(transition.truncated, bool) | (steps >= self.max_episode_steps)
        return Wrapped(inner, steps), transition._replace(truncated=cut)


@dataclasses.dataclass(frozen=True)
class JaxClipReward(JaxWrapper):
    """See `ClipReward`."""

    min_reward: float
    max_reward: float

    def step(self, env_state: Wrapped, action: Array, key: PRNGKeyArray) -> tuple[Wrapped, Transition]:
        """Take a step for the clipped reward."""
        inner, transition = self.env.step(env_state.inner, action, key)
        reward = jnp.clip(strong_reward(transition), self.min_reward, self.max_reward)
        return Wrapped(inner, ()), transition._replace(reward=reward)


@dataclasses.dataclass(frozen=True)
class JaxScaleReward(JaxWrapper):
    """See `ScaleReward`."""

    scale: float

    def step(self, env_state: Wrapped, action: Array, key: PRNGKeyArray) -> tuple[Wrapped, Transition]:
        """Take a step for the scaled reward."""
        inner, transition = self.env.step(env_state.inner, action, key)
        return Wrapped(inner, ()), transition._replace(reward=self.scale * strong_reward(transition))


@dataclasses.dataclass(frozen=True)
class JaxActionRepeat(JaxWrapper):
    """See `ActionRepeat`."""

    num_repeats: int

    def step(self, env_state: Wrapped, action: Array, key: PRNGKeyArray) -> tuple[Wrapped, Transition]:
        """Take the action until it was repeated enough or the episode is over."""

        def take(inner: PyTree, key: PRNGKeyArray) -> tuple[PyTree, Transition]:
            inner, transition = self.env.step(inner, action, key)
            obs = as_space(self.env.spec.observation, transition.obs)
            over, cut = (jnp.asarray(x, bool) for x in (transition.terminated, transition.truncated))
            return inner, Transition(obs, strong_reward(transition), over, cut)

        def again(before: tuple[PyTree, Transition], key: PRNGKeyArray) -> tuple[tuple, None]:
            inner, sofar = before
            following, new = take(inner, key)
            new = new._replace(reward=sofar.reward + new.reward)
            # Steps past an episode's end are computed, since all of a vmap step together, and dropped.
            return select(sofar.terminated | sofar.truncated, before, (following, new)), None

        keys = jax.random.split(key, self.num_repeats)
        (inner, transition), _ = jax.lax.scan(again, take(env_state.inner, keys[0]), keys[1:])
        return Wrapped(inner, ()), transition


@dataclasses.dataclass(frozen=True)
class JaxStickyActions(JaxWrapper):
    """See `StickyActions`. `own` is `(the last action taken, whether there is one)`."""

    repeat_action_probability: float

    def reset(self, key: PRNGKeyArray) -> tuple[Wrapped, PyTree]:
        """Begin an episode, in which no action was taken yet."""
        inner, obs = self.env.reset(key)
        none = jax.tree.map(jnp.asarray, self.env.spec.action.zeros())
        return Wrapped(inner, (none, jnp.zeros((), bool))), obs

    def step(self, env_state: Wrapped, action: Array, key: PRNGKeyArray) -> tuple[Wrapped, Transition]:
        """Take this action, or the last one again."""
        last, begun = env_state.own
        key, draw = jax.random.split(key)
        again = begun & jax.random.bernoulli(draw, jnp.float32(self.repeat_action_probability))
        taken = jnp.where(again, last, jnp.asarray(action, last.dtype))
        inner, transition = self.env.step(env_state.inner, taken, key)
        return Wrapped(inner, (taken, jnp.ones((), bool))), transition


# -- SB3's monitor file ----------------------------------------------------------------------------------

_WRITERS: weakref.WeakValueDictionary[Path, gymnasium.Env] = weakref.WeakValueDictionary()
"""Which `Monitor` of this process writes a file: two of them in one would mix their episodes."""


class Monitor(gymnasium.Wrapper, gymnasium.utils.RecordConstructorArgs):
    """Write a line for every finished episode into a file that Stable-Baselines3's tools read.

    The file is SB3's `monitor.csv`: a first line `#{"t_start": ..., "env_id": ...}` (seconds since 1970),
    then the columns `r` (return), `l` (length in steps), `t` (seconds since `t_start`) and those of
    `info_keywords`. `stable_baselines3.common.results_plotter.load_results(folder)` reads all files of a
    folder. The step that ends an episode has `info["episode"]` with the same numbers.

    Rewards are counted where the wrapper stands: `PotentialShaping(Monitor(env, ...), ...)` writes true
    returns. An episode that is reset before its end is not written.
    """

    def __init__(
        self,
        env: Any,
        filename: str | os.PathLike[str] | None = None,
        info_keywords: Sequence[str] = (),
        override_existing: bool = True,
    ):
        """
        Args:
            env: a Gymnasium environment; JAX environments are logged by the fused driver itself.
            filename: the file, to which `.monitor.csv` is added unless it ends in `monitor.csv`, or an
                existing folder; None writes no file. While another environment of this process writes
                it (a copy for a further seed), a number is added: `0.1.monitor.csv`.
            info_keywords: keys of the last step's info to write as columns.
            override_existing: begin the file anew, else go on at its end.

        Raises:
            ValueError: `env` is no Gymnasium environment; or, at an episode's end, info lacks a keyword.
            OSError: the file cannot be written.
        """
        _check_monitored(env)
        gymnasium.utils.RecordConstructorArgs.__init__(
            self, filename=filename, info_keywords=info_keywords, override_existing=override_existing
        )
        gymnasium.Wrapper.__init__(self, env)
        self.info_keywords = tuple(info_keywords)
        self.t_start = time.time()
        self.path = None if filename is None else _free(_monitor_path(Path(filename)))
        if self.path is not None:
            self._begin(self.path, override_existing)
        self._total, self._length = 0.0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Begin an episode."""
        self._total, self._length = 0.0, 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        """Take a step; an episode's last one is followed by its line in the file."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._total += float(reward)
        self._length += 1
        if terminated or truncated:
            info = {**info, "episode": self._finish(info)}
        return obs, reward, terminated, truncated, info

    def close(self) -> None:
        """Close the environment; another may write the file then."""
        if _WRITERS.get(self.path) is self:
            del _WRITERS[self.path]
        self.env.close()

    def _finish(self, info: dict[str, Any]) -> dict[str, Any]:
        seconds = round(time.time() - self.t_start, 6)
        episode = {"r": round(self._total, 6), "l": self._length, "t": seconds}
        for name in self.info_keywords:
            if name not in info:
                raise ValueError(
                    f"info_keywords={self.info_keywords}: the last step's info has no {name!r}: it has {sorted(info)}"
                )
            episode[name] = info[name]
        if self.path is not None:
            self._write("a", episode)
        return episode

    def _begin(self, path: Path, override_existing: bool) -> None:
        """The first two lines, unless an existing file goes on."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if not override_existing and path.exists() and path.stat().st_size > 0:
            self.t_start = _t_start(path)  # the lines to come count from the same moment
        else:
            self._write("w", None)
        _WRITERS[path] = self

    def _write(self, mode: str, episode: dict[str, Any] | None) -> None:
        """Begin the file, or add an episode. It is open only meanwhile: who watches a run can read it."""
        # Lines end as SB3's do, on every system.
        with self.path.open(mode, newline="\n", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["r", "l", "t", *self.info_keywords], lineterminator="\n")
            if episode is not None:
                writer.writerow(episode)
                return
            header = {"t_start": self.t_start, "env_id": self.env.spec.id if self.env.spec else None}
            file.write(f"#{json.dumps(header)}\n")
            writer.writeheader()


def _check_monitored(env: Any) -> None:
    if wraps_jax("Monitor", env):
        raise ValueError(
            f"Monitor: env {env.id!r} runs compiled and writes no files: read rollout/ep_rew_mean from the log,"
            " such as set_logger(configure(folder, ['csv']))"
        )


def _t_start(path: Path) -> float:
    """When the file was begun; raises `ValueError` unless it is a monitor file."""
    with path.open(encoding="utf-8") as file:
        line = file.readline()
    try:
        return float(json.loads(line.removeprefix("#"))["t_start"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"filename: {path} is no monitor file (it begins with {line[:40]!r}): give another name, or"
            " override_existing=True to replace it"
        ) from None


def _monitor_path(path: Path) -> Path:
    """The file that SB3 would write for a name."""
    if path.is_dir():
        return (path / "monitor.csv").resolve()
    return (path if path.name.endswith("monitor.csv") else path.with_name(f"{path.name}.monitor.csv")).resolve()


def _free(path: Path) -> Path:
    """`path`, with the first number that no monitor of this process writes, if one writes it already."""
    stem, number, free = path.name.removesuffix("monitor.csv"), 0, path
    while free in _WRITERS:
        number += 1
        free = path.with_name(f"{stem}{number}.monitor.csv")
    return free

"""Many host environments behind one interface: `S` seeds times `N` environments, one call a step.

`SyncEnvs` steps Gymnasium environments one by one with same-step autoreset; `VectorEnvs` drives
`gymnasium.vector` environments, one instance per seed, in any of Gymnasium's three autoreset modes.
Both answer with NumPy arrays `[S, N, ...]` in JAX's dtypes. They raise `EnvironmentFailure`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import gymnasium
import jax
import numpy as np
from jaxtyping import PyTree

from advantage.envs.atari import Atari
from advantage.envs.single import call_method, final_mask_row, has_masks, mask_row
from advantage.types import Observed, Space, Spec, TimeStep


class EnvironmentFailure(RuntimeError):
    """An environment raised or answered nonsense; the original exception is its `__cause__`."""


def all_masked(spec: Spec, masks: Sequence[bool], name: Callable[[int], str]) -> bool:
    """Whether environments say which actions are legal, by who of them does; where actions are no choices they never do.

    Raises:
        ValueError: some do and some do not.
    """
    if not spec.action.n or not any(masks):
        return False
    if not all(masks):
        raise ValueError(
            f"{name(masks.index(False))} has no action_masks() and {name(masks.index(True))} has: give it to all, or none"
        )
    return True


def legal(masks: np.ndarray, choices: tuple[int, ...]) -> np.ndarray:
    """Whether anything is legal, `[N, components]`, by masks `[N, sum(choices)]`."""
    starts = [sum(choices[:k]) for k in range(len(choices))]
    return np.logical_or.reduceat(masks, starts, axis=1)


def check_masks(masks: np.ndarray, choices: tuple[int, ...], name: Callable[[int], str]) -> None:
    """Raise `EnvironmentFailure` where nothing is legal in masks `[N, sum(choices)]`; `name` says whose row it is."""
    allowed = legal(masks, choices)
    if not allowed.all():
        i, k = (int(x) for x in np.argwhere(~allowed)[0])
        part = f" of component {k}" if len(choices) > 1 else ""
        raise EnvironmentFailure(
            f"{name(i)}: action_masks() allows no action{part}: leave at least one legal, or end the episode before"
        )


@runtime_checkable
class HostEnvs(Protocol):
    """What the host driver asks of environments."""

    spec: Spec
    num_seeds: int
    num_envs: int

    def reset(self, seeds: np.ndarray | None) -> Observed:
        """Begin an episode everywhere; `seeds [S, N]` also restarts every random stream.

        Masks of legal actions are in every answer or in none.
        """
        ...

    def step(self, action: np.ndarray) -> TimeStep:
        """Step every environment with an action `[S, N, ...]` in the environment's own terms."""
        ...

    def close(self) -> None:
        """Release what the environments hold."""
        ...


class SyncEnvs:
    """Gymnasium environments stepped one by one; an ended episode is reset within the same step."""

    def __init__(self, envs: list[list[gymnasium.Env]]):
        first = envs[0][0]
        spec = Spec.from_gymnasium(first.observation_space, first.action_space)
        self.num_seeds, self.num_envs = self.shape = len(envs), len(envs[0])
        self.envs = [env for group in envs for env in group]
        self.spec = dataclasses.replace(spec, masked=all_masked(spec, [has_masks(env) for env in self.envs], self._name))
        self.steps = [env.step for env in self.envs]
        self.observations = Writer(self.spec.observation, (self.num_seeds, self.num_envs))
        self.infos: Sequence[dict[str, Any]] = ()  # of the last step, one per environment
        self.none = np.zeros(self.shape, bool)  # shared by all steps in which no episode ended
        self.none.flags.writeable = False

    def reset(self, seeds: np.ndarray | None) -> Observed:
        flat = [None] * len(self.envs) if seeds is None else seeds.reshape(-1).tolist()
        rows = self.observations.empty()
        for i, seed in enumerate(flat):
            self.observations.write(rows, i, self._reset_one(i, seed))
        return Observed(self.observations.shaped(rows), np.ones(self.shape, bool), self._masks())

    def step(self, action: np.ndarray) -> TimeStep:
        answers, rows = [], action.reshape(len(self.envs), *action.shape[2:])
        for i, step in enumerate(self.steps):  # a loop over an array ends with an exception: 1 us
            try:
                answers.append(step(rows[i]))
            except Exception as error:
                raise EnvironmentFailure(f"{self._name(i)} raised {_said(error)} in step({rows[i]!r})") from error
        try:
            seen, rewards, overs, cuts, self.infos = zip(*answers, strict=True)
            obs = self.observations.gather(seen)
            reward = np.array(rewards, np.float32).reshape(self.shape)
            ended = any(overs) or any(cuts)
            terminated, truncated = np.array((overs, cuts), bool) if ended else (self.none, self.none)
        except Exception as error:
            raise EnvironmentFailure(f"{self._misfit(answers)}: {_said(error)}") from error
        if not ended:
            return TimeStep(Observed(obs, self.none, self._masks()), reward, self.none, self.none, obs)
        return self._reset_ended(obs, reward, terminated, truncated)

    def _reset_ended(self, final: PyTree, reward: np.ndarray, terminated: np.ndarray, truncated: np.ndarray) -> TimeStep:
        """The answer to a step in which episodes ended `[S*N]`, each of which begins anew."""
        is_first = terminated | truncated
        final_mask = self._final_masks(truncated & ~terminated)
        rows = _each(np.copy, final)
        flat = _each(lambda x: x.reshape(-1, *x.shape[2:]), rows)
        for i in is_first.nonzero()[0].tolist():
            self.observations.write(flat, i, self._reset_one(i, None))
        is_first, terminated, truncated = (x.reshape(self.shape) for x in (is_first, terminated, truncated))
        observed = Observed(rows, is_first, self._masks())
        return TimeStep(observed, reward, terminated, truncated, final, final_mask=final_mask)

    def _reset_one(self, i: int, seed: int | None) -> Any:
        """The first observation of environment i's next episode."""
        try:
            return self.envs[i].reset(seed=seed)[0]
        except Exception as error:
            raise EnvironmentFailure(f"{self._name(i)} raised {_said(error)} in reset()") from error

    def _misfit(self, answers: list) -> str:
        """Whose answer to `step` cannot be used, for an error."""
        for i, answer in enumerate(answers):
            try:
                obs, reward, terminated, truncated, _ = answer
                self.observations.write(self.observations.empty(), i, obs)
                float(reward), bool(terminated), bool(truncated)
            except Exception:
                return f"{self._name(i)} answered {answer!r} to step"
        return "an answer to step cannot be used"

    def each(
        self,
        function: Callable[..., Any],
        arguments: Sequence[tuple] | None = None,
        places: Sequence[int] | None = None,
    ) -> list[Any]:
        """`function(env, *arguments[k])` of every environment, or of those in `places`."""
        places = range(len(self.envs)) if places is None else places
        arguments = [()] * len(places) if arguments is None else arguments
        return [function(self.envs[i], *given) for i, given in zip(places, arguments, strict=True)]

    def call_each(self, name: str, per_env_args: Sequence[tuple] | None = None) -> list[Any]:
        """Call a method of every environment, found through its wrappers, each with its own arguments."""
        per_env_args = [()] * len(self.envs) if per_env_args is None else per_env_args
        return self.each(call_method, [(name, tuple(args), {}) for args in per_env_args])

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def _masks(self) -> np.ndarray | None:
        if not self.spec.masked:
            return None
        rows = np.stack([self._mask(i) for i in range(len(self.envs))])
        check_masks(rows, self.spec.action.n, self._name)
        return rows.reshape(*self.shape, -1)

    def _final_masks(self, cut: np.ndarray) -> np.ndarray | None:
        """What is still legal where an episode was cut `[S*N]`, which may be nothing; elsewhere everything."""
        if not self.spec.masked:
            return None
        rows = np.ones((len(self.envs), self.spec.choices), bool)
        for i in cut.nonzero()[0].tolist():
            rows[i] = final_mask_row(self.envs[i].get_wrapper_attr("action_masks"), self.spec.choices)
        return rows.reshape(*self.shape, -1)

    def _mask(self, i: int) -> np.ndarray:
        try:
            return mask_row(self.envs[i].get_wrapper_attr("action_masks")(), self.spec.choices)
        except Exception as error:
            raise EnvironmentFailure(f"{self._name(i)} raised {_said(error)} in action_masks()") from error

    def _name(self, i: int) -> str:
        return env_name(i, self.num_seeds, self.num_envs)


class VectorEnvs:
    """`gymnasium.vector` environments, one instance per seed."""

    def __init__(self, envs: list[gymnasium.vector.VectorEnv]):
        first = envs[0]
        self.spec = vector_spec(first)
        self.num_seeds, self.num_envs, self.envs = len(envs), first.num_envs, envs
        mode = first.metadata.get("autoreset_mode", gymnasium.vector.AutoresetMode.NEXT_STEP)
        self.mode = gymnasium.vector.AutoresetMode(mode)
        self._answer = getattr(self, f"_{self.mode.name.lower()}")
        self.was_done = np.zeros((self.num_seeds, self.num_envs), bool)

    def reset(self, seeds: np.ndarray | None) -> Observed:
        # One number for each instance: natively vectorised environments have a single random stream.
        seeds = [None] * self.num_seeds if seeds is None else [int(row[0]) for row in seeds]
        obs = [self._guard(i, "reset", lambda env=env, s=s: env.reset(seed=s)[0])
               for i, (env, s) in enumerate(zip(self.envs, seeds, strict=True))]  # fmt: skip
        self.was_done[:] = False
        return Observed(self._stack(obs), np.ones(self.was_done.shape, bool))

    def step(self, action: np.ndarray) -> TimeStep:
        answers = [
            self._guard(s, "step", lambda env=env, s=s: env.step(action[s])) for s, env in enumerate(self.envs)
        ]
        raw, rewards, overs, cuts, _ = zip(*answers, strict=True)
        # Copies: environments may reuse their arrays.
        reward, terminated, truncated = np.array(rewards, np.float32), np.array(overs, bool), np.array(cuts, bool)
        return self._answer(answers, raw, reward, terminated, truncated, terminated | truncated)

    def _next_step(self, answers, raw, reward, terminated, truncated, done) -> TimeStep:
        """After an end the next call ignores its action and resets: that row is a dummy."""
        obs, dummy = self._stack(raw), self.was_done
        self.was_done = done & ~dummy
        observed = Observed(obs, dummy)
        return TimeStep(observed, reward, terminated, truncated, obs, ~dummy if np.count_nonzero(dummy) else None)

    def _same_step(self, answers, raw, reward, terminated, truncated, done) -> TimeStep:
        """An end is reset at once; the final observation comes in the info."""
        obs, infos = self._stack(raw), [answer[4] for answer in answers]
        final, played = obs, None
        if isinstance(self.envs[0].unwrapped, Atari):  # where a life lost ends what is learned from, and not the game
            done = np.stack([info["_final_obs"] for info in infos])
            played = np.stack([info["score"] for info in infos]), done
        if done.any():
            final = jax.tree.map(np.copy, obs)
            for s, i in np.argwhere(done):
                last = to_rows(self.spec.observation, infos[s]["final_obs"][i])
                for rows, x in zip(jax.tree.leaves(final), jax.tree.leaves(last), strict=True):
                    rows[s, i] = x
        return TimeStep(Observed(obs, done), reward, terminated, truncated, final, played=played)

    def _disabled(self, answers, raw, reward, terminated, truncated, done) -> TimeStep:
        """Nothing is reset by the environment: reset those that ended."""
        final = self._stack(raw)
        obs = final
        if done.any():
            fresh = [
                self._guard(s, "reset", lambda env=env, mask=mask: env.reset(options={"reset_mask": mask})[0])
                if mask.any()
                else x
                for s, (env, mask, x) in enumerate(zip(self.envs, done, raw, strict=True))
            ]
            obs = self._stack(fresh)
        return TimeStep(Observed(obs, done), reward, terminated, truncated, final)

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def _guard(self, s: int, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            of_seed = f" of seed index {s}" if self.num_seeds > 1 else ""
            raise EnvironmentFailure(f"the vector env{of_seed} raised {_said(error)} in {what}()") from error

    def _stack(self, obs: Sequence[PyTree]) -> PyTree:
        """`[S, N, ...]`; a copy, since environments may reuse their arrays."""
        space = self.spec.observation
        if space.kind not in ("dict", "tuple"):
            return np.array(obs, space.dtype)
        return jax.tree.map(lambda *x: np.stack(x), *[to_rows(space, x) for x in obs])


def vector_spec(env: gymnasium.vector.VectorEnv) -> Spec:
    """The spaces of one of its environments, and whether observations are stacks of frames."""
    spec = Spec.from_gymnasium(env.single_observation_space, env.single_action_space)
    return dataclasses.replace(spec, stacked=isinstance(env, Atari) and env.stack > 1)


class Writer:
    """Puts single observations into rows of a space's structure, one for each of `[*leading]` environments."""

    def __init__(self, space: Space, leading: tuple[int, ...]):
        self.space, self.leading, self.count = space, leading, math.prod(leading)
        self.plain = space.kind not in ("dict", "tuple")
        self.dtype, self.shape = np.dtype(space.dtype), (*leading, *space.shape)
        self.flat_shape = (self.count, *space.shape)

    def empty(self) -> PyTree:
        """Flat rows `[count, ...]` yet to be written; new ones each time, since consumers keep them."""
        return np.empty(self.flat_shape, self.dtype) if self.plain else self.space.zeros((self.count,))

    def shaped(self, rows: PyTree) -> PyTree:
        """Flat rows as `[*leading, ...]`."""
        return _each(lambda x: x.reshape(*self.leading, *x.shape[1:]), rows)

    def gather(self, seen: Sequence) -> PyTree:
        """Rows `[*leading, ...]` of one observation each; a copy, since environments may reuse their arrays.

        Raises:
            ValueError: an observation has another shape than the space.
        """
        if self.plain:
            rows = np.array(seen, self.dtype)
            if rows.shape != self.flat_shape:
                raise ValueError(f"observations have shape {rows.shape[1:]}, expected {self.space.shape}")
            return rows.reshape(self.shape)
        rows = self.empty()
        for i, obs in enumerate(seen):
            self.write(rows, i, obs)
        return self.shaped(rows)

    def write(self, rows: PyTree, i: int, obs: Any) -> None:
        """Put an observation into row i."""
        if self.plain:
            rows[i] = obs
        else:
            for row, x in zip(jax.tree.leaves(rows), jax.tree.leaves(to_rows(self.space, obs)), strict=True):
                row[i] = x


def to_rows(space: Space, obs: Any) -> PyTree:
    """A Gymnasium observation in this library's structure and dtypes: plain sorted dicts and tuples."""
    if space.kind == "dict":
        return {name: to_rows(part, obs[name]) for name, part in space.parts}
    if space.kind == "tuple":
        return tuple(to_rows(part, x) for (_, part), x in zip(space.parts, obs, strict=True))
    return np.asarray(obs, space.dtype)


def _each(function: Callable[[np.ndarray], np.ndarray], rows: PyTree) -> PyTree:
    """`jax.tree.map`, which takes 4 us, not for the array that most observations are."""
    return function(rows) if isinstance(rows, np.ndarray) else jax.tree.map(function, rows)


def env_name(place: int, num_seeds: int, num_envs: int) -> str:
    """What an environment is called in an error: `place` counts all seeds' environments."""
    seed, env = divmod(place, num_envs)
    return f"env {env}" + (f" of seed index {seed}" if num_seeds > 1 else "")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"

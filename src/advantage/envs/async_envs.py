"""Host environments in processes of their own: `AsyncEnvs` answers with the bits of `SyncEnvs`.

Processes are started anew, never forked: a fork of a process in which JAX has started may hang. They do not run
the user's script again either, so it needs no `if __name__ == "__main__"`. What they do is in `worker.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import jax
import numpy as np
from jaxtyping import PyTree

from advantage.envs.process import Make, Worker, WorkerDied, WorkerFault, WorkerTraceback
from advantage.envs.single import call_method, has_attribute, reset_env, step_env
from advantage.envs.vector import EnvironmentFailure, Writer, all_masked, check_masks, env_name
from advantage.envs.worker import CLOSE, STEP, Layout, Leaf, packed
from advantage.envs.wrapping import whole
from advantage.types import Observed, Space, Spec, TimeStep


class AsyncEnvs:
    """`HostEnvs` in worker processes, each of which steps a part of them one after the other.

    A worker that dies is started again up to `max_restarts` times, with a warning that says why: its environments
    begin new episodes, and the step that was lost is a row that is not `valid`. An exception of an environment is
    an `EnvironmentFailure` with the exception as its cause, and the worker's traceback as the cause of that.
    """

    def __init__(
        self,
        functions: Sequence[Sequence[Make | gymnasium.Env]],  # the latter is refused, with the remedy
        num_workers: int | None = None,
        max_restarts: int = 3,
        timeout: float | None = None,
        begun: Sequence[Worker] = (),
    ):
        """
        Args:
            functions: `[S][N]`, each makes one environment.
            num_workers: processes; by default one for each core, or for each environment if these are fewer.
            max_restarts: deaths of workers after which training stops.
            timeout: seconds after which a worker that does not answer is taken for dead; None: never.
            begun: workers of the first seeds' environments that run already.

        Raises:
            ValueError: a function cannot be sent to another process, or a number is out of range.
            Exception: whatever an environment raised when it was made.
        """
        _check(functions, num_workers, max_restarts, timeout)
        self.num_seeds, self.num_envs = len(functions), len(functions[0])
        self.shape, self.max_restarts, self.restarts = (self.num_seeds, self.num_envs), max_restarts, 0
        self.seeds: list[int | None] = [None] * (self.num_seeds * self.num_envs)
        self.infos: Sequence[dict[str, Any]] = ()  # of the last step, one per environment
        self.none = np.zeros(self.shape, bool)  # shared by all steps in which no episode ended
        self.none.flags.writeable = False
        self.workers = [*begun]
        try:
            self._begin([make for group in functions for make in group], num_workers, timeout)
        except BaseException:
            for worker in self.workers[len(begun) :]:
                worker.close()
            raise

    def _begin(self, functions: list[Make], num_workers: int | None, timeout: float | None) -> None:
        """Start workers for the environments that have none; all at once, since a process takes its time."""
        first = sum(len(worker.functions) for worker in self.workers)
        cores = _cores()
        count = min(len(functions) - first, cores if num_workers is None else num_workers)
        new = []
        for part in np.array_split(np.arange(first, len(functions)), max(count, 1)):
            if len(part):
                chosen = functions[part[0] : part[-1] + 1]
                new.append(Worker(chosen, int(part[0]), timeout, max(1, cores // count)))
                self.workers.append(new[-1])
        for worker in new:
            try:
                worker.hello = worker.answer(patient=True)
            except WorkerFault as fault:
                place = worker.places.start + fault.fault.place
                fault.error.add_note(f"{self._name(place)} of AsyncEnvs, when it was made")
                raise fault.error from fault.error.__cause__
            except WorkerDied as died:
                raise self._stop(worker, died, "before its environments were made") from died.__cause__
        hellos = [worker.hello for worker in self.workers]
        self.hello = hellos[0]
        spec = Spec.from_gymnasium(self.hello.observation_space, self.hello.action_space)
        masks = [has for hello in hellos for has in hello.masks]
        self.spec = dataclasses.replace(spec, masked=all_masked(spec, masks, self._name))
        self.rows = Writer(self.spec.observation, self.shape)
        for worker in new:
            worker.share(_layout(self.spec, len(worker.functions)))

    # -- steps -----------------------------------------------------------------------------------

    def reset(self, seeds: np.ndarray | None) -> Observed:
        """Begin an episode everywhere; `seeds [S, N]` also restarts every random stream."""
        flat = [None] * len(self.seeds) if seeds is None else seeds.reshape(-1).tolist()
        if seeds is not None:
            self.seeds = flat
        self._ask([(worker, packed(("reset", flat[worker.places]))) for worker in self.workers])
        self._last = self._gather()
        return Observed(self.rows.shaped(self._last), np.ones(self.shape, bool), self._masks())

    def placed(self, observed: Observed) -> None:
        """The environments were set to where this was `observed`; nothing was reset."""
        self._last = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), observed.obs)

    def step(self, action: np.ndarray) -> TimeStep:
        """Step every environment with an action `[S, N, ...]` in the environment's own terms."""
        self.send(action)
        return self.receive()

    def send(self, action: np.ndarray) -> None:
        """The first half of `step`: the workers begin."""
        rows = action.reshape(len(self.seeds), *action.shape[2:])
        for worker in self.workers:
            worker.settle()  # what it still does, it does with the actions of before
            worker.block.action[...] = rows[worker.places]
            worker.post(STEP)

    def receive(self) -> TimeStep:
        """The second half of `step`: wait for the workers."""
        answers, lost = self._answers(self.workers)
        count = len(self.seeds)
        reward, ends, valid = np.empty(count, np.float32), np.empty((2, count), bool), None
        for worker in self.workers:
            reward[worker.places], ends[:, worker.places] = worker.block.reward, worker.block.ends
        infos = [answer or [{} for _ in worker.functions] for worker, answer in zip(self.workers, answers, strict=True)]
        if lost:
            valid = np.ones(count, bool)
            for worker in lost:
                # What an episode had come to is forgotten: no transition tells what the lost step would have been.
                reward[worker.places], valid[worker.places] = 0.0, False
                ends[0, worker.places], ends[1, worker.places] = False, True
            infos = [
                [{"worker_restarted": True} for _ in worker.functions] if worker in lost else part
                for worker, part in zip(self.workers, infos, strict=True)
            ]
            valid = valid.reshape(self.shape)
        self.infos = [info for part in infos for info in part]
        return self._time_step(reward.reshape(self.shape), ends, valid, lost)

    def _time_step(
        self, reward: np.ndarray, ends: np.ndarray, valid: np.ndarray | None, lost: list[Worker]
    ) -> TimeStep:
        before, self._last = self._last, self._gather()
        obs, masks = self.rows.shaped(self._last), self._masks()
        if not ends.any():
            return TimeStep(Observed(obs, self.none, masks), reward, self.none, self.none, obs, valid)
        done = ends.any(axis=0)
        final = jax.tree.map(np.copy, self._last)
        leaves, befores = jax.tree.leaves(final), jax.tree.leaves(before)
        for worker in self.workers:
            ended = done[worker.places]
            sources = [x[worker.places] for x in befores] if worker in lost else worker.block.final
            for rows, source in zip(leaves, sources, strict=True):
                rows[worker.places][ended] = source[ended]
        terminated, truncated = ends.reshape(2, *self.shape)
        observed, final_mask = Observed(obs, done.reshape(self.shape), masks), None
        if self.spec.masked:
            final_mask = np.concatenate([worker.block.final_mask for worker in self.workers]).reshape(*self.shape, -1)
        return TimeStep(observed, reward, terminated, truncated, self.rows.shaped(final), valid, final_mask)

    def _gather(self) -> PyTree:
        """The observations in the blocks as flat rows; a copy."""
        rows = self.rows.empty()
        for worker in self.workers:
            for row, x in zip(jax.tree.leaves(rows), worker.block.obs, strict=True):
                row[worker.places] = x
        return rows

    def _masks(self) -> np.ndarray | None:
        if not self.spec.masked:
            return None
        masks = np.concatenate([worker.block.mask for worker in self.workers])
        check_masks(masks, self.spec.action.n, self._name)
        return masks.reshape(*self.shape, -1)

    # -- anything else ---------------------------------------------------------------------------

    def each(
        self,
        function: Callable[..., Any],
        arguments: Sequence[tuple] | None = None,
        places: Sequence[int] | None = None,
    ) -> list[Any]:
        """`function(env, *arguments[k])` of every environment, or of those in `places`, in its process.

        Raises:
            EnvironmentFailure: the function raised, or gave what cannot be sent back.
        """
        places = list(range(len(self.seeds)) if places is None else places)
        arguments = [()] * len(places) if arguments is None else list(arguments)
        results: dict[int, Any] = {}
        asked = []
        for worker in self.workers:
            mine = [k for k, place in enumerate(places) if place in range(len(self.seeds))[worker.places]]
            if mine:
                theirs = [places[k] - worker.places.start for k in mine]
                asked.append((worker, mine, packed(("each", function, [arguments[k] for k in mine], theirs))))
        answers, lost = self._ask([(worker, message) for worker, _, message in asked])
        if lost:  # they have begun anew: ask again
            return self.each(function, arguments, places)
        for (_, mine, _), answer in zip(asked, answers, strict=True):
            results.update(zip(mine, answer, strict=True))
        return [results[k] for k in range(len(places))]

    def call_each(self, name: str, per_env_args: Sequence[tuple] | None = None) -> list[Any]:
        """Call a method of every environment, found through its wrappers, each with its own arguments."""
        per_env_args = [()] * len(self.seeds) if per_env_args is None else per_env_args
        return self.each(call_method, [(name, tuple(args), {}) for args in per_env_args])

    def close(self) -> None:
        """Close the environments and end their processes."""
        for worker in self.workers:
            with contextlib.suppress(OSError):
                worker.connection.send_bytes(CLOSE)
        for worker in self.workers:
            worker.close()

    # -- faults ----------------------------------------------------------------------------------

    def _ask(self, messages: Sequence[tuple[Worker, bytes]]) -> tuple[list[Any], list[Worker]]:
        for worker, message in messages:
            worker.post(message)
        return self._answers([worker for worker, _ in messages])

    def _answers(self, workers: Sequence[Worker]) -> tuple[list[Any], list[Worker]]:
        """`(the workers' answers, those that died and begin anew)`; all are waited for before anything is raised."""
        answers, faults, dead = [], [], []
        for worker in workers:
            answers.append(None)
            try:
                answers[-1] = worker.answer()
            except WorkerFault as fault:
                faults.append((worker, fault))
            except WorkerDied as died:
                dead.append((worker, died))
        if faults:
            worker, fault = faults[0]
            raise self._failure(worker, fault) from fault.error
        for worker, died in dead:
            self._revive(worker, died)
        return answers, [worker for worker, _ in dead]

    def _revive(self, worker: Worker, died: WorkerDied) -> None:
        """Start a worker again and reset its environments, in random streams that are new to them."""
        while True:
            if self.restarts >= self.max_restarts:
                raise self._stop(worker, died, f"after {self.restarts} restarts (max_restarts)") from died.__cause__
            self.restarts += 1
            told = f"\n{died.__cause__.args[0]}" if died.__cause__ else ""
            warnings.warn(
                f"{self._obituary(worker, died)}: started again, with new episodes"
                f" (restart {self.restarts} of at most {self.max_restarts}){told}",
                RuntimeWarning,
                stacklevel=2,
            )
            seeds = [None if s is None else _another(s, self.restarts) for s in self.seeds[worker.places]]
            try:
                worker.restart()
                worker.post(packed(("reset", seeds)))
                worker.answer()
                return
            except WorkerFault as fault:
                raise self._failure(worker, fault) from fault.error
            except WorkerDied as again:
                died = again

    def _failure(self, worker: Worker, fault: WorkerFault) -> EnvironmentFailure:
        place = worker.places.start + fault.fault.place
        seed = "" if self.seeds[place] is None else f" (reset with seed {self.seeds[place]})"
        return EnvironmentFailure(f"{self._name(place)}{seed} {fault.fault.said}")

    def _stop(self, worker: Worker, died: WorkerDied, when: str) -> EnvironmentFailure:
        return EnvironmentFailure(f"{self._obituary(worker, died)}, {when}: mend the environment")

    def _obituary(self, worker: Worker, died: WorkerDied) -> str:
        names = [self._name(place) for place in (worker.places.start, worker.places.stop - 1)]
        whose = " to ".join(dict.fromkeys(names))
        during = "" if died.place is None else f" {died.doing} of {self._name(died.place)}"
        return f"the process of {whose} {died.reason}{during}"

    def _name(self, place: int) -> str:
        return env_name(place, self.num_seeds, self.num_envs)


class RemoteEnv(gymnasium.Env):
    """One of the environments as if it were here, to be looked at; exceptions are its own."""

    def __init__(self, envs: AsyncEnvs, place: int = 0):
        self._envs, self._place = envs, place
        self.observation_space, self.action_space = envs.hello.observation_space, envs.hello.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """As the environment's."""
        return self._ask(reset_env, seed, options)

    def step(self, action: Any) -> Any:
        """As the environment's."""
        return self._ask(step_env, action)

    def has_wrapper_attr(self, name: str) -> bool:
        """As the environment's."""
        return self._ask(has_attribute, name)

    def get_wrapper_attr(self, name: str) -> Any:
        """As the environment's, for methods."""
        return lambda *args, **kwargs: self._ask(call_method, name, args, kwargs)

    def _ask(self, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return self._envs.each(function, [args], [self._place])[0]
        except EnvironmentFailure as failure:
            if failure.__cause__ is None or isinstance(failure.__cause__, WorkerTraceback):
                raise
            raise failure.__cause__ from failure.__cause__.__cause__


def _check(
    functions: Sequence[Sequence[Make | gymnasium.Env]],
    num_workers: int | None,
    max_restarts: int,
    timeout: float | None,
) -> None:
    for make in (make for group in functions for make in group):
        if isinstance(make, gymnasium.Env) or not callable(make):
            raise ValueError(
                f"env_fns has a {type(make).__name__}, which lives in this process: give functions that make"
                " environments, or an id"
            )
    if num_workers is not None:
        whole("num_workers", num_workers, 1)
    whole("max_restarts", max_restarts, 0)
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout={timeout!r} has to be positive: give seconds, or None to wait as long as it takes")


def _layout(spec: Spec, count: int) -> Layout:
    action = Leaf((), spec.action.shape, spec.action.dtype)
    return Layout(count, tuple(_leaves(spec.observation)), action, spec.choices)


def _leaves(space: Space, path: tuple[str | int, ...] = ()) -> list[Leaf]:
    """The arrays of an observation, in the order of `jax.tree.leaves`."""
    if space.kind not in ("dict", "tuple"):
        return [Leaf(path, space.shape, space.dtype)]
    keys = [name if space.kind == "dict" else int(name) for name, _ in space.parts]
    parts = [part for _, part in space.parts]
    return [leaf for key, part in zip(keys, parts, strict=True) for leaf in _leaves(part, (*path, key))]


def _another(seed: int, restarts: int) -> int:
    """A seed for what begins anew: with its own it would see the same episodes again."""
    return int(np.random.SeedSequence((seed, restarts)).generate_state(1)[0] >> 1)


def _cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""The host driver: environments in Python, one jitted dispatch to act and one to update for all seeds.

    act -> step -> write a row          (T times)
    chunk -> update                     (once; a report after each)

A chunk is written into NumPy arrays `[S, T, N, ...]` and shipped once; the next one reuses them.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from advantage.drivers.beginning import beginning
from advantage.drivers.common import (
    Episodes,
    Recent,
    Report,
    compiled_quickly,
    environment_seeds,
    over_seeds,
    resolve,
    scheduled_values,
    streams,
)
from advantage.drivers.guard import bad_row
from advantage.drivers.packing import ActorParts, Layout, Packed, Table
from advantage.envs.vector import EnvironmentFailure, HostEnvs
from advantage.equations.schedules import Schedule
from advantage.equations.threefry import written_out
from advantage.types import Agent, Chunk, Observed, Spec, TimeStep


class Programs(NamedTuple):
    """The compiled functions of one agent, config and shape; all take and give a seeds axis."""

    layout: Layout  # of (state, memory) in the arrays held
    parts: ActorParts
    begin: Callable  # (keys [S, 2], filed) -> (arrays, carry)
    actor: Callable  # (arrays, values) -> the actor's own leaves
    act: Callable  # (arrays that hold the actor, its own leaves, carry, keys, observed) -> (action, carry, keys)
    update: Callable  # (arrays, rollout, carry, values) -> (arrays, the actor's own leaves, metrics)
    push: Callable  # (arrays, rollout) -> arrays: the memory takes more rows


class Step(NamedTuple):
    """One vector step, as the step hook sees it; arrays `[S, N, ...]`."""

    observed: Observed
    action: np.ndarray  # the policy's own
    time_step: TimeStep
    steps: int  # environment steps so far
    last: bool  # whether it completes a chunk


class HostDriver:
    """Trains on host environments; `run` is a generator with a report per update."""

    def __init__(self, agent: Agent, envs: HostEnvs, seed: int, window: int = 100, further: Any = None):
        """
        Args:
            agent: the algorithm with its update and memory.
            envs: `S` seeds of `N` environments.
            seed: the first of the S seeds `seed, seed + 1, ...`.
            window: how many finished episodes `recent` remembers for each seed.
            further: makes more rows of a chunk, to be remembered (see `drivers.hindsight`).
        """
        self.agent, self.envs, self.spec, self.further = agent, envs, envs.spec, further
        self.version = 0  # of the state: counts updates
        self.num_seeds, self.num_envs = envs.num_seeds, envs.num_envs
        self.seeds = range(seed, seed + self.num_seeds)
        self._layout: Layout | None = None  # of (state, memory)
        self._arrays: tuple = ()
        self._keys = jnp.array(np.stack([streams(s)[1] for s in self.seeds]))
        self._carry: Any = None
        self._observed: Observed | None = None
        self._rows: Rows | None = None  # a chunk begun and not yet consumed
        self._spare: Rows | None = None  # a chunk consumed, whose arrays the next one may use
        self._before: tuple = ()  # the arrays before the last update, where the guard needs them
        self._first_reset = True
        self._uncounted = False  # whether environments went on in rows that do not count
        self._least = 0  # environment steps of the seed that has done the least
        self._ahead = np.zeros(self.num_seeds, np.int64)  # those of each seed beyond them
        self._together = True  # whether there are none
        self._episodes = Episodes(self.num_seeds, self.num_envs, window)

    def init(self, config: Any, filed: bool = False) -> None:
        """Fresh agents and empty memories, whose observations are in files if `filed` (see `drivers.filed`)."""
        programs = _programs(self.agent, config, self.spec, self.num_seeds, self.num_envs, ())
        self._layout = programs.layout
        self._arrays, self._carry = programs.begin(np.stack([streams(s)[0] for s in self.seeds]), filed)
        self.version += 1

    @property
    def state(self) -> Any:
        """The agents `[S, ...]`; what is large is not copied; off-policy the next update takes it."""
        return None if self._layout is None else self._unpacked()[0]

    @state.setter
    def state(self, state: Any) -> None:
        held = (state, self._unpacked()[1])
        # The next update may take large arrays of JAX: a copy of the memory would need its room twice.
        packed = self._layout.pack(held, np)
        self._arrays = tuple(x if isinstance(x, jax.Array) else jnp.array(x) for x in packed)
        self.version += 1

    @property
    def memory(self) -> Any:
        """The memories `[S, ...]`; the next update takes what is large."""
        return self._unpacked()[1]

    def _unpacked(self) -> tuple[Any, Any]:
        # Vectors are copied to NumPy: cutting them up on the device would compile a program for each leaf.
        places = self._layout.places
        vectors = {place.array for place in places if place.offset is not None}
        return self._layout.unpack([np.array(x) if i in vectors else x for i, x in enumerate(self._arrays)])

    def reset(self) -> None:
        """Begin new episodes at the next run; a chunk begun is dropped."""
        self._observed, self._rows, self._spare = None, None, None
        self._ahead, self._together = np.zeros(self.num_seeds, np.int64), True

    def seed_state(self, seed_index: int) -> Any:
        """One seed's agent; a copy, since an update may take what it is given."""
        return jax.tree.map(lambda x: np.array(np.asarray(x)[seed_index]), self.state)

    def recent(self, seed_index: int) -> Recent:
        """The last finished episodes of a seed."""
        return self._episodes.recent(seed_index)

    def episodes(self) -> int:
        """Episodes finished by all seeds."""
        return sum(self._episodes.totals)

    def run(
        self,
        config: Any,
        schedules: Mapping[str, Schedule],
        start: int,
        stop: int,
        on_step: Callable[[Step], bool] | None = None,
    ) -> Iterator[Report]:
        """Train every seed from environment step `start` to exactly `stop`.

        `on_step` is called after each vector step and ends the run at once by returning False; the
        chunk begun is kept and continued by the next run.

        Raises:
            EnvironmentFailure: an environment raised, or answered NaN or infinity. The agents are as
                after the last report.
        """
        names = tuple(sorted(schedules))
        programs = _programs(self.agent, config, self.spec, self.num_seeds, self.num_envs, names)
        self._least = start

        def values(steps: np.ndarray) -> np.ndarray:
            left = [1.0 - min(done / max(stop, 1), 1.0) for done in steps.tolist()]
            return scheduled_values(schedules, np.array(left))

        # A chunk begun by an earlier run goes on as it began.
        own = programs.actor(self._arrays, values(self._steps() if self._rows is None else self._rows.began))
        while self._least < stop:
            if not self._collect(config, programs, own, stop, on_step):
                return
            rows, self._rows = self._rows, None
            rollout = rows.close(self._observed)
            if not rows.finite() and (failure := bad_row(rows.arrays, self.seeds, self._steps())) is not None:
                self.reset()
                self._spare = rows
                raise failure  # before anything not finite reaches an agent
            self._before = self._arrays if self.agent.drawn is None else ()
            for further in () if self.further is None else self.further.take(rows.arrays):
                self._arrays = programs.push(self._arrays, further)
            self._arrays, own, table = programs.update(self._arrays, rollout, rows.carry, values(self._steps()))
            self.version += 1
            metrics = table.read()
            self._spare = rows  # the update was waited for: its rows may be written again
            yield Report(self._least, 1, metrics)

    def _collect(
        self, config: Any, programs: Programs, own: tuple, stop: int, on_step: Callable[[Step], bool] | None
    ) -> bool:
        """Fill a chunk row by row; False where `on_step` ended the run."""
        if self._observed is None or self._uncounted:
            self._begin()
        if self._rows is None:
            self._rows = self._begun(config)
        rows, space, to_env = self._rows, self.spec.action, self.agent.algorithm.to_env
        held = programs.parts.held(self._arrays)
        last = rows.full()  # by a run that was stopped at its last row
        while not last:
            observed = self._observed
            action, self._carry, self._keys = programs.act(held, own, self._carry, self._keys, observed)
            action = np.asarray(action)
            try:
                sent = to_env(space, action)
                # Environments may change what they are given; the chunk keeps the policy's own.
                time_step = self.envs.step(sent.copy() if sent is action else sent)
            except EnvironmentFailure as error:
                raise self._failure(self._least + self.num_envs, error) from error.__cause__
            valid = self._count(time_step.valid, stop)
            # Counting is ten times faster than `any`, and this is done at every step.
            ended = np.count_nonzero(time_step.terminated) or np.count_nonzero(time_step.truncated)
            done = time_step.terminated | time_step.truncated if ended else None
            rows.write(observed, action, time_step, valid, done)
            self._observed = time_step.observed
            self._episodes.count(*time_step.reported(valid, done), time_step.observed.is_first)
            last = rows.full() or self._least >= stop
            if on_step is not None and not on_step(Step(observed, action, time_step, self._least, last)):
                return False
        return True

    def _begun(self, config: Any) -> "Rows":
        """Rows for a new chunk, in the arrays of the last one where these fit."""
        rows, self._spare = self._spare, None
        # Those of whole episodes grow: their length is no other chunk's.
        if rows is None or rows.config is not config or rows.episodes is not None:
            rows = Rows(self.spec, config, self.num_seeds, self.num_envs)
        return rows.begin(self._carry, self._steps())

    def _steps(self) -> np.ndarray:
        return self._least + self._ahead  # of each seed

    def _failure(self, step: int, error: EnvironmentFailure) -> EnvironmentFailure:
        self.reset()
        return EnvironmentFailure(f"at step {step:,}: {error}")

    def _begin(self) -> None:
        if self._rows is not None:
            self._rows.cut(self._observed)
        seeds = [environment_seeds(s, self.num_envs) for s in self.seeds]
        # Random streams start once: a later reset goes on in them, as Gymnasium intends.
        try:
            self._observed = self.envs.reset(np.stack(seeds) if self._first_reset else None)
        except EnvironmentFailure as error:
            raise self._failure(self._least, error) from error.__cause__
        self._first_reset = self._uncounted = False
        self._episodes.begin()

    def _count(self, valid: np.ndarray | None, stop: int) -> np.ndarray | None:
        """Count a row's steps and say which environments' count `[S, N]`; None: all. The last takes the lowest."""
        if valid is None and self._together and self._least + self.num_envs <= stop:
            self._least += self.num_envs
            return None
        steps = self._steps()
        if valid is None:
            valid = np.ones((self.num_seeds, self.num_envs), bool)
        counted = valid & (np.cumsum(valid, axis=1) <= (stop - steps)[:, None])
        self._uncounted |= bool((counted != valid).any())
        steps += counted.sum(axis=1)
        self._least = int(steps.min())
        self._ahead = steps - self._least
        self._together = not self._ahead.any()
        return counted


class Rollout(NamedTuple):
    """A chunk as it is written and shipped; without the axis S where one seed learns from it."""

    obs: PyTree  # [S, T+1, N, ...]: the last is what the policy saw after the last row
    action_mask: np.ndarray | None  # [S, T+1, N, actions]
    action: np.ndarray  # [S, T, N, ...]
    reward: np.ndarray  # [S, T, N]
    flags: np.ndarray  # [S, 4, T, N] bool: is_first, terminated, truncated, valid
    final_obs: PyTree  # [S, T, N, ...]: as it was where no episode ended
    final_mask: np.ndarray | None = None  # [S, T, N, actions]

    def chunk(self, carry: PyTree) -> Chunk:
        """The chunk of one seed (without the axis S)."""
        is_first, terminated, truncated, valid = self.flags
        return Chunk(
            obs=jax.tree.map(lambda x: x[:-1], self.obs),
            is_first=is_first,
            action_mask=jax.tree.map(lambda x: x[:-1], self.action_mask),
            action=self.action,
            reward=self.reward,
            terminated=terminated,
            truncated=truncated,
            valid=valid,
            final_obs=self.final_obs,
            last_obs=jax.tree.map(lambda x: x[-1], self.obs),
            carry=carry,
            final_mask=self.final_mask,
            last_mask=jax.tree.map(lambda x: x[-1], self.action_mask),
        )


@functools.lru_cache(maxsize=64)
def rollout_layout(spec: Spec, length: int, num_envs: int) -> Layout:
    """How the rollout of one seed is shipped; one object for each shape, since programs are compiled for it."""
    rows, seen, choices = (length, num_envs), (length + 1, num_envs), spec.choices
    return Layout(
        Rollout(
            obs=spec.observation.zeros(seen),
            action_mask=np.zeros((*seen, choices), bool) if choices else None,
            action=spec.action.zeros(rows),
            reward=np.zeros(rows, np.float32),
            flags=np.zeros((4, *rows), bool),
            final_obs=spec.observation.zeros(rows),
            final_mask=np.zeros((*rows, choices), bool) if choices else None,
        )
    )


class Rows:
    """A chunk being written, row by row."""

    def __init__(self, spec: Spec, config: Any, num_seeds: int, num_envs: int):
        self.spec, self.config, self.shape = spec, config, (num_seeds, num_envs)
        self.episodes = getattr(config, "episodes_per_update", None)
        # Nobody knows how many rows whole episodes take: they begin with a few and grow.
        self._allocate(config.steps_per_update if self.episodes is None else 16)

    def _allocate(self, length: int) -> None:
        layout = rollout_layout(self.spec, length, self.shape[1])
        self.length, self.packed = length, Packed(layout.zeros(self.shape[:1]), layout)
        self.arrays: Rollout = self.packed.unpack()  # views
        self.arrays.flags[:, 3] = True

    def begin(self, carry: PyTree, steps: np.ndarray) -> "Rows":
        """Start a chunk with the policy's carry, after `steps [S]` of each seed."""
        self.count, self.began, self.carry = 0, steps, jax.tree.map(jnp.copy, carry)
        self.arrays.flags[:, 1:3], self.arrays.flags[:, 3] = False, True
        return self

    def full(self) -> bool:
        """Whether the update is due."""
        if self.episodes is not None:
            return self.episodes <= 0
        return self.count == self.length

    def write(
        self,
        observed: Observed,
        action: np.ndarray,
        time_step: TimeStep,
        valid: np.ndarray | None,
        done: np.ndarray | None,
    ) -> None:
        """Add a row. `valid [S, N]` is None where all rows count, `done [S, N]` where no episode ended."""
        if self.count == self.length:
            self._grow()
        arrays, t = self.arrays, self.count
        self._see(t, observed)
        arrays.flags[:, 0, t] = observed.is_first
        arrays.action[:, t] = action
        arrays.reward[:, t] = time_step.reward
        if valid is not None:
            arrays.flags[:, 3, t] = valid
        if done is not None:
            arrays.flags[:, 1, t] = time_step.terminated
            arrays.flags[:, 2, t] = time_step.truncated
            _put(arrays.final_obs, t, time_step.final_obs)
            if arrays.final_mask is not None:
                arrays.final_mask[:, t] = time_step.final_mask
            if self.episodes is not None:
                self.episodes -= int((done if valid is None else done & valid).sum())
        self.count += 1

    def cut(self, observed: Observed) -> None:
        """Truncate what runs on in the last row: new episodes begin, and `observed` was its successor."""
        t = self.count - 1
        if t >= 0:
            ended = self.arrays.flags[:, 1, t] | self.arrays.flags[:, 2, t]
            into, last = (self.arrays.final_obs, self.arrays.final_mask), (observed.obs, observed.action_mask)
            for final, x in zip(*map(jax.tree.leaves, (into, last)), strict=True):
                final[:, t][~ended] = x[~ended]
            self.arrays.flags[:, 2, t] |= ~ended

    def close(self, observed: Observed) -> Packed:
        """The chunk; rows never written are invalid, and `obs` of the first of them is the last successor."""
        self._see(self.count, observed)
        if self.count < self.length:
            self._see(self.length, observed)
            self.arrays.flags[:, :, self.count :] = False
        return self.packed

    def finite(self) -> bool:
        """Whether no number is NaN or infinite: nor is their sum then, unless it overflows."""
        with np.errstate(all="ignore"):
            return all(math.isfinite(x.sum()) for x in self.packed.arrays if x.dtype.kind == "f")

    def _see(self, t: int, observed: Observed) -> None:
        _put(self.arrays.obs, t, observed.obs)
        if self.arrays.action_mask is not None:
            self.arrays.action_mask[:, t] = observed.action_mask

    def _grow(self) -> None:
        """Twice the rows: chunks of whole episodes come in few lengths, so few are compiled."""
        old = self.arrays
        self._allocate(2 * self.length)
        rows = len(old.flags[0, 0])
        self.arrays.flags[:, :, :rows] = old.flags
        rest = [arrays._replace(flags=None) for arrays in (self.arrays, old)]
        for into, written in zip(*map(jax.tree.leaves, rest), strict=True):
            into[:, : written.shape[1]] = written


def _put(rows: PyTree, t: int, x: PyTree) -> None:
    """`rows[:, t] = x`, leaf by leaf."""
    if isinstance(rows, np.ndarray):
        rows[:, t] = x
        return
    for row, leaf in zip(jax.tree.leaves(rows), jax.tree.leaves(x), strict=True):
        row[:, t] = leaf


@functools.lru_cache(maxsize=64)
def _programs(
    agent: Agent, config: Any, spec: Spec, num_seeds: int, num_envs: int, names: tuple[str, ...]
) -> Programs:
    """Compile-once functions. The config is closed over: fifteen more arguments a call cost 14 us."""
    algorithm = agent.algorithm

    def init(key):
        state = algorithm.init(config, spec, key)
        carry = algorithm.initial_carry(config, spec, num_envs)
        return (state, agent.init_memory(config, spec, num_envs)), carry

    held, _ = jax.eval_shape(init, streams(0)[0])
    layout = Layout(held)
    parts = ActorParts(algorithm, config, held[0], layout)

    def packed_init(key):
        held, carry = init(key)
        return layout.pack(jax.tree.map(jnp.asarray, held)), carry

    def actor(arrays, values):
        state, _ = layout.unpack(arrays)
        return parts.own(algorithm.actor(resolve(config, names, values), state))

    def act(arrays, own, carry, key, observed):
        key, now = jax.random.split(written_out(key))
        action, carry = algorithm.act(config, parts.join(arrays, own), carry, observed, now, True)
        return action, carry, jax.random.key_data(key)

    def update(arrays, rollout, carry, values):
        now = resolve(config, names, values)
        # Fused into all that reads them, the parts of vectors take longer to compile and to compute with.
        state, memory = jax.lax.optimization_barrier(layout.unpack(arrays))
        state, memory, metrics = agent.update(now, state, memory, rollout.unpack().chunk(carry))
        return layout.pack((state, memory)), parts.own(algorithm.actor(now, state)), Table.of(metrics)

    def push(arrays, rollout):
        state, memory = jax.lax.optimization_barrier(layout.unpack(arrays))
        return layout.pack((state, agent.push(memory, rollout.unpack().chunk(()))))

    over = over_seeds(num_seeds)
    return Programs(
        layout,
        parts,
        beginning(packed_init, layout, held, num_seeds),
        compiled_quickly(over(actor)) if None in parts.places else lambda arrays, values: (),
        jax.jit(over(act), donate_argnums=(2, 3)),
        jax.jit(over(update), donate_argnums=() if agent.drawn is None else 0),  # else the guard needs what was before
        jax.jit(over(push), donate_argnums=0),
    )

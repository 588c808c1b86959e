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

from advantage.drivers.common import Episodes, Recent, Report, compiled_quickly, environment_seeds, resolve, scheduled_values, streams
from advantage.envs.check import first_bad_row
from advantage.envs.vector import EnvironmentFailure, HostEnvs
from advantage.equations.schedules import Schedule
from advantage.equations.threefry import written_out
from advantage.types import Agent, Chunk, Observed, Spec, TimeStep


class Programs(NamedTuple):
    """The compiled functions of one agent, config and shape; all take and give a seeds axis."""

    init: Callable  # (keys [S, 2]) -> (state, memory, carry)
    actor: Callable  # (leaves of the state, values) -> the actor's own leaves
    act: Callable  # (leaves of the actor, carry, keys, observed) -> (action, carry, keys)
    update: Callable  # (leaves, memory, rollout, values) -> (leaves, memory, metrics, the actor's own leaves)
    places: tuple[int | None, ...]  # where the actor's leaves are among the state's; None: its own

    def acting(self, leaves: tuple, own: tuple) -> tuple:
        """The actor's leaves: most are the state's, which a program would only copy to give them again."""
        rest = iter(own)
        return tuple(next(rest) if place is None else leaves[place] for place in self.places)


class Step(NamedTuple):
    """One vector step, as the step hook sees it; arrays `[S, N, ...]`."""

    observed: Observed
    action: np.ndarray  # the policy's own
    time_step: TimeStep
    steps: int  # environment steps so far
    last: bool  # whether it completes a chunk


class HostDriver:
    """Trains on host environments; `run` is a generator with a report per update."""

    def __init__(self, agent: Agent, envs: HostEnvs, seed: int, window: int = 100):
        """
        Args:
            agent: the algorithm with its update and memory.
            envs: `S` seeds of `N` environments.
            seed: the first of the S seeds `seed, seed + 1, ...`.
            window: how many finished episodes `recent` remembers for each seed.
        """
        self.agent, self.envs, self.spec = agent, envs, envs.spec
        self.version = 0  # of the state: counts updates
        self.num_seeds, self.num_envs = envs.num_seeds, envs.num_envs
        self.seeds = range(seed, seed + self.num_seeds)
        self.memory: Any = None
        # The agents' leaves: modules take Python to flatten, 55 us an update for two small networks.
        self._leaves: tuple = ()
        self._structure: Any = None
        self._keys = jnp.array(np.stack([streams(s)[1] for s in self.seeds]))
        self._carry: Any = None
        self._observed: Observed | None = None
        self._rows: Rows | None = None  # a chunk begun and not yet consumed
        self._spare: Rows | None = None  # a chunk consumed, whose arrays the next one may use
        self._first_reset = True
        self._uncounted = False  # whether environments went on in rows that do not count
        self._ahead: Any = 0  # [S] steps of each seed beyond the least, where a run was stopped
        self._episodes = Episodes(self.num_seeds, self.num_envs, window)

    def init(self, config: Any) -> None:
        """Fresh agents and empty memories."""
        programs = _programs(self.agent, config, self.spec, self.num_seeds, self.num_envs, ())
        self.state, self.memory, self._carry = programs.init(np.stack([streams(s)[0] for s in self.seeds]))

    @property
    def state(self) -> Any:
        """The agents `[S, ...]`; the next update donates their arrays."""
        return None if self._structure is None else jax.tree.unflatten(self._structure, self._leaves)

    @state.setter
    def state(self, state: Any) -> None:
        leaves, self._structure = jax.tree.flatten(state)
        self._leaves = tuple(leaves)
        self.version += 1

    def reset(self) -> None:
        """Begin new episodes at the next run; a chunk begun is dropped."""
        self._observed, self._rows, self._spare, self._ahead = None, None, None, 0

    def seed_state(self, seed_index: int) -> Any:
        """One seed's agent; a copy, since an update donates what it is given."""
        return jax.tree.map(lambda x: np.array(x[seed_index]), self.state)

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
        steps = np.full(self.num_seeds, start, np.int64) + self._ahead

        def values() -> np.ndarray:
            left = [1.0 - min(done / max(stop, 1), 1.0) for done in steps.tolist()]
            return scheduled_values(schedules, np.array(left))

        actor = programs.acting(self._leaves, programs.actor(self._leaves, values()))
        least = int(steps.min())
        while least < stop:
            for step in self._collect(config, programs, actor, steps, stop):
                if on_step is not None and not on_step(step):
                    self._ahead = steps - steps.min()
                    return
            rollout = self._rows.rollout(self._observed)
            self._spare, self._rows = self._rows, None
            self._check_finite(rollout, steps)
            self._leaves, self.memory, metrics, own = programs.update(self._leaves, self.memory, rollout, values())
            actor = programs.acting(self._leaves, own)
            self._leaves[0].block_until_ready()  # the arrays just shipped may be written again
            self.version += 1
            least = int(steps.min())
            self._ahead = steps - least
            yield Report(least, 1, metrics)

    def _collect(
        self, config: Any, programs: Programs, actor: PyTree, steps: np.ndarray, stop: int
    ) -> Iterator[Step]:
        """Fill a chunk row by row; `steps [S]` is counted up in place."""
        if self._observed is None or self._uncounted:
            self._begin(steps)
        if self._rows is None:
            self._rows = self._begun(config)
        rows, space, to_env = self._rows, self.spec.action, self.agent.algorithm.to_env
        done_by_least = int(steps.min())
        while not rows.full() and done_by_least < stop:
            observed = self._observed
            action, self._carry, self._keys = programs.act(actor, self._carry, self._keys, observed)
            action = np.asarray(action)
            try:
                sent = to_env(space, action)
                # Environments may change what they are given; the chunk keeps the policy's own.
                time_step = self.envs.step(sent.copy() if sent is action else sent)
            except EnvironmentFailure as error:
                raise self._failure(done_by_least + self.num_envs, error) from error.__cause__
            valid = self._valid(time_step, steps, stop)
            # Counting is ten times faster than `any`, and this is done at every step.
            ended = np.count_nonzero(time_step.terminated) or np.count_nonzero(time_step.truncated)
            done = time_step.terminated | time_step.truncated if ended else None
            rows.write(observed, action, time_step, valid, done)
            self._observed = time_step.observed
            self._episodes.count(time_step.reward, valid, done)
            steps += self.num_envs if valid is None else valid.sum(axis=1)
            done_by_least = int(steps[0] if valid is None and self.num_seeds == 1 else steps.min())
            last = rows.full() or done_by_least >= stop
            yield Step(observed, action, time_step, done_by_least, last)

    def _begun(self, config: Any) -> "Rows":
        """Rows for a new chunk, in the arrays of the last one where these fit."""
        rows, self._spare = self._spare, None
        # Those of whole episodes grow: their length is no other chunk's.
        if rows is None or rows.config is not config or rows.episodes is not None:
            rows = Rows(self.spec, config, self.num_seeds, self.num_envs)
        return rows.begin(self._carry)

    def _failure(self, step: int, error: EnvironmentFailure) -> EnvironmentFailure:
        self.reset()
        return EnvironmentFailure(f"at step {step:,}: {error}")

    def _begin(self, steps: np.ndarray) -> None:
        if self._rows is not None:
            self._rows.cut(self._observed)
        seeds = [environment_seeds(s, self.num_envs) for s in self.seeds]
        # Random streams start once: a later reset goes on in them, as Gymnasium intends.
        try:
            self._observed = self.envs.reset(np.stack(seeds) if self._first_reset else None)
        except EnvironmentFailure as error:
            raise self._failure(int(steps.min()), error) from error.__cause__
        self._first_reset = self._uncounted = False
        self._episodes.begin()

    def _valid(self, time_step: TimeStep, steps: np.ndarray, stop: int) -> np.ndarray | None:
        """Which environments' rows count `[S, N]`; None: all. The last step counts the lowest indices."""
        # Seeds whose rows all count are in step with the first.
        if time_step.valid is None and steps[0] + self.num_envs <= stop and (
            self.num_seeds == 1 or (steps == steps[0]).all()
        ):
            return None
        shape = (self.num_seeds, self.num_envs)
        valid = np.ones(shape, bool) if time_step.valid is None else time_step.valid
        counted = valid & (np.cumsum(valid, axis=1) <= (stop - steps)[:, None])
        self._uncounted |= bool((counted != valid).any())
        return counted

    def _check_finite(self, rollout: "Rollout", steps: np.ndarray) -> None:
        """Stop before anything not finite reaches an agent; `steps [S]` are those after the chunk."""
        seen = (rollout.obs, rollout.final_obs, rollout.reward)
        # A sum is not finite where a number is not; one that overflows is looked at again below.
        with np.errstate(all="ignore"):
            if all(math.isfinite(x.sum()) for x in jax.tree.leaves(seen) if x.dtype.kind == "f"):
                return
        for s in range(self.num_seeds):
            one = jax.tree.map(lambda x, s=s: x[s], rollout._replace(carry=())).chunk()
            found = first_bad_row(one)
            if found is not None:
                taken, n, name = found
                step = int(steps[s] - one.valid.sum()) + taken
                self.reset()
                raise EnvironmentFailure(
                    f"env {n} of seed {self.seeds[s]} gave {'a' if name == 'reward' else 'an'} {name} that is NaN or infinite, at step {step:,}:"
                    " the agent is as before that step's update; mend the environment"
                )


class Rollout(NamedTuple):
    """A chunk as it is shipped, in few arrays: each costs a few microseconds."""

    obs: PyTree  # [S, T+1, N, ...]: the last is what the policy saw after the last row
    action_mask: np.ndarray | None  # [S, T, N, actions]
    action: np.ndarray  # [S, T, N, ...]
    reward: np.ndarray  # [S, T, N]
    flags: np.ndarray  # [S, 4, T, N] bool: is_first, terminated, truncated, valid
    final_obs: PyTree  # [S, T, N, ...]: as it was where no episode ended
    carry: PyTree = ()

    def chunk(self) -> Chunk:
        """The chunk of one seed (without the axis S)."""
        is_first, terminated, truncated, valid = self.flags
        return Chunk(
            obs=jax.tree.map(lambda x: x[:-1], self.obs),
            is_first=is_first,
            action_mask=self.action_mask,
            action=self.action,
            reward=self.reward,
            terminated=terminated,
            truncated=truncated,
            valid=valid,
            final_obs=self.final_obs,
            last_obs=jax.tree.map(lambda x: x[-1], self.obs),
            carry=self.carry,
        )


class Rows:
    """A chunk being written, row by row."""

    def __init__(self, spec: Spec, config: Any, num_seeds: int, num_envs: int):
        self.spec, self.config, self.shape = spec, config, (num_seeds, num_envs)
        self.episodes = getattr(config, "episodes_per_update", None)
        # Nobody knows how many rows whole episodes take: they begin with a few and grow.
        self.length = config.steps_per_update if self.episodes is None else 16
        self.arrays = self._allocate(self.length)

    def begin(self, carry: PyTree) -> "Rows":
        """Start a chunk with the policy's carry."""
        self.count, self.carry = 0, carry if carry == () else jax.tree.map(jnp.copy, carry)
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
        _put(arrays.obs, t, observed.obs)
        arrays.flags[:, 0, t] = observed.is_first
        arrays.action[:, t] = action
        arrays.reward[:, t] = time_step.reward
        if observed.action_mask is not None:
            if arrays.action_mask is None:
                mask = np.ones((*arrays.reward.shape, observed.action_mask.shape[-1]), bool)
                self.arrays = arrays = arrays._replace(action_mask=mask)
            arrays.action_mask[:, t] = observed.action_mask
        if valid is not None:
            arrays.flags[:, 3, t] = valid
        if done is not None:
            arrays.flags[:, 1, t] = time_step.terminated
            arrays.flags[:, 2, t] = time_step.truncated
            _put(arrays.final_obs, t, time_step.final_obs)
            if self.episodes is not None:
                self.episodes -= int((done if valid is None else done & valid).sum())
        self.count += 1

    def cut(self, observed: Observed) -> None:
        """Truncate what runs on in the last row: new episodes begin, and `observed` was its successor."""
        t = self.count - 1
        if t >= 0:
            ended = self.arrays.flags[:, 1, t] | self.arrays.flags[:, 2, t]
            for final, obs in zip(*map(jax.tree.leaves, (self.arrays.final_obs, observed.obs)), strict=True):
                final[:, t][~ended] = obs[~ended]
            self.arrays.flags[:, 2, t] |= ~ended

    def rollout(self, observed: Observed) -> Rollout:
        """The chunk; rows never written are invalid, and `obs` of the first of them is the last successor."""
        _put(self.arrays.obs, self.count, observed.obs)
        if self.count < self.length:
            _put(self.arrays.obs, self.length, observed.obs)
            self.arrays.flags[:, :, self.count :] = False
        return self.arrays._replace(carry=self.carry)

    def _allocate(self, length: int) -> Rollout:
        num_seeds, num_envs = self.shape
        lead = (num_seeds, length, num_envs)
        observation, action = self.spec.observation, self.spec.action
        return Rollout(
            obs=observation.zeros((num_seeds, length + 1, num_envs)),
            action_mask=None,
            action=action.zeros(lead),
            reward=np.zeros(lead, np.float32),
            flags=np.zeros((num_seeds, 4, length, num_envs), bool),
            final_obs=observation.zeros(lead),
        )

    def _grow(self) -> None:
        """Twice the rows: chunks of whole episodes come in few lengths, so few are compiled."""
        old, new = self.arrays, self._allocate(2 * self.length)
        new.flags[:, 3] = True
        if old.action_mask is not None:
            mask = np.ones((*new.reward.shape, old.action_mask.shape[-1]), bool)
            new = new._replace(action_mask=mask)
        new.flags[:, :, : self.length] = old.flags
        rest = [arrays._replace(flags=None, carry=()) for arrays in (new, old)]
        for into, rows in zip(*map(jax.tree.leaves, rest), strict=True):
            into[:, : rows.shape[1]] = rows
        self.arrays, self.length = new, 2 * self.length


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
        return state, agent.init_memory(config, spec, num_envs), carry

    state = jax.eval_shape(functools.partial(algorithm.init, config, spec), streams(0)[0])
    state_structure, (actor_structure, places) = jax.tree.structure(state), _actor(algorithm, config, state)

    def own(now, state):
        leaves = jax.tree.leaves(algorithm.actor(now, state))
        return tuple(leaf for leaf, place in zip(leaves, places, strict=True) if place is None)

    def actor(leaves, values):
        return own(resolve(config, names, values), jax.tree.unflatten(state_structure, leaves))

    def act(leaves, carry, key, observed):
        key, now = jax.random.split(written_out(key))
        acting = jax.tree.unflatten(actor_structure, leaves)
        action, carry = algorithm.act(config, acting, carry, observed, now, True)
        return action, carry, jax.random.key_data(key)

    def update(leaves, memory, rollout, values):
        now = resolve(config, names, values)
        state = jax.tree.unflatten(state_structure, leaves)
        state, memory, metrics = agent.update(now, state, memory, rollout.chunk())
        return tuple(jax.tree.leaves(state)), memory, metrics, own(now, state)

    over = _over_seeds(num_seeds)
    return Programs(
        # One seed after the other: decompositions side by side need threads to spare (see `platform`).
        compiled_quickly(functools.partial(jax.lax.map, init)),
        compiled_quickly(over(actor)),
        jax.jit(over(act), donate_argnums=(1, 2)),
        jax.jit(over(update), donate_argnums=(0, 1)),
        places,
    )


def _actor(algorithm: Any, config: Any, state: PyTree) -> tuple[Any, tuple[int | None, ...]]:
    """The structure of the actor, and where each of its leaves is among those of the state (None: nowhere)."""
    places: list[int | None] = []

    def trace(state: PyTree) -> PyTree:
        acting = algorithm.actor(config, state)
        held = {id(leaf): place for place, leaf in enumerate(jax.tree.leaves(state))}
        places.extend(held.get(id(leaf)) for leaf in jax.tree.leaves(acting))
        return acting

    return jax.tree.structure(jax.eval_shape(trace, state)), tuple(places)


def _over_seeds(num_seeds: int) -> Callable[[Callable], Callable]:
    """Map over the seeds axis; a single seed runs the plain function, which compiles to faster code."""
    if num_seeds > 1:
        return jax.vmap

    def single(function: Callable) -> Callable:
        def mapped(*arguments):
            out = function(*jax.tree.map(lambda x: x[0], arguments))
            return jax.tree.map(lambda x: x[None], out)

        return mapped

    return single

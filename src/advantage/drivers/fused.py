"""The fused driver: JAX environments, acting and learning in one compiled program per segment.

A segment is a loop over updates with a traced bound, so its length (about half a second) changes
without a recompile; progress, callbacks and Ctrl-C act between segments.

On a CPU the seeds are groups of one per device, and each group runs one `shard_map` program in which
every device trains one seed alone: a seed's bits do not depend on how many run beside it. Elsewhere
the seeds are one `vmap` axis.
"""

import functools
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from advantage.drivers.common import Recent, Report, compiled_quickly, resolve, scheduled_values, streams
from advantage.drivers.guard import not_finite
from advantage.envs.jax import JaxEnv, check_threads, reset_envs, spec_of, step_envs
from advantage.equations.schedules import Schedule
from advantage.equations.threefry import written_out
from advantage.types import NONFINITE, Agent, Chunk, Observed, successor

UPDATES = "updates"
"""The metric that counts the updates of a segment, fewer than were wanted where one went wrong."""
MOST_UPDATES = 4096  # per segment: the length of the scheduled values' array
SEGMENT_SECONDS = 0.4


class Episodes(NamedTuple):
    """Running and finished episodes of one seed."""

    returns: Array  # [N] so far
    lengths: Array  # [N] so far
    recent_returns: Array  # [W] a ring in the order of their ends
    recent_lengths: Array  # [W]
    total: Array  # episodes finished


class Run(NamedTuple):
    """Everything one seed's training consists of."""

    state: PyTree
    memory: PyTree
    carry: PyTree
    key: Array
    env_state: PyTree
    env_key: Array
    observed: Observed
    episodes: Episodes
    first_bad: Array  # the first row of the last segment that was not finite, or -1


class FusedDriver:
    """Trains on JAX environments; `run` is a generator with a report per segment."""

    def __init__(
        self,
        agent: Agent,
        env: JaxEnv,
        seed: int,
        num_seeds: int = 1,
        num_envs: int = 1,
        window: int = 100,
        seed_axis: str | None = None,
        devices: list[jax.Device] | None = None,
    ):
        """
        Args:
            agent: the algorithm with its update and memory.
            env: a pure environment (see `advantage.envs.jax.JaxEnv`).
            seed: the first of the seeds `seed, seed + 1, ...`.
            num_seeds: S, independent agents.
            num_envs: N, environments of each.
            window: how many finished episodes `recent` remembers for each seed.
            seed_axis: `"devices"` (the default on a CPU) or `"vmap"` (elsewhere).
            devices: where to train; this process's by default.
        """
        self.agent, self.env, self.spec, self.window = agent, env, spec_of(env), window
        self.num_seeds, self.num_envs = num_seeds, num_envs
        self.seeds = range(seed, seed + num_seeds)
        check_threads(env)
        devices = jax.local_devices() if devices is None else devices
        self.seed_axis = seed_axis or ("devices" if devices[0].platform == "cpu" else "vmap")
        self.version = 0  # of the state: counts segments
        self.pause_at: int | None = None  # a step: a segment ends with the last update up to it
        if self.seed_axis == "vmap":
            self.width, self.mesh = num_seeds, None
        else:
            self.width = min(len(devices), num_seeds)
            self.mesh = Mesh(np.array(devices[: self.width]), ("seeds",))
        self._groups: list[Run] | None = None  # [width, ...] each
        self._reset_due = False
        self._segment_updates = 1
        self._before: tuple = ()  # what the last segment began with, where the guard needs it
        self._done = np.zeros(num_seeds, np.int32)  # updates of the last segment

    def init(self, config: Any) -> None:
        """Fresh agents, empty memories, new episodes."""
        programs = self._programs(config, ())
        keys = np.stack([streams(seed) for seed in self.seeds])
        # One after the other, on one device: decompositions side by side need threads to spare.
        states = jax.tree.map(lambda *x: np.stack(x), *[programs.agent(key) for key in keys[:, 0]])
        parts = zip(self._split(states), self._split(keys), strict=True)
        self._groups = [programs.init(state, group) for state, group in parts]
        self._reset_due = False

    def reset(self) -> None:
        """Begin new episodes at the next run."""
        self._reset_due = True

    def seed_state(self, seed_index: int) -> PyTree:
        """One seed's agent; a copy."""
        return self._read(lambda run: run.state, seed_index)

    def recent(self, seed_index: int) -> Recent:
        """The last finished episodes of a seed."""
        episodes = self._read(lambda run: run.episodes, seed_index)
        total = int(episodes.total)
        order = np.arange(max(total - self.window, 0), total) % self.window
        return Recent(episodes.recent_returns[order], episodes.recent_lengths[order], total)

    def episodes(self) -> int:
        """Episodes finished by all seeds."""
        return int(self._gather(lambda run: run.episodes.total).sum())

    @property
    def state(self) -> PyTree:
        """The agents `[S, ...]`; a copy, since a run donates what it holds."""
        return None if self._groups is None else self._gather(lambda run: run.state)

    @state.setter
    def state(self, state: PyTree) -> None:
        self._groups = [
            run._replace(state=part) for run, part in zip(self._groups, self._split(state), strict=True)
        ]

    @property
    def memory(self) -> PyTree:
        """The memories `[S, ...]`; a copy."""
        return None if self._groups is None else self._gather(lambda run: run.memory)

    def run(
        self, config: Any, schedules: Mapping[str, Schedule], start: int, stop: int, on_step: None = None
    ) -> Iterator[Report]:
        """Train every seed from environment step `start` to exactly `stop`.

        Raises:
            NotFinite: the environment gave NaN or infinity. What it gave was left out.
        """
        programs = self._programs(config, tuple(sorted(schedules)))
        if self._reset_due:
            self._groups = [programs.reset(run) for run in self._groups]
        per_update = config.steps_per_update * self.num_envs
        self._reset_due = False
        steps, compiled = start, False
        while steps < stop:
            updates = min(self._segment_updates, -(-(stop - steps) // per_update))
            if self.pause_at is not None:
                updates = min(updates, (self.pause_at - steps) // per_update)
            updates = max(1, min(updates, (2**31 - 1) // per_update))  # offsets are 32-bit
            values = self._values(schedules, steps, updates, per_update, stop)
            remaining = np.int32(min(stop - steps, np.iinfo(np.int32).max))
            if self.agent.drawn is None:
                self._before = [jax.tree.map(jnp.copy, run) for run in self._groups], values, remaining
            began, outs = time.perf_counter(), []
            for group, run in enumerate(self._groups):
                bounds = self._bounds(group, updates)
                self._groups[group], metrics = programs.segment(run, values, bounds, remaining)
                outs.append(metrics)
            outs = [jax.tree.map(np.asarray, out) for out in outs]  # waits for the segment
            if compiled:
                self._adapt(updates, time.perf_counter() - began)
            self.version += 1
            metrics = jax.tree.map(lambda *x: np.concatenate(x)[: self.num_seeds], *outs)
            self._done = metrics.pop(UPDATES)
            self._check_finite(steps, config.steps_per_update)
            # Where a chunk is cut, environments go on uncounted: then the next run begins new episodes.
            self._reset_due = steps + updates * per_update > stop
            steps, compiled = min(steps + updates * per_update, stop), True
            yield Report(steps, updates, metrics)

    def _values(
        self, schedules: Mapping[str, Schedule], steps: int, updates: int, per_update: int, stop: int
    ) -> np.ndarray:
        """Scheduled values `[MOST_UPDATES + 1, K]`: row u acts in update u, row u + 1 learns in it."""
        ends = np.minimum(steps + per_update * np.arange(updates + 1), stop)
        values = scheduled_values(schedules, 1.0 - ends / max(stop, 1))
        return np.pad(values, ((0, MOST_UPDATES - updates), (0, 0)))

    def _adapt(self, updates: int, seconds: float) -> None:
        """Aim the next segment at its time, in steps of at most eightfold."""
        wanted = updates * SEGMENT_SECONDS / max(seconds, 1e-6)
        self._segment_updates = int(np.clip(wanted, 1, min(8 * updates, MOST_UPDATES)))

    def _check_finite(self, before: int, steps_per_update: int) -> None:
        for s, seed in enumerate(self.seeds):
            bad = int(self._read(lambda run: run.first_bad, s))
            if bad >= 0:
                row, env = divmod(bad, self.num_envs)
                self._done[s] = bad // (self.num_envs * steps_per_update) + 1
                self.reset()
                raise not_finite(s, f"env {env} of seed {seed} gave an observation or reward", before + (row + 1) * self.num_envs)

    def _programs(self, config: Any, names: tuple[str, ...]) -> "Programs":
        return _programs(Setting(self.agent, config, self.env, self.num_envs, self.window, names), self.mesh)

    def _bounds(self, group: int, updates: int) -> Array:
        """Updates per device `[width]`: 0 where the last group has no seed."""
        present = np.arange(self.width) + group * self.width < self.num_seeds
        return self._place(np.where(present, updates, 0).astype(np.int32))

    def _split(self, tree: PyTree) -> list[PyTree]:
        """`[S, ...]` into groups `[width, ...]` on the devices; the last seed fills up the last group."""
        groups = -(-self.num_seeds // self.width)
        index = np.minimum(np.arange(groups * self.width), self.num_seeds - 1)
        parts = np.split(index, groups)
        return [jax.tree.map(lambda x, i=i: self._place(np.asarray(x)[i]), tree) for i in parts]

    def _place(self, x: np.ndarray) -> Array:
        if self.mesh is None:
            return jnp.array(x)
        return jax.device_put(x, NamedSharding(self.mesh, PartitionSpec("seeds")))

    def _gather(self, part: Any) -> PyTree:
        """One part of every seed's run `[S, ...]`, copied to the host."""
        parts = [part(run) for run in self._groups]
        return jax.tree.map(lambda *x: np.concatenate([np.array(y) for y in x])[: self.num_seeds], *parts)

    def _read(self, part: Any, seed_index: int) -> PyTree:
        group, place = divmod(seed_index, self.width)
        return jax.tree.map(lambda x: np.array(x[place]), part(self._groups[group]))


class Setting(NamedTuple):
    """What programs are compiled for."""

    agent: Agent
    config: Any
    env: JaxEnv
    num_envs: int
    window: int
    names: tuple[str, ...]  # of the scheduled fields


class Programs(NamedTuple):
    """The compiled functions of a setting for one group of seeds."""

    agent: Any  # (key) -> state of one seed
    init: Any  # (states, keys [width, 3, 2]) -> run
    reset: Any  # (run) -> run
    segment: Any  # (run, values, bounds [width], remaining) -> (run, metrics)


@functools.lru_cache(maxsize=64)
def _programs(setting: Setting, mesh: Mesh | None) -> Programs:
    """Compile-once functions over the seeds axis."""
    agent = compiled_quickly(functools.partial(setting.agent.algorithm.init, setting.config, setting.env.spec))
    init, reset, segment = (functools.partial(f, setting) for f in (_init, _reset, _segment))
    if mesh is None:
        return Programs(
            agent,
            compiled_quickly(jax.vmap(init), donate_argnums=0),
            compiled_quickly(jax.vmap(reset), donate_argnums=0),
            jax.jit(jax.vmap(segment, in_axes=(0, None, 0, None)), donate_argnums=0),
        )
    one, every = PartitionSpec("seeds"), PartitionSpec()

    def alone(function: Any, *specs: PartitionSpec) -> Any:
        """Each device runs the function for its seed alone."""

        def local(*arguments: PyTree) -> PyTree:
            own = [
                jax.tree.map(lambda x: x[0], argument) if spec == one else argument
                for argument, spec in zip(arguments, specs, strict=True)
            ]
            return jax.tree.map(lambda x: x[None], function(*own))

        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=one, check_vma=False)

    return Programs(
        agent,
        compiled_quickly(alone(init, one, one), donate_argnums=0),
        compiled_quickly(alone(reset, one), donate_argnums=0),
        jax.jit(alone(segment, one, every, one, every), donate_argnums=0),
    )


def _init(setting: Setting, state: PyTree, keys: Array) -> Run:
    """A fresh run of an agent from its keys for initialising, acting and the environments."""
    algorithm, config, spec = setting.agent.algorithm, setting.config, spec_of(setting.env)
    memory = setting.agent.init_memory(config, spec, setting.num_envs)
    carry = algorithm.initial_carry(config, spec, setting.num_envs)
    env_state, env_key, observed = _begin(setting, keys[2])
    returns, recent = jnp.zeros(setting.num_envs, jnp.float32), jnp.zeros(setting.window, jnp.float32)
    lengths, counts = jnp.zeros(setting.num_envs, jnp.int32), jnp.zeros(setting.window, jnp.int32)
    episodes = Episodes(returns, lengths, recent, counts, jnp.int32(0))
    return Run(state, memory, carry, keys[1], env_state, env_key, observed, episodes, jnp.int32(-1))


def _reset(setting: Setting, run: Run) -> Run:
    """New episodes everywhere; the policy's carry is reset by `is_first`."""
    env_state, env_key, observed = _begin(setting, run.env_key)
    zero = jax.tree.map(jnp.zeros_like, run.episodes)
    episodes = run.episodes._replace(returns=zero.returns, lengths=zero.lengths)
    return run._replace(env_state=env_state, env_key=env_key, observed=observed, episodes=episodes)


def _begin(setting: Setting, key: Array) -> tuple[PyTree, Array, Observed]:
    key, now = jax.random.split(key)
    env_state, observed = reset_envs(setting.env, jax.random.split(now, setting.num_envs))
    return env_state, key, observed


def _segment(
    setting: Setting, run: Run, values: Array, bound: Array, remaining: Array
) -> tuple[Run, PyTree]:
    """`bound` updates, or those up to the first that goes wrong; the metrics of the last one, and how many."""
    config, agent = setting.config, setting.agent
    per_update = config.steps_per_update * setting.num_envs

    def update(carried: tuple[Array, Run, PyTree]) -> tuple[Array, Run, PyTree]:
        u, run, _ = carried
        acting, learning = (resolve(config, setting.names, values[i]) for i in (u, u + 1))
        run, chunk = _collect(agent, acting, setting.env, run, remaining - u * per_update, u * per_update)
        state, memory, metrics = agent.update(learning, run.state, run.memory, chunk)
        return u + 1, run._replace(state=state, memory=memory), metrics

    def going_on(carried: tuple[Array, Run, PyTree]) -> Array:
        # After an update that went wrong nothing changes any more, so that it can be repeated.
        return (carried[0] < bound) & (carried[2][NONFINITE] == 0)

    shapes = jax.eval_shape(lambda: update((jnp.int32(0), run, {})))[2]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    begun = (jnp.int32(0), run._replace(first_bad=jnp.int32(-1)), zeros)
    updates, run, metrics = jax.lax.while_loop(going_on, update, begun)
    return run, {**metrics, UPDATES: updates}


def _collect(
    agent: Agent, config: Any, env: JaxEnv, run: Run, left: Array, offset: Array
) -> tuple[Run, Chunk]:
    """T steps of N environments as a chunk; rows past the `left` steps that count are invalid."""
    algorithm = agent.algorithm
    actor = algorithm.actor(config, run.state)
    before = run.carry

    def step(run: Run, _: None) -> tuple[Run, tuple]:
        key, now = jax.random.split(written_out(run.key))
        action, carry = algorithm.act(config, actor, run.carry, run.observed, now, True)
        env_key, step_key = jax.random.split(run.env_key)
        env_action = algorithm.to_env(env.spec.action, action)
        env_state, out = step_envs(env, run.env_state, run.observed, env_action, step_key)
        done = out.terminated | out.truncated
        returns, lengths = run.episodes.returns + out.reward, run.episodes.lengths + 1
        episodes = run.episodes._replace(
            returns=jnp.where(done, 0.0, returns), lengths=jnp.where(done, 0, lengths)
        )
        row = (run.observed, action, out.reward, out.terminated, out.truncated, out.final_obs, out.final_mask)
        run = run._replace(
            carry=carry, key=jax.random.key_data(key), env_state=env_state, env_key=env_key, observed=out.observed, episodes=episodes
        )
        return run, (row, returns, lengths)

    run, (rows, returns, lengths) = jax.lax.scan(step, run, None, length=config.steps_per_update)
    observed, action, reward, terminated, truncated, final_obs, final_mask = rows
    index = jnp.arange(reward.size, dtype=jnp.int32).reshape(reward.shape)
    chunk = Chunk(
        observed.obs, observed.is_first, observed.action_mask, action, reward, terminated, truncated,
        index < left, final_obs, run.observed.obs, before, None, final_mask, run.observed.action_mask,
    )  # fmt: skip
    finite = _finite_rows(chunk)
    bad = jnp.min(jnp.where(chunk.valid & ~finite, index, jnp.iinfo(jnp.int32).max))
    first_bad = jnp.where((run.first_bad < 0) & (bad < index.size), offset + bad, run.first_bad)
    ended = (terminated | truncated) & chunk.valid & jnp.isfinite(returns)
    episodes = _finish(run.episodes, returns, lengths, ended)
    return run._replace(episodes=episodes, first_bad=first_bad), chunk._replace(valid=chunk.valid & finite)


def _finite_rows(chunk: Chunk) -> Array:
    """Rows `[T, N]` whose observation, reward and successor are finite."""

    def finite(x: Array) -> Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.ones(chunk.valid.shape, bool)
        return jnp.all(jnp.isfinite(x).reshape(*chunk.valid.shape, -1), axis=-1)

    leaves = jax.tree.leaves((chunk.obs, successor(chunk)))
    return functools.reduce(jnp.logical_and, map(finite, leaves), jnp.isfinite(chunk.reward))


def _finish(episodes: Episodes, returns: Array, lengths: Array, done: Array) -> Episodes:
    """Write the episodes that ended in a chunk `[T, N]` into the ring, in the order of their ends."""
    window = episodes.recent_returns.shape[0]
    ended = done.reshape(-1).astype(jnp.int32)
    rank = jnp.cumsum(ended) - ended
    count = jnp.sum(ended)
    kept = (ended > 0) & (rank >= count - window)  # an older one would share its slot with a newer
    slot = jnp.where(kept, (episodes.total + rank) % window, window)
    return episodes._replace(
        recent_returns=episodes.recent_returns.at[slot].set(returns.reshape(-1), mode="drop"),
        recent_lengths=episodes.recent_lengths.at[slot].set(lengths.reshape(-1), mode="drop"),
        total=episodes.total + count,
    )

"""The update of off-policy algorithms: remember a chunk, then learn from what is remembered."""

import fractions
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from advantage.equations.threefry import written_out
from advantage.memory import prioritised, sequences, uniform
from advantage.memory.frequency import FINEST
from advantage.types import NONFINITE, Agent, Chunk, Metrics, Spec


def observe(config: Any, state: Any, chunk: Chunk) -> Any:
    """Count a chunk's steps in `state.steps`, up to 2^31 - 1."""
    collected = jnp.sum(chunk.valid, dtype=jnp.int32)
    return state._replace(steps=state.steps + jnp.minimum(collected, jnp.iinfo(jnp.int32).max - state.steps))


def gradient_steps(config: Any, before: Array, collected: Array) -> Array:
    """How many gradient steps follow `collected` environment steps, of which `before` came earlier.

    By `updates_per_step` what is owed after all steps, less what was owed before: fractions are not lost.
    """
    if config.updates_per_step is None:
        return collected if config.gradient_steps < 0 else jnp.int32(config.gradient_steps)
    ratio = fractions.Fraction(config.updates_per_step).limit_denominator(FINEST)
    top, bottom = ratio.numerator, ratio.denominator
    within = before % bottom  # as good as `before`, and no product overflows
    return (within + collected) * top // bottom - within * top // bottom


class Kind(NamedTuple):
    """A kind of memory. What gradient steps change of it is apart from the rows, which they only read."""

    init: Callable  # (config, spec, num_envs) -> memory
    push: Callable | None  # (memory, chunk) -> memory; None: a chunk alone does not say enough
    remember: Callable  # (algorithm, config, the state that acted, memory, chunk) -> memory
    split: Callable  # (memory) -> (rows, priorities)
    join: Callable  # (rows, priorities) -> memory
    sample: Callable  # (config, memory, key) -> (batch, its rows)
    reprioritise: Callable  # (priorities, rows of a batch, errors, whether they count) -> priorities


def _pushing(init: Callable, push: Callable, *rest: Callable) -> Kind:
    """A kind of memory to which it does not matter who acted."""
    return Kind(
        lambda config, spec, num_envs: init(spec, num_envs, config.buffer_size),
        push,
        lambda algorithm, config, acted, memory, chunk: push(memory, chunk),
        *rest,
    )


_ROWS_ALONE: tuple[Callable, Callable] = (lambda memory: (memory, ()), lambda rows, priorities: rows)
_NO_PRIORITIES: tuple[Callable] = (lambda priorities, row, errors, counts: priorities,)
UNIFORM = _pushing(
    uniform.init,
    uniform.push,
    *_ROWS_ALONE,
    lambda config, memory, key: (uniform.sample(memory, key, config.batch_size, config.n_steps, config.gamma), None),
    *_NO_PRIORITIES,
)
WINDOWS = Kind(
    sequences.init_memory,
    None,
    sequences.remember,
    *_ROWS_ALONE,
    lambda config, memory, key: (sequences.sample(config, memory, key), None),
    *_NO_PRIORITIES,
)


@functools.cache
def kind_of(settings: prioritised.PrioritizedReplayBuffer | None) -> Kind:
    """The kind of memory that settings ask for; None: every row is equally likely."""
    if settings is None:
        return UNIFORM

    def sample(config: Any, memory: prioritised.Replay, key: Array) -> tuple[uniform.Batch, Array]:
        return prioritised.sample(memory, key, config.batch_size, config.n_steps, config.gamma, config.replay_beta)

    reprioritise = functools.partial(prioritised.reprioritise, alpha=settings.alpha, eps=settings.eps)
    return _pushing(prioritised.init, prioritised.push, tuple, prioritised.Replay, sample, reprioritise)


def replayed(algorithm: Any, settings: prioritised.PrioritizedReplayBuffer | None = None) -> Agent:
    """An off-policy algorithm with a memory of the kind that settings ask for."""
    return with_memory(algorithm, kind_of(settings))


@functools.cache
def with_memory(algorithm: Any, kind: Kind) -> Agent:
    """An off-policy algorithm with a memory of this kind."""

    def drawn(config: Any, state: Any, memory: PyTree) -> tuple[Any, uniform.Batch]:
        return _drawn(kind, config, state, memory)[:2]

    return Agent(algorithm, replayed_update(algorithm, kind), kind.init, drawn, kind.push)


def _drawn(kind: Kind, config: Any, state: Any, memory: PyTree) -> tuple[Any, uniform.Batch, Array | None]:
    """What `learn` gets, the state with its key moved on and a minibatch; and the rows of that."""
    key, sample_key = jax.random.split(written_out(state.key))
    batch, row = kind.sample(config, memory, sample_key)
    return state._replace(key=jax.random.key_data(key)), batch, row


def replayed_update(algorithm: Any, kind: Kind = UNIFORM) -> Callable[..., tuple[Any, PyTree, Metrics]]:
    """`update(config, state, memory, chunk)` of an off-policy algorithm (see `types.Algorithm`).

    `observe`, `push`, then `sample`, `learn` and `reprioritise` for `config.gradient_steps` times (-1: as often as rows
    were collected), or by `config.updates_per_step`; none before more than `config.learning_starts` rows are remembered.
    One loop with a traced bound: neither compile time nor a branch depends on the number of steps.
    """

    def update(config: Any, state: Any, memory: PyTree, chunk: Chunk):
        acted, before = state, state.steps
        state = algorithm.observe(config, state, chunk)
        rows, priorities = kind.split(kind.remember(algorithm, config, acted, memory, chunk))
        bound = _due(config, before, state.steps, rows, jnp.sum(chunk.valid.astype(jnp.int32)))
        numbers, settings = eqx.partition(config, eqx.is_array)

        def step(counts: Array, carried: tuple, numbers: Any, rows: uniform.Replay) -> tuple[tuple, Metrics]:
            old, priorities = carried
            config = eqx.combine(numbers, settings)
            state, batch, row = _drawn(kind, config, old, kind.join(rows, priorities))
            state, metrics, errors = algorithm.learn(config, state, batch)
            # A batch with which nothing can be learned is drawn again and again, so that it is found in the end.
            bad = metrics[NONFINITE] > 0
            state = state._replace(key=jnp.where(bad, old.key, state.key))
            state = jax.tree.map(lambda new, old: jnp.where(counts, new, old), state, old)
            return (state, kind.reprioritise(priorities, row, errors, counts & ~bad)), metrics

        (state, priorities), total = _repeated(step, bound, (state, priorities), numbers, rows)
        done = bound.astype(jnp.float32)  # 0 / 0: NaN, shown as nothing, where nothing was learned
        # The count of steps left out stays a count: drivers add it up over updates.
        metrics = {name: x if name == NONFINITE else x / done for name, x in total.items()}
        metrics["train/n_updates"] = state.n_updates.astype(jnp.float32)
        return state, kind.join(rows, priorities), metrics

    return update


def _due(config: Any, before: Array, steps: Array, rows: uniform.Replay, collected: Array) -> Array:
    """How many gradient steps are due after `collected` steps, `steps` in all and `before` before them."""
    # What counts is what is remembered: a model loaded from a file comes without its memory. Rows relabelled in
    # hindsight are remembered too, and are no steps.
    held, capacity = jnp.sum(rows.size), rows.reward.shape[0]
    begun = jnp.minimum(held, steps) > config.learning_starts
    # A ring that cannot hold as many as `learning_starts` begins when steps could have filled it.
    full = (held == capacity) & (steps >= min(capacity, config.learning_starts + 1))
    # Nothing collected, nothing to learn from: an all-invalid chunk changes no bit.
    ready = (begun | full) & (collected > 0)
    return jnp.where(ready, gradient_steps(config, before, collected), 0)


def _repeated(step: Callable, bound: Array, begun: tuple[Any, PyTree], *given: Any) -> tuple[tuple[Any, PyTree], Metrics]:
    """`(state, priorities)` after `bound` gradient steps, and the sums of their metrics.

    Over seeds (`vmap`) this is one loop, as long as the longest seed's, in which a step that does not count changes
    nothing. JAX's own would choose in each round between two copies of all that is carried: of the sum trees too.
    """
    metrics = jax.eval_shape(step, jnp.asarray(True), begun, *given)[1]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)

    def once(counts: Array, carry: tuple, given: tuple) -> tuple:
        after, metrics = step(counts, carry[0], *given)
        return after, jax.tree.map(lambda total, x: total + jnp.where(counts, x, 0.0), carry[1], metrics)

    @jax.custom_batching.custom_vmap
    def run(bound: Array, carry: tuple, given: tuple) -> tuple:
        return jax.lax.fori_loop(0, bound, lambda _, carry: once(jnp.asarray(True), carry, given), carry)

    @run.def_vmap
    def _(size: int, mapped: Any, *arguments: Any) -> tuple:
        bounds, carry, given = jax.tree.map(
            lambda x, is_mapped: x if is_mapped else jnp.broadcast_to(x[None], (size, *x.shape)), arguments, tuple(mapped)
        )
        seeds = jax.vmap(once)
        carry = jax.lax.fori_loop(0, jnp.max(bounds), lambda i, carry: seeds(i < bounds, carry, given), carry)
        return carry, jax.tree.map(lambda _: True, carry)

    return run(bound, (begun, zeros), given)

"""The replayed update: how often it learns, that empty chunks change nothing, what it compiles to."""

import dataclasses
import fractions
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.algorithms import dqn
from advantage.drivers.common import compiled_quickly
from advantage.memory import replayed as composition
from advantage.memory.prioritised import PrioritizedReplayBuffer
from advantage.memory.replayed import gradient_steps, kind_of, replayed
from advantage.types import NONFINITE, Chunk, Space, Spec

T, N = 4, 2
SPEC = Spec(Space("box", (3,), low=-1.0, high=1.0), Space("discrete", (), "int32", n=(2,), start=(0,)))
CONFIG = dqn.Config(
    net_arch=(4,), batch_size=8, buffer_size=64, learning_starts=0, target_update_interval=100
)
SETTINGS = PrioritizedReplayBuffer(alpha=0.7, beta=0.5, eps=0.01)
AGENT, PRIORITISED = replayed(dqn), replayed(dqn, SETTINGS)
KINDS = {"uniform": AGENT, "prioritised": PRIORITISED}
update, update_prioritised = jax.jit(AGENT.update), compiled_quickly(PRIORITISED.update)


@functools.cache
def fresh(agent=AGENT):
    init = jax.jit(lambda key: (dqn.init(CONFIG, SPEC, key), agent.init_memory(CONFIG, SPEC, N)))
    return init(jax.random.PRNGKey(0))


def chunk(valid=None, seed=0, garbage=0.0):
    """Random rows; invalid ones hold `garbage`."""
    rng = np.random.default_rng(seed)
    valid = np.ones((T, N), bool) if valid is None else np.asarray(valid, bool)
    obs, final_obs = rng.normal(size=(2, T, N, 3)).astype(np.float32)
    reward, terminated = rng.normal(size=(T, N)).astype(np.float32), rng.random((T, N)) < 0.2
    before = np.concatenate([np.zeros((1, N), bool), valid[:-1] & ~terminated[:-1]])
    obs[~(valid | before)], final_obs[~valid], reward[~valid] = garbage, garbage, garbage
    last_obs = np.where(valid[-1, :, None], rng.normal(size=(N, 3)), garbage)
    return Chunk(
        jnp.asarray(obs), jnp.asarray(~valid), None, jnp.asarray(rng.integers(2, size=(T, N)), jnp.int32),
        jnp.asarray(reward), jnp.asarray(terminated), jnp.zeros((T, N), bool), jnp.asarray(valid),
        jnp.asarray(final_obs), jnp.asarray(last_obs, jnp.float32),
    )  # fmt: skip


def assert_same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.atleast_1d(x).view(np.uint8), np.atleast_1d(y).view(np.uint8))


@pytest.mark.parametrize(("gradient_steps", "expected"), [(1, 1), (3, 3), (-1, 5), (0, 0)])
def test_gradient_steps(gradient_steps, expected):
    """As many as asked for; -1: as many as valid rows were collected, here 5 of 8."""
    config = dataclasses.replace(CONFIG, gradient_steps=gradient_steps)
    valid = [[1, 1], [1, 0], [1, 0], [1, 0]]
    state, memory, metrics = update(config, *fresh(), chunk(valid))
    assert int(state.n_updates) == expected
    assert int(memory.size.sum()) == 5 and int(state.steps) == 5
    assert math.isnan(metrics["train/loss"]) == (expected == 0)
    assert float(metrics[NONFINITE]) == 0.0


@pytest.mark.parametrize("ratio", [0.25, 1.0, 3.0, 0.3])
def test_updates_per_step_is_exact(ratio):
    """After k steps floor(k ratio) gradient steps, however many environments and valid rows share them out."""
    config, rng = dataclasses.replace(CONFIG, updates_per_step=ratio), np.random.default_rng(0)
    exact = fractions.Fraction(str(ratio))
    for num_envs in (1, 2, 5, 64):
        before = done = 0
        for _ in range(50):
            collected = int(rng.integers(0, num_envs + 1))
            done += int(gradient_steps(config, jnp.int32(before), jnp.int32(collected)))
            before += collected
            assert done == math.floor(before * exact)
    # Near the end of 32-bit counts, too, where products would overflow.
    late = gradient_steps(config, jnp.int32(2_000_000_000), jnp.int32(1000))
    assert int(late) == 1000 * ratio


def test_updates_per_step_is_what_is_done():
    """The update itself: five rows of eight, three times over."""
    config = dataclasses.replace(CONFIG, updates_per_step=0.25)
    state, memory = fresh()
    for expected in (1, 2, 3):
        state, memory, _ = update(config, state, memory, chunk([[1, 1], [1, 0], [1, 0], [1, 0]]))
        assert int(state.n_updates) == expected


def test_learning_starts():
    """Not before more than `learning_starts` environment steps were observed, as in SB3; then at once."""
    config = dataclasses.replace(CONFIG, learning_starts=16)
    state, memory = fresh()
    for expected in (0, 0, 1, 2):
        before = state
        state, memory, _ = update(config, state, memory, chunk())
        assert int(state.n_updates) == expected
        if not expected:
            assert_same_bits(before.network, state.network)


def test_an_empty_chunk_is_the_identity():
    """On State and Memory, in every bit, whatever the invalid rows hold."""
    state, memory, _ = update(CONFIG, *fresh(), chunk())
    after = update(CONFIG, state, memory, chunk(np.zeros((T, N)), 1, np.nan))
    assert_same_bits((state, memory), after[:2])
    assert float(after[2][NONFINITE]) == 0.0


def test_garbage_changes_no_bit():
    """NaN in invalid rows, zeros there: the same result."""
    valid = [[1, 1], [0, 1], [1, 0], [1, 0]]
    clean = update(CONFIG, *fresh(), chunk(valid, 2, 0.0))
    dirty = update(CONFIG, *fresh(), chunk(valid, 2, np.nan))
    assert_same_bits(clean, dirty)


def test_steps_left_out_are_counted():
    """Each of three steps with a gradient that is not finite counts, and changes no parameter."""
    config = dataclasses.replace(CONFIG, gradient_steps=3)
    bad = chunk()
    state, _, metrics = update(config, *fresh(), bad._replace(reward=jnp.full((T, N), jnp.inf)))
    assert float(metrics[NONFINITE]) == 3.0
    assert_same_bits(state.network, fresh()[0].network)
    # So that what could not be learned from is found afterwards: the next draw is the same.
    assert_same_bits(state.key, fresh()[0].key)


def test_metrics_are_means_over_gradient_steps():
    """The loss of three identical steps is that of one."""
    config = dataclasses.replace(CONFIG, learning_rate=0.0, buffer_size=8)
    one = chunk()
    same = jax.tree.map(lambda x: jnp.broadcast_to(x[:1, :1], x.shape), one._replace(last_obs=None))
    same = same._replace(last_obs=jnp.broadcast_to(one.obs[0, :1], one.last_obs.shape))
    losses = []
    for count in (1, 3):
        now = dataclasses.replace(config, gradient_steps=count)
        losses.append(float(update(now, *fresh(), same)[2]["train/loss"]))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


def shapes(config, steps=T, num_envs=N, agent=AGENT):
    state = jax.eval_shape(lambda: dqn.init(config, SPEC, jax.random.PRNGKey(0)))
    memory = jax.eval_shape(lambda: agent.init_memory(config, SPEC, num_envs))
    rows = jax.eval_shape(lambda: jax.tree.map(lambda x: x[:steps, :num_envs], chunk()._replace(last_obs=None)))
    last_obs = jax.ShapeDtypeStruct((num_envs, *rows.obs.shape[2:]), rows.obs.dtype)
    return state, memory, rows._replace(last_obs=last_obs)


@pytest.mark.parametrize(
    ("kind", "steps", "num_envs", "seeds"),
    [("uniform", T, N, 1), ("uniform", 1, 1, 1), ("prioritised", 1, 1, 1), ("prioritised", T, N, 2)],
)
def test_the_ring_is_not_copied(kind, steps, num_envs, seeds):
    """Donated, it is written in place, a single row too, and so are the priorities in every gradient step: temporary
    memory is far below its size."""
    config, agent = dataclasses.replace(CONFIG, buffer_size=100_000, gradient_steps=4), KINDS[kind]
    given = shapes(config, steps, num_envs, agent)
    function = functools.partial(agent.update, config)
    if seeds > 1:
        function = jax.vmap(function)
        given = jax.tree.map(lambda x: jax.ShapeDtypeStruct((seeds, *x.shape), x.dtype), given)
    analysis = compiled_quickly(function, donate_argnums=(0, 1)).lower(*given).compile().memory_analysis()
    ring = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(given[1]))
    assert ring > seeds * 3_000_000
    assert analysis.temp_size_in_bytes < ring / 20
    assert analysis.alias_size_in_bytes >= ring


def test_the_program_does_not_grow_with_gradient_steps():
    """A loop, not copies of its body."""

    def length(gradient_steps):
        config = dataclasses.replace(CONFIG, gradient_steps=gradient_steps)
        lowered = jax.jit(functools.partial(AGENT.update, config)).lower(*shapes(config))
        return len(lowered.as_text().splitlines())

    assert length(1) == length(1000)


# -- priorities ----------------------------------------------------------------------------------------


def shares(memory):
    return np.asarray(memory.priorities.tree)[-(len(memory.priorities.tree) // 2) :]


PER = dataclasses.replace(CONFIG, gradient_steps=2, n_steps=2, replay_beta=0.5)


def test_a_prioritised_update_is_its_parts():
    """A batch by priorities, a step with its weights, and the errors as the rows' new priorities; once for each step."""
    found, after, _ = update_prioritised(PER, *fresh(PRIORITISED), chunk())
    kind, (state, memory) = kind_of(SETTINGS), fresh(PRIORITISED)

    @compiled_quickly
    def step(state, memory):
        state, batch, row = composition._drawn(kind, PER, state, memory)
        state, _, errors = dqn.learn(PER, state, batch)
        return state, batch, row, errors

    state, memory = dqn.observe(PER, state, chunk()), kind.push(memory, chunk())
    expected = shares(memory).copy()
    for _ in range(2):
        state, batch, row, errors = step(state, memory)
        expected[row] = 0.0
        np.maximum.at(expected, np.asarray(row), (np.asarray(errors) + 0.01) ** 0.7)
        priorities = kind.reprioritise(memory.priorities, row, errors, jnp.asarray(True))
        memory = memory._replace(priorities=priorities)
    assert len(np.unique(batch.weight)) > 2
    np.testing.assert_allclose(shares(after), expected, rtol=1e-4)
    for x, y in zip(jax.tree.leaves(found.network), jax.tree.leaves(state.network), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_a_batch_that_was_not_learned_from_changes_no_priority():
    """Not in one bit; and it is drawn again."""
    bad = chunk()._replace(reward=jnp.full_like(chunk().reward, jnp.inf))
    state, memory, metrics = update_prioritised(PER, *fresh(PRIORITISED), bad)
    assert float(metrics[NONFINITE]) == 2.0
    np.testing.assert_array_equal(np.unique(shares(memory)), [0.0, 1.0])
    assert_same_bits(state.key, fresh()[0].key)


def test_an_empty_chunk_changes_no_priority():
    """The identity on State and Memory, tree and all."""
    state, memory, _ = update_prioritised(PER, *fresh(PRIORITISED), chunk())
    after = update_prioritised(PER, state, memory, chunk(np.zeros((T, N)), 1, np.nan))
    assert_same_bits((state, memory), after[:2])


def test_seeds_learn_as_often_as_each_is_due():
    """Over seeds one loop serves all: of 8, 3 and no rows come as many gradient steps, and what each seed has alone."""
    agent, config = PRIORITISED, dataclasses.replace(CONFIG, gradient_steps=-1)
    three = np.zeros((T, N), bool)
    three[:3, 0] = True
    rows = [chunk(seed=1), chunk(three, 2), chunk(np.zeros((T, N)), 3)]
    stacked, begun = (jax.tree.map(lambda *x: jnp.stack(x), *trees) for trees in (rows, [fresh(agent)] * 3))
    both = compiled_quickly(jax.vmap(agent.update, (None, 0, 0, 0)))(config, *begun, stacked)
    assert both[0].n_updates.tolist() == [8, 3, 0]
    update = compiled_quickly(agent.update)
    for s, one in enumerate(rows):
        alone = update(config, *fresh(agent), one)
        for x, y in zip(jax.tree.leaves(both), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(x[s], y, rtol=1e-4, atol=1e-5)


def test_what_is_rare_is_learned():
    """One of 1,024 rows has a reward of 1: by priorities its value is found in 300 steps of 8 rows.

    Of 16 seeds the lowest is 0.85; where every row is equally likely the mean is 0.2, and 3 of 16 are above 0.5. Beta is 0
    here: at 1 the weights would take back all of it.
    """
    obs = np.zeros((256, 4, 3), np.float32)
    obs[..., 0] = 1.0
    obs[100, 2] = [0.0, 1.0, 0.0]
    ends, flags = jnp.ones((256, 4), bool), jnp.zeros((256, 4), bool)
    rows = Chunk(jnp.asarray(obs), ends, None, jnp.zeros((256, 4), jnp.int32), jnp.asarray(obs[..., 1]), ends, flags,
                 ends, jnp.asarray(obs), jnp.asarray(obs[-1]))  # fmt: skip
    config = dataclasses.replace(CONFIG, buffer_size=1024, learning_rate=0.01, gradient_steps=300, net_arch=(), replay_beta=0.0)
    agent = replayed(dqn, PrioritizedReplayBuffer(alpha=1.0))

    def train(key):
        return agent.update(config, dqn.init(config, SPEC, key), agent.init_memory(config, SPEC, 4), rows)[0]

    learned = compiled_quickly(jax.vmap(train))(jax.random.split(jax.random.PRNGKey(0), 3))
    value = np.asarray(jax.vmap(lambda network: network(jnp.eye(3)[1:2]))(learned.network))[:, 0, 0]
    assert (value > 0.7).all() and (value < 1.1).all(), value

"""The sum tree against NumPy: what may be drawn, how often, with which weights; and settings that are refused."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.memory import prioritised, uniform
from advantage.memory.prioritised import PrioritizedReplayBuffer, Priorities
from advantage.types import Chunk, Space, Spec

pytestmark = pytest.mark.usefixtures("strict")
T, N, C, B, GAMMA = 4, 3, 7, 64, 0.9
SPEC = Spec(Space("box", (1,), low=-np.inf, high=np.inf), Space("discrete", (), "int32", n=(9,), start=(0,)))
KEY, YES = jax.random.PRNGKey(0), jnp.asarray(True)

push = jax.jit(prioritised.push)
sample = jax.jit(functools.partial(prioritised.sample, batch_size=B), static_argnames="n_steps")
reprioritise = jax.jit(functools.partial(prioritised.reprioritise, alpha=0.6, eps=0.01))
drawn_rows = jax.jit(prioritised.drawn_rows, static_argnums=2)


def chunk(valid, begin=0.0, ended=None):
    """Rows whose observations count on from `begin`, garbage where they are not valid."""
    obs = begin + np.arange(T * N, dtype=np.float32).reshape(T, N)
    obs = jnp.asarray(np.where(valid, obs, np.nan))
    no, ended = jnp.zeros((T, N), bool), jnp.zeros((T, N), bool) if ended is None else jnp.asarray(ended)
    after = obs[..., None] + 0.5
    return Chunk(obs[..., None], no, None, jnp.zeros((T, N), jnp.int32), obs, ended, no, jnp.asarray(valid), after, after[-1])


def shares(memory):
    """Each row's share `[N * C]`; what is beside the rows in the tree has none."""
    tree = np.asarray(memory.priorities.tree)
    leaves = tree[len(tree) // 2 :]
    assert not leaves[N * C :].any()
    return leaves[: N * C]


def assert_sums(tree):
    """Every node is the sum of both below it, as float32 has it: nothing is out of date."""
    tree = np.asarray(tree)
    node = np.arange(1, len(tree) // 2)
    np.testing.assert_array_equal(tree[node], tree[2 * node] + tree[2 * node + 1])


def assert_drawn_in_proportion(memory, key):
    """Of each row nearly `B P(i)`: its part of the sum meets at most two more or fewer of B equal ones. Of others none."""
    _, row = sample(memory, key, n_steps=1, gamma=GAMMA, beta=0.4)
    share = shares(memory).astype(np.float64)
    counts = np.bincount(row, minlength=N * C)
    assert len(counts) == N * C and not counts[share == 0].any()
    assert np.abs(counts - B * share / share.sum()).max() < 2 + 1e-3


@hypothesis.settings(max_examples=25, phases=[hypothesis.Phase.generate])
@hypothesis.given(seed=st.integers(0, 2**20), rounds=st.integers(1, 8), ending=st.floats(0.0, 0.5))
def test_shares_are_those_of_numpy(seed, rounds, ending):
    """Random pushes, partly valid, over the ring's end, and batches of errors between them: the same shares in NumPy,
    sums that fit, and draws in proportion."""
    rng, memory = np.random.default_rng(seed), prioritised.init(SPEC, N, N * C)
    expected, head, greatest = np.zeros((N, C), np.float32), np.zeros(N, int), np.float32(1.0)
    for k in range(rounds):
        valid = rng.random((T, N)) < 0.7
        memory = push(memory, chunk(valid, 100.0 * k, rng.random((T, N)) < ending))
        for _, n in np.argwhere(valid):
            expected[n, head[n] % C] = greatest
            head[n] += 1
        held = np.flatnonzero(expected)
        if held.size:
            row = rng.choice(held, 16)  # some of them twice
            error = np.exp(rng.normal(size=16) * 3).astype(np.float32)
            memory = memory._replace(priorities=reprioritise(memory.priorities, row.astype(np.int32), error, YES))
            new = np.power(error + np.float32(0.01), np.float32(0.6))
            expected.ravel()[row] = 0.0
            np.maximum.at(expected.ravel(), row, new)
            greatest = max(greatest, new.max())
    np.testing.assert_allclose(shares(memory), expected.ravel(), rtol=1e-5)
    np.testing.assert_allclose(memory.priorities.greatest, greatest, rtol=1e-5)
    assert_sums(memory.priorities.tree)
    np.testing.assert_array_equal(memory.rows.size, np.minimum(head, C))
    if expected.any():
        assert_drawn_in_proportion(memory, jax.random.PRNGKey(seed))


def filled(seed=1):
    """A ring that has wrapped, with shares of all sizes."""
    rng, memory = np.random.default_rng(seed), prioritised.init(SPEC, N, N * C)
    for k in range(4):
        memory = push(memory, chunk(np.ones((T, N), bool), 100.0 * k, rng.random((T, N)) < 0.2))
    error = jnp.asarray(np.exp(rng.normal(size=N * C)), jnp.float32)
    return memory._replace(priorities=reprioritise(memory.priorities, jnp.arange(N * C), error, YES))


def test_new_rows_get_the_greatest_share_so_far():
    """Also after that row is forgotten; at first it is 1."""
    memory = push(prioritised.init(SPEC, N, N * C), chunk(np.ones((T, N), bool)))
    np.testing.assert_array_equal(np.unique(shares(memory)), [0.0, 1.0])
    errors = jnp.full(1, 31.99), jnp.full(1, 0.5)
    memory = memory._replace(priorities=reprioritise(memory.priorities, jnp.array([0]), errors[0], YES))
    memory = memory._replace(priorities=reprioritise(memory.priorities, jnp.array([0]), errors[1], YES))
    memory = push(memory, chunk(np.ones((T, N), bool)))
    found = shares(memory).reshape(N, C)
    np.testing.assert_allclose(found[:, T:], 32.0**0.6, rtol=1e-6)
    np.testing.assert_allclose(found[0, 1:T], 1.0)
    np.testing.assert_allclose(found[1:, 0], 32.0**0.6, rtol=1e-6)  # the ring has begun anew


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_importance_weights_by_hand(beta):
    """`(N P(i))^-beta` over the greatest of the batch, in float64."""
    memory = filled()
    batch, row = sample(memory, KEY, n_steps=1, gamma=GAMMA, beta=beta)
    share = shares(memory).astype(np.float64)
    weights = (N * C * share[row] / share.sum()) ** -beta
    np.testing.assert_allclose(batch.weight, weights / weights.max(), rtol=1e-5)
    np.testing.assert_array_equal(batch.obs[:, 0], np.asarray(memory.rows.obs)[row, 0])


@pytest.mark.parametrize("n_steps", [1, 3])
def test_transitions_are_those_of_uniform_replay(n_steps):
    """Observation, action, return, discount and successor of each row, which plain Python tests there."""
    memory, draw = filled(), jax.jit(uniform.sample, static_argnums=(2, 3))

    def by_obs(batch):
        columns = (batch.obs[:, 0], batch.action, batch.reward, batch.discount, batch.next_obs[:, 0])
        return {row[0]: row for row in zip(*map(np.ndarray.tolist, map(np.asarray, columns)), strict=True)}

    known, found = by_obs(draw(memory.rows, KEY, 512, n_steps, GAMMA)), {}
    for key in jax.random.split(KEY, 8):
        found |= by_obs(sample(memory, key, n_steps=n_steps, gamma=GAMMA, beta=1.0)[0])
    assert found == known and len(found) == N * C


def test_a_row_drawn_twice_keeps_its_greater_error():
    memory = filled()
    after = reprioritise(memory.priorities, jnp.array([3, 5, 3, 3]), jnp.array([1.0, 9.0, 4.0, 2.0]), YES)
    found = shares(memory._replace(priorities=after))
    np.testing.assert_allclose(found[[3, 5]], [4.01**0.6, 9.01**0.6], rtol=1e-6)
    assert_sums(after.tree)


def test_errors_that_are_not_finite_or_do_not_count_change_nothing():
    """Nor does a whole batch that was not learned from: not one bit."""
    memory, row = filled(), jnp.array([3, 5])
    after = reprioritise(memory.priorities, row, jnp.array([jnp.nan, jnp.inf]), YES)
    for found in (after, reprioritise(memory.priorities, row, jnp.ones(2), ~YES)):
        np.testing.assert_array_equal(found.tree, memory.priorities.tree)
        assert found.greatest == memory.priorities.greatest


@pytest.mark.parametrize(("alpha", "eps", "error"), [(1.0, 1e-6, 0.0), (1.0, 1e-44, 0.0), (0.6, 1e-6, 3e38), (0.0, 1.0, 5.0)])
def test_shares_are_never_zero_and_sums_are_finite(alpha, eps, error):
    """Without any error, and with the greatest float: such rows are drawn, and their sums are numbers."""
    priorities, row = Priorities(jnp.zeros(16), jnp.float32(1.0)), jnp.arange(8)
    after = jax.jit(prioritised.reprioritise, static_argnums=(4, 5))(priorities, row, jnp.full(8, error), YES, alpha, eps)
    share = np.asarray(after.tree[8:])
    assert (share > 0).all() and 0 < after.tree[1] < np.inf
    np.testing.assert_array_equal(drawn_rows(after.tree, KEY, 8), np.arange(8))
    if alpha == 0:
        np.testing.assert_array_equal(share, 1.0)


def test_sums_do_not_drift():
    """After 2,000 batches over 5,000 rows the root is the sum of the leaves in float64, as near as one pass of sums."""

    def step(k, priorities):
        keys = jax.random.split(jax.random.fold_in(KEY, k))
        row = jax.random.randint(keys[0], (32,), 0, 5000)
        return prioritised.reprioritise(priorities, row, jnp.exp(4 * jax.random.normal(keys[1], (32,))), YES, 1.0, 1e-6)

    after = jax.jit(lambda x: jax.lax.fori_loop(0, 2000, step, x))(Priorities(jnp.zeros(2 * 8192), jnp.float32(1.0)))
    tree = np.asarray(after.tree, np.float64)
    np.testing.assert_allclose(tree[1], tree[8192:].sum(), rtol=1e-6)
    assert_sums(after.tree)


def test_a_million_rows_are_told_apart():
    """A place in the sum has more digits than a float: in a tree of 2^20 equal leaves every row can be drawn, each
    from its own part, and the empty half never."""
    leaves = 2**20
    shares = np.where(np.arange(leaves) % 2, 1.0, 0.0).astype(np.float32)
    levels = [shares]
    while len(levels[0]) > 1:
        levels.insert(0, levels[0].reshape(-1, 2).sum(axis=1))
    tree = jnp.asarray(np.concatenate([[0.0], *levels]).astype(np.float32))
    row = np.concatenate([drawn_rows(tree, jax.random.fold_in(KEY, k), 256) for k in range(200)])
    assert (row % 2 == 1).all()
    np.testing.assert_array_equal(row.reshape(200, 256) // (leaves // 256), np.broadcast_to(np.arange(256), (200, 256)))
    # Rows within a part: all digits occur alike, the last as well.
    for bits in range(1, 12):
        assert abs((row >> bits & 1).mean() - 0.5) < 4 * 0.5 / np.sqrt(row.size)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -0.1}, "alpha=-0.1 is out of range: give a number between 0 and 1"),
        ({"alpha": 1.5}, "alpha=1.5 is out of range"),
        ({"alpha": float("nan")}, "alpha=nan is out of range"),
        ({"beta": 1.1}, "beta=1.1 is out of range"),
        ({"beta": -1}, "beta=-1.0 is out of range"),
        ({"final_beta": 2}, "final_beta=2.0 is out of range"),
        ({"eps": 0.0}, "eps=0.0 has to be positive"),
        ({"eps": -1e-6}, "eps=-1e-06 has to be positive"),
        ({"eps": float("inf")}, "eps=inf has to be positive"),
        ({"alpha": True}, "alpha=True is not a number"),
    ],
)
def test_bad_settings(settings, message):
    """One clear message each."""
    with pytest.raises(ValueError, match=message):
        PrioritizedReplayBuffer(**settings)


def test_settings_are_plain_numbers():
    """Equal settings are equal: programs are compiled for them."""
    assert PrioritizedReplayBuffer(1, np.float64(0.5)) == PrioritizedReplayBuffer(1.0, 0.5)
    schedule = PrioritizedReplayBuffer(0.6, 0.4).schedule()
    assert [schedule(p) for p in (1.0, 0.5, 0.0)] == pytest.approx([0.4, 0.7, 1.0])

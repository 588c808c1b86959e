"""The uniform ring: nothing sampled crosses an end, a gap or a head; everything valid can be drawn."""

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from advantage.memory import uniform
from advantage.types import Chunk, Space, Spec

pytestmark = pytest.mark.usefixtures("strict")
T, N, C, DRAWS, GAMMA = 4, 3, 7, 512, 0.9
SPEC = Spec(Space("box", (1,), low=-np.inf, high=np.inf), Space("discrete", (), "int32", n=(9,), start=(0,)), masked=True)
KEY = jax.random.PRNGKey(0)

push = jax.jit(uniform.push)
sample = jax.jit(functools.partial(uniform.sample, batch_size=DRAWS), static_argnames="n_steps")


def legal(obs):
    """The mask `[..., 9]` of observations `[..., 1]`: no two that follow each other have the same; of some nothing is legal."""
    number = np.nan_to_num(np.asarray(obs)).astype(int)
    return (number * np.array([3, 5, 7, 11, 13, 17, 19, 23, 29]) % 8 < 3) & (number % 11 > 0)


class World:
    """N environments that never show one observation twice, and every row that was valid, in order."""

    def __init__(self, dense, rng):
        self.dense, self.rng, self.count = dense, rng, 0.0
        self.now = [self.new() for _ in range(N)]
        self.first = [True] * N
        self.dummy = [None] * N  # the final frame that the next-step form has yet to show
        self.rows = [[] for _ in range(N)]

    def new(self):
        self.count += 1.0
        return self.count

    def chunk(self, lost, padding, restart):
        """T steps. `lost [T,N]`: the step happened and is not to be learned from; `padding [N]`: rows at the
        end in which nothing happened; `restart [N]`: a reset that ended no episode came before."""
        full = {"obs": np.nan, "final_obs": np.nan, "reward": np.nan}
        x = {name: np.full((T, N), value, np.float32) for name, value in full.items()}
        x |= {name: np.ones((T, N), bool) for name in ("is_first", "terminated", "truncated")}
        x |= {"valid": np.zeros((T, N), bool), "action": np.full((T, N), -9, np.int32)}
        last_obs = np.full(N, np.nan, np.float32)
        for n in range(N):
            if restart[n]:
                self.now[n], self.first[n], self.dummy[n] = self.new(), True, None
            for t in range(T - padding[n]):
                self.step(x, t, n, lost[t, n])
            if padding[n] < T:
                if padding[n] == 0:
                    last_obs[n] = self.now[n] if self.dummy[n] is None else self.dummy[n]
                elif np.isnan(x["obs"][T - padding[n], n]):
                    x["obs"][T - padding[n], n] = self.now[n] if self.dummy[n] is None else self.dummy[n]
        final_obs = jnp.asarray(x.pop("final_obs"))[..., None]
        obs = jnp.asarray(x.pop("obs"))[..., None]
        arrays = jax.tree.map(jnp.asarray, x)
        last = jnp.asarray(last_obs)[:, None]
        final = final_obs if self.dense else None
        masks = {"action_mask": legal(obs), "last_mask": legal(last), "final_mask": None if final is None else legal(final)}
        return Chunk(obs=obs, final_obs=final, last_obs=last, **arrays, **jax.tree.map(jnp.asarray, masks))

    def step(self, x, t, n, lost):
        if self.dummy[n] is not None:  # the invalid row of next-step autoreset
            x["obs"][t, n], self.dummy[n] = self.dummy[n], None
            return
        gap = t > 0 and not x["valid"][t - 1, n] and self.dense
        obs, reward = self.now[n], float(np.float32(self.rng.normal()))
        terminated, truncated = self.rng.random(2) < 0.15
        following, ended = self.new(), terminated or truncated
        self.now[n] = self.new() if ended else following
        first, self.first[n] = self.first[n], ended
        x["obs"][t, n] = obs
        if lost:  # only what the row before needs is real
            return
        x["valid"][t, n], x["is_first"][t, n], x["reward"][t, n] = True, first, reward
        x["terminated"][t, n], x["truncated"][t, n], x["action"][t, n] = terminated, truncated, int(obs) % 9
        if ended:
            x["final_obs"][t, n] = following
            self.dummy[n] = None if self.dense else following
        row = {"obs": obs, "reward": reward, "terminated": terminated, "ended": ended}
        self.rows[n].append({**row, "begins": first or gap, "next": following})

    def held(self):
        return [rows[-C:] for rows in self.rows]


def expected(rows, i, n_steps):
    """`(reward, discount, successor)` from row i, in plain Python."""
    total, power = 0.0, 1.0
    for j in range(i, i + n_steps):
        total, power = total + power * rows[j]["reward"], power * GAMMA
        if rows[j]["ended"] or j + 1 == len(rows) or rows[j + 1]["begins"]:
            break
    return total, 0.0 if rows[j]["terminated"] else power, rows[j]["next"]


def assert_samples(memory, world, n_steps, key=KEY):
    """Every draw is one that plain Python gives, and every row that is held was drawn."""
    batch = jax.tree.map(np.asarray, sample(memory, key, n_steps=n_steps, gamma=GAMMA))
    known = {}
    for rows in world.held():
        known |= {row["obs"]: expected(rows, i, n_steps) for i, row in enumerate(rows)}
    for obs, mask in ((batch.obs, batch.mask), (batch.next_obs, batch.next_mask)):
        allowed = legal(obs)
        np.testing.assert_array_equal(mask, np.where(allowed.any(axis=-1, keepdims=True), allowed, True))
    found = {}
    columns = (batch.obs[:, 0], batch.action, batch.reward, batch.discount, batch.next_obs[:, 0])
    for obs, action, *rest in zip(*columns, strict=True):
        assert action == int(obs) % 9
        found[float(obs)] = rest
    assert set(found) == set(known)
    for obs, numbers in known.items():
        np.testing.assert_allclose(found[obs], numbers, rtol=1e-5, atol=1e-5)


def empty():
    return uniform.init(SPEC, N, N * C + 2)  # two rows more than can be shared evenly


def streams(dense):
    """What happens to every chunk of a run."""
    chunk = st.fixed_dictionaries({
        "lost": st.lists(st.booleans(), min_size=T * N, max_size=T * N).map(
            lambda x: np.reshape(x, (T, N)) & dense
        ),
        "padding": st.lists(st.sampled_from([0, 0, 0, 1, 2, T]), min_size=N, max_size=N).map(
            lambda x: np.multiply(x, dense)
        ),
        "restart": st.lists(st.sampled_from([False, False, True]), min_size=N, max_size=N),
    })  # fmt: skip
    return st.tuples(st.integers(0, 2**20), st.lists(chunk, min_size=1, max_size=7))


@pytest.mark.parametrize("form", ["dense", "next_step"])
@hypothesis.settings(max_examples=30, phases=[hypothesis.Phase.generate])  # shrinking takes a minute
@hypothesis.given(data=st.data(), n_steps=st.integers(1, 5))
def test_samples_are_those_of_plain_python(form, data, n_steps):
    """n-step returns over chunks of 4 steps: no end, gap, reset or head is crossed, and no row is left out.

    Valid masks, endings of both kinds, resets without an end and wraps are random; invalid rows hold NaN.
    """
    seed, chunks = data.draw(streams(form == "dense"))
    world, memory = World(form == "dense", np.random.default_rng(seed)), empty()
    for what in chunks:
        memory = push(memory, world.chunk(**what))
    if any(world.rows):
        assert_samples(memory, world, n_steps)


def filled(chunks=6, seed=1):
    """A ring that has wrapped, without invalid rows."""
    world, memory = World(True, np.random.default_rng(seed)), empty()
    for _ in range(chunks):
        memory = push(memory, world.chunk(np.zeros((T, N), bool), [0] * N, [False] * N))
    return world, memory


@pytest.mark.parametrize("n_steps", [1, 2, 3, 4, 5])
def test_n_step_returns_after_a_wrap(n_steps):
    """24 rows through a ring of 7: returns stop at the newest row, which keeps its own successor."""
    world, memory = filled()
    assert_samples(memory, world, n_steps)


def test_write_heads_are_independent():
    """Environments that collect 4, 2 and no rows a chunk: each ring wraps by itself."""
    world, memory = World(True, np.random.default_rng(2)), empty()
    for _ in range(5):
        memory = push(memory, world.chunk(np.zeros((T, N), bool), [0, 2, T], [False] * N))
    np.testing.assert_array_equal(memory.size, [C, C, 0])
    np.testing.assert_array_equal(memory.head, [20 % C, 10 % C, 0])
    assert_samples(memory, world, 3)


def test_rows_are_equally_likely():
    """Chi-square over all rows of two full environments and one of half the size."""
    world, memory = World(True, np.random.default_rng(3)), empty()
    for _ in range(2):
        memory = push(memory, world.chunk(np.zeros((T, N), bool), [0, 0, 2], [False] * N))
    keys = jax.random.split(KEY, 8)
    drawn = np.concatenate([sample(memory, key, n_steps=1, gamma=GAMMA).obs[:, 0] for key in keys])
    _, counts = np.unique(drawn, return_counts=True)
    assert len(counts) == 7 + 7 + 4
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_invalid_rows_change_no_bit():
    """A chunk of nothing but garbage is the identity."""
    _, memory = filled()
    garbage = World(True, np.random.default_rng(0)).chunk(np.ones((T, N), bool), [T] * N, [False] * N)
    after = push(memory, garbage)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(memory), strict=True):
        np.testing.assert_array_equal(np.asarray(a).view(np.uint8), np.asarray(b).view(np.uint8))


def test_a_chunk_longer_than_the_ring():
    """Ten rows into a ring of 3: the newest stay, in order."""
    memory = uniform.init(dataclasses.replace(SPEC, masked=False), 1, 3)
    row = jnp.arange(10.0)[:, None]
    flags = jnp.zeros((10, 1), bool)
    chunk = Chunk(
        row[..., None], flags, None, jnp.zeros((10, 1), jnp.int32), row, flags, flags, ~flags,
        row[..., None], jnp.full((1, 1), 10.0),
    )  # fmt: skip
    memory = push(memory, chunk)
    assert (int(memory.head[0]), int(memory.size[0])) == (1, 3)
    batch = sample(memory, KEY, n_steps=2, gamma=1.0)
    found = np.stack([batch.obs[:, 0], batch.reward, batch.next_obs[:, 0]], axis=1)
    assert set(map(tuple, found.tolist())) == {
        (7.0, 15.0, 9.0),
        (8.0, 17.0, 10.0),
        (9.0, 9.0, 10.0),
    }


def test_structured_observations():
    """Dict observations keep their parts and dtypes."""
    space = Space("dict", parts=(("a", Space("box", (2,), "uint8", 0.0, 255.0)), ("b", Space("box", (1,)))))
    memory = uniform.init(Spec(space, SPEC.action), 1, 4)
    obs = {"a": jnp.full((1, 1, 2), 200, jnp.uint8), "b": jnp.ones((1, 1, 1))}
    flags = jnp.zeros((1, 1), bool)
    last = jax.tree.map(lambda x: x[0], obs)
    one = jnp.ones((1, 1))
    memory = push(
        memory, Chunk(obs, flags, None, jnp.zeros((1, 1), jnp.int32), one, flags, flags, ~flags, obs, last)
    )
    batch = sample(memory, KEY, n_steps=1, gamma=0.9)
    assert batch.obs["a"].dtype == jnp.uint8
    np.testing.assert_array_equal(batch.next_obs["a"], np.full((DRAWS, 2), 200))

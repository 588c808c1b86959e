"""Stacks of frames: each frame is kept once, and what is read is what was observed."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.memory import frames, prioritised, uniform
from advantage.types import Chunk, Space, Spec

pytestmark = pytest.mark.usefixtures("strict")
T, N, C, K, GAMMA = 4, 2, 40, 3, 0.9
STACK = Space("box", (K, 2, 1), "uint8", 0.0, 255.0)
PLAIN = Spec(STACK, Space("discrete", (), "int32", n=(9,), start=(0,)))
STACKED = dataclasses.replace(PLAIN, stacked=True)
push, push_prioritised = jax.jit(uniform.push), jax.jit(prioritised.push)


class Games:
    """N games whose frames are random; what an observation shows before a game's first frame is `before`."""

    def __init__(self, seed, before, end, dense):
        self.rng, self.before, self.end, self.dense = np.random.default_rng(seed), before, end, dense
        self.now = [self.start() for _ in range(N)]
        self.first, self.dummy = [True] * N, [None] * N

    def frame(self):
        return self.rng.integers(1, 256, (2, 1), np.uint8)

    def start(self):
        first = self.frame()
        past = {"black": np.zeros_like(first), "first": first}
        return np.stack([past.get(self.before, self.frame()) for _ in range(K - 1)] + [first])

    def chunk(self, skipped, restart):
        """T steps of all; those `skipped [T, N]` happen and are not to be learned from."""
        kinds = {"is_first": bool, "terminated": bool, "truncated": bool, "valid": bool, "reward": np.float32, "action": np.int32}
        x = {name: np.zeros((T, N), kind) for name, kind in kinds.items()}
        obs, final = (np.full((T, N, *STACK.shape), 77, np.uint8) for _ in range(2))
        for n in range(N):
            if restart[n]:
                self.now[n], self.first[n], self.dummy[n] = self.start(), True, None
            for t in range(T):
                obs[t, n] = self.now[n] if self.dummy[n] is None else self.dummy[n]
                if self.dummy[n] is not None:  # the row of next-step autoreset
                    self.dummy[n] = None
                    continue
                x["valid"][t, n], x["is_first"][t, n] = not skipped[t, n], self.first[n]
                x["action"][t, n], x["reward"][t, n] = self.rng.integers(9), self.rng.normal()
                chance = self.rng.random(3)
                over, cut, life = chance[0] < self.end, chance[1] < self.end / 3, chance[2] < 0.1
                following = np.concatenate([self.now[n][1:], self.frame()[None]])
                # A life lost ends what is learned from, and nothing is reset.
                x["terminated"][t, n], x["truncated"][t, n] = over or life, cut
                final[t, n], self.first[n] = following, over or cut
                self.now[n] = self.start() if over or cut else following
                if (over or cut) and not self.dense:
                    self.dummy[n] = following
        last = np.stack([self.now[n] if self.dummy[n] is None else self.dummy[n] for n in range(N)])
        arrays = {**x, "obs": obs, "final_obs": final if self.dense else None, "last_obs": last}
        return Chunk(action_mask=None, **jax.tree.map(jnp.asarray, arrays))


ENV, AGE = np.repeat(np.arange(N, dtype=np.int32), C), np.tile(np.arange(C, dtype=np.int32), N)
transitions = jax.jit(lambda memory, n_steps: uniform.transitions(memory, jnp.asarray(ENV), jnp.asarray(AGE), n_steps, jnp.float32(GAMMA)), static_argnums=1)


def assert_same(kept, plain, n_steps):
    """All transitions that begin with a row that is held are those of a memory of whole stacks."""
    held = np.asarray(kept.size)[ENV] > AGE
    batch, expected = transitions(kept, n_steps)._asdict(), transitions(plain, n_steps)
    for name in ("obs", "action", "reward", "discount", "next_obs"):
        np.testing.assert_array_equal(np.asarray(batch[name])[held], np.asarray(getattr(expected, name))[held], err_msg=name)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("before", ["black", "first", "anything"])
@hypothesis.settings(max_examples=12, phases=[hypothesis.Phase.generate])
@hypothesis.given(data=st.data(), seed=st.integers(0, 2**20), n_steps=st.integers(1, 4))
def test_what_is_read_is_what_was_observed(dense, before, data, seed, n_steps):
    """Against a memory of whole stacks: over ends of both kinds, lost lives, resets from outside, gaps and wraps."""
    games = Games(seed, before, end=0.15, dense=dense)
    kept, plain = uniform.init(STACKED, N, N * C), uniform.init(PLAIN, N, N * C)
    assert isinstance(kept.obs, frames.Frames)
    for _ in range(data.draw(st.integers(1, 16))):
        gaps = data.draw(st.lists(st.sampled_from([False] * 9 + [True]), min_size=T * N, max_size=T * N))
        restart = data.draw(st.lists(st.sampled_from([False] * 9 + [True]), min_size=N, max_size=N))
        chunk = games.chunk(np.reshape(gaps, (T, N)), restart)
        kept, plain = push(kept, chunk), push(plain, chunk)
        assert_same(kept, plain, n_steps)
    np.testing.assert_array_equal(kept.head, plain.head)
    assert (kept.size <= plain.size).all()


def run(games, chunks, end=0.0):
    kept, plain = uniform.init(STACKED, N, N * C), uniform.init(PLAIN, N, N * C)
    for _ in range(chunks):
        chunk = games.chunk(np.zeros((T, N), bool), [False] * N)
        kept, plain = push(kept, chunk), push(plain, chunk)
    return kept, plain


def test_long_games_fill_the_memory():
    """Of games as long as the memory every row is held that a memory of whole stacks holds."""
    kept, plain = run(Games(1, "black", end=0.0, dense=True), 25)
    np.testing.assert_array_equal(kept.size, [C, C])
    np.testing.assert_array_equal(plain.size, [C, C])
    assert_same(kept, plain, 3)


def test_short_games_leave_room_for_fewer_rows():
    """The frames of games of two steps do not fit: the oldest rows are forgotten, and only those."""
    kept, plain = run(Games(2, "black", end=0.5, dense=True), 40)
    assert (kept.size < C).all() and (kept.size > C // (K + 1)).all()
    assert_same(kept, plain, 2)
    # One row more would have a frame that is gone, and none that is there has.
    room, head, size = len(kept.obs.ring) // N, np.asarray(kept.head), np.asarray(kept.size)
    number, count = np.asarray(kept.obs.newest).reshape(N, C).astype(int), np.asarray(kept.obs.count).astype(int)
    for n in range(N):
        oldest = number[n, (head[n] - size[n] - np.arange(2)) % C] - (K - 1)  # of the oldest row, and of the one before
        assert oldest[0] >= count[n] - room > oldest[1]


def test_chunks_longer_than_the_ring():
    """Of more rows than fit the newest stay, with their frames."""
    games = Games(3, "anything", end=0.02, dense=True)
    chunks = [games.chunk(np.zeros((T, N), bool), [False] * N) for _ in range(30)]
    joined = jax.tree.map(lambda *x: jnp.concatenate(x), *[chunk._replace(last_obs=None) for chunk in chunks])
    kept = uniform.push(uniform.init(STACKED, N, N * C), joined._replace(last_obs=chunks[-1].last_obs))
    plain = uniform.push(uniform.init(PLAIN, N, N * C), joined._replace(last_obs=chunks[-1].last_obs))
    assert (kept.size > C - 10).all()
    assert_same(kept, plain, 2)


def test_forgotten_rows_have_no_priority():
    """Prioritised draws are of rows that are held, and of all of them."""
    games = Games(4, "black", end=0.5, dense=True)
    memory = prioritised.init(STACKED, N, N * C)
    for _ in range(40):
        memory = push_prioritised(memory, games.chunk(np.zeros((T, N), bool), [False] * N))
    size, head, leaves = np.asarray(memory.rows.size), np.asarray(memory.rows.head), len(memory.priorities.tree) // 2
    share = np.asarray(memory.priorities.tree[leaves : leaves + N * C]).reshape(N, C)
    for n in range(N):
        here = (head[n] - 1 - np.arange(size[n])) % C
        assert size[n] < C and (share[n, here] == 1).all() and share[n].sum() == size[n]
    assert float(memory.priorities.tree[1]) == size.sum()


@pytest.mark.parametrize("rows", [100_000, 1_000_000])
def test_memory_of_atari_frames(rows):
    """84 x 84 pixels, 4 of them a stack: 0.8 GB for 100,000 and 7.5 GB for 1,000,000, all arrays together."""
    spec = Spec(Space("box", (4, 84, 84), "uint8", 0.0, 255.0), PLAIN.action, stacked=True)
    arrays = jax.eval_shape(lambda: uniform.init(spec, 1, rows))
    total = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays))
    assert rows * 84 * 84 < total <= rows * 7_500

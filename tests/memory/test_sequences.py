"""Windows of the past are those of plain Python: nothing crosses a head, and everything valid can be drawn."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.memory import uniform
from advantage.memory.sequences import sample_windows
from advantage.types import Chunk, Space, Spec

pytestmark = pytest.mark.usefixtures("strict")
T, N, C, DRAWS, BURN_IN, LENGTH, GAMMA = 4, 2, 9, 256, 2, 3, 0.9
SPEC = Spec(Space("box", (1,), low=-np.inf, high=np.inf), Space("discrete", (), "int32", n=(9,), start=(0,)), masked=True)

push = jax.jit(uniform.push)
sample = jax.jit(functools.partial(sample_windows, count=DRAWS, burn_in=BURN_IN, length=LENGTH))


def empty():
    memory = uniform.init(SPEC, N, N * C)
    return memory._replace(carry=((jnp.zeros((N * C, 1)),),))


def legal(number):
    """The masks `[..., 9]` of observations by their numbers `[...]`, each of which has its own."""
    return (np.nan_to_num(np.asarray(number))[..., None].astype(int) >> np.arange(9)) % 2 > 0


class World:
    """Rows that never show one number twice, and all that were valid, in order."""

    def __init__(self, seed):
        self.rng, self.count, self.rows = np.random.default_rng(seed), 0.0, [[] for _ in range(N)]

    def new(self):
        self.count += 1.0
        return self.count

    def chunk(self, valid):
        """T rows and what was remembered before each; invalid ones hold NaN."""
        first, terminated, truncated = self.rng.random((3, T, N)) < 0.25
        obs, reward, following, carry, action = (np.full((T, N), np.nan, np.float32) for _ in range(5))
        for t in range(T):
            for n in np.flatnonzero(valid[t]):
                row = [self.new() for _ in range(5)]
                obs[t, n], reward[t, n], following[t, n], carry[t, n], action[t, n] = row
                begins = bool(first[t, n] or (t > 0 and not valid[t - 1, n]))
                self.rows[n].append((*row, begins, bool(terminated[t, n])))
        # Every row ends an episode for `successor`, which then reads `final_obs`: rows are as told apart as can be.
        ends = terminated | truncated | True
        truncated = ends & ~terminated
        arrays = [jnp.asarray(x)[..., None] for x in (obs, following)]
        masks = [jnp.asarray(legal(x)) for x in (obs, following, np.full(N, np.nan))]
        flags = [jnp.asarray(x) for x in (first, terminated, truncated, valid)]
        chunk = Chunk(
            arrays[0], flags[0], masks[0], jnp.asarray(np.nan_to_num(action), jnp.int32), jnp.asarray(reward), *flags[1:],
            arrays[1], jnp.full((N, 1), jnp.nan), final_mask=masks[1], last_mask=masks[2],
        )  # fmt: skip
        return chunk, ((jnp.asarray(carry)[..., None],),)

    def held(self):
        return [rows[-C:] for rows in self.rows]


def assert_windows(batch, world):
    """Each window is the one that plain Python finds from its first row, and every row was a first one."""
    batch = jax.tree.map(np.asarray, batch)
    windows, following = batch.obs, batch.next_obs.following
    obs, ((carry,),) = windows.obs[..., 0], windows.carry
    rest = {name: x for name, x in batch._asdict().items() if name not in ("obs", "next_obs")}
    rows = {name: x.reshape(LENGTH, DRAWS, *x.shape[1:]) for name, x in rest.items()}
    place = {row[0]: (n, i) for n, rows in enumerate(world.held()) for i, row in enumerate(rows)}
    assert set(obs[BURN_IN]) == set(place)
    total = 0
    for b in range(DRAWS):
        n, first = place[obs[BURN_IN, b]]
        known = world.held()[n]
        assert carry[b, 0] == known[max(first - BURN_IN, 0)][3]
        for j in range(BURN_IN + LENGTH):
            i = first + j - BURN_IN
            assert windows.held[j, b] == (0 <= i < len(known))
            if not windows.held[j, b]:
                assert j < BURN_IN or rows["weight"][j - BURN_IN, b] == 0
                continue
            seen, reward, after, _, action, begins, terminated = known[i]
            assert (obs[j, b], windows.is_first[j, b]) == (seen, begins)
            if j >= BURN_IN:
                k = j - BURN_IN
                assert (rows["reward"][k, b], rows["action"][k, b], following[k, b, 0]) == (reward, action, after)
                assert rows["mask"][k, b].tolist() == legal(seen).tolist()
                assert rows["next_mask"][k, b].tolist() == legal(after).tolist()
                assert rows["discount"][k, b] == (0 if terminated else np.float32(GAMMA))
                total += 1
    np.testing.assert_allclose(batch.weight[batch.weight > 0], LENGTH * DRAWS / total, rtol=1e-6)
    assert (batch.weight > 0).sum() == total


@hypothesis.settings(max_examples=12, phases=[hypothesis.Phase.generate])
@hypothesis.given(
    seed=st.integers(0, 2**20),
    valid=st.lists(
        st.lists(st.sampled_from([True, True, True, False]), min_size=T * N, max_size=T * N), min_size=1, max_size=6
    ),
)
def test_windows_are_those_of_plain_python(seed, valid):
    """Gaps, beginnings, ends and wraps at random: rows, flags, stored carries, weights; none crosses a head."""
    world, memory = World(seed), empty()
    for one in valid:
        memory = push(memory, *world.chunk(np.reshape(one, (T, N))))
    if any(world.rows):
        assert_windows(sample(memory, jax.random.PRNGKey(seed), gamma=GAMMA), world)


def test_windows_after_a_wrap():
    """24 rows through rings of 9, without a gap."""
    world, memory = World(1), empty()
    for _ in range(6):
        memory = push(memory, *world.chunk(np.ones((T, N), bool)))
    assert_windows(sample(memory, jax.random.PRNGKey(0), gamma=GAMMA), world)

"""Rows made in hindsight reach the memory whole, each in its environment's ring, and few programs are compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.drivers.hindsight import packed_rows
from advantage.memory import uniform
from advantage.memory.goals import Transitions
from advantage.types import Space, Spec

BOX = Space("box", (2,), low=-np.inf, high=np.inf)
PARTS = tuple((name, BOX) for name in ("achieved_goal", "desired_goal", "observation"))
SPEC = Spec(Space("dict", parts=PARTS), Space("discrete", (), "int32", n=(9,), start=(0,)), masked=True)


def transitions(first, count):
    """Numbered from `first` on; every third ends its task."""
    number = first + np.arange(count)
    obs = {name: np.stack([number, number + k], axis=1).astype(np.float32) for k, (name, _) in enumerate(PARTS)}
    next_obs = {name: x + 0.5 for name, x in obs.items()}
    masks = [number[:, None] % np.arange(1, 10) == k for k in (0, 1)]
    masks[1][:, 0] = True  # by which everything can be divided
    return Transitions(obs, (number % 9).astype(np.int32), -number.astype(np.float32), number % 3 == 0, next_obs, *masks)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("counts", [(3, 200), (70, 0), (1500, 1)])
def test_every_row_arrives_once(counts):
    """Environments with different numbers of rows, from none to more than are shipped at once: each row is in its
    own environment's ring with its own successor, and a return of several steps ends with it."""
    made = [(0, n, part) for n, count in enumerate(counts) if count
            for part in (transitions(10_000 * n, count // 2), transitions(10_000 * n + count // 2, count - count // 2))]  # fmt: skip
    memory, push = uniform.init(SPEC, 2, 4000), jax.jit(uniform.push)
    for rollout in packed_rows(SPEC, (1, 2), made):
        memory = push(memory, jax.tree.map(lambda x: jnp.asarray(x[0]), rollout.unpack()).chunk(()))
    assert memory.size.tolist() == list(counts)
    for n, count in enumerate(counts):
        expected, at = transitions(10_000 * n, count), slice(2000 * n, 2000 * n + count)
        for name, _ in PARTS:
            np.testing.assert_array_equal(memory.obs[name][at], expected.obs[name])
            np.testing.assert_array_equal(memory.next_obs[name][at], expected.next_obs[name])
        np.testing.assert_array_equal(memory.action[at], expected.action)
        np.testing.assert_array_equal(memory.reward[at], expected.reward)
        np.testing.assert_array_equal(memory.mask[at], expected.mask)
        np.testing.assert_array_equal(memory.next_mask[at], expected.next_mask)
    batch = uniform.sample(memory, jax.random.PRNGKey(0), 512, 3, 0.5)
    ended = np.asarray(-batch.reward) % 3 == 0  # rewards of one step are whole numbers of these
    np.testing.assert_array_equal(batch.reward, -batch.obs["achieved_goal"][:, 0])
    np.testing.assert_array_equal(batch.next_obs["observation"], batch.obs["observation"] + 0.5)
    np.testing.assert_array_equal(batch.discount, np.where(ended, 0.0, 0.5))


def test_few_lengths():
    """Of episodes of any length between 1 and 2,000 rows only five lengths are made: few programs are compiled."""
    lengths = set()
    for count in range(1, 2000, 7):
        rollouts = packed_rows(SPEC, (2, 3), [(1, 2, transitions(0, count))])
        lengths |= {rollout.unpack().reward.shape for rollout in rollouts}
        assert sum(int(rollout.unpack().flags[:, 3].sum()) for rollout in rollouts) == count
    assert lengths == {(2, length, 3) for length in (64, 128, 256, 512, 1024)}
    assert packed_rows(SPEC, (2, 3), []) == []

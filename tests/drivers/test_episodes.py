"""Returns and lengths of host episodes, against plain Python."""

import numpy as np
import pytest

from advantage.drivers.common import UNSUMMED, Episodes


def by_hand(rows, num_seeds, num_envs):
    """The finished episodes of every seed in the order of their ends, added up number by number."""
    finished = [[] for _ in range(num_seeds)]
    total, length = np.zeros((num_seeds, num_envs)), np.zeros((num_seeds, num_envs), int)
    for reward, valid, done in rows:
        for s in range(num_seeds):
            for n in range(num_envs):
                if valid is not None and not valid[s, n]:
                    continue
                total[s, n], length[s, n] = total[s, n] + float(reward[s, n]), length[s, n] + 1
                if done is not None and done[s, n]:
                    finished[s].append((total[s, n], length[s, n]))
                    total[s, n], length[s, n] = 0.0, 0
    return finished


@pytest.mark.parametrize("often", [0.002, 0.1], ids=["long", "short"])
@pytest.mark.parametrize("num_seeds,num_envs", [(1, 1), (2, 3)])
def test_returns_and_lengths(num_seeds, num_envs, often):
    """Rows of all environments or of some, ends in some rows, episodes longer than what is added up at once."""
    rng, shape = np.random.default_rng(0), (num_seeds, num_envs)
    rows = []
    for _ in range(12 * UNSUMMED):
        valid = None if rng.random() < 0.7 else rng.random(shape) < 0.6
        done = rng.random(shape) < often
        rows.append((rng.normal(size=shape).astype(np.float32), valid, done if done.any() else None))
    episodes = Episodes(num_seeds, num_envs, window=1000)
    for row in rows:
        episodes.count(*row)
    for s, expected in enumerate(by_hand(rows, num_seeds, num_envs)):
        recent = episodes.recent(s)
        assert recent.total == len(expected) > 0
        np.testing.assert_array_equal(recent.lengths, [length for _, length in expected])
        np.testing.assert_allclose(recent.returns, [total for total, _ in expected], atol=1e-9)


def test_a_reset_begins_anew():
    """What was collected before it counts for no episode; the window keeps the newest."""
    episodes, one, end = Episodes(1, 1, window=2), np.ones((1, 1), np.float32), np.ones((1, 1), bool)
    for _ in range(3):
        episodes.count(one, None, None)
    episodes.begin()
    seen = []
    for length in (2, 1, 3):
        for i in range(length):
            episodes.count(one, None, end if i == length - 1 else None)
        recent = episodes.recent(0)
        seen.append((recent.returns.tolist(), recent.lengths.tolist(), recent.total))
    assert seen == [([2.0], [2], 1), ([2.0, 1.0], [2, 1], 2), ([1.0, 3.0], [1, 3], 3)]

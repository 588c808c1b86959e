"""Arrays in pieces: what is written and read is what a plain array would hold."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advantage import DQN, PrioritizedReplayBuffer
from advantage.drivers import host
from advantage.memory import pieces


@pytest.fixture
def short(monkeypatch):
    """Pieces of 24 bytes."""
    monkeypatch.setattr(pieces, "LONGEST", 24)


@pytest.mark.usefixtures("strict")
def test_lengths(short):
    """As many rows each as there is room for, the last with what is left; one array where that is all."""
    assert [x.shape for x in pieces.zeros(17, (2,), jnp.float32).parts] == [(3, 2)] * 5 + [(2, 2)]
    assert pieces.zeros(3, (2,), jnp.float32).shape == (3, 2)
    assert [x.shape for x in pieces.zeros(3, (100,), jnp.uint8).parts] == [(1, 100)] * 3
    assert pieces.length(pieces.zeros(17, (2,), jnp.float32)) == 17 and pieces.length(jnp.zeros((4, 2))) == 4


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint32])
@settings(deadline=None, max_examples=50)
@given(rows=st.lists(st.integers(0, 24), min_size=1, max_size=12, unique=True))
def test_as_a_plain_array(dtype, rows):
    """Any rows, those past the last are dropped; and all are read."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pieces, "LONGEST", 24)
        held = pieces.zeros(20, (2,), jnp.float32)
        place, new = jnp.asarray(rows, dtype), jnp.arange(1.0, 2 * len(rows) + 1).reshape(-1, 2)
        found, expected = pieces.put(held, place, new), pieces.put(jnp.zeros((20, 2)), place, new)
        assert isinstance(found, pieces.Pieces) and not isinstance(expected, pieces.Pieces)
        np.testing.assert_array_equal(jnp.concatenate(found.parts), expected)
        every = jnp.arange(20, dtype=dtype).reshape(4, 5)
        np.testing.assert_array_equal(pieces.take(found, every), pieces.take(expected, every))


class Pictures(gymnasium.Env):
    """Noise, in episodes of seven steps."""

    observation_space = gymnasium.spaces.Dict(
        {"a": gymnasium.spaces.Box(0, 255, (4, 4, 1), np.uint8), "b": gymnasium.spaces.Box(-1, 1, (2,), np.float32)}
    )
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self._seen(), {}

    def step(self, action):
        self.count += 1
        return self._seen(), float(action), self.count == 7, False, {}

    def _seen(self):
        picture = self.np_random.integers(0, 256, (4, 4, 1), np.uint8)
        return {"a": picture, "b": self.np_random.uniform(-1, 1, 2).astype(np.float32)}


WORDS = {"seed": 0, "learning_starts": 8, "batch_size": 4, "train_freq": 2}
TINY = {"features_extractor_kwargs": {"layers": [(4, 8, 8)], "features_dim": 8}}


def dicts():
    words = {"buffer_size": 30, "replay_buffer_class": PrioritizedReplayBuffer, "n_steps": 3}
    features = {"features_extractor_kwargs": {"cnn": "ImpalaCNN", "cnn_output_dim": 4}}
    return DQN("MultiInputPolicy", Pictures(), policy_kwargs=features, **WORDS, **words), 80


def atari():
    pytest.importorskip("ale_py")
    return DQN("CnnPolicy", "ALE/Pong-v5", seeds=2, buffer_size=40, policy_kwargs=TINY, **WORDS), 90


@pytest.mark.parametrize("make", [dicts, atari])
def test_training_does_not_see_them(monkeypatch, make):
    """The same bits with a replay in pieces, over wraps of its ring: observations of several parts, and frames."""

    def trained():
        host._programs.cache_clear()
        model, steps = make()
        return model.learn(steps)

    expected = trained().get_parameters()["policy"]
    monkeypatch.setattr(pieces, "LONGEST", 7_056 * 16)
    if make is dicts:
        monkeypatch.setattr(pieces, "LONGEST", 16 * 3)  # shorter than the actions, which stay whole
    model = trained()
    assert any(map(pieces.is_pieces, jax.tree.leaves(model._driver.memory, is_leaf=pieces.is_pieces)))
    found = model.get_parameters()["policy"]
    host._programs.cache_clear()
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name)

"""Replay whose observations lie in a file: the same bits, the sizes that are named, and what is refused."""

import os
import types
import warnings
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage import DQN, PPO, PrioritizedReplayBuffer
from advantage.drivers import filed
from advantage.memory import pieces

GB = 10**9
CPU = jax.devices("cpu")[0]
BYTES = filed.LEAST + 12_345
ROWS = 45_000  # of 12,288 bytes: more than `LEAST`
TINY = {"features_extractor_kwargs": {"layers": [(4, 8, 8)], "features_dim": 8}}
WORDS = {"seed": 0, "buffer_size": ROWS, "learning_starts": 10, "batch_size": 4, "policy_kwargs": TINY}


class Pictures(gymnasium.Env):
    """Noise, in episodes of seven steps."""

    observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self._picture(), {}

    def step(self, action):
        self.count += 1
        return self._picture(), float(action), self.count == 7, False, {}

    def _picture(self):
        return self.np_random.integers(0, 256, (64, 64, 3), np.uint8)


class Rows(NamedTuple):
    """A replay, by shapes."""

    obs: Any
    next_obs: Any
    reward: Any


def rows(*sizes):
    return Rows(*(jax.ShapeDtypeStruct((size,), jnp.uint8) for size in sizes))


def pictures(**words):
    """A model whose replay needs 1.1 GB."""
    return DQN("CnnPolicy", Pictures(), **WORDS, **words)


@pytest.fixture
def little(monkeypatch):
    """Memory for replay: a tenth of a gigabyte."""
    monkeypatch.setenv(filed.BUDGET, "0.1")


def filed_model(**words):
    with pytest.warns(UserWarning, match="observations are kept in a file"):
        return pictures(**words)


def test_an_array_in_a_file():
    """Zeros to the last byte; a donated array is written where it lies, and stays in its file."""
    array = filed.zeros((1, BYTES), jnp.uint8)
    assert (array.shape, array.dtype, filed.is_filed(array)) == ((1, BYTES), jnp.uint8, True)
    address = array.unsafe_buffer_pointer()
    write = jax.jit(lambda x, i, value: x.at[0, i].set(value), donate_argnums=0)
    places = [0, 1, 4095, 4096, BYTES // 2, BYTES - 4097, BYTES - 1]
    assert [int(array[0, i]) for i in places] == [0] * len(places)
    for value, i in enumerate(places, start=1):
        array = write(array, jnp.int32(i), jnp.uint8(value))
    assert [int(array[0, i]) for i in places] == list(range(1, len(places) + 1))
    assert (array.unsafe_buffer_pointer(), filed.is_filed(array)) == (address, True)
    assert not filed.is_filed(jnp.zeros(1000))


def test_a_disk_that_is_full(monkeypatch):
    """An error, not an array of whatever was there; the next one is made as ever."""

    def full(*_):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match="No space left"):
            filed.zeros((BYTES,), jnp.uint8)
    assert filed.is_filed(filed.zeros((BYTES,), jnp.uint8))
    monkeypatch.delattr(os, "posix_fallocate")  # as on macOS
    assert filed.is_filed(filed.zeros((BYTES,), jnp.uint8))


def test_what_may_lie_in_a_file():
    """Observations that are large: they are zero at first, as a file is; rewards are not, and masks are not."""
    assert filed.fileable(rows(filed.LEAST, filed.LEAST - 1, filed.LEAST), 1) == [True, False, False]
    assert filed.fileable(rows(filed.LEAST, filed.LEAST // 2, filed.LEAST), 2) == [True, True, False]
    assert filed.fileable({"rows": rows(1, filed.LEAST, 1)}, 1) == [False, True, False]
    part = jax.ShapeDtypeStruct((filed.LEAST,), jnp.uint8)
    assert filed.fileable(Rows(pieces.Pieces((part, part)), (), part), 1) == [True, True, False]


@pytest.mark.parametrize(("given", "found"), [("2", 2e9), ("0.5", 5e8), ("1e9", filed.room_on(CPU)), ("inf", filed.room_on(CPU))])
def test_the_budget(monkeypatch, given, found):
    monkeypatch.setenv(filed.BUDGET, given)
    assert filed.budget(CPU) == found
    monkeypatch.delenv(filed.BUDGET)
    assert filed.budget(CPU) == 0.75 * filed.room_on(CPU)


@pytest.mark.parametrize("given", ["", "much", "0", "-1", "nan"])
def test_a_budget_that_is_none(monkeypatch, given):
    monkeypatch.setenv(filed.BUDGET, given)
    with pytest.raises(ValueError, match=f"{filed.BUDGET}={given!r} has to be a number of gigabytes above 0"):
        filed.budget(CPU)


def test_where_a_replay_goes(monkeypatch, little):
    """Memory where it fits, else a file where that fits; what fits nowhere is refused, with the sizes."""
    one, large = rows(10, 10, 10), rows(GB, GB, 10)
    asked = {"seeds": 2, "rows": 1_000, "device": CPU, "fused": False}
    assert filed.filed_or_refused(one, **asked) is None
    monkeypatch.setattr(filed, "free_on_disk", lambda: 5.0 * GB)
    monkeypatch.setattr(filed.tempfile, "gettempdir", lambda: "/large")
    note = filed.filed_or_refused(large, **asked)
    assert note.startswith("buffer_size=1000 needs 3.7 GiB for 2 seed(s), and the cpu has ")
    assert note.endswith(f"replay takes 0.1 GiB ({filed.BUDGET}): 3.7 GiB of observations are kept in a file in /large (TMPDIR)")
    refused = [
        (large, {}, r"/large \(TMPDIR\) has 2.8 GiB free: at most 749 fit", 3.0),
        (rows(GB, GB, GB), {}, "needs 5.6 GiB .*at most 16 fit", 9.0),  # rewards stay in memory
        (rows(2 * GB, GB, 10), {"seeds": int(filed.room_on(CPU) / GB)}, r"needs .* seed\(s\)", 10_000.0),  # no array so long
        (large, {"fused": True}, "needs 3.7 GiB .*replay takes 0.1 GiB .*at most 24 fit", 9.0),
    ]
    for memory, changed, match, free in refused:
        monkeypatch.setattr(filed, "free_on_disk", lambda free=free: free * GB)
        with pytest.raises(ValueError, match=match):
            filed.filed_or_refused(memory, **asked | changed)


def test_a_gpu_has_no_files(little):
    device = types.SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 80 * GB})
    with pytest.raises(ValueError, match="the gpu has 74.5 GiB in all, of which replay takes 0.1 GiB"):
        filed.filed_or_refused(rows(GB, GB, 10), 1, 1_000, device, fused=False)


@pytest.mark.parametrize("words", [{}, {"replay_buffer_class": PrioritizedReplayBuffer, "n_steps": 3}])
def test_the_same_bits_as_from_memory(monkeypatch, words):
    """What is trained does not depend on where observations lie."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = pictures(**words).learn(40).get_parameters()["policy"]
    monkeypatch.setenv(filed.BUDGET, "0.1")
    model = filed_model(**words)
    before = model.get_parameters()["policy"]
    found = model.learn(40).get_parameters()["policy"]
    memory = model._driver.memory
    kept = memory.rows if words else memory
    assert filed.is_filed(kept.obs) and filed.is_filed(kept.next_obs)
    assert any((found[name] != before[name]).any() for name in found)
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name)


def test_frames_of_two_seeds(little):
    """Atari's frames, of two agents in one array."""
    pytest.importorskip("ale_py")
    words = WORDS | {"buffer_size": 40_000}
    with pytest.warns(UserWarning, match="0.5 GiB of observations are kept in a file"):
        model = DQN("CnnPolicy", "ALE/Pong-v5", seeds=2, **words)
    model.learn(30)
    ring = model._driver.memory.obs.ring
    assert ring.shape[0] == 2 and filed.is_filed(ring)
    assert np.asarray(ring[:, :20]).any()


def test_what_needs_the_whole_replay(little, tmp_path):
    """It is refused before anything is trained or written, and a model alone can be saved."""
    model = filed_model()
    for refused in (
        lambda: model.learn(40, checkpoint_dir=tmp_path / "run", checkpoint_every=5),
        lambda: model.save_replay_buffer(tmp_path / "replay"),
        lambda: model.load_replay_buffer(tmp_path / "replay"),
    ):
        with pytest.raises(ValueError, match=f"its observations are in a file.*raise {filed.BUDGET}"):
            refused()
    assert model.num_timesteps == 0 and not (tmp_path / "replay").exists()
    model.learn(12)
    with pytest.raises(ValueError, match="a checkpoint has the whole replay in memory"):
        model.save_checkpoint(tmp_path / "run")
    model.save(tmp_path / "model")
    assert DQN.load(tmp_path / "model").num_timesteps == 12


def test_a_loss_that_is_nan(little):
    """What it was computed from is found without a copy of the memory."""
    model = filed_model(learning_rate=1e38).learn(11)
    with pytest.raises(Exception, match="NaN or infinite"):
        model.learn(200, reset_num_timesteps=False)
    assert filed.is_filed(model._driver.memory.obs)


def test_who_remembers_nothing(little):
    """Algorithms without a replay do not ask."""
    PPO("MlpPolicy", "CartPole-v1")

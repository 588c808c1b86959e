"""`VecNormalize` alone: Stable-Baselines3's numbers over 300 steps, files, marks and mistakes."""

import copy
import json
import pickle
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import safetensors.numpy

from advantage import DummyVecEnv, VecNormalize, make_vec_env, sync_envs_normalization
from advantage.envs.normalise import taken_off
from advantage.envs.running import RunningMeanStd, is_normalised

SB3 = np.load(Path(__file__).parents[1] / "oracles" / "sb3_normalise.npz")
T, N = SB3["raw/rewards"].shape
CASES = {
    "plain": {},
    "tight": {"clip_obs": 1.5, "clip_reward": 0.2, "gamma": 0.9, "epsilon": 0.01},
    "no_obs": {"norm_obs": False},
    "dict": {"norm_obs_keys": ["a"]},
}


class Replayed:
    """What is stored beside SB3's answers, as a vector environment."""

    def __init__(self, keys=False):
        box = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.observation_space = gymnasium.spaces.Dict({"a": box, "b": box}) if keys else box
        self.action_space, self.num_envs, self.keys = gymnasium.spaces.Discrete(2), N, keys

    def seen(self, obs):
        return {"a": obs.copy(), "b": 2 * obs} if self.keys else obs.copy()

    def reset(self):
        self.t = 0
        return self.seen(SB3["raw/obs"][0])

    def step_async(self, actions):
        pass

    def step_wait(self):
        t, dones = self.t, SB3["raw/dones"][self.t]
        self.t += 1
        final = SB3["raw/final_obs"][t]
        infos = [{"terminal_observation": self.seen(final[n])} if dones[n] else {} for n in range(N)]
        return self.seen(SB3["raw/obs"][t + 1]), SB3["raw/rewards"][t].copy(), dones.copy(), infos


@pytest.mark.parametrize("case", CASES)
def test_it_is_that_of_sb3(case):
    """Observations, rewards, terminal observations and statistics at every step, switches included."""
    env = VecNormalize(Replayed(case == "dict"), **CASES[case])

    def check(t, obs):
        plain = obs["a"] if case == "dict" else obs
        np.testing.assert_allclose(plain, SB3[f"{case}/obs"][t], rtol=1e-6, atol=1e-6)
        if case == "dict":
            np.testing.assert_array_equal(obs["b"], 2 * SB3["raw/obs"][t])
        np.testing.assert_allclose(env.ret_rms.var, SB3[f"{case}/ret_var"][t], rtol=1e-7)  # its batches are float32
        np.testing.assert_allclose(env.ret_rms.mean, SB3[f"{case}/ret_mean"][t], rtol=1e-7)  # its batches are float32
        assert env.ret_rms.count == pytest.approx(SB3[f"{case}/ret_count"][t], rel=1e-12)
        if env.norm_obs:
            rms = env.obs_rms["a"] if case == "dict" else env.obs_rms
            np.testing.assert_allclose(rms.mean, SB3[f"{case}/mean"][t], rtol=1e-7)  # its batches are float32
            np.testing.assert_allclose(rms.var, SB3[f"{case}/var"][t], rtol=1e-7)  # its batches are float32
            assert rms.count == pytest.approx(SB3[f"{case}/count"][t], rel=1e-12)

    check(0, env.reset())
    terminal = []
    for t in range(T):
        env.training, env.norm_reward = not 200 <= t < 250, not 230 <= t < 270
        obs, rewards, dones, infos = env.step(np.zeros(N, int))
        check(t + 1, obs)
        np.testing.assert_allclose(rewards, SB3[f"{case}/rewards"][t], rtol=1e-6)
        assert obs["a" if case == "dict" else ...].dtype == rewards.dtype == np.float32
        np.testing.assert_array_equal(env.get_original_reward(), SB3["raw/rewards"][t])
        original = env.get_original_obs()
        np.testing.assert_array_equal(original["a"] if case == "dict" else original, SB3["raw/obs"][t + 1])
        last = [info["terminal_observation"] for info in infos if info]
        terminal += [x["a"] if case == "dict" else x for x in last]
        assert len(last) == dones.sum()
    np.testing.assert_allclose(np.stack(terminal), SB3[f"{case}/terminal"], rtol=1e-6, atol=1e-6)


def test_running_mean_std_is_that_of_sb3():
    rms, other = RunningMeanStd(shape=(2,)), RunningMeanStd(shape=(2,))
    batches = np.split(SB3["running/numbers"], np.cumsum(SB3["running/sizes"])[:-1])
    for i, batch in enumerate(batches):
        rms.update(batch)
        np.testing.assert_allclose(rms.mean, SB3["running/mean"][i], rtol=1e-10)
        np.testing.assert_allclose(rms.var, SB3["running/var"][i], rtol=1e-10)
        assert rms.count == pytest.approx(SB3["running/count"][i], rel=1e-12)
    before = rms.copy()
    other.update(batches[3])
    rms.combine(other)
    assert rms.count == before.count + other.count and (before.mean == SB3["running/mean"][-1]).all()


@pytest.fixture
def seen():
    """A `VecNormalize` around CartPole that has seen something, and its last observations."""
    env = VecNormalize(make_vec_env("CartPole-v1", 3, seed=0), clip_obs=1.0, gamma=0.9)
    obs = env.reset()
    for _ in range(30):
        obs, _, _, _ = env.step(np.ones(3, int))
    return env, obs


def test_normalising_can_be_undone(seen):
    env, obs = seen
    raw = env.get_original_obs()
    np.testing.assert_array_equal(env.normalize_obs(raw), obs)
    inside = np.abs(np.asarray(obs)) < 1.0
    np.testing.assert_allclose(env.unnormalize_obs(obs)[inside], raw[inside], rtol=1e-4, atol=1e-6)
    one = env.normalize_obs(raw[0])
    assert one.shape == (4,) and np.array_equal(one, obs[0])
    rewards = np.array([0.1, 0.2, -0.1], np.float32)
    np.testing.assert_allclose(env.unnormalize_reward(env.normalize_reward(rewards)), rewards, rtol=1e-6)
    env.norm_reward = False
    np.testing.assert_array_equal(env.normalize_reward(rewards), rewards)
    np.testing.assert_array_equal(env.unnormalize_reward(rewards), rewards)


def test_marks_follow_views_and_not_arithmetic(seen):
    env, obs = seen
    assert is_normalised(obs) and is_normalised(obs[0]) and is_normalised(obs[1:]) and is_normalised(obs.copy())
    assert not is_normalised(env.get_original_obs()) and not is_normalised(env.unnormalize_obs(obs))
    for plain in (obs + 1, 2 * obs, np.exp(obs), obs - obs):
        assert type(plain) is np.ndarray
    total = np.zeros_like(np.asarray(obs))
    total += obs
    assert type(total) is np.ndarray
    assert is_normalised({"a": obs, "b": total}) and not is_normalised({"b": total}) and not is_normalised([1, 2])
    obs += 1.0
    assert type(obs) is np.ndarray


def test_files_hold_statistics_and_settings(seen, tmp_path):
    env, _ = seen
    env.training = env.norm_reward = False
    path = tmp_path / "deep" / "vec_normalize.pkl"
    env.save(path)
    again = VecNormalize.load(path, make_vec_env("CartPole-v1", 2))
    for name in ("training", "norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys"):
        assert getattr(again, name) == getattr(env, name), name
    np.testing.assert_array_equal(again.obs_rms.mean, env.obs_rms.mean)
    np.testing.assert_array_equal(again.obs_rms.var, env.obs_rms.var)
    assert (again.obs_rms.count, again.ret_rms.count) == (env.obs_rms.count, env.ret_rms.count)
    assert again.ret_rms.var == env.ret_rms.var and again.num_envs == 2
    again.save(str(path))  # over the old one
    assert [p.name for p in path.parent.iterdir()] == ["vec_normalize.pkl"]


def test_files_of_other_kinds_are_refused(seen, tmp_path):
    env, _ = seen
    venv, path = make_vec_env("CartPole-v1", 1), tmp_path / "file"
    with pytest.raises(FileNotFoundError, match="no file of VecNormalize at .*check the path"):
        VecNormalize.load(path, venv)
    env.save(path)
    whole = path.read_bytes()
    arrays = safetensors.numpy.load(whole)
    wrong = [
        pickle.dumps({"a": 1}), b"", whole[: len(whole) // 2], safetensors.numpy.save(arrays),
        safetensors.numpy.save(arrays, {"vec_normalize": json.dumps({"clip_obs": 1.0})}),
        safetensors.numpy.save({"ret/mean": np.zeros(1)}, {"vec_normalize": "{}"}),
        safetensors.numpy.save(arrays, {"vec_normalize": "[]"}),
    ]  # fmt: skip
    for data in wrong:
        path.write_bytes(data)
        with pytest.raises(ValueError, match="was not written by VecNormalize.save"):
            VecNormalize.load(path, venv)


def test_statistics_of_another_shape_are_refused(seen, tmp_path):
    env, _ = seen
    env.save(tmp_path / "file")
    said = r"statistics have shape \(4,\), the environment's observations \(2,\)"
    with pytest.raises(ValueError, match=said):
        VecNormalize.load(tmp_path / "file", make_vec_env("MountainCar-v0", 1))
    with pytest.raises(ValueError, match=said):
        VecNormalize(make_vec_env("MountainCar-v0", 1)).obs_rms = env.obs_rms
    with pytest.raises(ValueError, match=r"ret_rms: statistics have shape \(4,\)"):
        env.ret_rms = env.obs_rms
    two = VecNormalize(Replayed(True))
    with pytest.raises(ValueError, match=r"statistics of 'b' have shape none, .* \(3,\)"):
        two.obs_rms = {"a": two.obs_rms["a"]}
    with pytest.raises(ValueError, match=r"sync_envs_normalization: statistics"):
        sync_envs_normalization(env, VecNormalize(make_vec_env("MountainCar-v0", 1)))


def test_synchronising_copies(seen):
    env, _ = seen
    other = VecNormalize(make_vec_env("CartPole-v1", 1), training=False)
    sync_envs_normalization(env, other)
    np.testing.assert_array_equal(other.obs_rms.mean, env.obs_rms.mean)
    count = env.obs_rms.count
    other.training = True
    other.reset()
    assert env.obs_rms.count == count and other.obs_rms.count == count + 1
    sync_envs_normalization(None, other)  # nothing to copy from: nothing is done
    sync_envs_normalization(env, DummyVecEnv([lambda: gymnasium.make("CartPole-v1")]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"clip_obs": -1.0}, "clip_obs=-1.0 .*positive"),
        ({"clip_reward": 0}, "clip_reward=0 .*positive"),
        ({"gamma": 2.0}, "gamma=2.0 .*between 0 and 1"),
        ({"norm_obs_keys": ["a"]}, "for Dict observations only"),
    ],
)
def test_settings_that_cannot_work_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        VecNormalize(make_vec_env("CartPole-v1", 1), **arguments)


def test_environments_that_it_cannot_wrap_are_refused():
    for wrong in (gymnasium.make("CartPole-v1"), gymnasium.make_vec("CartPole-v1", 2), "CartPole-v1"):
        with pytest.raises(TypeError, match="make_vec_env.*normalize=True"):
            VecNormalize(wrong)
    with pytest.raises(ValueError, match="needs observations of a Box, not a discrete space: set norm_obs=False"):
        VecNormalize(make_vec_env("FrozenLake-v1", 1))
    with pytest.raises(AttributeError, match="obs_rms"):
        VecNormalize(make_vec_env("FrozenLake-v1", 1), norm_obs=False).obs_rms  # noqa: B018
    env = VecNormalize(make_vec_env("CartPole-v1", 1))
    with pytest.raises(ValueError, match="wraps environments already"):
        env.set_venv(make_vec_env("CartPole-v1", 1))
    with pytest.raises(ValueError, match="normalised twice"):
        taken_off(VecNormalize(env))
    with pytest.raises(ValueError, match="norm_obs is built in"):
        env.norm_obs = False
    with pytest.raises(ValueError, match="clip_obs=-1 "):
        env.clip_obs = -1


def test_what_it_lacks_is_done_by_the_environments_inside():
    inside = make_vec_env("CartPole-v1", 2, seed=3)
    env = VecNormalize(inside)
    assert env.venv is inside and env.unwrapped is inside and env.envs is inside.envs
    assert env.get_attr("spec")[0].id == "CartPole-v1" and env.num_envs == 2 and env.first_seed == 3
    env.clip_obs, env.gamma = 0.5, 0.5
    assert (env.clip_obs, env.gamma, env.settings.clip_obs) == (0.5, 0.5, 0.5)
    assert np.abs(env.reset()).max() <= 0.5
    env.set_attr("some_name", 5)
    assert env.get_attr("some_name") == [5, 5]
    assert copy.deepcopy(env).obs_rms.count == env.obs_rms.count
    env.close()

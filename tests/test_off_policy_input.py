"""Off-policy models: what is said before training where nothing would be learned, and replay that cannot be used."""

import warnings

import numpy as np
import pytest
import safetensors.numpy

from advantage import DQN, SAC, TD3, TQC, CrossQ, DiscreteSAC, HerReplayBuffer, OrnsteinUhlenbeckActionNoise
from advantage.training.files import NotAModel

SMALL = {"buffer_size": 100, "batch_size": 4, "seed": 0, "policy_kwargs": {"net_arch": [4]}}


def test_nothing_will_be_learned():
    """`learning_starts` that training does not reach warns, with both numbers; counted over several calls of `learn`."""
    model = DQN("MlpPolicy", "CartPole-v1", learning_starts=50, **SMALL)
    with pytest.warns(UserWarning, match="learning_starts=50 is not reached in total_timesteps=50: .*lower it"):
        model.learn(50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(8, reset_num_timesteps=False)


def test_a_replay_memory_that_does_not_fit():
    """Refused before anything is allocated, with its size, the machine's, and what would fit."""
    with pytest.raises(ValueError, match=r"buffer_size=100000000000 needs [\d.]+ GiB for 2 seed.*GiB in all.*at most"):
        SAC("MlpPolicy", "Pendulum-v1", buffer_size=10**11, seeds=2)


def test_a_replay_memory_with_nan(tmp_path):
    """A file of a replay memory that holds a NaN is refused and the quantity named; the model keeps its own."""
    model = DQN("MlpPolicy", "CartPole-v1", learning_starts=1, **SMALL).learn(8)
    model.save_replay_buffer(tmp_path / "replay")
    arrays = safetensors.numpy.load_file(tmp_path / "replay")
    name = next(name for name, x in arrays.items() if x.dtype == np.float32)
    arrays[name] = arrays[name].copy()
    arrays[name].ravel()[0] = np.nan
    safetensors.numpy.save_file(arrays, tmp_path / "replay")
    before = [np.asarray(x) for x in (model._driver.memory.reward, model._driver.memory.obs)]
    with pytest.raises(NotAModel, match="NaN or an infinity"):
        model.load_replay_buffer(tmp_path / "replay")
    np.testing.assert_array_equal(before[0], model._driver.memory.reward)
    np.testing.assert_array_equal(before[1], model._driver.memory.obs)


@pytest.mark.parametrize(
    "given,sigma",
    [(0.2, 0.2), ("0.2", 0.2), ("normal_0.3", 0.3), (OrnsteinUhlenbeckActionNoise(0.0, 0.4), 0.4), ("ornstein-uhlenbeck_0.5", 0.5)],
)
def test_action_noise_in_its_forms(given, sigma, tmp_path):
    """A number, text as in presets, or an object; a model file keeps it."""
    model = SAC("MlpPolicy", "Pendulum-v1", action_noise=given, **SMALL)
    assert model.action_noise.sigma == (sigma,)
    assert ("Ornstein" in type(model.action_noise).__name__) == ("rnstein" in str(given))
    model.save(tmp_path / "model")
    assert SAC.load(tmp_path / "model").action_noise == model.action_noise


@pytest.mark.parametrize("wrong", ["gaussian_0.1", "normal", -0.1, [0.1], True])
def test_action_noise_that_is_none(wrong):
    with pytest.raises(ValueError, match="action_noise|sigma"):
        SAC("MlpPolicy", "Pendulum-v1", action_noise=wrong, **SMALL)


def test_predict_explores_as_in_sb3():
    """Noise and random first steps belong to training: `predict` is the policy's own choice, also in evaluation."""
    obs = np.asarray([[0.5, 0.5, 1.0]] * 3, np.float32)
    model = TD3("MlpPolicy", "Pendulum-v1", action_noise=0.5, **SMALL)
    actions = [model.predict(obs, deterministic=flag)[0] for flag in (False, False, True)]
    np.testing.assert_array_equal(actions[0], actions[2])
    np.testing.assert_array_equal(actions[1], actions[2])
    model = SAC("MlpPolicy", "Pendulum-v1", ent_coef=0.1, **SMALL)
    head = "['actor'].head.bias" if "['actor'].head.bias" in model.get_parameters()["policy"] else ".actor.head.bias"
    parameters = model.get_parameters()
    parameters["policy"][head] = np.asarray([0.3, -9.0], np.float32)  # hardly any deviation
    parameters["policy"][head.replace("bias", "weight")] *= 0
    model.set_parameters(parameters)
    sampled, mode = model.predict(obs)[0], model.predict(obs, deterministic=True)[0]
    np.testing.assert_allclose(sampled, mode, atol=0.01)  # a random action would be anywhere
    assert not np.array_equal(sampled, mode)


def test_the_agent_counts_its_steps_for_life():
    """A later `learn` that begins anew learns from its first step: no warning."""
    model = DQN("MlpPolicy", "CartPole-v1", learning_starts=20, **SMALL).learn(30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(10)


@pytest.mark.parametrize("train_freq", [0, -3, (0, "step"), (1, "steps")])
def test_train_freq_that_is_none(train_freq):
    with pytest.raises(ValueError, match="train_freq=.* is not understood"):
        SAC("MlpPolicy", "Pendulum-v1", train_freq=train_freq, **SMALL)


@pytest.mark.parametrize("face", [SAC, TQC, CrossQ, DiscreteSAC])
@pytest.mark.parametrize(
    "wrong", [{"ent_coef": "automatic"}, {"ent_coef": "auto_0"}, {"ent_coef": -0.1}, {"target_entropy": "auto_1"}]
)
def test_temperature_that_is_none(face, wrong):
    env = "CartPole-v1" if face is DiscreteSAC else "Pendulum-v1"
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name}=.*is not understood"):
        face("MlpPolicy", env, **SMALL, **wrong)


def test_words_of_policy_kwargs():
    """Plain numbers are cast, so that a file takes them; SB3's own defaults are accepted, what is not built refused."""
    small = {"buffer_size": 100, "batch_size": 4, "seed": 0}
    words = {"net_arch": [4], "dropout_rate": np.float32(0.25), "share_features_extractor": False}
    model = SAC("MlpPolicy", "Pendulum-v1", policy_kwargs=words, **small)
    assert type(model._config.dropout_rate) is float
    CrossQ("MlpPolicy", None, policy_kwargs={"batch_norm": True}, **small)
    with pytest.raises(ValueError, match="batch_norm"):
        CrossQ("MlpPolicy", None, policy_kwargs={"batch_norm": False}, **small)


def test_learning_starts_counts_real_steps_where_goals_are_relabelled():
    """Copies fill a small memory sooner than steps: nothing is learned before `learning_starts` even so."""
    model = DQN(
        "MultiInputPolicy", "goals/BitFlip-v0", buffer_size=60, learning_starts=50, batch_size=4, seed=0,
        train_freq=1, replay_buffer_class=HerReplayBuffer, policy_kwargs={"net_arch": [4]},
    )  # fmt: skip
    with pytest.warns(UserWarning, match="is not reached"):
        model.learn(50)
    assert int(model._driver.memory.size.sum()) == 60 and int(model._driver.state.n_updates[0]) == 0
    model.learn(10, reset_num_timesteps=False)
    assert int(model._driver.state.n_updates[0]) == 10


def test_an_episode_goes_on_over_two_calls_of_learn():
    """A chunk that was cut is filled up with rows that do not count: the episode is relabelled whole."""
    model = DQN(
        "MultiInputPolicy", "goals/BitFlip-v0", buffer_size=1000, learning_starts=1, batch_size=4, seed=0,
        train_freq=4, replay_buffer_class=HerReplayBuffer, policy_kwargs={"net_arch": [4]},
    )  # fmt: skip
    length = 8
    model.learn(6)
    model.learn(length + 4, reset_num_timesteps=False)
    held, ended = int(model._driver.memory.size.sum()), model._driver.episodes()
    lengths = model._driver.recent(0).lengths.sum()
    assert ended and held == 6 + length + 4 + 4 * lengths

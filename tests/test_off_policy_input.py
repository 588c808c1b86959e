"""Off-policy models: what is said before training where nothing would be learned, and replay that cannot be used."""

import warnings

import numpy as np
import pytest
import safetensors.numpy

from advantage import DQN, SAC, OrnsteinUhlenbeckActionNoise
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

"""The guard against NaN and infinity: it names the first bad quantity, and its file repeats what went wrong."""

import re

import gymnasium
import numpy as np
import pytest

from advantage import DQN, PPO, make_vec_env
from advantage.drivers.guard import NotFinite
from advantage.experiments.replay import replay
from advantage.training.files import NotAModel
from advantage.training.guard import TrainingFailure, first_bad
from advantage.training.loggers import configure

SMALL = {"policy_kwargs": {"net_arch": [8]}, "seed": 3, "seeds": 2}
SETTINGS = {
    PPO: {"n_steps": 16, "batch_size": 8, "n_epochs": 2, **SMALL},
    DQN: {"learning_starts": 20, "buffer_size": 64, "batch_size": 8, "train_freq": 4, **SMALL},
}


class Goes(gymnasium.Env):
    """Random observations, until step `at` of the second seed's environment brings a bad one for ever."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,))
    action_space = gymnasium.spaces.Discrete(2)
    made = 0

    def __init__(self, wrong, at=50):
        Goes.made += 1
        self.wrong, self.at, self.steps = wrong, at if Goes.made % 2 == 0 else 10**9, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.random(3).astype(np.float32), {}

    def step(self, action):
        self.steps += 1
        obs, reward = self.np_random.random(3).astype(np.float32), 1.0
        if self.steps >= self.at:
            obs[1] = {"obs": np.nan, "large obs": 1e38}.get(self.wrong, obs[1])
            reward = {"reward": np.inf, "large reward": 1e30}.get(self.wrong, reward)
        return obs, reward, self.steps % 20 == 0, False, {}


def model_on(face, wrong, **more):
    Goes.made = 0
    return face("MlpPolicy", make_vec_env(lambda: Goes(wrong), n_envs=1), **SETTINGS[face], **more)


def named_file(error):
    return re.search(r"advantage replay (\S+)$", str(error.value))[1]


@pytest.mark.parametrize("face", [PPO, DQN])
@pytest.mark.parametrize("wrong", ["obs", "reward"])
def test_what_an_environment_gave(face, wrong, tmp_path):
    model = model_on(face, wrong)
    with pytest.raises(NotFinite, match=f"env 0 of seed 4 gave an? {wrong} .* at step 50:") as error:
        model.learn(200, checkpoint_dir=tmp_path)
    path = named_file(error)
    assert path.startswith(str(tmp_path))
    again = replay(path)
    assert again.what == f"{wrong} of env 0" and again.seed == 4 and not again.metrics


@pytest.mark.parametrize(
    "face,wrong,what",
    [(PPO, "large reward", "the loss term train/value_loss"), (DQN, "large obs", "a gradient")],
)
def test_what_cannot_be_learned_from(face, wrong, what, tmp_path):
    """The update that was left out is done again from the file alone, and fails for the same quantity."""
    model = model_on(face, wrong)
    model.set_logger(configure(tmp_path, ["csv"]))
    with pytest.raises(TrainingFailure, match=rf"{what} of seed 4 \(seed index 1\)") as error:
        model.learn(400)
    model.logger.close()
    step = int(re.search(r"update at step (\d+)", str(error.value))[1])
    assert 50 <= step < 400 and step % (16 if face is PPO else 4) == 0
    again = replay(named_file(error))
    assert (again.what, again.expected, again.step, again.seed) == (what, what, step, 4)
    # The file is a model of that one agent, from just before.
    one = face.load(named_file(error))
    assert one.num_seeds == 1 and one.action_space.contains(int(one.predict(np.zeros(3, np.float32))[0]))


def test_what_a_normalised_agent_cannot_learn_from(tmp_path):
    """Its memory, the discounted returns so far, is in the file too: the same rewards come out."""
    model = model_on(PPO, "large reward", normalize={"norm_reward": False})
    with pytest.raises(TrainingFailure, match="the loss term train/value_loss of seed 4") as error:
        model.learn(400, checkpoint_dir=tmp_path)
    assert replay(named_file(error)).what == "the loss term train/value_loss"


@pytest.mark.parametrize("face", [PPO, DQN])
def test_parameters_that_overflow(face, tmp_path):
    """With a learning rate of 1e38 the parameters are the first that is not finite; on JAX environments too."""
    model = face("MlpPolicy", "advantage/ProbeEndings-v0", learning_rate=1e38, max_grad_norm=1e30, **SETTINGS[face])
    with pytest.raises(TrainingFailure, match="was NaN or infinite in the update at step") as error:
        model.learn(400, checkpoint_dir=tmp_path)
    again = replay(named_file(error))
    assert again.what is not None and again.what == again.expected


def test_the_segment_ends_with_the_update_that_went_wrong(tmp_path):
    """What a JAX environment's agent failed on is found by repeating the segment: the same update, the same step."""
    model = PPO("MlpPolicy", "advantage/CartPole-v1", learning_rate=1e25, **SETTINGS[PPO])
    model._driver._segment_updates = 64
    with pytest.raises(TrainingFailure) as error:
        model.learn(1024, checkpoint_dir=tmp_path)
    step = int(re.search(r"at step ([\d,]+)", str(error.value))[1].replace(",", ""))
    assert 16 <= step < 1024
    assert replay(named_file(error)).what is not None


def test_a_file_that_cannot_be_written(monkeypatch):
    """The error still says what happened."""
    model = model_on(PPO, "obs")
    monkeypatch.setattr("advantage.training.guard.tempfile.gettempdir", lambda: "/proc/nowhere")
    with pytest.raises(NotFinite, match="gave an obs.*could not be written"):
        model.learn(200)


def test_only_a_failure_is_repeated(tmp_path):
    PPO("MlpPolicy", "advantage/CartPole-v1", **SETTINGS[PPO]).save(tmp_path / "model")
    with pytest.raises(NotAModel, match="not one of a run that stopped"):
        replay(tmp_path / "model.zip")


def test_the_order_of_quantities():
    fine, bad = {"w": np.zeros(2, np.float32)}, {"w": np.array([0, np.nan], np.float32), "n": np.int32(1)}
    losses = {"train/loss": np.nan, "train/value_loss": np.inf, "train/approx_kl": np.nan}
    assert first_bad(bad, losses) == "the parameter ['w']"
    assert first_bad(fine, losses) == "the loss term train/value_loss"
    assert first_bad(fine, {"train/loss": np.nan}) == "the loss term train/loss"
    assert first_bad(fine, {"train/loss": 1.0, "train/approx_kl": np.nan}) == "a gradient"

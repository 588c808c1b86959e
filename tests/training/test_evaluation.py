"""Evaluation: SB3's meaning, every kind of environment, and training that does not notice it."""

from typing import ClassVar, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from jaxtyping import Array

from advantage import PPO, DummyVecEnv, evaluate_policy, make_vec_env
from advantage.envs.classic import CartPole
from advantage.envs.jax import Transition
from advantage.training import evaluation
from advantage.training.evaluation import evaluate_seeds, film, record_frames
from advantage.types import Space, Spec

SMALL = {"n_steps": 16, "batch_size": 32, "n_epochs": 2, "policy_kwargs": {"net_arch": [8]}}


class Countdown(gymnasium.Env):
    """Episodes of `length` steps that pay `reward` each; the observation is the time left."""

    observation_space = gymnasium.spaces.Box(0.0, 100.0, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, length: int = 3, reward: float = 1.0, truncates: bool = False):
        self.length, self.reward, self.truncates, self.rendered = length, reward, truncates, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = self.length
        return np.array([self.left], np.float32), {}

    def step(self, action):
        self.left -= 1
        over = self.left == 0
        obs = np.array([self.left], np.float32)
        return obs, self.reward, over and not self.truncates, over and self.truncates, {}

    def render(self):
        self.rendered += 1


class Policy:
    """Anything with SB3's `predict`; its state counts the steps of each episode, and it notes its calls."""

    def __init__(self):
        self.calls = []

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        state = np.zeros(len(episode_start), int) if state is None else state
        state = np.where(episode_start, 0, state) + 1
        self.calls.append((observation, state, deterministic))
        return np.zeros(len(observation), np.int64), state


class Fixed(NamedTuple):
    """How long an episode lasts, and how far it is."""

    length: Array
    steps: Array


class RandomLength:
    """A JAX environment with episodes of 1 to 30 steps that pay 1 each."""

    id: ClassVar[str] = "RandomLength"
    spec: ClassVar[Spec] = Spec(Space("box", (1,), low=0.0, high=30.0), Space("discrete", n=(2,), start=(0,)))

    def reset(self, key):
        state = Fixed(jax.random.randint(key, (), 1, 31), jnp.int32(0))
        return state, state.length.astype(jnp.float32)[None]

    def step(self, state, action, key):
        state = Fixed(state.length, state.steps + jnp.int32(1))
        obs = (state.length - state.steps).astype(jnp.float32)[None]
        return state, Transition(obs, jnp.float32(1), state.steps >= state.length, jnp.zeros((), bool))


@pytest.fixture(scope="module")
def model():
    """Two seeds, trained a little on CartPole."""
    return PPO("MlpPolicy", "CartPole-v1", n_envs=2, seeds=2, seed=5, **SMALL).learn(64)


def lengths_of(env, episodes, **options):
    """Returns and lengths under a policy that is not ours."""
    return evaluate_policy(Policy(), env, episodes, return_episode_rewards=True, **options)


def test_mean_and_deviation_over_episodes():
    env = DummyVecEnv([lambda: Countdown(2), lambda: Countdown(4, reward=2.0)])
    # Three episodes of the second environment, two of the first: SB3's division of five.
    returns, lengths = lengths_of(env, 5)
    assert sorted(returns) == [2.0, 2.0, 8.0, 8.0, 8.0]
    assert sorted(lengths) == [2, 2, 4, 4, 4]
    mean, deviation = evaluate_policy(Policy(), env, 5)
    assert mean == pytest.approx(np.mean(returns)) and deviation == pytest.approx(np.std(returns))


def test_short_episodes_do_not_count_more_often():
    env = DummyVecEnv([lambda: Countdown(1), lambda: Countdown(50)])
    assert sorted(lengths_of(env, 4)[1]) == [1, 1, 50, 50]


def test_a_single_environment_and_fewer_episodes_than_environments():
    assert lengths_of(Countdown(3, truncates=True), 2) == ([3.0, 3.0], [3, 3])
    assert len(lengths_of(DummyVecEnv([Countdown] * 4), 2)[0]) == 2


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_vector_environments_in_every_autoreset_mode(mode):
    env = SyncVectorEnv([lambda: Countdown(2), lambda: Countdown(5)], autoreset_mode=mode)
    policy = Policy()
    returns, lengths = evaluate_policy(policy, env, 4, return_episode_rewards=True)
    assert sorted(lengths) == [2, 2, 5, 5] and sorted(returns) == [2.0, 2.0, 5.0, 5.0]
    assert max(int(state.max()) for _, state, _ in policy.calls) <= 5 + (mode == AutoresetMode.NEXT_STEP)
    env.close()


def test_state_and_episode_starts_reach_the_policy():
    policy = Policy()
    evaluate_policy(policy, Countdown(3), 2, deterministic=False)
    assert [int(state[0]) for _, state, _ in policy.calls] == [1, 2, 3, 1, 2, 3]
    assert not any(deterministic for _, _, deterministic in policy.calls)


def test_threshold_callback_and_render():
    env, seen = Countdown(3), []
    evaluate_policy(Policy(), env, 2, render=True, callback=lambda names, _: seen.append(names))
    assert env.rendered == 6 and len(seen) == 6
    assert [names["done"] for names in seen] == [False, False, True] * 2
    assert [float(names["current_rewards"][0]) for names in seen] == [1.0, 2.0, 3.0] * 2
    assert evaluate_policy(Policy(), env, 1, reward_threshold=2.9)[0] == 3.0
    with pytest.raises(AssertionError, match="below threshold"):
        evaluate_policy(Policy(), env, 1, reward_threshold=3.0)


def test_recorded_statistics_decide():
    scale = gymnasium.wrappers.TransformReward
    inside = scale(gymnasium.wrappers.RecordEpisodeStatistics(Countdown(3)), lambda r: 10 * r)
    assert lengths_of(inside, 2) == ([3.0, 3.0], [3, 3])
    outside = scale(Countdown(3), lambda r: 10 * r)
    with pytest.warns(UserWarning, match="TransformReward changes the rewards"):
        assert lengths_of(outside, 1) == ([30.0], [3])
    lengths_of(outside, 1, warn=False)


def test_every_kind_of_environment(model):
    """Ids and instances, Gymnasium and JAX; the same call gives the same episodes."""
    vector = gymnasium.make_vec("CartPole-v1", 2)
    for env in ("CartPole-v1", "advantage/CartPole-v1", CartPole(), gymnasium.make("CartPole-v1"), vector):
        returns, lengths = evaluate_policy(model, env, 3, return_episode_rewards=True, seed=1)
        assert returns == lengths and len(returns) == 3 and min(returns) > 5
        assert evaluate_policy(model, env, 3, seed=1) == pytest.approx((np.mean(returns), np.std(returns)))
    vector.close()
    assert evaluate_policy(model.policy, "advantage/CartPole-v1", 3, seed_index=1)[0] > 5


def test_seeding_a_vector_environment_holds(model):
    first, second = (make_vec_env("CartPole-v1", 2, seed=7) for _ in range(2))
    assert evaluate_policy(model, first, 4) == evaluate_policy(model, second, 4)


def test_jax_episodes_are_unbiased_and_more_than_fit_side_by_side():
    model = PPO("MlpPolicy", RandomLength(), n_envs=2, seed=0, **SMALL)
    episodes = evaluation.MOST_ENVS + 150
    returns, lengths = evaluate_policy(model, RandomLength(), episodes, return_episode_rewards=True)
    assert returns == lengths and len(returns) == episodes
    assert set(lengths) == set(range(1, 31))
    assert np.mean(lengths) == pytest.approx(15.5, abs=3 * 8.66 / np.sqrt(episodes))


def test_a_callback_steps_a_jax_environment_by_hand():
    model, seen = PPO("MlpPolicy", RandomLength(), n_envs=2, seed=0, **SMALL), []
    options = {"return_episode_rewards": True, "callback": lambda names, _: seen.append(names["i"])}
    returns, lengths = evaluate_policy(model, RandomLength(), 4, **options)
    assert returns == lengths and len(seen) == sum(lengths)
    assert len(lengths_of(RandomLength(), 3)[0]) == 3


def test_training_does_not_notice():
    """Parameters after an evaluation in the middle, of the training environment too, are the same bits."""

    def trained(evaluating):
        model = PPO("MlpPolicy", "CartPole-v1", n_envs=2, seed=3, **SMALL).learn(64)
        if evaluating:
            evaluate_policy(model, model.get_env(), 3, deterministic=False)
            evaluate_policy(model, model.get_env().envs[0], 2)
            evaluate_policy(model, "CartPole-v1", 2, deterministic=False)
        model.learn(64, reset_num_timesteps=False)
        return model.get_parameters()["policy"], model.predict(np.zeros((5, 4), np.float32))[0]

    (expected, expected_actions), (found, actions) = trained(False), trained(True)
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    np.testing.assert_array_equal(actions, expected_actions)


def test_an_environment_that_cannot_be_copied_is_refused(monkeypatch):
    class Stubborn(Countdown):
        def __deepcopy__(self, memo):
            raise TypeError("a window is open")

    env = Stubborn()
    model = PPO("MlpPolicy", env, seed=0, **SMALL | {"batch_size": 16})
    with pytest.raises(ValueError, match="cannot be copied.*another"):
        evaluate_policy(model, env, 1)


def test_each_seed_is_evaluated_from_the_same_beginnings(model):
    for env in ("CartPole-v1", "advantage/CartPole-v1"):
        returns = evaluate_seeds(model, env, 5)
        assert returns.shape == (2, 5)
        np.testing.assert_array_equal(returns, evaluate_seeds(model, env, 5))
        assert not np.array_equal(returns, evaluate_seeds(model, env, 5, seed=1))
        alone = evaluate_policy(model, env, 5, return_episode_rewards=True, seed_index=1, seed=0)[0]
        assert sorted(alone) == sorted(returns[1])


def test_the_best_seed_is_chosen_explicitly(model):
    assert model.best_seed([1.0, 2.0]) == 1
    assert model.best_seed(np.array([[5.0, 5.0], [0.0, 9.0]])) == 0
    assert model.best_seed([np.nan, -3.0]) == 1
    with pytest.raises(ValueError, match=r"shape \(3,\), expected \(2,\)"):
        model.best_seed([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="NaN"):
        model.best_seed([np.nan, np.nan])


@pytest.mark.parametrize("env", ["CartPole-v1", "advantage/CartPole-v1"])
def test_pictures_of_an_episode(model, env):
    frames, total = record_frames(model, env, max_steps=4)
    assert len(frames) == 5 and total == 4.0  # the first shows the beginning
    assert {frame.shape for frame in frames} == {(400, 600, 3)} and frames[0].dtype == np.uint8
    assert not np.array_equal(frames[0], frames[-1])
    whole, total = record_frames(model, env, seed_index=1, seed=2)
    assert len(whole) == total + 1


def test_pictures_that_cannot_be_drawn_say_why(model):
    with pytest.raises(ValueError, match="render_mode=None"):
        record_frames(model, gymnasium.make("CartPole-v1"))
    with pytest.raises(ValueError, match="RandomLength draws no pictures"):
        record_frames(model, RandomLength())
    with pytest.raises(ValueError, match="the model trains on"):
        next(film(model, model.get_env().envs[0]))


def test_what_cannot_be_evaluated_says_why(model):
    with pytest.raises(ValueError, match="n_eval_episodes=0"):
        evaluate_policy(model, "CartPole-v1", 0)
    for env in ("Pendulum-v1", "advantage/Pendulum-v1"):
        with pytest.raises(ValueError, match="env's observation space"):
            evaluate_policy(model, env, 1)
    with pytest.raises(TypeError, match="env is a list"):
        evaluate_policy(model, [], 1)


def test_a_model_file_knows_its_environment(model, tmp_path):
    assert model.env_id == "CartPole-v1"
    model.save(tmp_path / "model.zip")
    assert PPO.load(tmp_path / "model.zip").env_id == "CartPole-v1"
    own = PPO("MlpPolicy", Countdown(), **SMALL | {"batch_size": 16})
    assert own.env_id is None

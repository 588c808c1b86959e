"""Environments with goals: ours are as they say, and what others lack is named before training."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as gymnasium_check

from advantage import DummyVecEnv
from advantage.envs.check import check_env
from advantage.envs.goal_rewards import GoalRewards
from advantage.envs.goals import BitFlip, PointReach
from advantage.envs.make import host_envs, resolve_env
from advantage.envs.vector import EnvironmentFailure


def played(env, policy, episodes):
    """`(share of episodes that end in success, their returns)`."""
    successes, returns = [], []
    env.reset(seed=0)
    for _ in range(episodes):
        (obs, _), total, over, cut = env.reset(), 0.0, False, False
        while not (over or cut):
            obs, reward, over, cut, info = env.step(policy(obs))
            total += reward
        successes.append(info["is_success"])
        returns.append(total)
    return float(np.mean(successes)), returns


@pytest.mark.parametrize("env_id", ["goals/PointReach-v0", "goals/BitFlip-v0"])
def test_ours_are_good_environments(env_id):
    """Gymnasium's and our own checks pass; rewards are those of `compute_reward`, one by one and in batches."""
    gymnasium_check(gymnasium.make(env_id).unwrapped, skip_render_check=True)
    check_env(gymnasium.make(env_id))
    env = gymnasium.make(env_id).unwrapped
    env.action_space.seed(0)
    obs, _ = env.reset(seed=0)
    seen, rewards, over, cut = [], [], False, False
    while not (over or cut):
        assert env.observation_space.contains(obs)
        obs, reward, over, cut, info = env.step(env.action_space.sample())
        seen.append(obs)
        rewards.append(reward)
        assert (reward == 0) == info["is_success"]
    goals = [np.stack([x[name] for x in seen]) for name in ("achieved_goal", "desired_goal")]
    np.testing.assert_array_equal(env.compute_reward(*goals, [{}] * len(seen)), rewards)
    np.testing.assert_array_equal(env.compute_reward(goals[0], goals[0], [{}] * len(seen)), np.zeros(len(seen)))


def test_point_reach():
    """Going straight to the goal succeeds always, chance almost never; episodes last 50 steps and are cut."""
    env = PointReach()
    straight, returns = played(env, lambda obs: (obs["desired_goal"] - obs["observation"]) / env.SPEED, 100)
    assert straight == 1.0 and min(returns) >= -19
    rng = np.random.default_rng(0)
    chance, returns = played(env, lambda obs: rng.uniform(-1, 1, 2), 200)
    assert chance < 0.05 and np.mean(returns) < -48


def test_bit_flip():
    """Flipping the bits that differ succeeds always, chance almost never."""
    best, returns = played(BitFlip(8), lambda obs: int(np.argmax(obs["observation"] != obs["desired_goal"])), 100)
    assert best == 1.0 and min(returns) >= -7
    rng = np.random.default_rng(0)
    assert played(BitFlip(8), lambda obs: int(rng.integers(8)), 300)[0] < 0.08


class Faulty(PointReach):
    """PointReach with a `compute_reward` of another kind."""

    def __init__(self, compute_reward=None):
        super().__init__()
        self.other = compute_reward

    def compute_reward(self, achieved_goal, desired_goal, info):
        if np.ndim(achieved_goal) == 1:
            return super().compute_reward(achieved_goal, desired_goal, info)
        return self.other(achieved_goal, desired_goal, info)


def rewards_of(env):
    return GoalRewards(host_envs(resolve_env(env, 1), 1))


def without(key):
    """PointReach that does not show one of its observations."""

    class Hiding(gymnasium.ObservationWrapper):
        def __init__(self):
            super().__init__(PointReach())
            self.observation_space = spaces.Dict({k: x for k, x in self.env.observation_space.items() if k != key})

        def observation(self, observation):
            return {name: x for name, x in observation.items() if name != key}

    return Hiding()


def test_missing_observations_are_named():
    """All that an environment with goals would have, in one message."""
    for key in ("observation", "achieved_goal", "desired_goal"):
        with pytest.raises(ValueError, match=f"env has no '{key}' among its observations:"):
            rewards_of(without(key))
    with pytest.raises(ValueError, match="box observations in place of a Dict.*no method compute_reward"):
        rewards_of(gymnasium.make("CartPole-v1"))
    with pytest.raises(ValueError, match="gymnasium.vector"):
        rewards_of(gymnasium.make_vec("CartPole-v1", 2))


def test_goals_of_two_spaces():
    """What is reached has to be of the space of what is wanted."""
    env = without("nothing")
    parts = dict(env.observation_space.items())
    env.observation_space = spaces.Dict({**parts, "desired_goal": spaces.Box(-1, 1, (3,))})
    env.observation = lambda obs: {**obs, "desired_goal": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match="'achieved_goal' of another space than its 'desired_goal'"):
        rewards_of(env)


@pytest.mark.parametrize(
    ("compute_reward", "message"),
    [
        (lambda achieved, desired, info: np.float32(-1), r"answered shape \[\], expected \[2\].*batches"),
        (lambda achieved, desired, info: float(np.array(achieved) @ desired), "raised TypeError.*batches"),
        (lambda achieved, desired, info: np.full(len(achieved), np.nan), "NaN or infinite"),
    ],
)
def test_rewards_have_to_be_batched(compute_reward, message):
    """A `compute_reward` of single goals only is found before training."""
    with pytest.raises(ValueError, match=message):
        rewards_of(Faulty(compute_reward))


def test_each_environment_answers_for_itself():
    """The environment at the place asked computes the rewards, and gets an empty info for each."""
    asked = []

    def make(name):
        def compute_reward(achieved, desired, info):
            asked.append((name, info))
            return np.zeros(len(achieved))

        return Faulty(compute_reward)

    rewards = GoalRewards(host_envs(DummyVecEnv([lambda: make("first"), lambda: make("second")]), 1))
    asked.clear()
    goals = np.zeros((3, 2), np.float32)
    assert rewards(1, goals, goals).dtype == np.float32
    assert asked == [("second", [{}, {}, {}])]
    rewards.envs.envs[0].unwrapped.other = lambda *given: np.full(3, np.inf)
    with pytest.raises(EnvironmentFailure, match=r"compute_reward of goals \[3, 2\] answered a reward that is NaN"):
        rewards(0, goals, goals)

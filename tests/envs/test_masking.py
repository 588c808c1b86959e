"""Which actions are legal: who says so, and what happens when nobody does."""

import gymnasium
import numpy as np
import pytest

from advantage import (
    PPO,
    ActionMasker,
    DummyVecEnv,
    MaskablePPO,
    SubprocVecEnv,
    evaluate_policy,
    get_action_masks,
    is_masking_supported,
)
from advantage.envs.jax import make_jax
from advantage.envs.vector import EnvironmentFailure, check_masks

SMALL = {"n_steps": 16, "batch_size": 16, "n_epochs": 2, "policy_kwargs": {"net_arch": [8]}, "seed": 0}


class Turns(gymnasium.Env):
    """At step t only action t modulo 4 is legal; any other is an error. Ends after 6 steps."""

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,))
    action_space = gymnasium.spaces.Discrete(4)
    spoilt: np.ndarray | None = None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {"action_mask": self.legal()}

    def step(self, action):
        assert self.legal()[action], "an illegal action"
        self.steps += 1
        return np.full(1, self.steps / 6, np.float32), 1.0, self.steps == 6, False, {"action_mask": self.legal()}

    def legal(self):
        if self.spoilt is not None and self.steps == 3:
            return self.spoilt
        return np.arange(4) == self.steps % 4


def spoilt(mask):
    env = Turns()
    env.spoilt = mask
    return ActionMasker(env, "legal")


SOURCES = {"function": lambda env: env.legal(), "method": "legal", "info": None}


@pytest.mark.parametrize("source", SOURCES)
def test_only_legal_actions_are_chosen(source):
    """In training and in evaluation; whatever says what is legal."""
    env = ActionMasker(Turns(), SOURCES[source])
    model = MaskablePPO("MlpPolicy", env, **SMALL).learn(64)
    assert evaluate_policy(model, env, n_eval_episodes=3)[0] == 6.0
    obs, _ = env.reset()
    for t in range(6):
        action, _ = model.predict(obs, action_masks=get_action_masks(env))
        assert action == t % 4
        obs, *_ = env.step(action)


def test_a_vector_of_environments_is_asked_at_once():
    """`[N, choices]`, in this process and in others."""
    makers = [lambda: ActionMasker(Turns(), "legal")] * 3
    for vector in (DummyVecEnv(makers), SubprocVecEnv(makers)):
        assert is_masking_supported(vector)
        vector.reset()
        np.testing.assert_array_equal(get_action_masks(vector), np.eye(4, dtype=bool)[[0, 0, 0]])
        vector.step(np.zeros(3, np.int64))
        np.testing.assert_array_equal(get_action_masks(vector), np.eye(4, dtype=bool)[[1, 1, 1]])
        vector.close()


def test_who_says_nothing():
    """MaskablePPO asks for masks before anything is trained; PPO takes any environment."""
    for env in ("CartPole-v1", Turns(), "advantage/CartPole-v1"):
        with pytest.raises(ValueError, match="does not say which actions are legal: give it a method action_masks"):
            MaskablePPO("MlpPolicy", env, **SMALL)
    assert not is_masking_supported(Turns()) and not is_masking_supported(make_jax("advantage/CartPole-v1"))
    for env in (Turns(), make_jax("advantage/CartPole-v1")):
        with pytest.raises(ValueError, match="does not say which actions are legal"):
            get_action_masks(env)
    assert MaskablePPO("MlpPolicy", **SMALL).n_steps == 16
    with pytest.raises(ValueError, match="'leagl': .* has no such method: give a function of env"):
        ActionMasker(Turns(), "leagl")
    told = ActionMasker(gymnasium.make("CartPole-v1"))
    told.reset()
    with pytest.raises(ValueError, match=r"has no 'action_mask', only \[\]: give action_mask_fn"):
        told.action_masks()


def test_nothing_legal_is_an_error():
    """Named by environment and component, when it happens: what was trained is kept."""
    check_masks(np.array([[True, False, True]]), (2, 1), str)
    for masks, choices, says in (
        ([[True, True], [False, False]], (2,), r"^1: action_masks\(\) allows no action: leave"),
        ([[True, False, False]], (1, 2), r"^0: action_masks\(\) allows no action of component 1: leave"),
    ):
        with pytest.raises(EnvironmentFailure, match=says):
            check_masks(np.array(masks), choices, str)
    for env in (spoilt(np.zeros(4, bool)), SubprocVecEnv([lambda: spoilt(np.zeros(4, bool))])):
        model = PPO("MlpPolicy", env, **SMALL)
        with pytest.raises(EnvironmentFailure, match="allows no action"):
            model.learn(64)


def test_a_mask_of_another_length_is_an_error():
    """Also one that would be broadcast."""
    for mask in (np.ones(3, bool), np.ones(1, bool)):
        model = PPO("MlpPolicy", spoilt(mask), **SMALL)
        with pytest.raises(EnvironmentFailure, match=r"cannot reshape array of size [13] .* in action_masks\(\)"):
            model.learn(64)

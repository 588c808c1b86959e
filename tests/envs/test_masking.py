"""Which actions are legal: who says so, and what happens when nobody does."""

import functools

import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest

from advantage import (
    DQN,
    PPO,
    ActionMasker,
    DummyVecEnv,
    MaskableEvalCallback,
    MaskablePPO,
    SubprocVecEnv,
    VecNormalize,
    check_env,
    evaluate_policy,
    get_action_masks,
    is_masking_supported,
    make_vec_env,
)
from advantage.envs.classic import CartPole
from advantage.envs.jax import make_jax
from advantage.envs.vector import EnvironmentFailure, SyncEnvs, check_masks

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
    with pytest.raises(ValueError, match="get_action_masks: .* does not say which actions are legal"):
        get_action_masks(Turns())
    with pytest.raises(ValueError, match="is a JAX environment: ask env.action_mask"):
        get_action_masks(make_jax("advantage/CartPole-v1"))
    assert MaskablePPO("MlpPolicy", **SMALL).n_steps == 16
    with pytest.raises(TypeError, match="env='CartPole-v1' is an id: give the environment"):
        is_masking_supported("CartPole-v1")
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
        with pytest.raises(EnvironmentFailure, match=r"returned [13] entries: return 4, one for .* in action_masks\(\)"):
            model.learn(64)


def test_an_unmasked_environment_does_not_replace_a_masked_one():
    """`set_env` refuses it before anything is changed."""
    model = MaskablePPO("MlpPolicy", env := ActionMasker(Turns(), "legal"), **SMALL).learn(16)
    before = model.get_env()
    with pytest.raises(ValueError, match="does not say which actions are legal"):
        model.set_env(Turns())
    assert model.get_env() is before and before.envs[0] is env
    model.learn(16, reset_num_timesteps=False, use_masking=True)
    with pytest.raises(ValueError, match="use_masking=False: MaskablePPO always masks; use PPO"):
        model.learn(16, use_masking=False)


class Bits(Turns):
    """Actions of a kind that has no choices."""

    action_space = gymnasium.spaces.MultiBinary(4)

    def step(self, action):
        return super().step(self.steps % 4)

    def action_masks(self):
        return np.ones(8, bool)


def test_actions_that_are_no_choices_have_no_masks():
    """MaskablePPO says so, PPO never asks."""
    with pytest.raises(ValueError, match="only Discrete and MultiDiscrete actions can be illegal"):
        MaskablePPO("MlpPolicy", Bits(), **SMALL)
    assert not is_masking_supported(Bits())
    assert SyncEnvs([[Bits()]]).reset(None).action_mask is None
    with pytest.raises(ValueError, match="action_masks is for Discrete and MultiDiscrete actions, not MultiBinary"):
        PPO("MlpPolicy", Bits(), **SMALL).predict(np.zeros(1, np.float32), action_masks=np.ones(8, bool))


def test_masks_of_all_or_none():
    """A vector in which some environments have masks is refused, in this process and in others."""
    makers = [lambda: ActionMasker(Turns(), "legal"), lambda: Turns()]
    for vector in (lambda: PPO("MlpPolicy", DummyVecEnv(makers), **SMALL), lambda: SubprocVecEnv(makers)):
        with pytest.raises(ValueError, match=r"^env 1 has no action_masks\(\) and env 0 has: give it to all"):
            vector()


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (np.ones(3, bool), r"action_masks has shape \(3,\): expected \(1, 4\), an entry for each choice of Discrete"),
        (np.ones((2, 4), bool), r"action_masks has shape \(2, 4\): expected \(1, 4\)"),
        (np.zeros(4, bool), "action_masks allows no action in row 0: leave one legal"),
        (np.full(4, np.nan), "action_masks: it returned .*nan.*: return True where an action is legal"),
        ([True, False], "action_masks: it returned 2 entries: return 4"),
    ],
)
def test_masks_given_to_predict_are_checked(mask, says):
    """Before anything is chosen."""
    with pytest.raises(ValueError, match=says):
        PPO("MlpPolicy", Turns(), **SMALL).predict(np.zeros(1, np.float32), action_masks=mask)


class Pairs(gymnasium.Env):
    """Two components of 3 and 2 choices; legal are 1 and 0, told as a tuple."""

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,))
    action_space = gymnasium.spaces.MultiDiscrete([3, 2])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert tuple(action) == (1, 0), "an illegal action"
        return np.zeros(1, np.float32), 1.0, False, True, {}

    def action_masks(self):
        return np.array([False, True, False]), np.array([True, False])


def test_vectors_that_hand_no_masks_on_are_refused():
    """What their members allow would go unheard."""
    makers = [lambda: ActionMasker(Turns(), "legal")] * 2
    for face in (PPO, MaskablePPO):
        with pytest.raises(ValueError, match="SyncVectorEnv of environments with action_masks.*give make_vec_env"):
            face("MlpPolicy", gymnasium.vector.SyncVectorEnv(makers), **SMALL)


def test_masks_of_several_observations():
    """Rows for each, also of components apart; what is turned round is not taken."""
    model = PPO("MlpPolicy", Pairs(), **SMALL)
    obs, one = np.zeros((2, 1), np.float32), Pairs().action_masks()
    for masks in (np.array([[0, 1, 0, 1, 0]] * 2), [one, one]):
        np.testing.assert_array_equal(model.predict(obs, action_masks=masks)[0], [[1, 0], [1, 0]])
    np.testing.assert_array_equal(model.predict(obs[0], action_masks=one)[0], [1, 0])
    with pytest.raises(ValueError, match=r"action_masks has shape \(5, 2\): expected \(2, 5\)"):
        model.predict(obs, action_masks=np.ones((5, 2), bool))
    with pytest.raises(ValueError, match="action_masks has 1 rows for 2 observations"):
        model.predict(obs, action_masks=[one])


def test_components_may_be_a_tuple():
    """In training, for `predict`, and for whoever asks."""
    model = MaskablePPO("MlpPolicy", SubprocVecEnv([Pairs, Pairs]), **SMALL).learn(32)
    assert evaluate_policy(model, Pairs(), n_eval_episodes=2, warn=False)[0] == 1.0
    np.testing.assert_array_equal(get_action_masks(Pairs()), [False, True, False, True, False])
    model = MaskablePPO("MlpPolicy", normalised := VecNormalize(DummyVecEnv([Pairs])), **SMALL)
    assert is_masking_supported(normalised) and get_action_masks(normalised).shape == (1, 5)
    check_env(Pairs())


def test_evaluation_without_masks():
    """`use_masking=False` asks no one; SB3-contrib's callback takes the word too."""
    env = ActionMasker(Turns(), "legal")
    model = MaskablePPO("MlpPolicy", env, **SMALL)
    assert evaluate_policy(model, env, n_eval_episodes=1, warn=False, use_masking=True)[0] == 6.0
    with pytest.raises(EnvironmentFailure, match="an illegal action"):
        evaluate_policy(model, env, n_eval_episodes=1, warn=False, use_masking=False)
    model.learn(16, callback=MaskableEvalCallback(masked(), eval_freq=8, n_eval_episodes=1, verbose=0))
    callback = MaskableEvalCallback(masked(), eval_freq=8, n_eval_episodes=1, verbose=0, use_masking=False)
    with pytest.raises(EnvironmentFailure, match="an illegal action"):
        model.learn(16, callback=callback)


def masked():
    return ActionMasker(Turns(), "legal")


def test_masks_of_jax_environments_are_as_long_as_there_are_choices():
    """Checked without running anything."""

    class Short(CartPole):
        def action_mask(self, env_state):
            return jnp.ones(1, bool)

    with pytest.raises(ValueError, match=r"has shape \(1,\): Discrete\(2\) has 2 choices, one entry for each"):
        PPO("MlpPolicy", Short(), **SMALL)


class Over(gymnasium.Env):
    """Cuts its episodes after 5 steps by itself; then it cannot say what is legal (`answer` None), or says nonsense."""

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,))
    action_space = gymnasium.spaces.Discrete(4)

    def __init__(self, answer=None):
        self.answer = answer

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert self.action_masks()[action], "an illegal action"
        self.steps += 1
        return np.full(1, self.steps / 5, np.float32), 1.0, False, self.steps == 5, {}

    def action_masks(self):
        if self.steps < 5:
            return np.arange(4) == self.steps % 4
        if self.answer is None:
            raise RuntimeError("the game is over")
        return self.answer


@pytest.mark.parametrize("answer", [None, np.ones(3, bool)], ids=["raises", "another length"])
def test_no_mask_at_the_end_of_an_episode_fails_nothing(answer):
    """Nobody acts there: training goes on, on- and off-policy, and so does an evaluation; everything counts as legal."""
    make = functools.partial(Over, answer)
    model = PPO("MlpPolicy", make(), **SMALL)
    try:
        failure = None
        model.learn(64)
    except Exception as error:  # of whatever kind
        failure = error
    assert failure is None
    assert evaluate_policy(model, make(), n_eval_episodes=3, warn=False) == (5.0, 0.0)
    model = DQN("MlpPolicy", make(), seed=0, learning_starts=8, buffer_size=64, policy_kwargs={"net_arch": [4]}).learn(64)
    ended = np.asarray(model._driver.memory.flags)[0] == 4  # truncated
    assert ended.sum() > 5 and np.asarray(model._driver.memory.next_mask)[0][ended].all()


def test_no_mask_at_the_end_fails_no_worker():
    """The same in processes."""
    vector = make_vec_env(Over, 2, vec_env="async")
    PPO("MlpPolicy", vector, **SMALL).learn(64)
    vector.close()

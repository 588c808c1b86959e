"""Every fault of an environment is named in one line, before training."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from advantage.envs.check import InvalidEnvironment, check_env, first_nonfinite


class Good(gymnasium.Env):
    """A correct environment; each faulty one below differs from it in one place."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)
    obs = np.zeros(2, np.float32)
    reward, terminated, truncated = 1.0, False, False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.obs, {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.steps += 1
        return self.obs, self.reward, self.terminated, self.truncated, {}


def faulty(**members):
    return type("Faulty", (Good,), members)()


def message(env):
    with pytest.raises(InvalidEnvironment) as error:
        check_env(env)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    return str(error.value)


GOOD = [
    Good(),
    faulty(terminated=True),
    faulty(terminated=np.bool_(False), truncated=np.True_, reward=np.float64(2)),
    faulty(reward=3, obs=[0.5, -1.0]),
    faulty(observation_space=spaces.Box(0, 255, (4, 4, 3), np.uint8), obs=np.zeros((4, 4, 3), np.uint8)),
    faulty(observation_space=spaces.Discrete(3, start=-1), obs=-1),
    faulty(observation_space=spaces.MultiBinary(2), obs=np.array([0, 1])),
    faulty(action_space=spaces.Discrete(3, start=4)),
    faulty(action_space=spaces.MultiDiscrete([2, 3])),
    faulty(action_space=spaces.MultiBinary(3)),
    faulty(action_space=spaces.Box(np.array([1.0, -2.0], np.float32), np.array([3.0, -1.0], np.float32))),
    faulty(
        observation_space=spaces.Dict(b=spaces.Discrete(2), a=spaces.Tuple([spaces.Box(-1, 1, (1,))])),
        obs={"a": (np.zeros(1),), "b": 1},
    ),
    # Rounding: 0.1 in float64 is less than the space's float32 bound.
    faulty(observation_space=spaces.Box(np.float32(0.1), 1.0, (2,)), obs=np.array([0.1, 1.0])),
]


@pytest.mark.parametrize("env", GOOD)
def test_correct_environments_pass_and_are_left_reset(env):
    check_env(env)
    assert env.steps == 0
    env.step(env.action_space.sample())


@pytest.mark.parametrize("id", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "Taxi-v4", "Blackjack-v1"])
def test_gymnasiums_own_pass(id):
    env = gymnasium.make(id, disable_env_checker=False)
    check_env(env)
    env.step(env.action_space.sample())


OBSERVATIONS = [
    (np.zeros(3, np.float32), ["shape (3,)", "(2,)", "change the space"]),
    (np.zeros((1, 2), np.float32), ["shape (1, 2)"]),
    (np.array([0.0, np.nan]), ["element[1] is nan", "not finite", "divisions by 0"]),
    (np.array([np.inf, 0.0]), ["element[0] is inf", "not finite"]),
    (np.array([0.0, 1.5]), ["element[1] is 1.5", "above the space's high 1.0", "clip it or widen"]),
    (np.array([-2.0, 0.0]), ["element[0] is -2.0", "below the space's low -1.0"]),
    (np.array(["a", "b"]), ["dtype <U1", "float32", "astype"]),
    (None, ["None", "dtype object"]),
]


@pytest.mark.parametrize("obs, words", OBSERVATIONS)
def test_observations(obs, words):
    said = message(faulty(obs=obs))
    assert said.startswith("observation of reset()") and all(word in said for word in words), said

    class LaterFaulty(Good):
        def step(self, action):
            return obs, *super().step(action)[1:]

    said = message(LaterFaulty())
    assert said.startswith("observation of step()") and all(word in said for word in words), said


def test_observations_of_other_spaces():
    image = spaces.Box(0, 255, (2, 2, 1), np.uint8)
    said = message(faulty(observation_space=image, obs=np.zeros((2, 2, 1), np.float32)))
    assert "dtype float32 where the space has uint8" in said and "astype('uint8')" in said
    said = message(faulty(observation_space=spaces.Discrete(3), obs=3))
    assert "element is 3, above the space's high 2" in said
    nested = spaces.Dict(a=spaces.Box(-1, 1, (1,)), b=spaces.Discrete(2))
    assert "keys ['a']" in message(faulty(observation_space=nested, obs={"a": np.zeros(1)}))
    said = message(faulty(observation_space=nested, obs={"a": np.ones(1) * 7, "b": 0}))
    assert "observation of reset()['a']: element[0] is 7.0" in said
    pair = spaces.Tuple([spaces.Discrete(2), spaces.Discrete(2)])
    assert "return a tuple of 2 members" in message(faulty(observation_space=pair, obs=[0, 0]))
    assert "observation of reset()[1]" in message(faulty(observation_space=pair, obs=(0, 5)))


@pytest.mark.parametrize(
    "reward, words",
    [
        (np.array([1.0]), ["reward is array([1.])", "shape (1,)", "float(reward)"]),
        ([1.0, 2.0], ["shape (2,)"]),
        (float("nan"), ["reward is nan", "not a finite number"]),
        (float("inf"), ["reward is inf", "not a finite number"]),
        (None, ["reward is None (NoneType)", "return a float"]),
        ("1", ["(str)", "return a float"]),
    ],
)
def test_rewards(reward, words):
    said = message(faulty(reward=reward))
    assert all(word in said for word in words), said


@pytest.mark.parametrize("name", ["terminated", "truncated"])
@pytest.mark.parametrize("value", [0, None, np.array([False]), 1.0])
def test_flags(name, value):
    said = message(faulty(**{name: value}))
    assert said.startswith(f"{name} is {value!r}") and f"return bool({name})" in said


def test_reset_must_return_a_pair():
    said = message(faulty(reset=lambda self, seed=None, options=None: np.zeros(2, np.float32)))
    assert "reset() returned array([0., 0.]" in said and "(obs, info)" in said
    # Two numbers are not a pair of observation and info.
    said = message(faulty(reset=lambda self, seed=None, options=None: (0.0, 0.0)))
    assert "(obs, info)" in said


def test_reset_must_accept_a_seed():
    class NoSeed(Good):
        def reset(self):
            return self.obs, {}

    said = message(NoSeed())
    assert "reset(seed=" in said and "seed=None" in said and "super().reset(seed=seed)" in said
    assert "super().reset(seed=seed)" in message(gymnasium.wrappers.TimeLimit(NoSeed(), 5))


def test_step_must_return_five():
    said = message(faulty(step=lambda self, action: (self.obs, 1.0, False, {})))
    assert "step() returned 4 values" in said and "terminated, truncated" in said and "shimmy" in said
    said = message(faulty(step=lambda self, action: self.obs))
    assert "step() returned array" in said and "return 5 values" in said
    said = message(faulty(step=lambda self, action: (self.obs, 1.0, False, False, None)))
    assert "info of step() is None" in said


@pytest.mark.parametrize("checker", [False, True])
def test_faults_under_gymnasiums_wrappers(checker, recwarn):
    """`gymnasium.make` adds wrappers that would fail or warn first, in their own words."""

    def wrapped(**members):
        env = faulty(**members)
        if checker:
            env = gymnasium.wrappers.PassiveEnvChecker(env)
        return gymnasium.wrappers.TimeLimit(gymnasium.wrappers.OrderEnforcing(env), 5)

    assert "4 values" in message(wrapped(step=lambda self, action: (self.obs, 1.0, False, {})))
    assert "shape (3,)" in message(wrapped(obs=np.zeros(3, np.float32)))
    assert "terminated is 0" in message(wrapped(terminated=0))
    said = message(wrapped(reset=lambda self, seed=None, options=None: np.zeros(2, np.float32)))
    assert "(obs, info)" in said
    good = wrapped()
    check_env(good)
    good.step(1)
    assert not recwarn.list


def test_spaces():
    assert "observation_space is missing or None" in message(faulty(observation_space=None))
    assert "action_space is missing or None" in message(faulty(action_space=None))
    said = message(faulty(observation_space=(2,)))
    assert "observation_space is (2,), not a space" in said and "gymnasium.spaces" in said
    said = message(faulty(observation_space=spaces.Text(5)))
    assert "observation_space" in said and "not supported" in said and "use Box" in said
    said = message(faulty(action_space=spaces.Dict(a=spaces.Discrete(2))))
    assert "Dict and Tuple actions are not supported" in said and "MultiDiscrete" in said


def test_objects_that_are_no_environment():
    assert "pass an instance, Good()" in message(Good)
    said = message("CartPole-v1")
    assert "builtins.str without reset()" in said and "gymnasium.make" in said


def test_old_gym():
    OldEnv = type("OldEnv", (), {"__module__": "gym.core", "reset": None, "step": None})
    Mine = type("Mine", (OldEnv,), {"__module__": "__main__"})
    for env in (OldEnv(), Mine()):
        said = message(env)
        assert "`gym`" in said and "gymnasium.make" in said and "shimmy" in said
    OldBox = type("Box", (), {"__module__": "gym.spaces.box"})
    assert "observation_space is a space of `gym`" in message(faulty(observation_space=OldBox()))


def test_what_the_environment_raises_is_the_cause():
    def step(self, action):
        raise KeyError("price\nof oil")

    said = message(faulty(step=step))
    assert "step() raised KeyError" in said and "price" in said
    with pytest.raises(InvalidEnvironment) as error:
        check_env(faulty(step=step))
    assert isinstance(error.value.__cause__, KeyError)


def test_action_masks():
    def only_last(self):
        return np.array([False, True])

    def step(self, action):
        assert action == 1
        return Good.step(self, action)

    check_env(faulty(action_masks=only_last, step=step))
    said = message(faulty(action_masks=lambda self: np.zeros(2, bool)))
    assert "allows no action" in said
    assert "returned 3 entries: return 2" in message(faulty(action_masks=lambda self: np.ones(3, bool)))


def test_an_unseeded_run_stays_random():
    env, draws = Good(), set()
    for _ in range(4):
        check_env(env)
        env.reset()
        draws.add(env.np_random.random())
    assert len(draws) == 4
    state = np.random.get_state()[1].copy()
    check_env(env)
    np.testing.assert_array_equal(state, np.random.get_state()[1])


MODES = list(gymnasium.vector.AutoresetMode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("env", GOOD)
def test_vector_environments_pass(env, mode):
    envs = gymnasium.vector.SyncVectorEnv([type(env)] * 3, autoreset_mode=mode)
    check_env(envs)
    envs.step(envs.action_space.sample())


@pytest.mark.parametrize(
    "place, value, words",
    [
        (0, np.zeros((2, 3), np.float32), ["shape (2, 3)", "(3, 2)"]),
        (0, np.full((3, 2), 2.0), ["element[0, 0] is 2.0", "above"]),
        (1, np.zeros((3, 1)), ["reward", "shape (3, 1)", "3 environments"]),
        (1, np.array([0.0, np.nan, 0.0]), ["reward", "element[1] is nan"]),
        (2, np.zeros(3), ["terminated", "float64", "bool"]),
        (3, False, ["truncated", "shape ()"]),
    ],
)
def test_vector_faults(place, value, words):
    class Envs(gymnasium.vector.SyncVectorEnv):
        def step(self, actions):
            answer = list(super().step(actions))
            answer[place] = value
            return tuple(answer)

    said = message(Envs([Good] * 3))
    assert all(word in said for word in words), said


def test_first_nonfinite():
    obs = {"a": np.zeros((4, 3, 2), np.float32), "i": np.zeros((4, 3), np.int32)}
    reward, valid = np.zeros((4, 3), np.float32), np.ones((4, 3), bool)
    assert first_nonfinite(obs, reward, valid) is None
    reward[2, 0] = np.inf
    assert first_nonfinite(obs, reward, valid) == (2, 0, "reward")
    obs["a"][2, 0, 1] = np.nan
    assert first_nonfinite(obs, reward, valid) == (2, 0, "obs['a']")
    obs["a"][1, 2, 0] = np.nan
    assert first_nonfinite(obs, reward, valid) == (1, 2, "obs['a']")
    valid[1, 2] = False
    assert first_nonfinite(obs, reward, valid) == (2, 0, "obs['a']")
    assert first_nonfinite(obs["a"], np.zeros((4, 3)), valid) == (2, 0, "obs")
    valid[2, 0] = False
    assert first_nonfinite(obs, reward, valid) is None

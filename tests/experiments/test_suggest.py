"""Suggestions: what is recommended and why; estimates extrapolated by hand and against a real training."""

import json
import time

import gymnasium
import numpy as np
import pytest

from advantage import DQN, PPO, suggest
from advantage.envs.make import resolve_env
from advantage.experiments import cost as costs
from advantage.experiments.cost import Cost, estimate, spec_of
from advantage.experiments.suggest import duration, env_speed, size, words
from advantage.models import ALGORITHMS, replay_bytes
from advantage.types import Spec

ENV = "advantage/CartPole-v1"
SMALL = {"n_envs": 2, "n_steps": 16, "batch_size": 32, "n_epochs": 2}
COST = Cost(1000, 1, 12.0, 2.0, 100.0, 10**9, 0, 10**5, "cpu")


@pytest.fixture
def fast(monkeypatch):
    """No trial: the environment's speed is what the test says, the cost made up."""

    def at(speed):
        monkeypatch.setattr("advantage.experiments.suggest.env_speed", lambda *_: speed)
        monkeypatch.setattr("advantage.experiments.suggest.estimate", lambda *_, **__: COST)

    return at


# -- estimates -----------------------------------------------------------------------------------


class Clock:
    """A clock that a simulated training moves."""

    now = 1000.0

    def __call__(self):
        return self.now


def simulated(clock, compile_seconds, update_seconds, update_steps):
    """PPO whose `learn` takes the time it is told to."""

    class Simulated(PPO):
        def learn(self, total_timesteps, callback):
            callback.init_callback(self)
            clock.now += compile_seconds
            self.asked = total_timesteps
            while self.num_timesteps < total_timesteps:
                clock.now += update_seconds
                self.num_timesteps += update_steps
                callback._on_rollout_start()
                if not callback._on_step():
                    break
            done.append(self.num_timesteps)

    done = []
    return Simulated, done


def test_an_estimate_by_hand(monkeypatch):
    """10 s to compile, then 100 steps in half a second: 10,000 steps take 60 s, of which 4 s are tried."""
    clock = Clock()
    face, done = simulated(clock, 10.0, 0.5, 100)
    monkeypatch.setattr(costs.time, "perf_counter", clock)
    monkeypatch.setitem(ALGORITHMS, "PPO", face)
    found = estimate("PPO", ENV, 10_000, SMALL, seconds=4)
    assert done == [1000], "two updates and 4 seconds"
    assert found.seconds == pytest.approx(60) and found.compile_seconds == pytest.approx(10)
    assert found.steps_per_second == pytest.approx(200)
    assert estimate("PPO", ENV, 10_000, SMALL, seeds=3, seconds=4).steps_per_second == pytest.approx(600)
    # What is over before the trial ends is not extrapolated.
    whole = estimate("PPO", ENV, 300, SMALL, seconds=4)
    assert done[-1] == 300 and whole.seconds == pytest.approx(11.5)


@pytest.mark.parametrize("env", [ENV, "CartPole-v1"])
def test_an_estimate_is_of_the_size_of_the_truth(env):
    """Both drivers; wide bounds, since the machine does other work as well (benchmarks/suggest.py measures)."""
    settings = {"n_envs": 8, "n_steps": 64, "batch_size": 256}
    found = estimate("PPO", env, 40_960, settings, seconds=1.0)
    began = time.perf_counter()
    PPO("MlpPolicy", env, seed=0, **settings).learn(40_960)
    took = time.perf_counter() - began
    # It is compiled by now, or was before.
    assert took / 3 < found.seconds - found.compile_seconds < 3 * took
    assert found.memory > 10**8 and found.replay == 0 and 10**4 < found.disk < 10**6


def test_replay_by_hand():
    """A row: two observations of 4 floats, an action, a reward, a flag; two counters for each environment."""
    spec = spec_of(resolve_env(ENV, 1))
    model = DQN("MlpPolicy", None, n_envs=2, buffer_size=1000)
    assert replay_bytes(model.algorithm, model._config, spec, model.n_envs) == 1000 * (2 * 16 + 4 + 4 + 1) + 2 * 8
    model = PPO("MlpPolicy", None)
    assert replay_bytes(model.algorithm, model._config, spec, model.n_envs) == 0


def test_a_replay_that_does_not_fit_is_not_tried(monkeypatch):
    built = []

    class Watched(DQN):
        def learn(self, *args, **kwargs):
            built.append((self.buffer_size, self.learning_starts))
            return super().learn(*args, **kwargs)

    monkeypatch.setitem(ALGORITHMS, "DQN", Watched)
    monkeypatch.setattr(costs, "free_memory", lambda: 10**7)
    settings = {"buffer_size": 10**6, "learning_starts": 500, "train_freq": 16}
    found = estimate("DQN", ENV, 2_000, settings, seeds=2, checkpoint=True, seconds=0.1)
    rows = 10**6 * (2 * 16 + 4 + 4 + 1) + 8
    assert built == [(int(10**6 * 0.25 * 10**7 / (2 * rows)), 0)], (
        "a quarter of what is free; it learns at once"
    )
    assert found.replay == 2 * rows and found.disk > found.replay and found.memory > found.replay


def test_long_rollouts_are_cut_for_the_trial(monkeypatch):
    spec = spec_of(resolve_env(ENV, 1))

    def length(**settings):
        return costs._trial_settings(PPO("MlpPolicy", None, **settings), spec, 0)["n_steps"]

    assert length(n_envs=16, n_steps=1024, batch_size=64) == 256
    assert length(n_envs=16, n_steps=1024, batch_size=8192) == 512, "whole minibatches"
    assert length(n_envs=1, n_steps=2048) == 2048


# -- recommendations ------------------------------------------------------------------------------


def test_a_verified_preset_comes_first(fast):
    fast(100_000.0)
    found = suggest("CartPole-v1")
    assert found.preset.verified and found.settings == found.preset.settings
    assert any("verified: return" in reason for reason in found.reasons)
    assert found.others.keys() == ALGORITHMS.keys() - {found.algorithm}
    assert f"{found.algorithm}('MlpPolicy', 'CartPole-v1', " in found.code
    assert found.env_steps_per_second == 100_000.0


@pytest.mark.parametrize("speed, algorithm", [(100.0, "DQN"), (100_000.0, "PPO")])
def test_where_steps_are_dear_they_are_used_often(fast, speed, algorithm):
    fast(speed)
    found = suggest("advantage/ProbeMatch-v0", 5000)
    assert found.algorithm == algorithm and found.preset is None
    assert "There is no preset for this environment" in str(found)
    for why in (found.others["PPO" if algorithm == "DQN" else "DQN"], found.others["DiscreteSAC"]):
        assert why.startswith("possible; at ")


def test_without_a_preset_the_defaults_are_spread(fast):
    fast(100_000.0)
    found = suggest("advantage/ProbeMatch-v0")
    assert found.settings == {"n_envs": 8, "n_steps": 256}
    assert found.command == (
        "advantage train PPO advantage/ProbeMatch-v0 --total-timesteps 1000 --n-envs 8 --set n_steps=256"
    )


def test_continuous_actions(fast):
    fast(100_000.0)
    found = suggest("Pendulum-v1")
    assert found.algorithm == "PPO" and "PPO chooses continuous actions." in found.reasons
    assert "cannot choose actions from a box space" in found.others["DQN"]
    assert (found.observation, found.action) == ("box of 3 float32", "box of 1 float32")
    with pytest.raises(ValueError, match="DQN cannot choose actions from a box space"):
        suggest("Pendulum-v1", algorithm="DQN")


def test_a_later_algorithm_joins_by_itself(fast, monkeypatch):
    """Asked of its own face: no list of algorithms is kept."""

    class Later(DQN):
        pass

    monkeypatch.setitem(ALGORITHMS, "Later", Later)
    fast(100.0)
    assert suggest("advantage/ProbeMatch-v0").others.keys() == ALGORITHMS.keys() - {"DQN"}
    assert "DQN" in suggest("Pendulum-v1").others and "Later" in suggest("Pendulum-v1").others


def test_all_of_it_once(monkeypatch):
    monkeypatch.setattr("advantage.experiments.suggest.ENV_SECONDS", 0.1)
    monkeypatch.setattr("advantage.experiments.suggest.TRIAL_SECONDS", 0.1)
    found = suggest(ENV, 100_000, algorithm="ppo", seeds=2)
    assert found.cost.seeds == 2 and found.cost.total_timesteps == 100_000 and found.cost.seconds > 0
    stored = json.loads(json.dumps(found.as_dict()))
    assert stored["preset"]["env"] == ENV and stored["command"] == f"advantage train PPO {ENV} --seeds 2"


def test_env_speed():
    class Slow(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (2,))
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return np.zeros(2, np.float32), {}

        def step(self, action):
            time.sleep(0.005)
            return np.zeros(2, np.float32), 0.0, False, False, {}

    assert 20 < env_speed(resolve_env(Slow(), 1), 0.3) < 200
    assert env_speed(resolve_env(ENV, 1), 0.1) > 10_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("CartPol-v1",), "env 'CartPol-v1' cannot be made: did you mean CartPole-v1"),
        (("advantage/Cartpole-v1",), "nearest: advantage/CartPole-v1"),
        (("CartPole-v1", 0), "budget=0 has to be a whole number of at least 1"),
    ],
)
def test_bad_input_is_named(arguments, said):
    with pytest.raises(ValueError, match=said):
        suggest(*arguments)


def test_an_unknown_algorithm_is_named():
    with pytest.raises(ValueError, match="algorithm='Dreamer' is not known: choose from DQN, DoubleDQN, DuelingDQN, C51, QRDQN, IQN, Rainbow, PPO"):
        suggest("CartPole-v1", algorithm="Dreamer")


def test_words():
    spaces = gymnasium.spaces
    made = Spec.from_gymnasium(
        spaces.Dict({"a": spaces.Box(0, 1, (2, 3)), "b": spaces.Discrete(4)}), spaces.MultiDiscrete([2, 3])
    )
    assert words(made.observation) == "dict of a: box of 2 x 3 float32, b: discrete, 4 choices"
    assert words(made.action) == "multi-discrete, 2 x 3 choices"
    assert [duration(x) for x in (0.5, 80, 100, 9000, 200_000)] == [
        "0.5 seconds", "80 seconds", "1.7 minutes", "2.5 hours", "2.3 days",
    ]  # fmt: skip
    assert [size(x) for x in (12, 1500, 123e6, 2.5e9)] == ["12 bytes", "1.5 kB", "123 MB", "2.5 GB"]

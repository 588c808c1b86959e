"""Vector environments by SB3's names: `make_vec_env` and its kinds, `SubprocVecEnv` beside `DummyVecEnv`."""

import sys
import types

import cloudpickle
import gymnasium
import numpy as np
import pytest

from advantage import DQN, PPO, DummyVecEnv, Monitor, SubprocVecEnv, evaluate_policy, make_vec_env
from advantage.envs.make import host_envs
from advantage.envs.native import EnvPool
from advantage.training.ready_callbacks import EvalCallback

cloudpickle.register_pickle_by_value(sys.modules[__name__])
SMALL = {"n_steps": 16, "batch_size": 16, "n_epochs": 2, "policy_kwargs": {"net_arch": [4]}}


def cart_pole():
    return gymnasium.make("CartPole-v1", max_episode_steps=9)


def same_leaves(ours, theirs):
    for part, arrays in ours.items():
        for name, x in arrays.items():
            np.testing.assert_array_equal(x, theirs[part][name], strict=True)


@pytest.fixture(scope="module")
def venv():
    made = make_vec_env(cart_pole, 3, seed=5, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"num_workers": 2})
    yield made
    made.close()


def test_steps_and_infos_are_those_of_dummy_vec_env(venv):
    """Bits and entries, over several episodes, in whole steps and in halves."""
    theirs = make_vec_env(cart_pole, 3, seed=5)
    venv.seed(5)
    np.testing.assert_array_equal(venv.reset(), theirs.reset(), strict=True)
    rng = np.random.default_rng(0)
    for k in range(30):
        actions = rng.integers(0, 2, 3)
        if k % 2:
            venv.step_async(actions)
            ours = venv.step_wait()
        else:
            ours = venv.step(actions)
        expected = theirs.step(actions)
        for x, y in zip(ours[:3], expected[:3], strict=True):
            np.testing.assert_array_equal(x, y, strict=True)
        assert [info.keys() for info in ours[3]] == [info.keys() for info in expected[3]]
        for one, other in zip(ours[3], expected[3], strict=True):
            np.testing.assert_equal(one, other)


def test_calls_into_the_environments(venv):
    """SB3's four methods, for all and for some, and a call with arguments of each one's own."""
    venv.reset()
    assert venv.get_attr("_max_episode_steps") == [9] * 3
    venv.set_attr("mark", 7, indices=[0, 2])
    venv.set_attr("mark", 8, indices=1)
    assert venv.get_attr("mark") == [7, 8, 7] and venv.get_attr("mark", indices=-1) == [7]
    shapes = venv.env_method("get_wrapper_attr", "state", indices=[2, 0])
    assert [np.shape(x) for x in shapes] == [(4,), (4,)]
    assert venv.env_is_wrapped(gymnasium.wrappers.TimeLimit) == [True] * 3
    assert venv.env_is_wrapped(gymnasium.wrappers.ClipReward, indices=[0]) == [False]
    assert venv.host.call_each("has_wrapper_attr", [("mark",), ("nothing",), ("state",)]) == [True, False, True]
    assert host_envs(make_vec_env(cart_pole, 2), 1).call_each("has_wrapper_attr", [("x",), ("state",)]) == [False, True]
    assert (venv.num_envs, venv.id, venv.unwrapped) == (3, "CartPole-v1", venv)
    assert venv.observation_space.shape == (4,) and venv.render_mode is None


def test_start_methods():
    """A fork is refused by a warning, as the script would run otherwise; nonsense is an error."""
    with pytest.warns(UserWarning, match="start_method='fork' is not used.*spawned"):
        SubprocVecEnv([cart_pole], start_method="fork").close()
    with pytest.raises(ValueError, match="start_method='threads'"):
        SubprocVecEnv([cart_pole], start_method="threads")


@pytest.mark.parametrize("seeds", [1, 2])
def test_training_ends_with_the_same_bits(venv, seeds):
    """PPO on processes and PPO on environments of this process; further seeds have environments of their own."""
    models = []
    for env in (venv, make_vec_env(cart_pole, 3, seed=5)):
        env.seed(5)
        models.append(PPO("MlpPolicy", env, seeds=seeds, seed=3, **SMALL).learn(200))
    for s in range(seeds):
        same_leaves(models[0].get_parameters(s), models[1].get_parameters(s))
    assert seeds == 1 or models[0]._driver.envs.workers[:2] == venv.host.workers
    for worker in models[0]._driver.envs.workers[2:]:
        worker.close()


def test_evaluation(venv):
    """`evaluate_policy` and `EvalCallback`: the numbers of `DummyVecEnv`; those in training are copied."""
    model = PPO("MlpPolicy", venv, seed=3, **SMALL)
    numbers = []
    for env in (venv.copy(), DummyVecEnv([cart_pole] * 3)):
        numbers.append(evaluate_policy(model, env, 5, seed=1, return_episode_rewards=True))
        env.close()
    assert numbers[0] == numbers[1] and len(numbers[0][0]) == 5
    driver = model._driver
    callback = EvalCallback(venv, eval_freq=48, n_eval_episodes=2, verbose=0)
    model.learn(96, callback=callback)
    assert model._driver is driver and np.isfinite(callback.last_mean_reward)


def test_the_face_and_the_file(tmp_path):
    """`vec_env` goes with an id, is kept in the file, and is refused elsewhere."""
    settings = {"n_envs": 2, "seed": 0, "learning_starts": 4, "buffer_size": 100}
    model = DQN("MlpPolicy", "CartPole-v1", vec_env="async", **settings).learn(40)
    assert isinstance(model.get_env(), SubprocVecEnv) and model.env_id == "CartPole-v1"
    model.save(tmp_path / "model")
    model.get_env().close()
    loaded = DQN.load(tmp_path / "model")
    assert loaded.vec_env == "async"
    assert DQN.load(tmp_path / "model", env=make_vec_env("CartPole-v1", 2)).num_timesteps == 40
    with pytest.raises(ValueError, match="vec_env='threads' is not known: choose from sync, async, native, envpool"):
        PPO("MlpPolicy", "CartPole-v1", vec_env="threads")
    with pytest.raises(ValueError, match=r"vec_env='async' needs env as an id .* is a TimeLimit.*make_vec_env"):
        PPO("MlpPolicy", cart_pole(), vec_env="async")
    with pytest.raises(ValueError, match="JAX environments are compiled: leave it out"):
        PPO("MlpPolicy", "advantage/CartPole-v1", vec_env="async")
    with pytest.raises(ValueError, match="'CartPol-v1' cannot be made: did you mean CartPole-v1"):
        PPO("MlpPolicy", "CartPol-v1", vec_env="async")


def test_the_check_before_training_reaches_the_process():
    """A faulty environment is told in one line, as in this process."""

    class Faulty(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return np.full(2, 3.0, np.float32), {}

        def step(self, action):
            return np.zeros(2, np.float32), 0.0, False, False, {}

    messages = []
    for kind in ("sync", "async"):
        with pytest.raises(ValueError, match="above the space's high 1.0: clip it") as caught:
            PPO("MlpPolicy", make_vec_env(Faulty, 1, vec_env=kind))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_native():
    """Gymnasium's own vectorised form; seeds have one each; ids without one are refused."""
    model = PPO("MlpPolicy", "CartPole-v1", n_envs=3, vec_env="native", seeds=2, seed=0, **SMALL).learn(100)
    assert model.num_timesteps == 100 and model.env_id == "CartPole-v1"
    assert "CartPoleVectorEnv" in type(model.get_env().unwrapped).__name__
    first = make_vec_env("CartPole-v1", 2, seed=7, vec_env="native")
    assert PPO("MlpPolicy", first, **SMALL).seed == 7
    with pytest.raises(ValueError, match="MountainCar-v0 has no vectorised form.*use vec_env='sync' or 'async'"):
        make_vec_env("MountainCar-v0", 2, vec_env="native")
    with pytest.raises(ValueError, match="env_id is a function: use 'sync' or 'async'"):
        make_vec_env(cart_pole, 2, vec_env="native")
    with pytest.raises(ValueError, match="wrapper_class wraps single environments"):
        make_vec_env("CartPole-v1", 2, vec_env="envpool", wrapper_class=Monitor)
    with pytest.raises(ValueError, match="vec_env_cls=SubprocVecEnv and vec_env='async' both choose"):
        make_vec_env("CartPole-v1", 2, vec_env="async", vec_env_cls=SubprocVecEnv)


class Pool:
    """As EnvPool 1.2 documents itself and behaves: rows in any order, seeds fixed, a reset in the step after an end."""

    def __init__(self, task_id, num_envs, seed=42, batch_size=None, max_episode_steps=9):
        assert task_id == "CartPole-v1", f"{task_id} is not supported, `envpool.list_all_envs()` may help."
        assert 0 <= seed < 2**31
        self.envs = [gymnasium.make(task_id, max_episode_steps=max_episode_steps) for _ in range(num_envs)]
        self.observation_space, self.action_space = self.envs[0].observation_space, self.envs[0].action_space
        self.seeds = [seed + i for i in range(num_envs)]
        self.rng, self.done = np.random.default_rng(seed), [True] * num_envs

    def reset(self):
        self.done = [True] * len(self.envs)
        obs, _, _, _, info = self.step(np.zeros(len(self.envs), int))
        return obs, info

    def step(self, actions):
        rows = []
        for i, env in enumerate(self.envs):
            if self.done[i]:
                obs, reward, over, cut = env.reset(seed=self.seeds[i])[0], 0.0, False, False
                self.seeds[i] = None
            else:
                obs, reward, over, cut, _ = env.step(int(actions[i]))
            self.done[i] = over or cut
            rows.append((obs, np.float32(reward), over, cut, np.int32(i)))
        self.rng.shuffle(rows)
        *columns, ids = map(np.array, zip(*rows, strict=True))
        return *columns, {"env_id": ids, "players": {"env_id": ids}}

    def close(self):
        pass


@pytest.fixture(params=["as documented", "installed"])
def envpool(request, monkeypatch):
    if request.param == "installed":
        return pytest.importorskip("envpool")
    module = types.ModuleType("envpool")
    module.make_gymnasium = Pool
    monkeypatch.setitem(sys.modules, "envpool", module)
    return module


@pytest.mark.filterwarnings("ignore:.*precision lowered")  # EnvPool's spaces
def test_envpool(envpool):
    """Rows are the environments'; a seed repeats; the reset after an end is no experience; it trains."""
    env = EnvPool("CartPole-v1", 3, max_episode_steps=9)
    first, _ = env.reset(seed=1)
    assert first.shape == (3, 4) and first.dtype == np.float32
    np.testing.assert_array_equal(env.reset(seed=2)[0] != first, True)
    env.reset(seed=1)
    twin = env.copy()
    np.testing.assert_array_equal(twin.reset(seed=1)[0], first)
    envs = host_envs(env, 2)
    observed, ended = envs.reset(np.arange(6).reshape(2, 3)), np.zeros((2, 3), bool)
    count = 0
    for _ in range(25):
        step = envs.step(np.ones((2, 3), np.int32))
        np.testing.assert_array_equal(step.observed.is_first, ended)
        if ended.any():
            np.testing.assert_array_equal(step.valid, ~ended)
        # Position moves by 0.02 times the velocity, also into the last observation: rows are not mixed up.
        moved = observed.obs[..., 0] + 0.02 * observed.obs[..., 1]
        np.testing.assert_allclose(step.final_obs[..., 0][~ended], moved[~ended], rtol=1e-4, atol=1e-6)
        observed, ended = step.observed, step.terminated | step.truncated
        count += int(ended.sum())
    assert count > 6
    model = PPO("MlpPolicy", "CartPole-v1", n_envs=2, vec_env="envpool", seeds=2, seed=0, **SMALL).learn(100)
    assert model.num_timesteps == 100 and model.env_id == "CartPole-v1"
    with pytest.raises(ValueError, match="Nope-v0 is not supported"):
        make_vec_env("Nope-v0", 2, vec_env="envpool")
    with pytest.raises(ValueError, match="batch_size=1 has to be n_envs=2"):
        make_vec_env("CartPole-v1", 2, vec_env="envpool", env_kwargs={"batch_size": 1})
    envs.close()


def test_envpool_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ImportError, match=r'pip install "advantage\[envpool\]"'):
        PPO("MlpPolicy", "CartPole-v1", vec_env="envpool")

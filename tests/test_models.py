"""The familiar face: what Stable-Baselines3's users write does what they expect, and mistakes are explained."""

import inspect
import io
import json
import os
import pathlib
import pickle
import sys
import types
import zipfile

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

import advantage
from advantage import (
    ALGORITHMS,
    A2C,
    DDPG,
    DQN,
    PPO,
    SAC,
    TD3,
    TRPO,
    Linear,
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    evaluate_policy,
    make_vec_env,
)
from advantage.networks.features import Flatten
from advantage.training.files import NotAModel
from advantage.training.loggers import KVWriter, Logger

SIGNATURES = json.loads((pathlib.Path(__file__).parent / "oracles" / "sb3_signatures.json").read_text())
# What these classes take is another thing here, or is not built; SB3's users rarely give them.
ABSENT = {"optimize_memory_usage", "rollout_buffer_class", "rollout_buffer_kwargs"}
SMALL = {
    "PPO": {"n_steps": 8, "batch_size": 8, "n_epochs": 2},
    "DQN": {"learning_starts": 4, "buffer_size": 64, "batch_size": 4},
}
FACES = [PPO, DQN]
CONTINUOUS = [SAC, TD3, DDPG]
OBS = np.array([0.1, -0.2, 0.03, 0.4], np.float32)


def small(face, env="CartPole-v1", **kwargs):
    policy_kwargs = {"net_arch": [4], **kwargs.pop("policy_kwargs", {})}
    return face("MlpPolicy", env, policy_kwargs=policy_kwargs, **{"seed": 1, **SMALL[face.__name__], **kwargs})


def arrays(model, seed_index=0):
    return {name: x for part in model.get_parameters(seed_index).values() for name, x in part.items()}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def trained():
    """A trained model of each face, which tests leave as they found it."""
    return {face: small(face).learn(40) for face in FACES}


@pytest.fixture
def loaded(trained, tmp_path):
    """A fresh copy of a trained model, ready to be changed."""

    def load(face, **kwargs):
        trained[face].save(tmp_path / "copy")
        return face.load(tmp_path / "copy", **kwargs)

    return load


# -- SB3's own examples ---------------------------------------------------------------------------------


def test_sb3s_ppo_example(tmp_path, monkeypatch, capsys):
    """SB3's PPO example runs as it is written there, but for the names imported and the number of steps."""
    monkeypatch.chdir(tmp_path)
    vec_env = make_vec_env("CartPole-v1", n_envs=4)

    model = PPO("MlpPolicy", vec_env, verbose=1)
    model.learn(total_timesteps=250)
    model.save("ppo_cartpole")

    del model  # remove to demonstrate saving and loading

    model = PPO.load("ppo_cartpole")

    obs = vec_env.reset()
    for _ in range(3):
        action, _states = model.predict(obs)
        obs, rewards, dones, info = vec_env.step(action)
    assert os.listdir() == ["ppo_cartpole.zip"]
    assert action.shape == rewards.shape == dones.shape == (4,) and len(info) == 4
    table = capsys.readouterr().out
    for key in ("rollout/", "ep_rew_mean", "time/", "fps", "iterations", "total_timesteps", "train/", "approx_kl",
                "clip_fraction", "clip_range", "entropy_loss", "explained_variance", "learning_rate", "loss",
                "n_updates", "policy_gradient_loss", "value_loss"):  # fmt: skip
        assert f"| {key}" in table or f"|    {key}" in table, key


def test_sb3s_dqn_example(tmp_path, monkeypatch, capsys):
    """SB3's DQN example, with an environment of its own and the loop over its steps."""
    monkeypatch.chdir(tmp_path)
    env = gymnasium.make("CartPole-v1")

    model = DQN("MlpPolicy", env, verbose=1)
    model.learn(total_timesteps=400, log_interval=4)
    model.save("dqn_cartpole")

    del model  # remove to demonstrate saving and loading

    model = DQN.load("dqn_cartpole")

    obs, info = env.reset()
    for _ in range(30):
        action, _states = model.predict(obs, deterministic=True)
        obs, reward, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            obs, info = env.reset()
    assert reward == 1.0 and info == {}
    table = capsys.readouterr().out
    for key in ("rollout/", "ep_len_mean", "ep_rew_mean", "exploration_rate", "time/", "episodes", "fps",
                "time_elapsed", "total_timesteps", "train/", "learning_rate", "loss", "n_updates"):  # fmt: skip
        assert f"| {key}" in table or f"|    {key}" in table, key


def test_sb3s_getting_started():
    """`model.get_env()` is a vector environment that is reset and stepped as in SB3's first example."""
    model = small(PPO, gymnasium.make("CartPole-v1"))
    model.learn(total_timesteps=16)
    vec_env = model.get_env()
    obs = vec_env.reset()
    for _ in range(3):
        action, _state = model.predict(obs, deterministic=True)
        obs, reward, done, info = vec_env.step(action)
    assert obs.shape == (1, 4) and reward.shape == done.shape == (1,) and len(info) == 1 and _state is None


# -- signatures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("face", [*FACES, *CONTINUOUS, A2C, TRPO])
def test_signature_has_sb3s_names_order_and_defaults(face):
    """Every argument of SB3's constructor is there, in its order and with its default."""
    theirs = SIGNATURES[face.__name__]
    ours = inspect.signature(face).parameters
    wanted = [name for name in theirs if name not in ABSENT | {"_init_setup_model"}]
    assert [name for name in ours if name in theirs] == wanted
    for name in wanted[2:]:
        assert ours[name].default == theirs[name], name
    # By position, up to the first argument that is absent here.
    until = next(i for i, name in enumerate(theirs) if name in ABSENT)
    assert list(ours)[:until] == list(theirs)[:until]
    for name in wanted[2:]:
        if name not in advantage.models.FACE_OPTIONS:
            assert f"    {name}: " in face.__doc__


def test_positional_arguments():
    """Arguments by position mean what they mean in SB3; too many, or one given twice, are refused."""
    model = PPO("MlpPolicy", "CartPole-v1", 1e-3, 16, 8, 3, 0.9, 0.8)
    given = (model.learning_rate, model.n_steps, model.batch_size, model.n_epochs, model.gamma, model.gae_lambda)
    assert given == (1e-3, 16, 8, 3, 0.9, 0.8)
    model = DQN("MlpPolicy", "CartPole-v1", 1e-3, 640, 11, 16, 0.5, 0.9, 2, 3)
    given = (model.buffer_size, model.learning_starts, model.batch_size, model.tau, model.train_freq)
    assert given == (640, 11, 16, 0.5, 2) and model.gradient_steps == 3
    with pytest.raises(TypeError, match="multiple values.*learning_rate"):
        PPO("MlpPolicy", "CartPole-v1", 1e-3, learning_rate=1e-3)
    with pytest.raises(TypeError, match="positional"):
        PPO("MlpPolicy", "CartPole-v1", *range(40))


@pytest.mark.parametrize(
    "wrong,near", [("learning_rates", "learning_rate"), ("nsteps", "n_steps"), ("batchsize", "batch_size")]
)
def test_unknown_names_are_refused_with_the_nearest(wrong, near):
    """A misspelt hyper-parameter is an error at once, in the constructor and in `load`."""
    with pytest.raises(TypeError, match=f"{wrong!r}.*did you mean '{near}'"):
        PPO("MlpPolicy", "CartPole-v1", **{wrong: 1})
    with pytest.raises(TypeError, match="net_arc.*'net_arch'"):
        PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arc": [4]})
    with pytest.raises(ValueError, match="policy='MlpPolic'.*MlpPolicy"):
        PPO("MlpPolic", "CartPole-v1")


# -- mistakes, before training --------------------------------------------------------------------------


class Toy(gymnasium.Env):
    """Observes a box; the action space is given."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))

    def __init__(self, action_space=None):
        self.action_space = action_space or gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, False, True, {}


@pytest.mark.parametrize(
    "space",
    [
        gymnasium.spaces.Box(-1.0, 1.0, (2,)),
        gymnasium.spaces.MultiDiscrete([2, 2]),
        gymnasium.spaces.MultiBinary(2),
    ],
)
def test_an_algorithm_for_other_actions_names_those_that_fit(space):
    """DQN on anything but Discrete actions says which algorithms do it."""
    with pytest.raises(ValueError, match="DQN cannot choose actions from a .*use PPO"):
        DQN("MlpPolicy", Toy(space))


@pytest.mark.parametrize(
    "face,wrong,match",
    [
        (PPO, {"batch_size": 9}, "batch_size=9.*n_steps"),
        (PPO, {"use_sde": True}, "use_sde.*Box"),
        (DQN, {"batch_size": 65}, "batch_size=65.*buffer_size=64"),
        (DQN, {"buffer_size": 3, "batch_size": 2}, "buffer_size=3"),
        (PPO, {"learning_rate": "fast"}, "fast"),
        (PPO, {"learning_rate": float("nan")}, "learning_rate"),
        (PPO, {"n_steps": 8.5}, "n_steps=8.5.*whole"),
        (PPO, {"gamma": None}, "gamma"),
        (PPO, {"seeds": 0}, "seeds=0"),
        (PPO, {"n_envs": 0}, "n_envs=0"),
        (PPO, {"n_steps": 0}, "n_steps"),
        (DQN, {"train_freq": 0}, "train_freq"),
        (PPO, {"device": "abacus"}, "abacus"),
    ],
)
def test_values_that_cannot_work_are_refused_before_training(face, wrong, match):
    """Each names the value, and what to do."""
    with pytest.raises(ValueError, match=match):
        small(face, **wrong)


@pytest.mark.parametrize("face", CONTINUOUS)
def test_actions_of_which_no_distance_is_known(face):
    """Discrete actions: the message says which algorithms fit."""
    with pytest.raises(ValueError, match=f"{face.__name__} cannot choose actions from a .*use .*DQN.*PPO"):
        face("MlpPolicy", "CartPole-v1")


@pytest.mark.parametrize("face", CONTINUOUS)
@pytest.mark.parametrize(
    ("low", "high", "match"),
    [
        ([-np.inf, -1.0], [np.inf, 1.0], "infinite ones: .*TransformAction"),
        ([-1.0, -1.0], [np.inf, 1.0], "infinite ones"),
        ([-1.0, 0.5], [1.0, 0.5], r"no width \(component 1\)"),
    ],
)
def test_bounds_that_nothing_can_be_stretched_to(face, low, high, match):
    """Infinite ones, and a component without a choice."""
    space = gymnasium.spaces.Box(np.array(low, np.float32), np.array(high, np.float32))
    with pytest.raises(ValueError, match=f"{face.__name__} .*{match}"):
        face("MlpPolicy", Toy(space))


@pytest.mark.parametrize(
    ("face", "wrong", "match"),
    [
        (SAC, {"ent_coef": "automatic"}, "ent_coef='automatic' is not understood: give 'auto', 'auto_0.1' or a number"),
        (SAC, {"ent_coef": "auto_0"}, "ent_coef='auto_0'"),
        (SAC, {"ent_coef": -0.1}, "ent_coef=.*-0.1"),
        (SAC, {"target_entropy": "low"}, "target_entropy='low' is not understood"),
        (SAC, {"target_entropy": "auto_1"}, "target_entropy='auto_1' is not understood: give 'auto' or a number"),
        (SAC, {"updates_per_step": -1}, "updates_per_step=-1.* out of range: give gradient steps"),
        (TD3, {"updates_per_step": 0}, "updates_per_step=0.* out of range"),
        (TD3, {"updates_per_step": 1e-4}, "updates_per_step=0.0001 is out of range"),  # rounded to none at all
        (DDPG, {"updates_per_step": float("nan")}, "updates_per_step=nan"),
        (SAC, {"action_noise": NormalActionNoise([0.0] * 3, 0.1)}, "3 components and the action 1"),
        (TD3, {"action_noise": NormalActionNoise(0.0, [0.1, 0.2])}, "2 components and the action 1"),
        (DDPG, {"action_noise": "normal"}, "action_noise='normal' is not understood"),
        (DDPG, {"action_noise": -0.1}, "sigma=-0.1"),
        (SAC, {"tau": 1.5}, "tau=1.5"),
        (SAC, {"target_update_interval": 0}, "target_update_interval=0"),
        (TD3, {"policy_delay": 0}, "policy_delay=0"),
        (TD3, {"target_noise_clip": -0.5}, "target_noise_clip=-0.5"),
        (SAC, {"gradient_steps": -2}, "gradient_steps=-2"),
        (SAC, {"n_steps": 0}, "n_steps=0"),
        (SAC, {"batch_size": 65, "buffer_size": 64}, "batch_size=65 is larger than buffer_size=64"),
        (TD3, {"train_freq": (1, "minute")}, "train_freq"),
    ],
)
def test_settings_of_continuous_control_are_refused_before_training(face, wrong, match):
    """Each names the value, and what to do."""
    with pytest.raises(ValueError, match=match):
        face("MlpPolicy", "Pendulum-v1", **wrong)


def test_numbers_of_other_types_are_numbers():
    """Where a number or a word may stand, too: both are floats afterwards, as a jitted program needs them."""
    model = SAC("MlpPolicy", "Pendulum-v1", ent_coef=0, updates_per_step=np.int64(2), target_entropy=np.float32(-2))
    found = (model.ent_coef, model.updates_per_step, model.target_entropy)
    assert found == (0.0, 2.0, -2.0) and [type(x) for x in found] == [float] * 3


@pytest.mark.parametrize(("env", "ratio"), [("advantage/Pendulum-v1", 0.25), ("Pendulum-v1", 3.0)])
def test_updates_per_step(env, ratio):
    """After 17 steps of three environments, the last of which one does not count: floor(17 ratio) gradient steps."""
    model = SAC(
        "MlpPolicy", env, n_envs=3, seed=0, learning_starts=0, buffer_size=90, batch_size=2, updates_per_step=ratio,
        policy_kwargs={"net_arch": [4]},
    )  # fmt: skip
    model.learn(17)
    assert int(model._driver.seed_state(0).n_updates) == int(17 * ratio)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("steps", [0, -1, 2.5])
def test_steps_have_to_be_positive(trained, face, steps):
    """`learn` refuses anything but a positive whole number and changes nothing."""
    before = arrays(trained[face])
    with pytest.raises(ValueError, match="total_timesteps"):
        trained[face].learn(steps)
    assert same(before, arrays(trained[face])) and trained[face].num_timesteps == 40


def test_a_minibatch_that_does_not_divide_warns():
    """As in SB3: it works, and says that the last minibatch is smaller."""
    with pytest.warns(UserWarning, match="batch_size=6 does not divide.*8 rows.* 2"):
        model = small(PPO, batch_size=6)
    model.learn(8)
    assert all(np.isfinite(x).all() for x in arrays(model).values())


def test_unusable_environments_are_explained():
    """Old gym, wrong tuples, classes, unknown ids, and an `n_envs` that means nothing."""
    old = types.new_class("OldEnv", (), exec_body=lambda namespace: namespace.update(__module__="gym.core"))
    with pytest.raises(ValueError, match="gymnasium"):
        PPO("MlpPolicy", old())

    class Four(Toy):
        def step(self, action):
            return np.zeros(2, np.float32), 0.0, False, {}

    class Alone(Toy):
        def reset(self, *, seed=None, options=None):
            return np.zeros(2, np.float32)

    with pytest.raises(ValueError, match="4 values"):
        PPO("MlpPolicy", Four())
    with pytest.raises(ValueError, match=r"\(obs, info\)"):
        PPO("MlpPolicy", Alone())
    with pytest.raises(ValueError, match="instance"):
        PPO("MlpPolicy", Toy)
    with pytest.raises(ValueError, match="did you mean CartPole-v1"):
        PPO("MlpPolicy", "CartPoel-v1")
    with pytest.raises(ValueError, match="advantage/CartPole-v1"):
        PPO("MlpPolicy", "advantage/CartPoel-v1")
    with pytest.raises(ValueError, match="n_envs=2.*make_vec_env"):
        PPO("MlpPolicy", Toy(), n_envs=2)
    with pytest.raises(ValueError, match="no environment.*set_env"):
        PPO("MlpPolicy").learn(10)


def test_a_missing_package_names_the_install(monkeypatch, tmp_path):
    """One line with the `pip install` to run."""
    monkeypatch.setitem(sys.modules, "gymnax", None)
    monkeypatch.delitem(sys.modules, "advantage.envs.gymnax", raising=False)
    with pytest.raises(ImportError, match=r'pip install "advantage\[jax-envs\]"'):
        PPO("MlpPolicy", "gymnax/CartPole-v1")
    monkeypatch.setitem(sys.modules, "Box2D", None)
    with pytest.raises(ImportError, match="pip install"):
        PPO("MlpPolicy", "LunarLander-v3")


# -- predict --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("face", FACES)
def test_predict_takes_one_or_many(trained, face):
    """One observation gives an action of the space's shape, N give N; lists and other dtypes are fine."""
    model = trained[face]
    action, state = model.predict(OBS)
    assert isinstance(action, np.ndarray) and action.shape == () and state is None
    assert model.action_space.contains(action)
    assert model.predict(OBS.astype(np.float64).tolist(), deterministic=True)[0] in (0, 1)
    for count in (1, 3):
        assert model.predict(np.stack([OBS] * count))[0].shape == (count,)
    assert len({int(model.predict(OBS, deterministic=True)[0]) for _ in range(5)}) == 1
    assert model.policy.predict(OBS, deterministic=True)[0] == model.predict(OBS, deterministic=True)[0]


def test_predict_explores_by_default_and_masks(trained):
    """Without `deterministic` actions are sampled; an action mask is kept to by every kind of choice."""
    batch = np.zeros((200, 4), np.float32)
    assert set(trained[PPO].predict(batch)[0].tolist()) == {0, 1}
    for face in FACES:
        masks = np.tile([[False, True], [True, False]], (100, 1))
        for deterministic in (False, True):
            actions, _ = trained[face].predict(batch, deterministic=deterministic, action_masks=masks)
            assert actions.tolist() == [1, 0] * 100


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros((2, 5)), np.zeros((1, 2, 4)), np.zeros(()), None, "obs"])
def test_observations_of_another_shape_are_refused(trained, face, wrong):
    """The error names the shape given and the shape expected."""
    with pytest.raises(ValueError, match="observation"):
        trained[face].predict(wrong)


def test_predict_with_dict_observations():
    """Dict observations: one, a batch, members of mismatched lengths, and a missing member."""
    space = gymnasium.spaces.Dict({"a": gymnasium.spaces.Box(-1.0, 1.0, (2,)), "b": gymnasium.spaces.Discrete(3)})

    class Structured(Toy):
        observation_space = space

        def reset(self, *, seed=None, options=None):
            return {"b": 1, "a": np.zeros(2, np.float32)}, {}

        def step(self, action):
            return {"b": np.int64(2), "a": np.zeros(2)}, 0.0, True, False, {}

    with pytest.raises(ValueError, match="MultiInputPolicy"):
        small(PPO, Structured())
    model = PPO("MultiInputPolicy", Structured(), policy_kwargs={"net_arch": [4]}, **SMALL["PPO"]).learn(16)
    assert model.predict({"a": np.zeros(2), "b": 1})[0].shape == ()
    assert model.predict({"a": np.zeros((5, 2)), "b": np.ones(5)})[0].shape == (5,)
    for wrong in ({"a": np.zeros((5, 2)), "b": 1}, {"a": np.zeros((5, 2)), "b": np.ones(4)}, {"a": np.zeros(2)},
                  np.zeros(2)):  # fmt: skip
        with pytest.raises(ValueError, match="observation"):
            model.predict(wrong)


@pytest.mark.parametrize("env", ["CartPole-v1", "advantage/CartPole-v1"])
@pytest.mark.parametrize("face", FACES)
def test_predict_and_evaluation_do_not_change_training(face, env):
    """A run that predicts, evaluates, saves and reads parameters in a callback ends with the same bits."""
    plain, watched = small(face, env), small(face, env)

    def watch(locals, globals):
        model = locals["self"]
        model.predict(OBS)
        model.predict(OBS, deterministic=True)
        model.save(io.BytesIO())
        model.get_parameters()["policy"].clear()
        return True

    plain.learn(24)
    watched.learn(24, callback=watch)
    evaluate_policy(watched, watched.get_env() if "/" in env else gymnasium.make(env), n_eval_episodes=2)
    plain.learn(24, reset_num_timesteps=False)
    watched.learn(24, reset_num_timesteps=False)
    assert same(arrays(plain), arrays(watched))


def test_seeds_are_chosen_by_index():
    """`seed_index` picks one of the agents trained side by side; there is no other."""
    model = small(PPO, seeds=2).learn(16)
    assert not same(arrays(model, 0), arrays(model, 1))
    model.predict(OBS, seed_index=1)
    for wrong in (2, -1):
        with pytest.raises(ValueError, match=f"seed_index={wrong}.*2 seeds"):
            model.predict(OBS, seed_index=wrong)


# -- files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("face", FACES)
def test_save_and_load_round_trip(trained, face, tmp_path, monkeypatch):
    """To a name, a path of another suffix, a `Path` in a new folder, an open file: every array comes back."""
    monkeypatch.chdir(tmp_path)
    model = trained[face]
    open_file = io.BytesIO()
    for target in ("model", "model.v2", pathlib.Path("new") / "folder" / "model", open_file):
        model.save(target)
        if target is open_file:
            target.seek(0)
        back = face.load(target)
        assert same(arrays(model), arrays(back))
        assert back.num_timesteps == 40 and back.seed == 1 and back.gamma == model.gamma
        assert back.observation_space == model.observation_space and back.action_space == model.action_space
        assert back.predict(OBS, deterministic=True)[0] == model.predict(OBS, deterministic=True)[0]
    with open("by_hand.zip", "wb") as file:
        model.save(file)
    assert same(arrays(face.load("by_hand")), arrays(model))
    assert sorted(os.listdir()) == ["by_hand.zip", "model.v2", "model.zip", "new"]


@pytest.mark.parametrize(
    "settings", [{"use_sde": True}, {"action_noise": OrnsteinUhlenbeckActionNoise([0.1], 0.2, dt=0.1), "ent_coef": 0.1}]
)
def test_noise_comes_back(settings, tmp_path):
    """SAC's exploration is in its model file: a loaded model acts with it and trains on."""
    kwargs = {"learning_starts": 4, "buffer_size": 64, "batch_size": 4, "policy_kwargs": {"net_arch": [4]}, "seed": 1}
    model = SAC("MlpPolicy", "Pendulum-v1", **settings, **kwargs).learn(10)
    model.save(tmp_path / "model")
    back = SAC.load(tmp_path / "model", env="Pendulum-v1")
    assert same(arrays(model), arrays(back))
    assert all(getattr(back, name) == value for name, value in settings.items())
    obs = model.observation_space.sample()
    np.testing.assert_array_equal(back.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    assert back.learn(6, reset_num_timesteps=False).num_timesteps == 16
    assert not same(arrays(model), arrays(back))


@pytest.mark.parametrize("face", FACES)
def test_a_loaded_model_trains_on(loaded, face):
    """With `env` at load or by `set_env` it goes on counting from where it was."""
    model = loaded(face, env="CartPole-v1")
    assert model.num_timesteps == 40
    model.learn(24, reset_num_timesteps=False)
    assert model.num_timesteps == 64
    model = loaded(face)
    with pytest.raises(ValueError, match="set_env"):
        model.learn(8)
    model.set_env(gymnasium.make("CartPole-v1"))
    model.learn(8)
    assert model.num_timesteps == 8


def test_hyper_parameters_are_overridden_at_load(loaded):
    """`load(path, learning_rate=..., gamma=..., verbose=...)`, as SB3's users change a stored model."""
    model = loaded(PPO, env="CartPole-v1", learning_rate=1e-5, n_steps=16, verbose=1, seed=np.int64(7))
    assert (model.learning_rate, model.n_steps, model.verbose, model.seed) == (1e-5, 16, 1, 7)
    model.save(io.BytesIO())
    with pytest.raises(TypeError, match="learning_rates"):
        loaded(PPO, learning_rates=1.0)
    with pytest.raises(TypeError, match="seeds"):
        loaded(PPO, seeds=3)
    model = loaded(PPO, env="advantage/CartPole-v1", n_envs=4)
    assert model.n_envs == 4 and model.learn(8).num_timesteps == 48 - 40


def test_stored_options_come_back(tmp_path):
    """The number of environments, the window of statistics and seeds of any integer type are kept."""
    model = small(PPO, "advantage/CartPole-v1", n_envs=3, seeds=2, seed=np.int32(5), stats_window_size=7)
    model.learn(24).save(tmp_path / "model")
    back = PPO.load(tmp_path / "model", env="advantage/CartPole-v1")
    assert (back.n_envs, back.num_seeds, back.seed, back.stats_window_size) == (3, 2, 5, 7)
    for s in range(2):
        assert same(arrays(back, s), arrays(model, s))
    back.learn(24, reset_num_timesteps=False)


def my_loss(config, network, rows):
    from advantage.algorithms import ppo

    return ppo.loss(config, network, rows)


def test_callables_have_to_be_given_again(tmp_path):
    """A file names functions and holds none: ours come back by name, the user's have to be given again."""
    policy_kwargs = {"net_arch": [4], "activation_fn": "relu", "optimizer_class": "rmsprop",
                     "optimizer_kwargs": {"decay": 0.9}}  # fmt: skip
    model = PPO("MlpPolicy", "CartPole-v1", policy_kwargs=policy_kwargs, **SMALL["PPO"]).learn(8)
    model.save(tmp_path / "ours")
    back = PPO.load(tmp_path / "ours", env="CartPole-v1")
    assert back.activation_fn is jax.nn.relu and same(arrays(back), arrays(model))
    back.learn(8)

    small(PPO, loss=my_loss).save(tmp_path / "loss")
    with pytest.raises(NotAModel, match="loss=.*my_loss.*give it again.*loss="):
        PPO.load(tmp_path / "loss")
    assert PPO.load(tmp_path / "loss", loss=my_loss).loss is my_loss

    theirs = {"activation_fn": jnp.sin, "features_extractor_class": Scaled, "features_extractor_kwargs": {"by": 2.0},
              "optimizer_class": optax.sgd}  # fmt: skip
    model = small(PPO, policy_kwargs=theirs).learn(8)
    model.save(tmp_path / "theirs")
    with pytest.raises(NotAModel, match="give it again.*policy_kwargs"):
        PPO.load(tmp_path / "theirs")
    back = PPO.load(tmp_path / "theirs", policy_kwargs=theirs, env="CartPole-v1")
    assert same(arrays(back), arrays(model))
    back.learn(8)


class Scaled(eqx.Module):
    """A features extractor of the user's."""

    inner: Flatten
    size: int = eqx.field(static=True)
    by: float = eqx.field(static=True)

    def __init__(self, space, key, by):
        self.inner, self.by = Flatten(space), by
        self.size = self.inner.size

    def __call__(self, obs):
        return self.inner(obs) * self.by


@pytest.mark.parametrize("content", ["text", "empty", "zip", "cut", "sb3", "newer"])
def test_files_that_are_no_models(trained, tmp_path, content):
    """Each is refused in one line that says what it is, and nothing else happens."""
    path = tmp_path / "model.zip"
    trained[PPO].save(path)
    whole = path.read_bytes()
    if content in ("zip", "sb3", "newer"):
        with zipfile.ZipFile(path, "w") as archive:
            if content == "sb3":
                archive.writestr("data", json.dumps({"policy_class": {":serialized:": "gAWV"}}))
                archive.writestr("policy.pth", b"torch")
            if content == "newer":
                archive.writestr("model.json", json.dumps({"format": 10**6}))
                archive.writestr("arrays.safetensors", safetensors.numpy.save({}))
    else:
        path.write_bytes({"text": b"hello", "empty": b"", "cut": whole[: len(whole) // 2]}[content])
    wording = {"sb3": "Stable-Baselines3", "newer": "newer release"}.get(content, "not an advantage model")
    with pytest.raises(NotAModel, match=wording):
        PPO.load(path)


def test_missing_files_and_other_algorithms(trained, tmp_path):
    """A path without a file, and a model of another class."""
    with pytest.raises(FileNotFoundError, match="nothing.*check the path"):
        PPO.load(tmp_path / "nothing")
    trained[PPO].save(tmp_path / "model")
    with pytest.raises(NotAModel, match="holds a PPO model: load it with PPO.load"):
        DQN.load(tmp_path / "model")


def test_an_unwritable_folder_keeps_the_model_and_the_old_file(trained, tmp_path):
    """Saving where it cannot be is an `OSError` that says so; a file that was there stays whole."""
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="cannot write the model to .*still"):
        trained[PPO].save(tmp_path / "file" / "model")
    path = tmp_path / "model.zip"
    trained[PPO].save(path)
    before = path.read_bytes()
    path.with_name("folder.zip").mkdir()
    with pytest.raises(OSError, match="folder.zip"):
        trained[PPO].save(tmp_path / "folder")
    assert path.read_bytes() == before
    assert sorted(x.name for x in tmp_path.iterdir()) == ["file", "folder.zip", "model.zip"]


class Bomb:
    """Unpickling it leaves a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def hostile_headers(good):
    """Headers that try to name code, or to break the reader."""
    names = ["os.system", ["os", "system"], ["activation", "os.system"], ["optimizer", "os.system", []], {"a": 1}, 7]
    for name in names:
        yield {**good, "callables": {**good["callables"], "loss": name}}
        yield {**good, "callables": {**good["callables"], "optimizer": name, "activation_fn": name}}
    yield {**good, "callables": {"__class__": "os.system"}}
    yield {**good, "config": {**good["config"], "__import__('os').system": 1}}
    yield {**good, "config": {**good["config"], "net_arch": {"architecture": [[10**9] * 3] * 3}}}
    yield {**good, "config": {**good["config"], "n_epochs": "__import__('os').system('touch pwned')"}}
    yield {**good, "config": []}
    yield {**good, "schedules": {"learning_rate": {"kind": "os.system", "values": ["x"]}}}
    yield {**good, "schedules": {"no_such_field": {"kind": "linear", "start": 1, "end": 0, "fraction": 1}}}
    yield {**good, "counters": {**good["counters"], "seeds": -1}}
    yield {**good, "counters": {**good["counters"], "seeds": 10**9}}
    yield {**good, "observation_space": {"kind": "os.system"}}
    yield {**good, "options": 3}
    for name in ("counters", "options", "config", "callables", "policy", "observation_space"):
        yield {key: value for key, value in good.items() if key != name}


def test_a_hostile_file_executes_nothing(trained, tmp_path, monkeypatch):
    """Labels of functions are compared with known names, never imported; whatever is wrong is `NotAModel`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("executed"))
    trained[PPO].save("good.zip")
    with zipfile.ZipFile("good.zip") as archive:
        good, packed = json.loads(archive.read("model.json")), archive.read("arrays.safetensors")
    for header in hostile_headers(good):
        with zipfile.ZipFile("bad.zip", "w") as archive:
            archive.writestr("model.json", json.dumps(header))
            archive.writestr("arrays.safetensors", packed)
        with pytest.raises(NotAModel):
            PPO.load("bad.zip")
    for text in ("[" * 100_000, "NaN", '"os.system"', "[]", "null", '{"format": "1"}'):
        with zipfile.ZipFile("bad.zip", "w") as archive:
            archive.writestr("model.json", text)
            archive.writestr("arrays.safetensors", packed)
        with pytest.raises(NotAModel):
            PPO.load("bad.zip")
    assert sorted(os.listdir()) == ["bad.zip", "good.zip"]


def test_pickles_and_paths_inside_a_file_are_ignored(trained, tmp_path, monkeypatch):
    """A pickle in the place of arrays is no model; members with paths leading out are never extracted."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    trained[PPO].save("good.zip")
    with zipfile.ZipFile("good.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    bomb = pickle.dumps(Bomb(tmp_path / "pwned"))
    with zipfile.ZipFile("pickled.zip", "w") as archive:
        archive.writestr("model.json", members["model.json"])
        archive.writestr("arrays.safetensors", bomb)
    with pytest.raises(NotAModel):
        PPO.load("pickled.zip")
    with zipfile.ZipFile("more.zip", "w") as archive:
        for name, data in {**members, "../pwned": b"x", "/tmp/advantage_pwned": b"x", "data.pkl": bomb}.items():
            archive.writestr(name, data)
    assert same(arrays(PPO.load("more.zip")), arrays(trained[PPO]))
    assert sorted(x.name for x in tmp_path.iterdir()) == ["inside"]
    assert not pathlib.Path("/tmp/advantage_pwned").exists()


# -- parameters and environments ------------------------------------------------------------------------


@pytest.mark.parametrize("face", FACES)
def test_parameters_are_read_and_set(trained, loaded, face, tmp_path):
    """`get_parameters` gives copies under SB3's two keys; `set_parameters` takes them, a part, or a file."""
    model, other = trained[face], small(face, seed=9)
    before = arrays(model)
    given = model.get_parameters()
    assert set(given) == {"policy", "policy.optimizer"}
    for x in given["policy"].values():
        x[...] = 0
    assert same(before, arrays(model))
    other.set_parameters(model.get_parameters())
    assert same(before, arrays(other))
    assert other.predict(OBS, deterministic=True)[0] == model.predict(OBS, deterministic=True)[0]
    model.save(tmp_path / "model")
    third = small(face, seed=10)
    third.set_parameters(tmp_path / "model")
    assert same(before, arrays(third))
    third.learn(8)
    name = ".n_updates"
    with pytest.raises(NotAModel, match="no array"):
        other.set_parameters({"policy": {name: given["policy"][name]}})
    other.set_parameters({"policy": {name: np.int32(77)}}, exact_match=False)
    assert arrays(other)[name] == 77
    with pytest.raises(NotAModel, match="no_such"):
        other.set_parameters({**model.get_parameters(), "more": {".no_such": np.zeros(1)}})
    with pytest.raises(NotAModel, match="shape"):
        other.set_parameters({"policy": {name: np.zeros(3, np.int32)}}, exact_match=False)


@pytest.mark.parametrize("env", ["CartPole-v1", "advantage/CartPole-v1"])
def test_parameters_set_are_those_that_act(trained, env):
    """After `set_parameters` the model acts with them at once, also where it had acted before."""
    model = small(PPO, env, seed=9)
    model.predict(OBS)
    model.set_parameters(trained[PPO].get_parameters())
    wanted = jax.tree.leaves(trained[PPO].policy.parameters)
    for ours, theirs in zip(jax.tree.leaves(model.policy.parameters), wanted, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("face", FACES)
def test_environments_are_exchanged(loaded, face):
    """`set_env` keeps what was learned; another space is refused with both, and changes nothing."""
    model = loaded(face, env="CartPole-v1")
    before = arrays(model)
    first = model.get_env()
    model.set_env(make_vec_env("CartPole-v1", n_envs=2))
    assert model.n_envs == 2 and model.get_env() is not first and same(before, arrays(model))
    assert model.get_env().num_envs == 2
    model.learn(16)
    model.set_env("advantage/CartPole-v1")
    assert model.n_envs == 2
    model.learn(16)
    env = model.get_env()
    for wrong in (Toy(), "Acrobot-v1", "advantage/ProbeEndings-v0"):
        with pytest.raises(ValueError, match="space is .*, the model's .*"):
            model.set_env(wrong)
        assert model.get_env() is env
    model.learn(8)


def test_one_model_per_environment_instance():
    """Seeds need copies: an instance without a spec is refused with the reason, one of `gymnasium.make` copied."""
    with pytest.raises(ValueError, match="seeds > 1 needs copies.*Toy.*make_vec_env"):
        small(PPO, Toy(), seeds=2)
    small(PPO, gymnasium.make("CartPole-v1"), seeds=2).learn(8)


# -- hyper-parameters on a live model -------------------------------------------------------------------


@pytest.mark.parametrize("env", ["CartPole-v1", "advantage/CartPole-v1"])
@pytest.mark.parametrize("face", FACES)
def test_hyper_parameters_change_on_a_live_model(face, env):
    """A learning rate of zero set between two calls of `learn` freezes the network; set back it learns."""
    model = small(face, env, learning_rate=1e-2).learn(24)
    model.learning_rate = 0.0
    assert model.learning_rate == 0.0
    before = arrays(model)
    model.learn(24)
    networks = [name for name in before if name.startswith(".network")]
    assert networks and all(np.array_equal(before[name], arrays(model)[name]) for name in networks)
    model.learning_rate = lambda left: 1e-2 * left
    model.learn(24)
    assert not all(np.array_equal(before[name], arrays(model)[name]) for name in networks)


def test_exploration_changes_on_a_live_model(trained, loaded):
    """DQN's epsilon is read as `exploration_rate`, and its schedule can be changed."""
    assert trained[DQN].exploration_rate == pytest.approx(0.05)
    model = loaded(DQN, env="CartPole-v1")
    model.exploration_final_eps = 0.5
    model.exploration_fraction = 0.2
    at = []
    model.learn(40, callback=lambda locals, globals: at.append(locals["self"].exploration_rate) or True)
    assert at[:2] == pytest.approx([1 - 0.5 / 8, 1 - 1.0 / 8]) and at[-1] == pytest.approx(0.5)
    actions = model.predict(np.stack([OBS] * 400))[0]
    assert 0.1 < min(actions.mean(), 1 - actions.mean()) < 0.4  # a quarter is random the other way


def test_a_value_that_is_refused_changes_nothing(loaded):
    """A live model keeps its settings where a new one cannot work."""
    model = loaded(PPO, env="CartPole-v1")
    for name, wrong in (("batch_size", 10**6), ("learning_rate", "fast"), ("n_steps", 1.5)):
        before = getattr(model, name)
        with pytest.raises(ValueError, match=name):
            setattr(model, name, wrong)
        assert getattr(model, name) == before
    model.learn(8)


@pytest.mark.parametrize(
    "face,name,value",
    [(PPO, "net_arch", [8]), (DQN, "net_arch", [8]), (DQN, "buffer_size", 32), (PPO, "use_sde", True)],
)
def test_what_is_built_in_cannot_be_changed_later(loaded, face, name, value):
    """Layers and the memory's size are fixed once there is an agent: refused, not ignored."""
    model = loaded(face, env="CartPole-v1")
    with pytest.raises(ValueError, match=name):
        setattr(model, name, value)
    model.learn(8)


def test_schedules_as_number_name_and_function(tmp_path):
    """A number, `"linear_..."`, a `Linear` or a function; the file keeps a function as its table."""
    for given, start, end in ((1e-3, 1e-3, 1e-3), ("linear_0.001", 1e-3, 0.0), ("0.001", 1e-3, 1e-3),
                              (Linear(1e-3, 1e-4), 1e-3, 1e-4), (lambda left: 1e-3 * left**2, 1e-3, 0.0)):  # fmt: skip
        model = small(PPO, learning_rate=given, clip_range=lambda left: 0.1 + 0.1 * left)
        model.save(tmp_path / "model")
        back = PPO.load(tmp_path / "model", env="CartPole-v1")
        for each in (model, back):
            rate = each.learning_rate if callable(each.learning_rate) else lambda left, each=each: each.learning_rate
            assert (rate(1.0), rate(0.0)) == pytest.approx((start, end))
            assert each.clip_range(0.5) == pytest.approx(0.15)
        if callable(given):
            assert back.learning_rate(0.5) == pytest.approx(given(0.5), rel=1e-3)
    back.learn(8)


# -- logs and the rest ----------------------------------------------------------------------------------


@pytest.mark.parametrize("env", ["CartPole-v1", "advantage/CartPole-v1"])
@pytest.mark.parametrize("face", FACES)
def test_tensorboard_counts_environment_steps(face, env, tmp_path):
    """Events lie under `<name>_1`, their steps are environment steps for any number of environments."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    kwargs = {"n_envs": 4} if "/" in env else {}
    given = env if kwargs else make_vec_env(env, n_envs=4)
    model = small(face, given, tensorboard_log=str(tmp_path), **kwargs)
    model.learn(320, log_interval=1)
    model.learn(64, log_interval=1, reset_num_timesteps=False, tb_log_name=face.__name__)
    assert os.listdir(tmp_path) == [f"{face.__name__}_1"]
    events = EventAccumulator(str(tmp_path / f"{face.__name__}_1")).Reload()
    key = "train/learning_rate"
    steps = [event.step for event in events.Scalars(key)]
    assert steps == sorted(steps) and 320 < steps[-1] <= 384 and steps[0] <= 320
    if face is PPO:
        assert steps[-1] == 384 and all(step % 32 == 0 for step in steps)
        assert "train/value_loss" in events.Tags()["scalars"]


def test_a_logger_of_the_users(trained, loaded, tmp_path):
    """`model.logger` is the last run's; one set by `set_logger` is used and kept."""
    assert isinstance(trained[PPO].logger, Logger)
    model = loaded(PPO, env="CartPole-v1")
    rows = []

    class Writer(KVWriter):
        def write(self, key_values, key_excluded, step=0):
            rows.append((step, dict(key_values)))

        def close(self):
            pass

    logger = Logger(None, [Writer()])
    model.set_logger(logger)
    model.learn(24, log_interval=1)
    assert model.logger is logger
    assert [step for step, _ in rows] == [8, 16, 24]
    assert rows[-1][1]["time/total_timesteps"] == 24 and "train/loss" in rows[-1][1]


def test_small_things_that_users_read(trained):
    """Counters, spaces, device and names."""
    model = trained[DQN]
    assert model.num_timesteps == 40 and model.n_envs == 1 and model.seed == 1
    assert model.policy_name == "MlpPolicy" and "MlpPolicy" in repr(model.policy)
    assert jax.tree.leaves(model.policy.parameters)
    assert model.device.platform == "cpu"
    assert model.get_vec_normalize_env() is None
    assert set(ALGORITHMS) == {"DQN", "DoubleDQN", "DuelingDQN", "C51", "QRDQN", "IQN", "Rainbow", "PPO", "RecurrentPPO", "MaskablePPO", "A2C", "TRPO", "REINFORCE", "SAC", "DiscreteSAC", "TD3", "DDPG", "TQC", "CrossQ"}
    with pytest.raises(AttributeError, match="no_such_thing"):
        model.no_such_thing  # noqa: B018
    assert not hasattr(PPO("MlpPolicy"), "exploration_rate")


def test_devices_by_sb3s_words():
    """`auto`, `cpu` and a JAX device; an absent GPU falls back to the CPU with a warning."""
    for name in ("auto", "cpu", jax.devices("cpu")[0]):
        assert small(PPO, device=name).device.platform == "cpu"
    with pytest.warns(UserWarning, match="device='cuda'.*CPU"):
        model = small(PPO, device="cuda")
    assert model.device.platform == "cpu"


@pytest.mark.parametrize("steps", [float("inf"), float("nan"), 2.5, 0, True])
def test_totals_that_are_no_numbers(steps):
    """One line that names the argument, before training starts."""
    model = PPO("MlpPolicy", "advantage/ProbeMatch-v0", n_steps=8, batch_size=8)
    with pytest.raises(ValueError, match="total_timesteps=.* has to be a whole number of at least 1"):
        model.learn(steps)


def test_seeds_that_are_no_numbers():
    """Also a negative one, which NumPy would refuse in words of its own."""
    with pytest.raises(ValueError, match="seed=-1 has to be a whole number of at least 0"):
        PPO("MlpPolicy", "CartPole-v1", seed=-1)


def test_callbacks_see_sb3s_infos_at_an_end():
    """`episode`, `terminal_observation` and `TimeLimit.truncated`, where and only where an episode ended."""
    ends = []

    def watch(local, _):
        for done, info, following in zip(local["dones"], local["infos"], local["new_obs"], strict=True):
            assert ("episode" in info) == ("terminal_observation" in info) == bool(done)
            if done:
                assert (info["terminal_observation"] != following).any()
                ends.append((info["episode"]["r"], info["episode"]["l"], info["TimeLimit.truncated"]))

    model = PPO("MlpPolicy", "CartPole-v1", n_envs=2, n_steps=64, batch_size=64, n_epochs=1, seed=0)
    model.learn(256, callback=watch)
    assert len(ends) == model._driver.episodes() > 4
    assert all(returned == length >= 8 and not cut for returned, length, cut in ends)

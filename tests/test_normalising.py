"""Models that normalise: `normalize=True`, SB3's scripts with `VecNormalize`, files, seeds, evaluation."""

import json
import zipfile

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage import (
    DQN,
    PPO,
    CheckpointCallback,
    EvalCallback,
    VecNormalize,
    evaluate_policy,
    make_vec_env,
    sync_envs_normalization,
)
from advantage.envs.jax import make_jax
from advantage.training.callbacks import ConvertCallback
from advantage.training.evaluation import evaluate_seeds
from advantage.training.files import NotAModel
from advantage.training.loggers import configure
from advantage.types import Observed

SMALL = {
    PPO: {"n_steps": 16, "batch_size": 16, "n_epochs": 2, "learning_rate": 1e-2},
    DQN: {"learning_starts": 8, "buffer_size": 256, "batch_size": 8, "learning_rate": 1e-2},
}
FACES = [PPO, DQN]


class Scaled(gymnasium.ObservationWrapper):
    """Components of very different sizes: an agent that sees them raw acts differently."""

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)

    def observation(self, observation):
        return (observation * [1e-3, 1.0, 50.0, 1e3] + [0.0, 5.0, 0.0, 300.0]).astype(np.float32)


def venv(n_envs=2, seed=0):
    return make_vec_env(lambda: Scaled(gymnasium.make("CartPole-v1")), n_envs, seed=seed)


def small(face, env, **kwargs):
    return face("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, **{"seed": 1, **SMALL[face], **kwargs})


def arrays(model, seed_index=0):
    return {name: x for part in model.get_parameters(seed_index).values() for name, x in part.items()}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def statistics(model, seed_index=0):
    return {name: x for name, x in arrays(model, seed_index).items() if name.startswith(".normaliser")}


def chosen(model, raw):
    """The best actions on observations normalised by hand."""
    rms = model.get_vec_normalize_env().obs_rms
    seen = np.clip((raw - rms.mean) / np.sqrt(rms.var + 1e-8), -10, 10).astype(np.float32)
    state = model._seed_state(0).inner
    algorithm = type(model).algorithm
    actor = jax.tree.map(jnp.asarray, algorithm.actor(model._config, jax.tree.map(jnp.asarray, state)))
    observed = Observed(jnp.asarray(seen), np.zeros(len(raw), bool))
    return np.asarray(algorithm.act(model._config, actor, (), observed, jax.random.PRNGKey(0), False)[0])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model trained inside a `VecNormalize`, and the files of both, as SB3's scripts write them."""
    folder, made = tmp_path_factory.mktemp("trained"), {}
    for face in FACES:
        env = VecNormalize(venv())
        model = small(face, env).learn(400)
        model.save(folder / face.__name__)
        env.save(folder / f"{face.__name__}.pkl")
        made[face] = model, env, folder / face.__name__, folder / f"{face.__name__}.pkl"
    return made


def raw_observations(rows=200):
    """Observations that the wrapped environment gives, around the threshold of decisions."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(rows, 4)) * [1e-3, 1.0, 5.0, 1e3] + [0.0, 5.0, 0.0, 300.0]).astype(np.float32)


# -- SB3's scripts ------------------------------------------------------------------------------------------


def test_sb3s_script(tmp_path, monkeypatch):
    """SB3's example of `VecNormalize` as it is written there, but for the names imported and the number of steps."""
    monkeypatch.chdir(tmp_path)
    vec_env = make_vec_env("Pendulum-v1", n_envs=1)
    # Automatically normalize the input features and reward
    vec_env = VecNormalize(vec_env, norm_obs=True, norm_reward=True, clip_obs=10.0)

    model = PPO("MlpPolicy", vec_env, n_steps=64)
    model.learn(total_timesteps=128)

    # Don't forget to save the VecNormalize statistics when saving the agent
    log_dir = "/".join([str(tmp_path), "logs"]) + "/"
    model.save(log_dir + "ppo_pendulum")
    stats_path = log_dir + "vec_normalize.pkl"
    vec_env.save(stats_path)

    # To demonstrate loading
    del model, vec_env

    # Load the saved statistics
    vec_env = make_vec_env("Pendulum-v1", n_envs=1)
    vec_env = VecNormalize.load(stats_path, vec_env)
    #  do not update them at test time
    vec_env.training = False
    # reward normalization is not needed at test time
    vec_env.norm_reward = False

    # Load the agent
    model = PPO.load(log_dir + "ppo_pendulum", env=vec_env)
    assert model.get_vec_normalize_env() is vec_env and vec_env.obs_rms.count == pytest.approx(128.0001)
    mean, _ = evaluate_policy(model, vec_env, n_eval_episodes=1)
    assert mean < -100  # raw
    assert not vec_env.training and vec_env.obs_rms.count == pytest.approx(128.0001)


@pytest.mark.parametrize("face", FACES)
def test_predict_takes_raw_and_normalised_observations(trained, face):
    """Plain arrays are normalised, what `VecNormalize` gave is not again; one or many, views too."""
    model, env, *_ = trained[face]
    raw = raw_observations()
    expected = chosen(model, raw)
    assert 0 < expected.sum() < len(expected)
    plain, _ = model.predict(raw, deterministic=True)
    marked, _ = model.predict(env.normalize_obs(raw), deterministic=True)
    np.testing.assert_array_equal(plain, expected)
    np.testing.assert_array_equal(marked, expected)
    one = [model.policy.predict(row, deterministic=True)[0] for row in env.normalize_obs(raw[:20])]
    np.testing.assert_array_equal(one, expected[:20])
    twice, _ = model.predict(np.array(env.normalize_obs(raw)), deterministic=True)
    assert (twice != expected).any()  # the trap


def played(model, env, steps=60):
    """Raw observations and actions of SB3's loop, by hand."""
    obs, seen, actions = env.reset(), [], []
    for _ in range(steps):
        action, _ = model.predict(obs, deterministic=True)
        seen.append(env.get_original_obs())
        actions.append(action)
        obs, _, _, _ = env.step(action)
    return np.concatenate(seen), np.concatenate(actions)


@pytest.mark.parametrize("face", FACES)
def test_stepping_by_hand(trained, face):
    """By the environment in training, by one loaded beside a model without environment: the right actions, and
    statistics that stand still."""
    model, _env, file, pkl = trained[face]
    before = statistics(model)
    raw, actions = played(model, model.get_env())
    np.testing.assert_array_equal(actions, chosen(model, raw))
    assert same(before, statistics(model))
    beside = VecNormalize.load(pkl, venv())
    beside.training = False
    raw, actions = played(face.load(file), beside)
    np.testing.assert_array_equal(actions, chosen(model, raw))


@pytest.mark.parametrize("face", FACES)
def test_evaluation_takes_the_wrapper_off(trained, face):
    """The same raw returns in raw environments, in fresh and in loaded wrappers, and nothing changes."""
    model, env, file, pkl = trained[face]
    loaded = face.load(file)
    fresh = VecNormalize(venv(), training=False, norm_reward=False)
    restored = VecNormalize.load(pkl, venv())
    attached = face.load(file, env=VecNormalize.load(pkl, venv(seed=3)))
    before = statistics(model)

    def returns(model, env):
        return evaluate_policy(model, env, 6, return_episode_rewards=True, seed=5)

    expected = returns(model, venv())
    assert expected[0] == [float(length) for length in expected[1]]
    for one, where in (
        (model, env), (model, model.get_env()), (model, fresh), (loaded, fresh), (loaded, restored), (loaded, venv()),
        (attached, attached.get_env()),
    ):  # fmt: skip
        assert returns(one, where) == expected
    assert same(before, statistics(model)) and same(before, statistics(attached))
    assert fresh.obs_rms.count == 1e-4


def test_models_of_others_get_normalised_observations():
    """A policy that is not ours, and a model of ours that does not normalise, see what `VecNormalize` gives."""
    env = VecNormalize(venv(), clip_obs=0.5)
    env.obs_rms = env.obs_rms.copy()

    class Policy:
        def predict(self, obs, state=None, episode_start=None, deterministic=False):
            assert np.abs(obs).max() <= 0.5
            return np.zeros(len(obs), int), None

    evaluate_policy(Policy(), env, 2)
    plain = small(PPO, venv())
    seen = []
    predict = plain.predict
    plain.__dict__["predict"] = lambda obs, **kwargs: seen.append(np.abs(obs).max()) or predict(obs, **kwargs)
    evaluate_policy(plain, env, 2)
    assert max(seen) <= 0.5


@pytest.mark.parametrize("face", FACES)
def test_evaluations_while_training_use_the_statistics_of_the_moment(face, tmp_path):
    """`EvalCallback` in a fresh `VecNormalize`: the best model keeps the statistics that it was best with."""
    env = VecNormalize(venv())
    eval_env = VecNormalize(venv(seed=7), training=False, norm_reward=False)
    moments, returns = [], []

    def after(locals_, globals_):
        moments.append((statistics(model), eval_env.obs_rms.mean.copy()))
        mean = np.mean(evaluate_seeds(model, venv(), 3))
        returns.append(mean)
        return True

    callback = EvalCallback(
        eval_env, callback_after_eval=ConvertCallback(after), n_eval_episodes=3, eval_freq=128,
        best_model_save_path=tmp_path, verbose=0,
    )  # fmt: skip
    model = small(face, env)
    model.learn(512, callback=callback)
    assert len(moments) == 4
    best = int(np.argmax([r.mean() for r in callback.evaluations_results]))
    loaded = face.load(tmp_path / "best_model")
    assert same(statistics(loaded), moments[best][0])
    assert not same(moments[0][0], moments[-1][0])
    rms = eval_env.obs_rms  # synchronised, as in SB3
    np.testing.assert_allclose(rms.mean, moments[-1][1])
    counts = [m[0][".normaliser.obs['obs'].count"][1] for m in moments]
    assert counts == sorted(counts) and counts[-1] <= 512
    # An old best model in the wrapper of the last moment keeps its own.
    model = face.load(tmp_path / "best_model", env=env)
    assert same(statistics(model), moments[best][0])


def test_normalised_returns_are_logged(tmp_path):
    """Raw returns, and these divided by the scale of rewards."""
    model = small(PPO, "advantage/CartPole-v1", n_envs=4, normalize=True, seeds=2)
    model.set_logger(configure(str(tmp_path), ["json"]))
    model.learn(256, callback=EvalCallback("advantage/CartPole-v1", eval_freq=256, n_eval_episodes=4, verbose=0))
    model.logger.close()
    rows = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    last = next(row for row in rows if "eval/mean_reward" in row)
    scales = np.sqrt([model._statistics(s)["ret_rms"].var for s in range(2)])
    np.testing.assert_allclose(model.reward_scales(), scales, rtol=1e-6)
    means = evaluate_seeds(model, "advantage/CartPole-v1", 4).mean(axis=1)
    assert last["eval/mean_reward"] == pytest.approx(means.mean())
    assert last["eval/mean_normalized_reward"] == pytest.approx((means / scales).mean(), rel=1e-5)
    model.get_vec_normalize_env().norm_reward = False
    assert model.reward_scales() is None


# -- the view and its switches -------------------------------------------------------------------------------


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("where", ["host", "jax"])
def test_switches_act_on_the_model(face, where):
    model = small(face, venv() if where == "host" else "advantage/CartPole-v1", normalize=True, seeds=2)
    view = model.get_vec_normalize_env()
    assert model.get_env() is not view and view.training and view.norm_reward
    model.learn(64)
    assert view.obs_rms.count == view.ret_rms.count == pytest.approx(64.0001)
    view.training = False
    before = [statistics(model, s) for s in range(2)]
    model.learn(64)
    after = [statistics(model, s) for s in range(2)]
    assert all(map(same, before, after)) and not same(before[0], before[1])
    view.training = True
    model.learn(64)
    assert view.obs_rms.count == pytest.approx(128.0001)
    other = view.obs_rms.copy()
    other.mean = other.mean + 1
    view.obs_rms = other
    for s in range(2):
        mean = statistics(model, s)[".normaliser.obs['obs'].mean"]
        np.testing.assert_allclose(mean, other.mean, rtol=1e-6)
    with pytest.raises(ValueError, match="clip_obs is built in"):
        view.clip_obs = 3.0


def test_a_wrapper_belongs_to_its_last_model(trained, tmp_path):
    """Set aside, it keeps the statistics of that moment; seen statistics move into a model that has none."""
    _, _, _file, pkl = trained[PPO]
    env = VecNormalize.load(pkl, venv())
    count = env.obs_rms.count
    model = small(PPO, env)  # a new model goes on with what was seen
    assert env.obs_rms.count == count and model.get_vec_normalize_env() is env
    model.learn(64)
    assert env.obs_rms.count == pytest.approx(count + 64)
    model.set_env(venv())
    assert model.get_env() is not env and model.get_vec_normalize_env().obs_rms.count == pytest.approx(count + 64)
    model.learn(64)
    assert env.obs_rms.count == pytest.approx(count + 64)  # no longer the model's
    assert model.get_vec_normalize_env().obs_rms.count == pytest.approx(count + 128)


def test_a_model_that_did_not_normalise_begins_to():
    model = small(PPO, venv()).learn(64)
    before = arrays(model)
    env = VecNormalize(venv())
    model.set_env(env)
    assert same(before, {k.removeprefix(".inner"): x for k, x in arrays(model).items() if ".inner" in k})
    model.learn(64)
    assert env.obs_rms.count == pytest.approx(64.0001)


def test_other_statistics_than_the_models_are_not_taken(trained):
    """A file of another moment is noticed, and the model's own win; a fresh wrapper says nothing."""
    model, _, file, pkl = trained[PPO]
    env = VecNormalize.load(pkl, venv())
    env.obs_rms.mean += 1
    with pytest.warns(UserWarning, match="the model goes on with its own"):
        loaded = PPO.load(file, env=env)
    assert same(statistics(loaded), statistics(model))
    assert same(statistics(PPO.load(file, env=VecNormalize(venv()))), statistics(model))


def test_wrappers_that_do_not_fit_are_refused(trained):
    _model, _, file, _ = trained[PPO]
    with pytest.raises(ValueError, match="both say how: give one of them"):
        small(PPO, VecNormalize(venv()), normalize=True)
    with pytest.raises(ValueError, match="normalises the observations none, the model was trained with .'obs'."):
        PPO.load(file, env=VecNormalize(venv(), norm_obs=False))
    with pytest.raises(ValueError, match="observation space is Box"):
        PPO.load(file, env=VecNormalize(make_vec_env("MountainCar-v0", 1)))
    with pytest.raises(ValueError, match="normalised twice"):
        small(PPO, VecNormalize(VecNormalize(venv())))


# -- normalize=... --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("face", FACES)
def test_normalize_is_vec_normalize(face):
    """The same bits as with the wrapper of the same settings."""
    by_name = small(face, venv(), normalize={"gamma": 0.99}).learn(200)
    by_wrapper = small(face, VecNormalize(venv())).learn(200)
    assert same(arrays(by_name), arrays(by_wrapper))
    assert not same(arrays(by_name), arrays(small(face, venv(), normalize={"norm_reward": False}).learn(200)))


def test_the_gamma_of_the_model_scales_rewards():
    """By default; rewards of 1 and gamma 0 have returns of 1."""
    for given, gamma, spread in ((True, 0.0, False), (True, 0.9, True), ({"gamma": 0.0}, 0.9, False)):
        model = small(PPO, venv(), normalize=given, gamma=gamma).learn(64)
        assert bool(model.get_vec_normalize_env().ret_rms.var > 0.01) == spread


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"norm_rewards": False}, "no setting 'norm_rewards': did you mean 'norm_reward'"),
        ({"clip_obs": 0}, "clip_obs=0 is out of range: give a positive number"),
        ({"gamma": 1.1}, "gamma=1.1 .*between 0 and 1"),
        ({"norm_obs_keys": ["a"]}, "for Dict observations only"),
        ("yes", "normalize='yes' is not understood: give True"),
    ],
)
def test_settings_that_cannot_work_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        small(PPO, "advantage/CartPole-v1", normalize=given)


def test_normalize_is_built_in(tmp_path):
    model = small(PPO, venv(), normalize=True)
    assert model.normalize["clip_obs"] == 10.0 and small(PPO, venv()).normalize is None
    with pytest.raises(ValueError, match="normalize is built into the agent"):
        model.normalize = False
    model.save(tmp_path / "m")
    with pytest.raises(TypeError, match="load takes no normalize"):
        PPO.load(tmp_path / "m", normalize=False)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("where", ["host", "jax"])
def test_files_hold_settings_and_every_seeds_statistics(face, where, tmp_path):
    env = "CartPole-v1" if where == "host" else make_jax("advantage/CartPole-v1")
    settings = {"clip_obs": 4.0, "norm_reward": False}
    model = small(face, env, normalize=settings, seeds=3, n_envs=2).learn(96)
    model.get_vec_normalize_env().training = False
    model.save(tmp_path / "m")
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        assert json.loads(archive.read("model.json"))["normalize"] == model.normalize
    loaded = face.load(tmp_path / "m")
    assert loaded.normalize == model.normalize and loaded.normalize["clip_obs"] == 4.0
    assert loaded.get_vec_normalize_env() is None  # no environments
    for s in range(3):
        assert same(arrays(model, s), arrays(loaded, s))
    obs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    for s in range(3):
        one, two = (m.predict(obs, deterministic=True, seed_index=s)[0] for m in (model, loaded))
        np.testing.assert_array_equal(one, two)
    loaded.set_env(env)
    view = loaded.get_vec_normalize_env()
    assert not view.training and not view.norm_reward
    loaded.learn(32)
    assert same(statistics(model, 1), statistics(loaded, 1))
    plain = small(face, env, n_envs=2)
    with pytest.raises(NotAModel):
        plain.set_parameters(tmp_path / "m.zip")
    loaded.set_parameters(model.get_parameters(1))
    assert same(arrays(loaded, 2), arrays(model, 1))


@pytest.mark.parametrize("face", FACES)
def test_logged_episodes_are_raw(face):
    model = small(face, "advantage/CartPole-v1", normalize=True, n_envs=2).learn(400)
    recent = model._driver.recent(0)
    np.testing.assert_array_equal(recent.returns, recent.lengths)


def test_dict_observations():
    class Parts(gymnasium.Env):
        observation_space = gymnasium.spaces.Dict(
            {"far": gymnasium.spaces.Box(-1e6, 1e6, (2,), np.float32), "kind": gymnasium.spaces.Discrete(3),
             "near": gymnasium.spaces.Box(0, 200, (1,), np.int64)}
        )  # fmt: skip
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, seed=None, options=None):
            super().reset(seed=seed)
            self.steps = 0
            return self.seen(), {}

        def step(self, action):
            self.steps += 1
            return self.seen(), 1.0, self.steps == 5, False, {}

        def seen(self):
            far = self.np_random.normal(size=2).astype(np.float32) * 1e4
            return {"far": far, "kind": self.steps % 3, "near": np.array([100 + self.steps])}

    env = VecNormalize(make_vec_env(Parts, 2, seed=0))
    model = PPO("MultiInputPolicy", env, seed=0, **SMALL[PPO]).learn(64)
    assert sorted(env.obs_rms) == ["far", "near"]
    np.testing.assert_allclose(env.obs_rms["near"].mean, 102, atol=1)
    np.testing.assert_allclose(env.obs_rms["far"].var, 1e8, rtol=0.5)
    obs = env.reset()
    plain, marked = (model.predict(x, deterministic=True)[0] for x in (env.get_original_obs(), obs))
    np.testing.assert_array_equal(plain, marked)
    one = {name: x[0] for name, x in obs.items()}
    assert model.predict(one, deterministic=True)[0] == marked[0]
    evaluate_policy(model, env, 2)
    with pytest.raises(ValueError, match="'kind' is no Box, or a picture: choose from far, near"):
        PPO("MultiInputPolicy", make_vec_env(Parts, 1), normalize={"norm_obs_keys": ["kind"]})


def test_checkpoints_keep_the_statistics(tmp_path):
    env = VecNormalize(venv())
    saver = CheckpointCallback(64, tmp_path, name_prefix="m", save_vecnormalize=True)
    model = small(PPO, env).learn(128, callback=saver)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "m_128_steps.zip", "m_64_steps.zip", "m_vecnormalize_128_steps.pkl", "m_vecnormalize_64_steps.pkl",
    ]  # fmt: skip
    for steps in (64, 128):
        loaded = PPO.load(tmp_path / f"m_{steps}_steps")
        kept = VecNormalize.load(tmp_path / f"m_vecnormalize_{steps}_steps.pkl", venv())
        mean = statistics(loaded)[".normaliser.obs['obs'].mean"]
        np.testing.assert_allclose(kept.obs_rms.mean, mean, rtol=1e-6)
    sync_envs_normalization(env, kept)
    np.testing.assert_array_equal(kept.obs_rms.mean, model.get_env().obs_rms.mean)


def test_callbacks_see_the_wrapper():
    env, seen = VecNormalize(venv()), []
    small(PPO, env).learn(64, callback=lambda locals_, globals_: seen.append(locals_["env"]) or True)
    assert seen and all(one is env for one in seen)

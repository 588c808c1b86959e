"""Checkpoints: a run that was stopped and resumed ends with the bits of one that was not."""

import errno
import json
import subprocess
import sys
import warnings

import gymnasium
import jax
import numpy as np
import pytest

from advantage import (
    A2C,
    C51,
    DDPG,
    DQN,
    IQN,
    PPO,
    QRDQN,
    MaskablePPO,
    RecurrentPPO,
    REINFORCE,
    SAC,
    TD3,
    TQC,
    TRPO,
    BaseCallback,
    CheckpointCallback,
    CrossQ,
    DiscreteSAC,
    EvalCallback,
    EveryNTimesteps,
    OrnsteinUhlenbeckActionNoise,
    PrioritizedReplayBuffer,
    Rainbow,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    TimeLimit,
    VecNormalize,
    make_vec_env,
)
from advantage.envs.recorder import Recorder
from advantage.models import Model
from advantage.training import checkpoints
from advantage.training.checkpoints import NotACheckpoint, complete, find
from advantage.training.files import NotAModel
from advantage.training.loggers import configure

NET = {"policy_kwargs": {"net_arch": [8]}, "seed": 3}
ON = {"n_steps": 16, "batch_size": 16, "n_epochs": 2, "learning_rate": "lin_1e-3", **NET}
OFF = {"learning_starts": 30, "buffer_size": 100, "batch_size": 8, "train_freq": 4, "exploration_fraction": 1.0, **NET}
CONTROL = {"learning_starts": 20, "buffer_size": 90, "batch_size": 8, "train_freq": 4, **NET}
DRIFT = OrnsteinUhlenbeckActionNoise(0.0, 0.3, dt=0.2)  # lasts longer than a chunk
REMEMBERING_ALL = {"net_arch": [8], "lstm_hidden_size": 6}  # A2C learns along n_steps
REMEMBERING = REMEMBERING_ALL | {"sequence_length": 5}
PER = {"replay_buffer_class": PrioritizedReplayBuffer, "replay_buffer_kwargs": {"alpha": 0.7}}


class StopAt(BaseCallback):
    """Stops at a step; counts its own calls over both parts."""

    RESUMED = ("seen",)

    def __init__(self, step):
        super().__init__()
        self.step, self.seen = step, 0

    def _on_step(self):
        self.seen += 1
        return self.num_timesteps < self.step


class Wandering(gymnasium.Env):
    """Chance in every step, episodes that end by chance: repeated exactly only from the right random state."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.normal(size=2)
        return self.place.copy(), {}

    def step(self, action):
        self.place += 0.1 * float(action[0]) + 0.1 * self.np_random.normal(size=2)
        action[:] = 7.0  # rude, and allowed
        return self.place.copy(), -float(self.place @ self.place), self.np_random.random() < 0.05, False, {}


class Masked(Wandering):
    """By chance one of three actions is legal no more; a wrong one ends the world."""

    action_space = gymnasium.spaces.Discrete(3)

    def action_masks(self):
        return np.arange(3) != int(10 * abs(self.place[0])) % 3

    def step(self, action):
        assert self.action_masks()[action]
        return super().step(np.array([float(action) - 1.0]))


gymnasium.register("test/Masked-v0", Masked, max_episode_steps=30)
gymnasium.register("test/Wandering-v0", Wandering, max_episode_steps=30)
gymnasium.register("test/Pole-v0", "gymnasium.envs.classic_control.cartpole:CartPoleEnv")


def arrays_of(model):
    """Everything that training changes, by name."""
    tree = (model._driver.state, model._driver.memory)
    return {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same(one, other):
    ours, theirs = arrays_of(one), arrays_of(other)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if ours[name].tobytes() != theirs[name].tobytes()]
    assert not different
    assert one.num_timesteps == other.num_timesteps and one._driver.episodes() == other._driver.episodes()
    for s in range(one.num_seeds):
        np.testing.assert_array_equal(one._driver.recent(s).returns, other._driver.recent(s).returns)


# (face, env, settings, steps in all, where it is stopped): in mid-episode, some in mid-chunk.
RUNS = {
    "PPO, Gymnasium, mid-chunk": (PPO, "CartPole-v1", {**ON, "n_envs": 2}, 128, 74),
    "PPO, Gymnasium, 2 seeds": (PPO, "CartPole-v1", {**ON, "n_envs": 2, "seeds": 2}, 128, 64),
    "PPO, chance in every step": (PPO, "test/Wandering-v0", {**ON, "n_envs": 2}, 128, 70),
    "PPO, gSDE, mid-chunk": (PPO, "Pendulum-v1", {**ON, "use_sde": True, "sde_sample_freq": 5}, 64, 27),
    "DQN, Gymnasium, mid-chunk": (DQN, "CartPole-v1", OFF, 200, 103),
    "DQN, Gymnasium, 2 seeds": (DQN, "CartPole-v1", {**OFF, "n_envs": 2, "seeds": 2, "n_steps": 3}, 200, 104),
    "DQN, whole episodes": (DQN, "CartPole-v1", {**OFF, "train_freq": (2, "episode")}, 200, 101),
    "DQN, prioritised, 2 seeds": (DQN, "CartPole-v1", {**OFF, **PER, "n_envs": 2, "seeds": 2, "n_steps": 3}, 200, 104),
    "PPO, in processes": (PPO, "CartPole-v1", {**ON, "n_envs": 2, "vec_env": "async"}, 128, 74),
    "PPO, normalised": (PPO, "Pendulum-v1", {**ON, "n_envs": 2, "seeds": 2, "normalize": True}, 128, 74),
    "DQN, normalised, JAX": (DQN, "advantage/CartPole-v1", {**OFF, "normalize": True}, 200, 100),
    "PPO, JAX": (PPO, "advantage/CartPole-v1", {**ON, "n_envs": 2}, 256, 128),
    "PPO, JAX, 3 seeds": (PPO, "advantage/Pendulum-v1", {**ON, "n_envs": 2, "seeds": 3}, 128, 64),
    "DQN, JAX": (DQN, "advantage/CartPole-v1", OFF, 200, 100),
    "SAC, gSDE, added noise, chance": (
        SAC, "test/Wandering-v0", {**CONTROL, "use_sde": True, "sde_sample_freq": 7, "action_noise": DRIFT}, 100, 53,
    ),
    "TD3, JAX": (TD3, "advantage/Pendulum-v1", {**CONTROL, "action_noise": DRIFT}, 96, 48),
    "DDPG, 2 seeds": (DDPG, "test/Wandering-v0", {**CONTROL, "n_envs": 2, "seeds": 2, "updates_per_step": 0.3}, 100, 54),
    "DiscreteSAC, mid-chunk": (DiscreteSAC, "CartPole-v1", CONTROL, 100, 53),
    "TQC, gSDE": (TQC, "test/Wandering-v0", {**CONTROL, "use_sde": True}, 100, 53),
    "A2C, gSDE, mid-chunk": (A2C, "Pendulum-v1", {**NET, "use_sde": True, "n_steps": 8}, 64, 27),
    "TRPO, JAX, 2 seeds": (TRPO, "advantage/CartPole-v1", {**NET, "n_steps": 16, "batch_size": 16, "seeds": 2}, 64, 32),
    "REINFORCE, whole episodes": (REINFORCE, "CartPole-v1", {**NET, "train_freq": (2, "episode")}, 200, 101),
    "PPO, remembering, mid-chunk": (
        RecurrentPPO, "CartPole-v1", {**ON, "policy": "MlpLstmPolicy", "policy_kwargs": REMEMBERING, "n_envs": 2}, 128, 74,
    ),
    "A2C, remembering, JAX, 2 seeds": (
        A2C, "advantage/CartPole-v1", {**NET, "policy": "MlpLstmPolicy", "policy_kwargs": REMEMBERING_ALL, "n_envs": 2, "seeds": 2}, 80, 40,
    ),
    "PPO, masked, 2 seeds": (MaskablePPO, "test/Masked-v0", {**ON, "n_envs": 2, "seeds": 2}, 128, 74),
    "A2C, masked, remembering": (
        A2C, "test/Masked-v0", {**NET, "policy": "MlpLstmPolicy", "policy_kwargs": REMEMBERING_ALL, "n_envs": 2}, 80, 46,
    ),
    "TRPO, masked": (TRPO, "test/Masked-v0", {**NET, "n_steps": 16, "batch_size": 16}, 64, 23),
    "REINFORCE, masked": (REINFORCE, "test/Masked-v0", {**NET, "train_freq": 16, "n_envs": 2}, 96, 50),
    "C51, JAX, 2 seeds": (C51, "advantage/CartPole-v1", {**OFF, "seeds": 2, "n_atoms": 5}, 200, 100),
    "QRDQN, mid-chunk": (QRDQN, "CartPole-v1", {**OFF, "policy_kwargs": {"net_arch": [8], "n_quantiles": 4}}, 200, 103),
    "IQN, 2 seeds": (IQN, "CartPole-v1", {**OFF, "n_envs": 2, "seeds": 2, "n_tau_samples": 3, "n_tau_prime_samples": 2}, 200, 104),
    "Rainbow, masked": (Rainbow, "test/Masked-v0", {**OFF, "n_atoms": 5}, 200, 103),
    "DQN, masked, remembering": (
        DQN, "test/Masked-v0", {**OFF, "policy": "MlpLstmPolicy", "policy_kwargs": REMEMBERING | {"burn_in": 2}, "n_envs": 2}, 200, 103,
    ),
    "DQN, masked, prioritised": (DQN, "test/Masked-v0", {**OFF, **PER, "n_steps": 3}, 200, 103),
    "DiscreteSAC, masked, 2 seeds": (DiscreteSAC, "test/Masked-v0", {**CONTROL, "n_envs": 2, "seeds": 2}, 100, 54),
    "CrossQ, JAX, 2 seeds": (CrossQ, "advantage/Pendulum-v1", {**CONTROL, "seeds": 2}, 96, 48),
}  # fmt: skip


@pytest.mark.parametrize("run", RUNS)
def test_a_resumed_run_ends_with_the_same_bits(run, tmp_path):
    face, env, settings, total, stop = RUNS[run]
    settings = {"policy": "MlpPolicy", **settings}
    jax_env = env.startswith("advantage/")
    whole = face(env=env, **settings).learn(total)
    stopper = StopAt(stop)
    first = face(env=env, **settings)
    # A JAX environment's run stops between updates only: there an earlier checkpoint is taken.
    first.learn(total, stopper, checkpoint_dir=tmp_path, checkpoint_every=stop if jax_env else None)
    assert jax_env or first.num_timesteps in (stop, stop + 1)
    goes_on = StopAt(10**9)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = face.resume(tmp_path, at=stop if jax_env else None)
        assert model.num_timesteps < total
        assert model.learn(callback=goes_on) is model
    assert not said
    assert_same(whole, model)
    if not jax_env:
        assert goes_on.seen == goes_on.n_calls == -(-total // settings.get("n_envs", 1))


IN_A_PROCESS = """
import sys, numpy as np
from advantage import DQN, PPO
name, folder, file = sys.argv[1:]
model = {"PPO": PPO, "DQN": DQN}[name].resume(folder)
model.learn().save(file)
"""


@pytest.mark.parametrize("face,env,settings", [(PPO, "CartPole-v1", ON), (DQN, "advantage/CartPole-v1", OFF)])
def test_in_a_new_process(face, env, settings, tmp_path):
    """The same in a process that knows nothing but the folder."""
    whole = face("MlpPolicy", env, **settings).learn(96)
    face("MlpPolicy", env, **settings).learn(96, checkpoint_dir=tmp_path / "run", checkpoint_every=48)
    for late in complete(tmp_path / "run"):
        if late > 48:  # as if the process had been killed before it was written
            checkpoints.shutil.rmtree(complete(tmp_path / "run")[late])
    command = [sys.executable, "-c", IN_A_PROCESS, face.__name__, tmp_path / "run", tmp_path / "end.zip"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    ours, theirs = whole.get_parameters(), face.load(tmp_path / "end.zip").get_parameters()
    for part, arrays in ours.items():
        for name, x in arrays.items():
            assert x.tobytes() == theirs[part][name].tobytes(), name


def test_logs_and_callbacks_go_on(tmp_path):
    """Rows and evaluations are those of a run without a stop, also where the stopped one had gone further."""

    def callbacks(stop):
        rule = StopTrainingOnNoModelImprovement(100)
        every = EveryNTimesteps(40, lambda a, b: a["self"].logger.record_mean("seen", a["self"].num_timesteps))
        evaluation = EvalCallback("advantage/CartPole-v1", None, rule, 2, 32, verbose=0)
        return [evaluation, every, StopTrainingOnMaxEpisodes(10**6), StopAt(stop)]

    def start(folder):
        model = PPO("MlpPolicy", "CartPole-v1", **ON)
        model.set_logger(configure(folder, ["csv", "json", "log"]))
        return model

    whole = callbacks(10**9)
    start(tmp_path / "whole").learn(160, whole, log_interval=2).logger.close()
    first = start(tmp_path / "first")
    first.learn(160, callbacks(150), log_interval=2, checkpoint_dir=tmp_path / "run", checkpoint_every=80, checkpoint_keep=None)
    first.logger.close()
    model = PPO.resume(tmp_path / "run", at=80)
    again = callbacks(10**9)
    model.learn(callback=again)
    model.logger.close()
    assert again[0].evaluations_timesteps == whole[0].evaluations_timesteps == [32, 64, 96, 128, 160]
    np.testing.assert_array_equal(again[0].evaluations_results, whole[0].evaluations_results)
    assert again[0].best_mean_reward == whole[0].best_mean_reward
    assert again[0].callback.no_improvement_evals == whole[0].callback.no_improvement_evals
    assert again[2].n_episodes == whole[2].n_episodes
    assert again[3].seen == whole[3].seen == 160
    rows = [_rows(tmp_path / name / "progress.json") for name in ("whole", "first")]
    assert rows[0] == rows[1] and any("seen" in row for row in rows[0])
    headers = [(tmp_path / name / "progress.csv").read_text().splitlines() for name in ("whole", "first")]
    assert headers[0][0] == headers[1][0] and len(headers[0]) == len(headers[1])


def _rows(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("time/fps", "time/time_elapsed")} for row in rows]


def test_other_callbacks_begin_afresh(tmp_path):
    model = PPO("MlpPolicy", "advantage/CartPole-v1", **ON).learn(64, StopAt(32), checkpoint_dir=tmp_path, checkpoint_every=32)
    assert model.num_timesteps >= 32
    with pytest.warns(UserWarning, match="the callbacks are not those of the checkpoint"):
        PPO.resume(tmp_path, at=32).learn()


def test_the_plan_is_kept(tmp_path):
    """`learn()` goes on to the planned end and writes on; `learn(M)` is a new plan."""
    model = PPO("MlpPolicy", "advantage/CartPole-v1", **ON)
    model.learn(96, checkpoint_dir=tmp_path, checkpoint_every=32, checkpoint_keep=2)
    assert sorted(complete(tmp_path)) == [64, 96]
    model = PPO.resume(tmp_path, at=64).learn()
    assert model.num_timesteps == 96 and sorted(complete(tmp_path)) == [64, 96]
    with pytest.raises(ValueError, match="total_timesteps is missing"):
        model.learn()
    model = PPO.resume(tmp_path)
    assert model.learn().num_timesteps == 96  # its end is reached: nothing happens
    model = PPO.resume(tmp_path, at=64)
    assert model.learn(32, reset_num_timesteps=False).num_timesteps == 96
    assert PPO.resume(tmp_path, at=64).learn(32).num_timesteps == 32


def test_saved_on_demand(tmp_path):
    """After a stop without any folder, too; the model goes on undisturbed."""
    whole = PPO("MlpPolicy", "CartPole-v1", **ON).learn(64)
    with pytest.raises(ValueError, match="nothing was trained"):
        PPO("MlpPolicy", "CartPole-v1", **ON).save_checkpoint(tmp_path)
    model = PPO("MlpPolicy", "CartPole-v1", **ON)
    model.learn(64, StopAt(40))
    path = model.save_checkpoint(tmp_path / "run")
    assert path == find(tmp_path / "run", None)
    assert_same(whole, PPO.resume(path).learn(callback=StopAt(10**9)))
    assert_same(whole, Model.resume(tmp_path / "run", env=make_vec_env("CartPole-v1")).learn(callback=StopAt(10**9)))


# -- what does not fit --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of PPO on two CartPoles, at 64 of 96 steps."""
    folder = tmp_path_factory.mktemp("run")
    PPO("MlpPolicy", "CartPole-v1", n_envs=2, **ON).learn(96, StopAt(64), checkpoint_dir=folder)
    return folder


def test_what_belongs_to_something_else(run, tmp_path):
    with pytest.raises(NotACheckpoint, match="no checkpoint in"):
        PPO.resume(tmp_path)
    with pytest.raises(NotACheckpoint, match="at=3: .* has checkpoints at 64"):
        PPO.resume(run, at=3)
    with pytest.raises(NotACheckpoint, match="holds a run of PPO: go on with PPO.resume"):
        DQN.resume(run)
    with pytest.raises(ValueError, match="env is Acrobot-v1, and the checkpoint's run is on CartPole-v1"):
        PPO.resume(run, "Acrobot-v1")
    with pytest.raises(ValueError, match="env is test/Pole-v0, and the checkpoint's run is on CartPole-v1"):
        PPO.resume(run, make_vec_env("test/Pole-v0", 2))
    with pytest.raises(ValueError, match="observation space"):
        PPO.resume(run, make_vec_env("Acrobot-v1", 2))
    with pytest.raises(NotACheckpoint, match="n_envs was 2 when it was written, and is 3"):
        PPO.resume(run, make_vec_env("CartPole-v1", 3))


def test_another_folder_is_not_overwritten(run):
    with pytest.raises(ValueError, match="holds the checkpoints of another run"):
        PPO("MlpPolicy", "CartPole-v1", **ON).learn(32, checkpoint_dir=run)
    with pytest.raises(ValueError, match="checkpoint_every=10 needs checkpoint_dir"):
        PPO("MlpPolicy", "CartPole-v1", **ON).learn(32, checkpoint_every=10)
    with pytest.raises(ValueError, match="checkpoint_every=0.5"):
        PPO("MlpPolicy", "CartPole-v1", **ON).learn(32, checkpoint_dir=run, checkpoint_every=0.5)


def test_another_version(run, tmp_path):
    """Of the library: the run goes on, and what may differ is said. Of the format: refused."""
    folder = tmp_path / "run"
    checkpoints.shutil.copytree(run, folder)
    path = find(folder, None) / "run.json"
    header = json.loads(path.read_text())
    path.write_text(json.dumps(header | {"versions": header["versions"] | {"jax": "0.0.1"}}))
    with pytest.warns(UserWarning, match="not with the same bits: jax was 0.0.1 and is"):
        PPO.resume(folder)
    path.write_text(json.dumps(header | {"format": 99}))
    with pytest.raises(NotACheckpoint, match="newer release"):
        PPO.resume(folder)
    path.write_text("{")
    with pytest.raises(NotACheckpoint, match="damaged.*takes an earlier one"):
        PPO.resume(folder)


def test_a_schedule_that_is_a_function_is_given_again(tmp_path):
    settings = {**ON, "learning_rate": lambda left: 1e-3 * left**2}
    whole = PPO("MlpPolicy", "CartPole-v1", **settings).learn(64)
    PPO("MlpPolicy", "CartPole-v1", **settings).learn(64, StopAt(32), checkpoint_dir=tmp_path)
    with pytest.warns(UserWarning, match="learning_rate was a function, of which a file keeps 101 points"):
        PPO.resume(tmp_path)
    model = PPO.resume(tmp_path, learning_rate=settings["learning_rate"])
    assert_same(whole, model.learn(callback=StopAt(10**9)))


def test_an_environment_of_the_users_is_given_again(tmp_path):
    """Wrapped, or without an id: there is no making it from a file."""
    env = make_vec_env("CartPole-v1", wrapper_class=TimeLimit, wrapper_kwargs={"max_episode_steps": 9})
    PPO("MlpPolicy", env, **ON).learn(32, StopAt(20), checkpoint_dir=tmp_path / "a")
    with pytest.raises(ValueError, match="give it again"):
        PPO.resume(tmp_path / "a")
    PPO("MlpPolicy", make_vec_env(Wandering), **ON).learn(32, StopAt(20), checkpoint_dir=tmp_path / "b")
    with pytest.raises(ValueError, match="give it again"):
        PPO.resume(tmp_path / "b")
    PPO.resume(tmp_path / "b", make_vec_env(Wandering)).learn(callback=StopAt(99))


class Unrepeatable(Wandering):
    """Draws from a stream that nobody else can see."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = np.random.default_rng().normal(size=2)
        return self.place.copy(), {}


def test_what_cannot_be_repeated_begins_anew(tmp_path):
    """It is noticed, said, and the episode that cannot go on ends as truncated."""
    PPO("MlpPolicy", make_vec_env(Unrepeatable), **ON).learn(64, StopAt(40), checkpoint_dir=tmp_path)
    with pytest.warns(UserWarning, match="new episodes begin .*env 0: (step 1 of its episode gave|it shows another)"):
        model = PPO.resume(tmp_path, make_vec_env(Unrepeatable))
    model.learn(callback=StopAt(10**9))
    assert model.num_timesteps == 64
    vector = gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="vector_entry_point")
    PPO("MlpPolicy", vector, **ON).learn(64, StopAt(40), checkpoint_dir=tmp_path / "v")
    with pytest.warns(UserWarning, match="natively vectorised"):
        PPO.resume(tmp_path / "v", gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="vector_entry_point"))


class Stated(Wandering):
    """Offers its state, as emulators do."""

    def get_state(self):
        return {"x": self.place[0], "y": float(self.place[1])}

    def set_state(self, state):
        self.place = np.array([float(state["x"]), float(state["y"])])


def test_an_environment_that_offers_its_state(tmp_path):
    """It is set, not repeated; its time limit goes on."""

    def make():
        return gymnasium.wrappers.TimeLimit(Stated(), 25)

    whole = PPO("MlpPolicy", make_vec_env(make), **ON).learn(96)
    PPO("MlpPolicy", make_vec_env(make), **ON).learn(96, StopAt(40), checkpoint_dir=tmp_path)
    model = PPO.resume(tmp_path, make_vec_env(make))
    assert isinstance(model._driver.envs.envs[0], Recorder) and not model._driver.envs.envs[0]._actions
    assert_same(whole, model.learn(callback=StopAt(10**9)))


def test_another_time_limit_is_no_plain_environment(tmp_path):
    PPO("MlpPolicy", gymnasium.make("CartPole-v1", max_episode_steps=12), **ON).learn(32, StopAt(20), checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="with wrappers or arguments: give it again"):
        PPO.resume(tmp_path)


def test_other_normalisation_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="normalises nothing: give env without it"):
        PPO.resume(run, VecNormalize(make_vec_env("CartPole-v1", 2)))
    env = VecNormalize(make_vec_env("CartPole-v1"), clip_obs=0.5)
    PPO("MlpPolicy", env, **ON).learn(32, StopAt(20), checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="clip_obs was 0.5 and is 10.0"):
        PPO.resume(tmp_path, VecNormalize(make_vec_env("CartPole-v1")))


def test_a_mistake_can_be_mended(run, tmp_path):
    """What fails before training leaves the resumed run as it was; another environment is another run."""
    model = PPO.resume(run)
    wrong = StopAt(10**9)
    wrong.seen = {0: 1}
    with pytest.raises(TypeError, match="dict with the key 0"):
        model.learn(callback=wrong, checkpoint_dir=tmp_path / "x")
    model.set_env("CartPole-v1")
    with pytest.raises(ValueError, match="total_timesteps is missing"):
        model.learn()
    with pytest.raises(ValueError, match="checkpoint_every=8 needs checkpoint_dir"):
        other = PPO("MlpPolicy", "CartPole-v1", **ON)
        other.learn(32, StopAt(20))
        other.save_checkpoint(tmp_path / "y")
        PPO.resume(tmp_path / "y").learn(callback=StopAt(99), checkpoint_every=8)


def test_the_newest_that_can_be_read(tmp_path):
    """A damaged one is no reason to lose those before it."""
    model = PPO("MlpPolicy", "advantage/CartPole-v1", **ON)
    model.learn(96, checkpoint_dir=tmp_path, checkpoint_every=32)
    (tmp_path / "step_000000000096" / "run.json").write_text("{")
    with pytest.raises(NotACheckpoint, match="takes an earlier one"):
        PPO.resume(tmp_path)
    assert PPO.resume(tmp_path, at=64).learn().num_timesteps == 96


# -- disks ----------------------------------------------------------------------------------------------


def test_a_full_disk(tmp_path, monkeypatch):
    """One clear error; what was trained is in memory and can be written elsewhere, from where the run goes on."""
    whole = DQN("MlpPolicy", "CartPole-v1", **OFF).learn(120)
    model = DQN("MlpPolicy", "CartPole-v1", **OFF)

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "sync", full)
        with pytest.raises(OSError, match="cannot write the checkpoint .*No space left on device; the agents are still in"):
            model.learn(120, checkpoint_dir=tmp_path / "full", checkpoint_every=40)
    assert model.num_timesteps == 40 and not list((tmp_path / "full").iterdir())
    model.save(tmp_path / "model")
    model.save_checkpoint(tmp_path / "elsewhere")
    assert_same(whole, DQN.resume(tmp_path / "elsewhere").learn())


@pytest.mark.parametrize("env", ["CartPole-v1", "advantage/CartPole-v1"])
def test_a_replay_memory_of_its_own(env, tmp_path):
    """As in SB3: kept beside a model file, taken up by a model of the same sizes."""
    model = DQN("MlpPolicy", env, **OFF)
    model.learn(60, CheckpointCallback(60, tmp_path, "m", save_replay_buffer=True))
    model.save(tmp_path / "model")
    again = DQN.load(tmp_path / "model", env=env)
    model.save_replay_buffer(tmp_path / "replay.pkl")
    again.load_replay_buffer(tmp_path / "replay.pkl")
    ours, theirs = arrays_of(model), arrays_of(again)
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
    again.learn(40, reset_num_timesteps=False)
    other = DQN("MlpPolicy", env, **{**OFF, "buffer_size": 50})
    with pytest.raises(NotAModel, match=r"memory.obs is float32\[1, 100, 4\], expected float32\[1, 50, 4\]"):
        other.load_replay_buffer(tmp_path / "m_replay_buffer_60_steps.pkl")
    with pytest.raises(ValueError, match="PPO keeps no replay memory"):
        PPO("MlpPolicy", env, **ON).save_replay_buffer(tmp_path / "none")


def test_a_folder_that_cannot_be_written(tmp_path):
    """Before any training."""
    (tmp_path / "file").write_text("")
    model = PPO("MlpPolicy", "CartPole-v1", **ON)
    with pytest.raises(OSError, match="cannot write the checkpoint .*choose another checkpoint_dir"):
        model.learn(32, checkpoint_dir=tmp_path / "file" / "run")
    assert model.num_timesteps == 0


def test_state_of_callbacks_that_cannot_be_kept(tmp_path):
    """Before any training, too."""
    callback = StopAt(99)
    callback.seen = object()
    model = PPO("MlpPolicy", "CartPole-v1", **ON)
    with pytest.raises(TypeError, match="cannot keep a object"):
        model.learn(32, callback, checkpoint_dir=tmp_path)
    assert model.num_timesteps == 0

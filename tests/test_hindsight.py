"""Models with `HerReplayBuffer`: what they remember, several environments and seeds, files, exact resume, errors."""

import warnings

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces

from advantage import DDPG, DQN, PPO, SAC, TD3, BaseCallback, DummyVecEnv, HerReplayBuffer, evaluate_policy, make_vec_env
from advantage.envs.goals import BitFlip, PointReach

# What is remembered before anything is learned is looked at here.
pytestmark = pytest.mark.filterwarnings("ignore:learning_starts=")
HER = {"replay_buffer_class": HerReplayBuffer}
SMALL = {"learning_starts": 20, "buffer_size": 4000, "batch_size": 8, "policy_kwargs": {"net_arch": [4]}, "seed": 3}
FACES = [DQN, SAC, TD3, DDPG]
IDS = {DQN: "goals/BitFlip-v0", **dict.fromkeys((SAC, TD3, DDPG), "goals/PointReach-v0")}


def small(face, env=None, **settings):
    return face("MultiInputPolicy", env or IDS[face], **{**SMALL, **HER, **settings})


def rows(model, seed_index=0):
    """What each environment's ring holds, as NumPy arrays `[N, C, ...]`, and how many rows of it count."""
    memory = jax.tree.map(lambda x: np.asarray(x)[seed_index], model._driver.memory)
    return jax.tree.map(lambda x: x.reshape(model.n_envs, -1, *x.shape[1:]), memory._replace(head=(), size=())), memory.size


def relabelled_rows(model, seed_index=0):
    """Pairs `(real rows, relabelled rows)` as lists of dictionaries, over all environments."""
    held, sizes = rows(model, seed_index)
    real, made = [], []
    for n, size in enumerate(sizes.tolist()):
        for i in range(size):
            row = jax.tree.map(lambda x, n=n, i=i: x[n, i], held)
            # In hindsight each row is an episode of one step: FIRST and an end.
            (made if row.flags & 1 and row.flags & 6 else real).append(row)
    return real, made


@pytest.mark.parametrize("face", FACES)
def test_what_is_remembered(face):
    """Every off-policy algorithm, two environments: of each step of an episode that ended there are k relabelled copies
    with the rewards of `compute_reward`; of those that run on, none. All rows are finite and the agent has learned."""
    model = small(face, n_envs=2, replay_buffer_kwargs={"n_sampled_goal": 3}).learn(210)
    before = int(model._full_state().n_updates[0])
    assert before > 0
    real, made = relabelled_rows(model)
    ended = int(sum(model._driver.recent(0).lengths))
    assert len(real) == 210 and len(made) == 3 * ended and 0 < ended < 210
    reward = (BitFlip() if face is DQN else PointReach()).compute_reward
    for row in real + made:
        assert row.reward == reward(row.next_obs["achieved_goal"], row.obs["desired_goal"], {})
        np.testing.assert_array_equal(row.obs["desired_goal"], row.next_obs["desired_goal"])
    assert np.mean([x.reward == 0 for x in made]) > 0.1 > np.mean([x.reward == 0 for x in real])
    # Each has the step that it was made of: all but the goal and the reward is the same.
    steps = {(x.obs["observation"].tobytes(), x.action.tobytes(), x.next_obs["observation"].tobytes()) for x in real}
    assert {(x.obs["observation"].tobytes(), x.action.tobytes(), x.next_obs["observation"].tobytes()) for x in made} <= steps


def test_learning_starts_counts_steps():
    """Relabelled rows are no steps: nothing is learned before `learning_starts` of them, and from then on it is."""
    model = small(DQN, learning_starts=100, train_freq=1, gradient_steps=1, buffer_size=100_000).learn(100)
    assert int(model._driver.memory.size.sum()) > 400 and int(model._full_state().n_updates[0]) == 0
    model.learn(7, reset_num_timesteps=False)
    assert int(model._full_state().n_updates[0]) == 7


def test_seeds_and_environments_do_not_mix():
    """Before anything is learned a seed remembers the same rows alone and beside another one."""
    settings = {"learning_starts": 10_000, "n_envs": 2, "train_freq": 3}
    beside = small(DQN, seeds=2, **settings).learn(150)
    alone = small(DQN, **{**settings, "seed": SMALL["seed"] + 1}).learn(150)
    for x, y in zip(jax.tree.leaves(rows(beside, 1)), jax.tree.leaves(rows(alone)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_in_processes():
    """Environments in processes of their own compute the same rewards: all bits are the same."""
    models = [small(DQN, n_envs=2, vec_env=kind).learn(60) for kind in ("sync", "async")]
    for x, y in zip(*(jax.tree.leaves((m._full_state(), m._driver.memory)) for m in models), strict=True):
        np.testing.assert_array_equal(x, y)
    models[1].get_env().close()


class FloatBits(BitFlip):
    """Only a Box is normalised."""

    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Dict(dict.fromkeys(self.observation_space, spaces.Box(0.0, 1.0, (8,))))


def test_normalised():
    """With `normalize=True` rows are remembered as they are; statistics come from the steps alone."""
    env = DummyVecEnv([FloatBits])
    model = small(DQN, env, normalize=True).learn(120)
    real, made = relabelled_rows_of_normalised(model)
    assert len(real) == 120 and len(made) == 4 * sum(model._driver.recent(0).lengths)
    assert {float(x.reward) for x in real + made} == {-1.0, 0.0}
    seen = np.stack([x.obs["observation"] for x in real]).astype(np.float64)
    np.testing.assert_allclose(model.get_vec_normalize_env().obs_rms["observation"].mean, seen.mean(0), atol=1e-3)
    assert np.isfinite(evaluate_policy(model, DummyVecEnv([FloatBits]), 2)[0])


def relabelled_rows_of_normalised(model):
    inner = model._driver.memory.inner
    held = type("Held", (), {"n_envs": 1, "_driver": type("Driver", (), {"memory": inner})})
    return relabelled_rows(held)


class StopAt(BaseCallback):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def _on_step(self):
        return self.num_timesteps < self.step


def bits(model):
    tree = (model._driver.state, model._driver.memory)
    return {jax.tree_util.keystr(p): np.asarray(x).tobytes() for p, x in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize(
    ("settings", "running"),
    [({"n_envs": 2, "seeds": 2, "train_freq": 5}, 1), ({"train_freq": 1}, 4), ({"train_freq": (2, "episode")}, 0)],
)
def test_a_resumed_run_ends_with_the_same_bits(settings, running, tmp_path):
    """Stopped in mid-episode (of 8 steps) and in mid-chunk: the episode is relabelled whole, with the goals it would
    have had."""
    whole = small(DQN, **settings).learn(130)
    small(DQN, **settings).learn(130, StopAt(53), checkpoint_dir=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = DQN.resume(tmp_path)
    assert 53 <= model.num_timesteps <= 54
    assert model._driver.further.longest == running
    model.learn(callback=StopAt(10**9))
    assert bits(model) == bits(whole)


def test_files(tmp_path):
    """A model file keeps the settings; the memory has a file of its own; a loaded model trains on."""
    model = small(DQN, replay_buffer_kwargs={"n_sampled_goal": 2, "goal_selection_strategy": "final"}).learn(40)
    model.save(tmp_path / "m")
    model.save_replay_buffer(tmp_path / "r")
    again = DQN.load(tmp_path / "m", env=IDS[DQN])
    assert again.replay_buffer_class is HerReplayBuffer
    assert again._hindsight == model._hindsight == HerReplayBuffer(2, "final")
    again.load_replay_buffer(tmp_path / "r")
    held = again._driver.memory.size.sum()
    assert held == model._driver.memory.size.sum() > 40
    again.learn(16, reset_num_timesteps=False)
    assert again._driver.memory.size.sum() == held + 3 * 16 - 2 * again._driver.further.hindsight.count.sum()
    with pytest.raises(TypeError, match="load takes no replay_buffer_class"):
        DQN.load(tmp_path / "m", replay_buffer_class=None)


def test_failing_rewards_are_told(tmp_path):
    """Where an environment fails to compute rewards training ends with its words; the model can go on."""

    class Failing(BitFlip):
        broken = False

        def compute_reward(self, achieved_goal, desired_goal, info):
            if self.broken and np.ndim(achieved_goal) > 1:
                raise ZeroDivisionError("no such goal")
            return super().compute_reward(achieved_goal, desired_goal, info)

    env = Failing()
    model = small(DQN, env)
    Failing.broken = True
    with pytest.raises(RuntimeError, match=r"compute_reward of goals \[.*, 8\] raised ZeroDivisionError: no such goal"):
        model.learn(40)
    Failing.broken = False
    model.learn(40)
    assert model.num_timesteps == 40


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: small(DQN, "CartPole-v1"), ValueError, "box observations in place of a Dict.*compute_reward"),
        (lambda: small(DQN, "advantage/CartPole-v1"), ValueError, "Gymnasium's environments only"),
        (lambda: small(DQN, n_steps=3), ValueError, "n_steps=3 cannot be used with HerReplayBuffer"),
        (lambda: small(DQN, replay_buffer_kwargs={"n_sampled_goal": 0}), ValueError, "n_sampled_goal=0"),
        (lambda: small(DQN, replay_buffer_class=list), ValueError, "replay_buffer_class=<class 'list'> is not known"),
        (lambda: small(DQN, gymnasium.make_vec(IDS[DQN], 2)), ValueError, "gymnasium.vector environment cannot"),
        (lambda: PPO("MultiInputPolicy", IDS[DQN], **HER), TypeError, "PPO keeps no replay memory.*use DQN or .*SAC"),
    ],
)
def test_what_cannot_work_is_refused(make, error, message):
    """One clear message each, before training."""
    with pytest.raises(error, match=message):
        make()


def test_what_is_built_in_stays():
    """On a live model neither the class nor returns of several steps can be set; another environment is checked."""
    model = small(DQN)
    with pytest.raises(ValueError, match="n_steps=2 cannot be used"):
        model.n_steps = 2
    assert model.n_steps == 1
    with pytest.raises(ValueError, match="replay_buffer_class is built into"):
        model.replay_buffer_class = None
    env = make_vec_env(BitFlip, 3)
    model.set_env(env)
    assert model._driver.further.hindsight.count.shape == (1, 3)
    model.learn(30)


def test_sb3_code_runs():
    """As in SB3's documentation: positions and names of the arguments."""
    model = SAC("MultiInputPolicy", DummyVecEnv([PointReach]), 1e-3, 1000, 10, 8, 0.005, 0.95, 1, 1, None,
                HerReplayBuffer, {"n_sampled_goal": 4, "goal_selection_strategy": "future", "copy_info_dict": False},
                policy_kwargs={"net_arch": [4]})  # fmt: skip
    assert model.replay_buffer_kwargs["n_sampled_goal"] == 4
    assert model._hindsight == HerReplayBuffer()
    assert "replay_buffer_class: HerReplayBuffer relabels" in SAC.__doc__

"""The reward-hacking monitor: its test for trends on made series, and agents that hack a bonus and that do not."""

import dataclasses
import json
import warnings
from typing import ClassVar

import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest

from advantage import DQN, PPO, BaseCallback, Monitor, PotentialShaping, RewardMonitor, ScaleReward, make_vec_env
from advantage.envs.jax import Transition
from advantage.experiments import plots
from advantage.experiments.reward_monitor import divergence
from advantage.training.loggers import configure
from advantage.types import Spec

# Agents that act at random all the time are wanted here.
pytestmark = pytest.mark.filterwarnings("ignore:learning_starts=1000 is not reached")
LIMIT = 10
SETTINGS = {
    "n_steps": 16, "batch_size": 128, "n_epochs": 8, "learning_rate": 1e-3, "gamma": 0.99, "seed": 0,
    "policy_kwargs": {"net_arch": [8]},
}  # fmt: skip


class Errand(gymnasium.Env):
    """Go (1) pays 1 and ends the episode, standing still (0) costs 0.1: going at once is best."""

    observation_space, action_space = gymnasium.spaces.Box(0.0, 1.0, (1,)), gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        gone = bool(action == 1)
        over = gone or self.steps == LIMIT
        return np.array([self.steps / LIMIT], np.float32), 1.0 if gone else -0.1, over, False, {}


class Bonus(gymnasium.Wrapper):
    """Pays for standing still."""

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward + 0.5 * float(action == 0), terminated, truncated, info


@dataclasses.dataclass(frozen=True)
class JaxErrand:
    """The same in JAX, with the bonus for standing still inside."""

    bonus: float = 0.0
    id: ClassVar[str] = "test/Errand"
    spec: ClassVar[Spec] = Spec.from_gymnasium(Errand.observation_space, Errand.action_space)

    def reset(self, key):
        return jnp.int32(0), jnp.zeros(1, jnp.float32)

    def step(self, env_state, action, key):
        steps, gone = env_state + jnp.int32(1), action == 1
        obs = (steps / LIMIT).astype(jnp.float32)[None]
        reward = jnp.where(gone, jnp.float32(1.0), jnp.float32(self.bonus - 0.1))
        return steps, Transition(obs, reward, gone | (steps == LIMIT), jnp.bool_(False))


gymnasium.register("test/Errand-v0", Errand)


def waiting(obs):
    """The bonus as a potential, in NumPy and in JAX."""
    return 0.5 * LIMIT * obs[0]


def quietly(model, steps, monitor, **options):
    """Train; returns what was warned of."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.learn(steps, callback=monitor, **options)
    return [str(one.message) for one in said if "hacking" in str(one.message)]


# -- trends ----------------------------------------------------------------------------------------------


def noisy(slope, seed, points=12):
    return slope * np.arange(points) + np.random.default_rng(seed).normal(size=points)


def test_rising_and_falling_through_noise():
    found = divergence(noisy(1.0, 0), 100 - noisy(1.0, 1))
    assert found is not None and found.points == 12
    np.testing.assert_allclose(found.shaped, [0, 11], atol=1.5)
    np.testing.assert_allclose(found.true, [100, 89], atol=1.5)


@pytest.mark.parametrize("shaped, true", [(1, 1), (-1, -1), (-1, 1), (1, 0), (0, -1)])
def test_nothing_else_is_a_divergence(shaped, true):
    """Both rising, both falling, the true one rising; and one of them only, with and without noise."""
    assert divergence(noisy(shaped, 0), noisy(true, 1)) is None
    assert divergence(shaped * np.arange(12.0), true * np.arange(12.0)) is None


def test_two_points_far_out_are_no_trend():
    jump = np.array([0, 0.1, -0.1, 0.2, 0, 0.1, -0.2, 0, 0.1, -0.1, 50, 60])
    assert divergence(jump, -jump) is None


def test_p_values_are_those_of_counting_all_orders():
    """8 points in order with one neighbouring pair exchanged: 8 of the 8! orders are as far out or further."""
    swapped = np.array([0, 1, 2, 3, 4, 5, 7, 6.0])
    assert divergence(swapped, -swapped, significance=8.5 / 40320) is not None
    assert divergence(swapped, -swapped, significance=7.5 / 40320) is None


def test_only_the_window_counts_and_a_few_points_are_none():
    past, now = np.arange(30.0)[::-1], np.arange(12.0)
    assert divergence([*past, *now], [*-past, *-now]) is not None
    assert divergence([*now, *past[:12]], [*-now, *-past[:12]]) is None
    assert divergence(now[:7], -now[:7]) is None


def test_false_alarms_are_as_rare_as_promised():
    """Noise alone: `significance` where the two returns are opposed (the worst case), its square where independent."""
    noise = np.random.default_rng(0).normal(size=(600, 2, 12))
    opposed = sum(divergence(one, -one, significance=0.05) is not None for one, _ in noise)
    independent = sum(divergence(one, other, significance=0.05) is not None for one, other in noise)
    assert 14 <= opposed <= 46, "600 draws of probability 0.05 (at most), give or take three deviations"
    assert independent <= 6, "600 draws of probability 0.0025"


# -- agents ------------------------------------------------------------------------------------------------


def host_model(wrap, **options):
    return PPO("MlpPolicy", make_vec_env(lambda: wrap(Errand()), n_envs=8), **SETTINGS | options)


def test_a_hacked_bonus_is_warned_about_once(tmp_path):
    pytest.importorskip("matplotlib")
    monitor = RewardMonitor(check_freq=128, plot_path=tmp_path / "made" / "returns.png")
    model = host_model(lambda env: Bonus(Monitor(env)))
    model.set_logger(configure(tmp_path, ["json"]))
    said = quietly(model, 40 * 128, monitor, log_interval=1)
    model.logger.close()
    assert monitor.warned_at is not None and len(said) == 1
    assert "shaped return rose" in said[0] and "true return fell" in said[0] and "returns.png" in said[0]
    assert monitor.timesteps == [128 * k for k in range(1, 41)]
    assert monitor.true_returns[-1][0] < monitor.true_returns[0][0] - 0.5
    assert monitor.shaped_returns[-1][0] > monitor.shaped_returns[0][0] + 0.5
    last = json.loads((tmp_path / "progress.json").read_text().splitlines()[-1])
    assert last["monitor/true_return"] == pytest.approx(monitor.true_returns[-1][0], rel=1e-4)
    assert last["monitor/shaped_return"] == pytest.approx(monitor.shaped_returns[-1][0], rel=1e-4)
    assert (tmp_path / "made" / "returns.png").read_bytes()[:4] == b"\x89PNG"
    assert b"<svg" in (tmp_path / "made" / "returns.svg").read_bytes()


def test_the_same_bonus_as_a_potential_is_not():
    monitor = RewardMonitor(check_freq=128)
    model = host_model(lambda env: PotentialShaping(env, waiting, 0.99))
    assert quietly(model, 40 * 128, monitor) == [] and monitor.warned_at is None
    assert monitor.true_returns[-1][0] > 0.95, "it learned the errand"


def test_jax_environments_are_judged_by_the_true_one():
    """A hacked bonus and the same one as a potential; one segment a point, in several calls of `learn`."""
    true = JaxErrand()
    hacked, safe = (RewardMonitor(true, check_freq=128, n_eval_episodes=16) for _ in range(2))
    said = []
    for env, monitor in ((JaxErrand(0.5), hacked), (PotentialShaping(true, waiting, 0.99), safe)):
        model = PPO("MlpPolicy", env, n_envs=8, **SETTINGS)
        for _ in range(40):
            said += quietly(model, 128, monitor, reset_num_timesteps=False)
    assert hacked.warned_at is not None and safe.warned_at is None and len(said) == 1
    assert hacked.true_returns[-1][0] < 0.0 < 0.9 < safe.true_returns[-1][0]
    assert hacked.timesteps == [128 * k for k in range(1, 41)]


# -- where the true return comes from ---------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda env: ScaleReward(Monitor(env), 2.0),
        lambda env: ScaleReward(gymnasium.wrappers.RecordEpisodeStatistics(env), 2.0),
        lambda env: ScaleReward(PotentialShaping(env, lambda obs: 0.0, 0.99), 2.0),
        lambda env: gymnasium.wrappers.TimeLimit(ScaleReward(PotentialShaping(env, lambda obs: 0.0, 0.99), 2.0), 4),
    ],
)
def test_both_returns_are_of_the_same_episodes(wrap, seeds):
    """Every reward is doubled, so every mean is, also of a last row that not all environments count in."""
    monitor = RewardMonitor(check_freq=10)
    env = make_vec_env(lambda: wrap(Errand()), n_envs=3)
    model = DQN("MlpPolicy", env, learning_starts=1000, buffer_size=1000, seed=0, seeds=seeds)
    for steps in (100, 61):
        model.learn(steps, callback=monitor, reset_num_timesteps=False)
    shaped, true = np.array(monitor.shaped_returns), np.array(monitor.true_returns)
    assert shaped.shape == (16, seeds) and np.isfinite(shaped).any(axis=1).all()
    np.testing.assert_allclose(shaped, 2 * true, atol=1e-5)
    assert len({*true.ravel()}) > 3, "episodes differ"


def test_episodes_that_end_together_are_not_mixed_up():
    """Means would not tell: each pair of returns has to be of one episode."""
    monitor = RewardMonitor(check_freq=10**9)
    env = make_vec_env(lambda: ScaleReward(Monitor(Errand()), 2.0), n_envs=4)
    DQN("MlpPolicy", env, learning_starts=1000, buffer_size=1000, seed=0).learn(200, callback=monitor)
    shaped, true = np.transpose(monitor._ended[0])
    assert len({*true}) > 3
    np.testing.assert_allclose(shaped, 2 * true, atol=1e-5)


def test_every_episode_counts_once():
    monitor = RewardMonitor(check_freq=10**9)
    model = DQN("MlpPolicy", Bonus(Monitor(Errand())), learning_starts=1000, buffer_size=1000, seed=0)
    model.learn(200, callback=monitor)
    assert len(monitor._ended[0]) == model._driver.episodes() > 20


def test_the_innermost_wrapper_decides():
    """A potential around a bonus calls a reward true that is not; `Monitor` inside knows better."""
    monitor = RewardMonitor(check_freq=50)
    env = PotentialShaping(Bonus(Monitor(Errand())), lambda obs: 0.0, 0.99)
    DQN("MlpPolicy", env, learning_starts=1000, buffer_size=1000, seed=0).learn(50, callback=monitor)
    assert monitor.shaped_returns[0][0] > monitor.true_returns[0][0] + 0.1


def test_shaped_twice_the_inner_one_knows():
    env = PotentialShaping(PotentialShaping(Errand(), waiting, 0.99), waiting, 0.99)
    env.reset(seed=0)
    totals = [env.step(action)[4]["true_return"] for action in (0, 0, 1)]
    np.testing.assert_allclose(totals, [-0.1, -0.2, 0.8])
    env.reset()
    assert env.step(0)[4]["true_return"] == pytest.approx(-0.1)


def test_points_without_an_episode_are_left_out():
    monitor = RewardMonitor(check_freq=1)
    model = DQN("MlpPolicy", Bonus(Monitor(Errand())), learning_starts=1000, buffer_size=1000, seed=0)
    model.learn(40, callback=monitor)
    assert len(monitor.timesteps) == model._driver.episodes() < 40
    assert np.isfinite(monitor.true_returns).all()


def test_evaluation_does_not_change_training():
    def trained(callback):
        return host_model(Bonus).learn(512, callback=callback).get_parameters()["policy"]

    plain, watched = trained(None), trained(RewardMonitor(Errand(), check_freq=128, n_eval_episodes=2))
    assert all(np.array_equal(plain[name], watched[name]) for name in plain)


class StopAt(BaseCallback):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def _on_step(self):
        return self.num_timesteps < self.step


@pytest.mark.parametrize("true_env", [None, "test/Errand-v0"])
def test_a_resumed_run_goes_on_with_what_was_seen(tmp_path, true_env):
    """Stopped in mid-episode and between two points: the points are those of a run that was not stopped."""
    def make():
        return make_vec_env(lambda: Bonus(Monitor(Errand())), n_envs=2)

    def monitor():
        return RewardMonitor(true_env, check_freq=64, n_eval_episodes=4)

    # Slow: a warning would be an error.
    options = SETTINGS | {"n_steps": 16, "batch_size": 32, "learning_rate": 1e-5}
    whole, first, second = monitor(), monitor(), monitor()
    PPO("MlpPolicy", make(), **options).learn(640, callback=whole)
    PPO("MlpPolicy", make(), **options).learn(640, callback=[first, StopAt(330)], checkpoint_dir=tmp_path)
    PPO.resume(tmp_path, env=make()).learn(callback=[second, StopAt(1000)])
    assert first.timesteps == whole.timesteps[:5]
    for name in ("timesteps", "shaped_returns", "true_returns", "warned_at"):
        assert getattr(second, name) == getattr(whole, name)


def test_a_new_run_begins_anew():
    monitor = RewardMonitor(check_freq=128)
    model = host_model(lambda env: Bonus(Monitor(env)))
    model.learn(256, callback=monitor)
    model.learn(128, callback=monitor, reset_num_timesteps=False)
    assert monitor.timesteps == [128, 256, 384]
    model.learn(128, callback=monitor)
    assert monitor.timesteps == [128]


# -- what cannot be used ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap, said",
    [
        (Bonus, "put a Monitor inside"),
        (lambda env: Monitor(Bonus(env)), "Monitor is the outermost wrapper"),
    ],
)
def test_environments_that_keep_no_true_return_say_what_to_do(wrap, said):
    with pytest.raises(ValueError, match=said):
        host_model(wrap).learn(128, callback=RewardMonitor())


def test_environments_that_show_none_need_a_true_one():
    with pytest.raises(ValueError, match=r"JAX environments do not show true returns.*true_env=\.\.\."):
        PPO("MlpPolicy", JaxErrand(), n_envs=8, **SETTINGS).learn(128, callback=RewardMonitor())
    venv = gymnasium.make_vec("CartPole-v1", num_envs=2, vectorization_mode="vector_entry_point")
    with pytest.raises(ValueError, match="these vector environments do not show true returns"):
        PPO("MlpPolicy", venv, **SETTINGS | {"batch_size": 32}).learn(128, callback=RewardMonitor())
    with pytest.raises(ValueError, match="observation space"):
        host_model(Bonus).learn(128, callback=RewardMonitor("CartPole-v1"))


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"check_freq": 0}, "check_freq=0"),
        ({"window": 7}, "window=7"),
        ({"significance": 0.5}, "significance=0.5"),
        ({"window": 8, "significance": 2e-5}, "significance=2e-05"),
        ({"significance": float("nan")}, "significance=nan"),
        ({"n_eval_episodes": 0}, "n_eval_episodes=0"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, said):
    with pytest.raises(ValueError, match=said):
        RewardMonitor(**arguments)


def test_a_missing_matplotlib_is_told_before_training(monkeypatch):
    def missing(size):
        raise ImportError('pip install "advantage[plot]"')

    monkeypatch.setattr(plots, "_blank", missing)
    RewardMonitor()
    with pytest.raises(ImportError, match="pip install"):
        RewardMonitor(plot_path="returns")

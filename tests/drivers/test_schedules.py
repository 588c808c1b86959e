"""What changes over training, in both drivers: schedules, exploration, callbacks, episodes, gSDE's noise."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from advantage import DQN, PPO, Linear, make_vec_env
from advantage.types import Space

TINY = {"net_arch": [4]}
MANY = 1001


def last_rate(learning_rate):
    """An optimiser that changes nothing and remembers the learning rate it was given."""
    return optax.GradientTransformation(
        lambda params: jnp.float32(-1.0),
        lambda gradient, state, params=None: (jnp.zeros_like(gradient), jnp.asarray(learning_rate, jnp.float32)),
    )


def epsilon_as_action(q, epsilon, action_mask, key):
    """An exploration that makes epsilon visible: the action is epsilon in thousandths."""
    return jnp.full(q.shape[:1], jnp.round(epsilon * (MANY - 1)), jnp.int32)


def echo(toys, driver, action, n_envs=1, length=1):
    """Environments that note their actions, and a function that gives the notes `[steps, N]`."""
    if driver == "fused":
        env = toys.EchoJax(Space.from_gymnasium(action))
        return env, lambda model: model._driver.recent(0).returns.reshape(-1, n_envs)
    logs = [[] for _ in range(n_envs)]
    envs = toys.DummyVecEnv([lambda log=log: toys.Echo(action, length, log) for log in logs])
    for log in logs:
        log.clear()  # what the check of the environment did

    def notes(model):
        return np.stack([np.array(log).reshape(-1)[-model.num_timesteps // n_envs :] for log in logs], axis=1)

    return envs, notes


def made(toys, face, driver, action, n_envs=1, **kwargs):
    env, notes = echo(toys, driver, action, n_envs)
    extra = {"n_envs": n_envs} if driver == "fused" else {}
    model = face("MlpPolicy", env, seed=1, policy_kwargs=TINY, stats_window_size=1000, **extra, **kwargs)
    for env in getattr(model.get_env(), "envs", []):
        env.log.clear()
    return model, notes


@pytest.mark.parametrize("driver", ["host", "fused"])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_epsilon_is_counted_in_environment_steps(toys, driver, n_envs):
    """Epsilon falls with environment steps however many environments share them, and is 1 before learning."""
    discrete = toys.gymnasium.spaces.Discrete(MANY)
    model, notes = made(
        toys, DQN, driver, discrete, n_envs, learning_starts=30, buffer_size=300, batch_size=4, train_freq=2,
        exploration_fraction=0.5, exploration_final_eps=0.1, exploration=epsilon_as_action,
    )  # fmt: skip
    model.learn(240)
    begins = np.arange(0, 240, 2 * n_envs)  # epsilon is set once for each chunk of 2 vector steps
    schedule = Linear(1.0, 0.1, 0.5)
    expected = [1.0 if begin < 30 else schedule(1.0 - float(begin) / 240) for begin in begins]
    np.testing.assert_allclose(notes(model)[::2] / (MANY - 1), np.stack([expected] * n_envs, axis=1), atol=6e-4)
    assert model.exploration_rate == pytest.approx(0.1)


@pytest.mark.parametrize("driver", ["host", "fused"])
@pytest.mark.parametrize("face", [PPO, DQN])
def test_a_learning_rate_reaches_its_end(toys, face, driver):
    """The last update, of a partial chunk too, learns with the schedule's value at the very end."""
    kwargs = {"n_steps": 8, "batch_size": 8} if face is PPO else {"buffer_size": 99, "learning_starts": 0}
    model, _ = made(
        toys, face, driver, toys.gymnasium.spaces.Discrete(2), 3, optimizer=last_rate,
        learning_rate=lambda left: 0.25 + left, **kwargs,
    )  # fmt: skip
    model.learn(50)
    (rate,) = model.get_parameters()["policy.optimizer"].values()
    assert rate == pytest.approx(0.25)
    model.learn(50, reset_num_timesteps=False)
    (rate,) = model.get_parameters()["policy.optimizer"].values()
    assert rate == pytest.approx(0.25) and model.num_timesteps == 100


@pytest.mark.parametrize("face", [PPO, DQN])
@pytest.mark.parametrize("step", [1, 5, 8, 11])
def test_a_callback_stops_the_host_driver_at_once(toys, face, step):
    """Training ends at the very step, and the chunk begun is continued: no bit differs from an unbroken run."""
    kwargs = {"n_steps": 8, "batch_size": 8} if face is PPO else {"buffer_size": 99, "learning_starts": 2}

    def fresh():
        return face("MlpPolicy", toys.EndingsGym(), seed=4, policy_kwargs=TINY, **kwargs)

    stopped, whole = fresh(), fresh()
    callback, seen = toys.stop_at(step)
    stopped.learn(24, callback=callback)
    assert stopped.num_timesteps == step and seen == list(range(1, step + 1))
    stopped.learn(24 - step, reset_num_timesteps=False)
    whole.learn(24)
    assert stopped.num_timesteps == 24
    if face is PPO:  # DQN's epsilon follows the horizon, which was another
        assert toys.same(toys.leaves(stopped), toys.leaves(whole))
    else:
        assert toys.leaves(stopped)[".steps"] == 24


def test_a_callback_stops_the_fused_driver_between_segments(toys):
    """The run ends with the segment; going on to the same horizon gives the bits of an unbroken run."""
    kwargs = {"n_steps": 8, "batch_size": 8, "n_envs": 2, "policy_kwargs": TINY, "seed": 4}
    stopped, whole = (PPO("MlpPolicy", "advantage/ProbeEndings-v0", **kwargs) for _ in range(2))
    callback, seen = toys.stop_at(16)
    stopped.learn(160, callback=callback)
    assert stopped.num_timesteps == seen[-1] < 160
    stopped.learn(160 - stopped.num_timesteps, reset_num_timesteps=False)
    assert toys.same(toys.leaves(stopped), toys.leaves(whole.learn(160)))


def test_the_fused_driver_pauses_before_a_step(toys):
    """Updates are 16 steps: a pause at 100 comes at 96, however long segments would be; no bit changes."""
    kwargs = {"n_steps": 8, "batch_size": 8, "n_envs": 2, "policy_kwargs": TINY, "seed": 4}
    paused, whole = (PPO("MlpPolicy", "advantage/ProbeEndings-v0", **kwargs) for _ in range(2))
    seen = []

    class Pausing(toys.BaseCallback):
        def _on_training_start(self):
            self.model._driver._segment_updates = 1_000
            self.model._driver.pause_at = 100

        def _on_step(self):
            seen.append(self.num_timesteps)
            self.model._driver.pause_at = None

    paused.learn(400, callback=Pausing())
    assert seen[0] == 96 and seen[-1] == 400
    assert toys.same(toys.leaves(paused), toys.leaves(whole.learn(400)))


@pytest.mark.parametrize("total", [12, 13])
def test_rollouts_begin_and_end_in_pairs(toys, total):
    """`on_rollout_start` and `on_rollout_end` frame every chunk, the last, partial one too."""
    events = []

    class Frames(toys.BaseCallback):
        def _on_rollout_start(self):
            events.append("start")

        def _on_step(self):
            events.append("step")
            return True

        def _on_rollout_end(self):
            events.append("end")

    model = PPO("MlpPolicy", toys.EndingsGym(), n_steps=4, batch_size=4, policy_kwargs=TINY)
    model.learn(total, callback=Frames())
    frames = " ".join(events).split("start ")[1:]
    assert all(frame.strip().endswith("end") for frame in frames)
    assert [frame.count("step") for frame in frames] == [4, 4, 4] + [1] * (total - 12)


@pytest.mark.parametrize("episodes,length", [(1, 5), (2, 3), (1, 40)])
def test_train_freq_in_episodes(toys, episodes, length):
    """`train_freq=(k, "episode")` learns after every k episodes, however long they are."""
    env = toys.Counting(length)
    model = DQN(
        "MlpPolicy", env, train_freq=(episodes, "episode"), gradient_steps=2, learning_starts=0, buffer_size=500,
        batch_size=4, policy_kwargs=TINY,
    )  # fmt: skip
    at = []

    def callback(locals, globals):
        at.append(int(model.get_parameters()["policy"][".n_updates"]))
        return True

    model.learn(130, callback=callback)
    # In the callback of step k + 1 (index k) the update after step k has been done.
    expected = [2 * (k // (episodes * length)) for k in range(130)]
    assert at == expected
    assert toys.leaves(model)[".steps"] == model.num_timesteps == 130


def test_train_freq_in_episodes_is_refused_where_it_cannot_work(toys):
    """Several environments, several seeds or a JAX environment: refused before training."""
    for env, more in (
        (make_vec_env(toys.EndingsGym, n_envs=2), {}),
        (make_vec_env(toys.EndingsGym), {"seeds": 2}),
        ("advantage/CartPole-v1", {}),
    ):
        with pytest.raises(ValueError, match="episodes.*number of steps"):
            DQN("MlpPolicy", env, train_freq=(1, "episode"), **more)


@pytest.mark.parametrize("driver", ["host", "fused"])
def test_gsde_keeps_its_noise_for_the_steps_asked_for(toys, driver):
    """One observation and frozen parameters: the action changes exactly when new noise is drawn."""
    box = toys.gymnasium.spaces.Box(-100.0, 100.0, (1,))
    model, notes = made(
        toys, PPO, driver, box, 2, n_steps=8, batch_size=8, learning_rate=0.0, use_sde=True, sde_sample_freq=3,
    )  # fmt: skip
    model.learn(48)
    actions = notes(model)
    assert actions.shape == (24, 2)
    changed = (np.diff(actions, axis=0) != 0).all(axis=1)
    kept = (np.diff(actions, axis=0) == 0).all(axis=1)
    assert (changed | kept).all()
    assert (np.flatnonzero(changed) + 1).tolist() == list(range(3, 24, 3))
    assert (actions[:, 0] != actions[:, 1]).all()

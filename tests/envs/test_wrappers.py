"""Wrappers: those of JAX environments step for step against Gymnasium's, the monitor file against SB3's reader."""

import csv
import dataclasses
import json

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import advantage
from advantage.envs import wrappers
from advantage.envs.classic import CartPole, CartPoleState, Pendulum, PendulumState
from advantage.envs.jax import Transition, is_jax_env, reset_envs, step_envs
from advantage.envs.wrapping import real, whole
from advantage.types import Space, Spec

WRAPPERS = {
    "FrameStack": {"stack_size": 3},
    "TimeLimit": {"max_episode_steps": 12},
    "ClipReward": {"min_reward": -2.5, "max_reward": 0.75},
    "ScaleReward": {"scale": 0.25},
    "ActionRepeat": {"num_repeats": 3},
    "StickyActions": {"repeat_action_probability": 0.4},
}


def key(seed=0):
    return jax.random.PRNGKey(seed)


def wrap(name, env):
    return getattr(advantage, name)(env, **WRAPPERS[name])


def copied(env, theirs):
    """Our state holding that of a Gymnasium environment with a time limit."""
    variables = jnp.asarray(np.asarray(theirs.unwrapped.state, np.float32))
    steps = jnp.int32(theirs._elapsed_steps)
    if isinstance(env, CartPole):
        return CartPoleState(variables, steps)
    return PendulumState(variables[0], variables[1], steps)


class Beginning:
    """A JAX environment whose episodes begin where they are told to."""

    def __init__(self, env, state, obs):
        self.id, self.spec, self.step, self.reset = env.id, env.spec, env.step, lambda key: (state, jnp.asarray(obs))


def begin(ours, theirs, obs):
    """Our wrapper's state and observation where Gymnasium's environment begins, with observation `obs`."""
    state, first = copied(ours.env, theirs), np.asarray(obs, np.float32)
    return dataclasses.replace(ours, env=Beginning(ours.env, state, first)).reset(key())


@pytest.mark.parametrize("env", [CartPole(), Pendulum()], ids=["CartPole", "Pendulum"])
@pytest.mark.parametrize("name", [name for name in WRAPPERS if name != "StickyActions"])
def test_jax_wrappers_are_gymnasiums_step_for_step(name, env):
    ours, inner = wrap(name, env), gymnasium.make(env.id.removeprefix("advantage/"))
    theirs, step, rng = wrap(name, inner), jax.jit(ours.step), np.random.default_rng(0)
    assert is_jax_env(ours) and isinstance(theirs, gymnasium.Wrapper)
    assert ours.spec == Spec.from_gymnasium(theirs.observation_space, theirs.action_space)
    ends, state = {"terminated": 0, "truncated": 0}, None
    for t in range(240):
        if state is None:
            raw, _ = theirs.reset(seed=t)
            state, obs = begin(ours, inner, raw[-1] if name == "FrameStack" else raw)
            np.testing.assert_allclose(obs, raw, rtol=1e-6)
        action = int(rng.integers(2)) if isinstance(env, CartPole) else rng.uniform(-2, 2, 1).astype(np.float32)
        # Float32 drifts from Gymnasium's float64: begin each step from the same variables.
        state = state._replace(inner=copied(env, inner))
        state, mine = step(state, jnp.asarray(action, ours.spec.action.dtype), key(t))
        obs, reward, terminated, truncated, _ = theirs.step(action)
        np.testing.assert_allclose(mine.obs, obs, rtol=1e-4, atol=2e-4)
        np.testing.assert_allclose(mine.reward, reward, rtol=1e-4, atol=1e-4)
        assert (bool(mine.terminated), bool(mine.truncated)) == (terminated, truncated)
        ends["terminated"] += terminated
        ends["truncated"] += truncated
        state = None if terminated or truncated else state
    assert (ends["terminated"] > 2) == isinstance(env, CartPole)
    assert (ends["truncated"] > 3) == (name == "TimeLimit") or isinstance(env, Pendulum)


def test_sticky_actions_by_hand():
    """Taken is the agent's action or what was taken last, the first one the agent's; steps are the inner ones."""
    ours, env = wrap("StickyActions", Pendulum()), Pendulum()
    step, plain, rng, again = jax.jit(ours.step), jax.jit(env.step), np.random.default_rng(0), []
    for episode in range(20):
        state, obs = ours.reset(key(episode))
        np.testing.assert_array_equal(obs, env.reset(key(episode))[1])
        last = None
        for t in range(40):
            action, before = rng.uniform(-2, 2, 1).astype(np.float32), state.inner
            state, mine = step(state, jnp.asarray(action), key(1000 * episode + t))
            taken = np.asarray(state.own[0])
            assert taken in ([action] if last is None else [action, last])
            _, theirs = plain(before, jnp.asarray(taken), key())
            np.testing.assert_allclose(mine.obs, theirs.obs, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(mine.reward, theirs.reward, rtol=1e-5, atol=1e-5)
            again += [] if last is None else [taken != action]
            last = taken
    # 780 draws: a deviation of 0.0175.
    assert abs(np.mean(again) - 0.4) < 0.06


def test_sticky_actions_without_a_probability_are_the_agents():
    ours = advantage.StickyActions(CartPole(), 0)
    state, _ = ours.reset(key())
    other, _ = CartPole().reset(key())
    for t in range(6):
        state, mine = ours.step(state, jnp.int32(t % 2), key(t))
        other, theirs = CartPole().step(other, jnp.int32(t % 2), key(t))
        np.testing.assert_array_equal(mine.obs, theirs.obs)


class Count:
    """Counts steps: reward and observation are the number, from 1; terminates after the fifth."""

    id = "test/Count"
    spec = Spec(
        Space("dict", parts=(("image", Space("box", (2, 1), "uint8", 0.0, 255.0)), ("n", Space("discrete", dtype="int32", n=(9,), start=(0,))))),
        Space("discrete", dtype="int32", n=(2,), start=(0,)),
    )  # fmt: skip

    def reset(self, key):
        return jnp.int32(0), self.obs(jnp.int32(0))

    def step(self, env_state, action, key):
        n = env_state + jnp.int32(1)
        return n, Transition(self.obs(n), n.astype(jnp.float16), n == 5, jnp.zeros((), bool))

    def obs(self, n):
        # In other dtypes than the space's, which `step_envs` would put right.
        return {"n": n, "image": jnp.full((2, 1), n.astype(jnp.float32))}


def played(env, steps):
    """What `step_envs` gives for two environments, with the first observation before it."""
    state, observed = reset_envs(env, jax.random.split(key(), 2))
    step, rows, first = jax.jit(lambda *args: step_envs(env, *args)), [], observed.obs
    for t in range(steps):
        state, ts = step(state, observed, jnp.zeros(2, jnp.int32), key(t))
        observed = ts.observed
        rows.append(ts)
    assert step._cache_size() == 1
    return first, rows


def test_frames_do_not_leak_over_a_reset(strict):
    env = advantage.FrameStack(Count(), 3)
    first, rows = played(env, 7)
    frames = [first["n"], *[ts.observed.obs["n"] for ts in rows]]
    expected = [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [0, 0, 0], [0, 0, 1], [0, 1, 2]]
    np.testing.assert_array_equal(np.array(frames)[:, 0], expected)
    np.testing.assert_array_equal(rows[4].final_obs["n"][1], [3, 4, 5])
    assert first["image"].shape == (2, 3, 2, 1) and first["image"].dtype == jnp.uint8
    np.testing.assert_array_equal(rows[4].final_obs["image"][0, :, 1, 0], [3, 4, 5])
    space = env.spec.observation.to_gymnasium()
    assert space.contains({"n": np.array([3, 4, 5]), "image": np.asarray(rows[4].final_obs["image"][0])})


def test_time_limit_counts_anew_after_every_episode(strict):
    _, rows = played(advantage.TimeLimit(Count(), 3), 7)
    assert [bool(ts.truncated[0]) for ts in rows] == [False, False, True] * 2 + [False]
    assert not any(ts.terminated.any() for ts in rows)
    _, rows = played(advantage.TimeLimit(Count(), 5), 5)
    assert bool(rows[4].terminated[0]) and bool(rows[4].truncated[0])


def test_action_repeat_stops_at_the_end(strict):
    _, rows = played(advantage.ActionRepeat(Count(), 3), 3)
    np.testing.assert_array_equal([ts.reward[0] for ts in rows], [1 + 2 + 3, 4 + 5, 1 + 2 + 3])
    np.testing.assert_array_equal([ts.final_obs["n"][0] for ts in rows], [3, 5, 3])
    assert [bool(ts.terminated[0]) for ts in rows] == [False, True, False]


def test_rewards_are_clipped_and_scaled(strict):
    _, rows = played(advantage.ScaleReward(advantage.ClipReward(Count(), 2, 3.5), 10), 5)
    np.testing.assert_array_equal([ts.reward[1] for ts in rows], [20, 20, 30, 35, 35])


def test_sticky_actions_and_action_repeat_use_keys_of_their_own():
    """No two random numbers inside come from one key."""

    class Noise(Count):
        def step(self, env_state, action, key):
            state, transition = super().step(env_state, action, key)
            return state, transition._replace(reward=jax.random.uniform(key))

    state, _ = Noise().reset(key())
    whole = sum(float(Noise().step(state, jnp.int32(0), k)[1].reward) for k in jax.random.split(key(7), 3))
    repeated = advantage.ActionRepeat(Noise(), 3)
    reward = repeated.step(repeated.reset(key())[0], jnp.int32(0), key(7))[1].reward
    np.testing.assert_allclose(reward, whole, rtol=1e-6)


def test_wrappers_nest_and_hash():
    def make():
        return advantage.FrameStack(advantage.TimeLimit(advantage.ScaleReward(CartPole(), 0.1), 20), 2)

    env = make()
    assert hash(env) == hash(make()) and env == make() and env.is_ours and env.id == CartPole().id
    assert env != advantage.FrameStack(env.env, 3)
    state, _ = env.reset(key())
    assert env.render(state).shape == (400, 600, 3)
    assert not hasattr(env, "action_mask")


@pytest.mark.parametrize("driver", ["fused", "host"])
@pytest.mark.parametrize("name", WRAPPERS)
def test_each_trains_under_both_drivers(name, driver):
    """Two seeds, so that host environments are built a second time from what the wrapper remembers."""
    env = wrap(name, CartPole() if driver == "fused" else gymnasium.make("CartPole-v1"))
    model = advantage.PPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, seeds=2, seed=0).learn(32)
    assert model.num_timesteps == 32
    action, _ = model.predict(env.spec.observation.zeros() if driver == "fused" else env.reset(seed=0)[0])
    assert action in (0, 1)


def test_dqn_trains_on_wrapped_jax_environments():
    env = advantage.FrameStack(advantage.StickyActions(CartPole()), 2)
    model = advantage.DQN("MlpPolicy", env, learning_starts=16, buffer_size=500, seed=0).learn(64)
    mean, _ = advantage.evaluate_policy(model, env, n_eval_episodes=2)
    assert mean >= 1


def test_gymnasium_wrappers_are_its_own():
    env = gymnasium.make("CartPole-v1")
    kinds = {
        "FrameStack": "FrameStackObservation", "ActionRepeat": "RepeatAction", "StickyActions": "StickyAction",
        "ScaleReward": "TransformReward", "TimeLimit": "TimeLimit", "ClipReward": "ClipReward",
    }  # fmt: skip
    for name in WRAPPERS:
        assert type(wrap(name, env)) is getattr(gymnasium.wrappers, kinds[name])


# -- what is refused ---------------------------------------------------------------------------------------

BAD = {
    "FrameStack": ({"stack_size": 0}, "stack_size=0 has to be a whole number: give 1 or more"),
    "TimeLimit": ({"max_episode_steps": -1}, "max_episode_steps=-1 has to be a whole number"),
    "ClipReward": ({"min_reward": 1, "max_reward": 1}, "max_reward=1 cannot be used: give a number above min_reward=1.0"),
    "ScaleReward": ({"scale": 0}, "scale=0 cannot be used: give a number above 0"),
    "ActionRepeat": ({"num_repeats": 0}, "num_repeats=0 has to be a whole number"),
    "StickyActions": ({"repeat_action_probability": 1}, "repeat_action_probability=1 cannot be used: give a prob"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("env", [CartPole(), gymnasium.make("CartPole-v1")], ids=["jax", "gymnasium"])
def test_bad_arguments(name, env):
    arguments, message = BAD[name]
    with pytest.raises(ValueError, match=message) as error:
        getattr(advantage, name)(env, **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [True, 2.0, "3", None])
def test_whole_numbers(value):
    with pytest.raises(ValueError, match="n=.* has to be a whole number: give 2 or more"):
        whole("n", value, 2)
    assert whole("n", np.int64(2), 2) == 2


@pytest.mark.parametrize("value", [True, "3", None, float("nan"), 1j])
def test_real_numbers(value):
    with pytest.raises(ValueError, match="x=.* cannot be used: give a number"):
        real("x", value, lambda x: True, "give a number")
    assert real("x", np.float32(0.5), lambda x: True, "") == 0.5


@pytest.mark.parametrize("name", WRAPPERS)
def test_what_is_no_environment(name):
    with pytest.raises(ValueError, match=f"{name}: env is 'CartPole-v1', not a Gymnasium or JAX environment"):
        wrap(name, "CartPole-v1")
    with pytest.raises(ValueError, match=f"DummyVecEnv.*make_vec_env.*wrapper_class={name}"):
        wrap(name, advantage.make_vec_env("CartPole-v1"))


@pytest.mark.parametrize("name", ["ActionRepeat", "StickyActions"])
def test_masks_are_refused_where_actions_are_taken_later(name):
    class Masked(Count):
        def action_mask(self, env_state):
            return jnp.ones(2, bool)

    class MaskedHost(gymnasium.Wrapper):
        def action_masks(self):
            return np.ones(2, bool)

    for env in (Masked(), MaskedHost(gymnasium.make("CartPole-v1"))):
        with pytest.raises(ValueError, match=f"{name}: env has action masks"):
            wrap(name, env)


# -- the monitor file ------------------------------------------------------------------------------------


def read(path):
    """The header, and the rows as `load_results` reads them."""
    first, *lines = path.read_text().splitlines()
    assert first[0] == "#"
    return json.loads(first[1:]), list(csv.DictReader(lines))


def play(env, episodes):
    """Return and length of each episode of a policy that always pushes to the right."""
    played = []
    for seed in range(episodes):
        env.reset(seed=seed)
        total, length, over = 0.0, 0, False
        while not over:
            _, reward, terminated, truncated, info = env.step(1)
            total, length, over = total + reward, length + 1, terminated or truncated
            assert ("episode" in info) == over
        assert (info["episode"]["r"], info["episode"]["l"]) == (total, length)
        played.append((total, length))
    return played


def test_monitor_writes_sb3s_file(tmp_path):
    env = advantage.Monitor(gymnasium.make("CartPole-v1"), tmp_path / "0")
    played = play(env, 3)
    env.reset()
    env.step(0)
    env.reset()  # an episode that was not finished is not written
    header, rows = read(tmp_path / "0.monitor.csv")
    assert list(header) == ["t_start", "env_id"] and header["env_id"] == "CartPole-v1"
    assert [list(row) for row in rows] == [["r", "l", "t"]] * 3
    assert [(float(row["r"]), int(row["l"])) for row in rows] == played
    times = [float(row["t"]) for row in rows]
    assert times == sorted(times) and 0 <= times[0] and times[-1] < 60
    env.close()


def test_sb3_reads_the_file(tmp_path):
    results = pytest.importorskip("stable_baselines3.common.monitor")
    env = advantage.Monitor(gymnasium.make("CartPole-v1"), tmp_path)
    played = play(env, 2)
    frame = results.load_results(str(tmp_path))
    assert list(zip(frame["r"], frame["l"], strict=True)) == played


def test_monitor_goes_on_or_begins_anew(tmp_path):
    for override, count in ((True, 1), (False, 2), (True, 1)):
        env = advantage.Monitor(gymnasium.make("CartPole-v1"), tmp_path, override_existing=override)
        play(env, 1)
        env.close()
        header, rows = read(tmp_path / "monitor.csv")
        assert len(rows) == count and header["t_start"] == env.t_start
    (tmp_path / "monitor.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match="is no monitor file .*: give another name, or override_existing=True"):
        advantage.Monitor(gymnasium.make("CartPole-v1"), tmp_path, override_existing=False)


def test_copies_for_further_seeds_write_files_of_their_own(tmp_path):
    env = advantage.Monitor(gymnasium.make("CartPole-v1"), tmp_path / "0.monitor.csv")
    advantage.PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=1, seeds=2, seed=0).learn(128)
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == ["0.1.monitor.csv", "0.monitor.csv"]
    for path in files:
        lengths = [int(row["l"]) for row in read(path)[1]]
        assert 2 <= len(lengths) and sum(lengths) <= 128


def test_monitor_counts_true_rewards_inside_a_shaped_environment(tmp_path):
    inner = advantage.Monitor(gymnasium.make("CartPole-v1"), tmp_path)
    env = advantage.PotentialShaping(inner, lambda obs: obs[0] + 3.0, 0.9)
    env.reset(seed=0)
    over = False
    while not over:
        _, _, over, _, info = env.step(1)
    assert info["episode"]["r"] == info["episode"]["l"] == float(read(tmp_path / "monitor.csv")[1][0]["r"])


def test_monitor_writes_infos():
    class Winning(gymnasium.Wrapper):
        def step(self, action):
            *answer, info = self.env.step(action)
            return *answer, {**info, "is_success": True}

    env = advantage.Monitor(Winning(gymnasium.make("CartPole-v1")), info_keywords=("is_success",))
    env.reset(seed=0)
    over = False
    while not over:
        _, _, over, _, info = env.step(1)
    assert info["episode"]["is_success"] is True and env.path is None
    env = advantage.Monitor(gymnasium.make("CartPole-v1"), info_keywords=("goal",))
    with pytest.raises(ValueError, match="the last step's info has no 'goal'"):
        play(env, 1)
    with pytest.raises(ValueError, match="runs compiled and writes no files"):
        wrappers.Monitor(CartPole())

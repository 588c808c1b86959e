"""JAX environments: against Gymnasium step for step, autoreset, and the probes' closed forms."""

import sys

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.envs import jax as jax_envs
from advantage.envs.classic import CartPole, CartPoleState, Pendulum, PendulumState
from advantage.envs.jax import Transition, is_jax_env, make_jax, reset_envs, step_envs
from advantage.envs.probes import ContinuousTarget, Endings, Match, Picture, Recall, TimeLimitLoop
from advantage.types import Space, Spec

PROBES = [id for id in jax_envs._CLASSES if "Probe" in id]


pytestmark = pytest.mark.usefixtures("strict")


def key(seed=0):
    return jax.random.PRNGKey(seed)


def copied(env, theirs, steps):
    """Our state holding Gymnasium's."""
    variables = np.asarray(theirs.unwrapped.state, np.float32)
    if isinstance(env, CartPole):
        return CartPoleState(jnp.asarray(variables), jnp.int32(steps))
    return PendulumState(jnp.asarray(variables[0]), jnp.asarray(variables[1]), jnp.int32(steps))


def policy(env, obs, rng):
    """A torque, sometimes out of bounds; for CartPole a noisy controller that survives until the limit."""
    if isinstance(env, Pendulum):
        return rng.uniform(-2.5, 2.5, 1).astype(np.float32)
    if rng.random() < 0.3:
        return int(rng.integers(2))
    return int(obs[2] + 0.3 * obs[3] + 0.02 * obs[0] + 0.1 * obs[1] > 0)


@pytest.mark.parametrize("ours", [CartPole(), Pendulum()])
def test_classic_is_gymnasium_step_for_step(ours):
    name = ours.id.removeprefix("advantage/")
    theirs, step, rng = gymnasium.make(name), jax.jit(ours.step), np.random.default_rng(0)
    ends = {"terminated": 0, "truncated": 0}
    obs, _ = theirs.reset(seed=1)
    steps, careless = 0, 0  # `careless` counts falls while the actions are random
    for t in range(1500):
        action = policy(ours, obs, rng)
        if t < 100 and isinstance(ours, CartPole):
            action = int(rng.integers(2))
        sent = jnp.int32(action) if isinstance(action, int) else jnp.asarray(action)
        _, mine = step(copied(ours, theirs, steps), sent, key())
        obs, reward, terminated, truncated, _ = theirs.step(action)
        steps += 1
        np.testing.assert_allclose(mine.obs, obs, rtol=1e-5, atol=2e-5)
        np.testing.assert_allclose(mine.reward, reward, rtol=1e-4, atol=1e-5)
        assert (bool(mine.terminated), bool(mine.truncated)) == (terminated, truncated)
        ends["terminated"] += terminated
        ends["truncated"] += truncated
        careless += t < 100 and terminated
        if terminated or truncated:
            obs, _ = theirs.reset()
            steps = 0
    assert ends["truncated"] >= 1
    assert (careless >= 1) == isinstance(ours, CartPole)


@pytest.mark.parametrize("ours", [CartPole(), Pendulum()])
def test_classic_free_run_stays_with_gymnasium(ours):
    """Without copying the state, float32 stays with float64 for a hundred steps."""
    theirs, step = gymnasium.make(ours.id.removeprefix("advantage/")), jax.jit(ours.step)
    rng = np.random.default_rng(2)
    obs, _ = theirs.reset(seed=3)
    state = copied(ours, theirs, 0)
    for _ in range(100):
        action = int(obs[2] + 0.3 * obs[3] > 0) if isinstance(ours, CartPole) else rng.uniform(-2, 2, 1)
        sent = jnp.int32(action) if isinstance(action, int) else jnp.asarray(action, jnp.float32)
        state, mine = step(state, sent, key())
        obs, *_ = theirs.step(action)
        np.testing.assert_allclose(mine.obs, obs, atol=2e-3)


@pytest.mark.parametrize("ours", [CartPole(), Pendulum()])
def test_classic_spec_is_gymnasiums(ours):
    theirs = gymnasium.make(ours.id.removeprefix("advantage/"))
    assert ours.spec == Spec.from_gymnasium(theirs.observation_space, theirs.action_space)


def test_classic_begins_where_gymnasium_begins():
    _, observed = reset_envs(CartPole(), jax.random.split(key(), 4096))
    assert abs(observed.obs).max() <= 0.05 and abs(observed.obs).max() > 0.0499
    assert abs(observed.obs.mean()) < 0.002
    state, _ = reset_envs(Pendulum(), jax.random.split(key(), 4096))
    assert 3.13 < abs(state.angle).max() <= np.pi and 0.999 < abs(state.speed).max() <= 1
    assert state.angle.min() < -3.13 and state.speed.min() < -0.999


@pytest.mark.parametrize("ours", [CartPole(), Pendulum()])
def test_render_looks_like_gymnasiums(ours):
    pytest.importorskip("pygame")
    theirs = gymnasium.make(ours.id.removeprefix("advantage/"), render_mode="rgb_array")
    theirs.reset(seed=0)
    variables = [0.7, 0.0, 0.2, 0.0] if isinstance(ours, CartPole) else [0.6, 0.0]
    theirs.unwrapped.state = np.array(variables)
    mine, gymnasiums = ours.render(copied(ours, theirs, 0)), theirs.render()
    assert mine.dtype == np.uint8 and mine.shape == gymnasiums.shape
    differs = (abs(mine.astype(int) - gymnasiums.astype(int)) > 60).any(axis=-1)
    assert differs.mean() < 0.01
    assert (mine != 255).any(axis=-1).mean() > 0.01


class Counting:
    """Counts steps; ends at a length drawn at reset, or is cut at 4; lower actions are illegal."""

    id = "test/Counting"
    spec = Spec(
        Space("box", (2,), dtype="float32", low=0.0, high=100.0), Space("discrete", n=(3,), start=(0,))
    )

    def reset(self, key):
        length = jax.random.randint(key, (), 2, 7, jnp.int32)
        return (jnp.int32(0), length), jnp.stack([jnp.int32(0), length])

    def step(self, env_state, action, key):
        steps, length = env_state[0] + 1, env_state[1]
        obs = jnp.stack([steps, length])
        return (steps, length), Transition(obs, jnp.float16(steps), steps == length, steps == 4)

    def action_mask(self, env_state):
        return jnp.arange(3, dtype=jnp.int32) >= env_state[0]


def test_step_envs_resets_in_the_same_step():
    env, num_envs = Counting(), 16
    env_state, observed = reset_envs(env, jax.random.split(key(), num_envs))
    assert observed.is_first.all() and observed.obs.dtype == jnp.float32
    np.testing.assert_array_equal(observed.action_mask, np.ones((num_envs, 3), bool))
    step = jax.jit(lambda *args: step_envs(env, *args))
    begun, cut, ended = set(), 0, 0
    for t in range(40):
        before, action = np.asarray(observed.obs), jnp.zeros(num_envs, jnp.int32)
        env_state, ts = step(env_state, observed, action, key(t))
        observed, final = ts.observed, np.asarray(ts.final_obs)
        done = np.asarray(ts.terminated | ts.truncated)
        # The true successor follows from what was observed, whether or not the episode ended.
        np.testing.assert_array_equal(final, before + [[1, 0]])
        np.testing.assert_array_equal(ts.terminated, final[:, 0] == final[:, 1])
        np.testing.assert_array_equal(ts.truncated, final[:, 0] == 4)
        np.testing.assert_array_equal(ts.reward, final[:, 0])
        np.testing.assert_array_equal(observed.is_first, done)
        np.testing.assert_array_equal(observed.obs[~done], final[~done])
        np.testing.assert_array_equal(observed.obs[done][:, 0], 0)
        np.testing.assert_array_equal(observed.action_mask, np.arange(3) >= np.asarray(observed.obs)[:, :1])
        assert ts.reward.dtype == jnp.float32 and ts.final_obs.dtype == jnp.float32 and ts.valid is None
        begun |= set(np.asarray(observed.obs)[done][:, 1].tolist())
        cut, ended = cut + int(ts.truncated.sum()), ended + int(ts.terminated.sum())
    assert begun == {2, 3, 4, 5, 6} and cut > 10 and ended > 10
    assert step._cache_size() == 1  # the state keeps its types: no second compilation


def test_step_envs_gives_every_environment_its_own_key():
    class Noise(Counting):
        def step(self, env_state, action, key):
            state, transition = super().step(env_state, action, key)
            return state, transition._replace(reward=jax.random.uniform(key))

    state, observed = reset_envs(Noise(), jax.random.split(key(), 8))
    _, first = step_envs(Noise(), state, observed, jnp.zeros(8, jnp.int32), key(1))
    _, again = step_envs(Noise(), state, observed, jnp.zeros(8, jnp.int32), key(1))
    _, other = step_envs(Noise(), state, observed, jnp.zeros(8, jnp.int32), key(2))
    assert len(set(first.reward.tolist())) == 8
    np.testing.assert_array_equal(first.reward, again.reward)
    assert not (first.reward == other.reward).any()


def test_step_envs_names_a_state_that_changes_its_type():
    class Changing(Counting):
        def step(self, env_state, action, key):
            state, transition = super().step(env_state, action, key)
            return (state[0].astype(jnp.float32), state[1]), transition

    state, observed = reset_envs(Changing(), jax.random.split(key(), 2))
    with pytest.raises(
        TypeError, match=r"state\[0\] is int32\[\] after reset\(\) and float32\[\] after step"
    ):
        step_envs(Changing(), state, observed, jnp.zeros(2, jnp.int32), key())


def test_step_envs_in_a_scan_under_vmap():
    env = CartPole()

    def rollout(key):
        state, observed = reset_envs(env, jax.random.split(key, 4))

        def body(carry, key):
            state, observed = carry
            action = (observed.obs[:, 2] > 0.0).astype(jnp.int32)
            state, ts = step_envs(env, state, observed, action, key)
            return (state, ts.observed), ts.reward

        return jax.lax.scan(body, (state, observed), jax.random.split(key, 32))[1]

    rewards = jax.jit(jax.vmap(rollout))(jax.random.split(key(), 2))
    np.testing.assert_array_equal(rewards, np.ones((2, 32, 4)))


def best_action(env, obs, state):
    """An optimal action for observations `[N, ...]`, by the environment's state where memory is needed."""
    if isinstance(env, Recall):
        return (state.cue > 0).astype(jnp.int32) if env.discrete else state.cue[:, None]
    if isinstance(env, Match):
        return (obs[:, 0] > 0.0).astype(jnp.int32)
    if isinstance(env, ContinuousTarget):
        return env.target(obs)
    if isinstance(env, Picture):
        right = jnp.argmax(obs[:, 0, :, 0], axis=1) >= 18
        return jnp.where(right, 0.5, -0.5)[:, None] if env.continuous else right.astype(jnp.int32)
    if env.spec.action.kind == "box":
        return jnp.zeros((len(obs), 1), jnp.float32)
    return jnp.ones(len(obs), jnp.int32)


@pytest.mark.parametrize("id", PROBES)
def test_probe_values_by_brute_force(id):
    """One-step consistency: V(s) = r + gamma (1 - terminated) V(s'), s' the true successor."""
    env, gamma, num_envs = make_jax(id), 0.9, 64
    assert env.id == id and is_jax_env(env) and hash(env) == hash(make_jax(id)) and env == make_jax(id)
    state, observed = reset_envs(env, jax.random.split(key(), num_envs))
    step = jax.jit(lambda *args: step_envs(env, *args))
    space = env.spec.observation.to_gymnasium()
    for t in range(12):
        obs = observed.obs
        assert all(space.contains(np.asarray(row)) for row in obs)
        state, ts = step(state, observed, best_action(env, obs, state), key(t))
        following = np.where(ts.terminated, 0.0, env.value(ts.final_obs, gamma))
        np.testing.assert_allclose(env.value(obs, gamma), ts.reward + gamma * following, rtol=1e-5, atol=1e-5)
        observed = ts.observed


@pytest.mark.parametrize("id", PROBES)
def test_probe_values_are_discounted_returns(id):
    """The closed form is the return itself: summed over a long run of the process without its time limit."""
    env, gamma = make_jax(id), 0.8
    step = jax.jit(env.step)
    for seed in range(10):
        state, first = env.reset(key(seed))
        obs, total, discount = first, 0.0, 1.0
        for _ in range(80):
            action = best_action(env, obs[None], jax.tree.map(lambda x: x[None], state))[0]
            state, transition = step(state, action, key(seed))
            total, discount, obs = (
                total + discount * float(transition.reward),
                discount * gamma,
                transition.obs,
            )
            if transition.terminated:
                break
        np.testing.assert_allclose(env.value(first, gamma), total, rtol=1e-5, atol=1e-5)


def test_a_time_limit_taken_for_a_termination_is_worth_less():
    env, gamma = TimeLimitLoop(limit=4), 0.9
    state, observed = reset_envs(env, jax.random.split(key(), 2))
    cuts, returns, total = [], [], 0.0
    for t in range(8):
        state, ts = step_envs(env, state, observed, jnp.zeros(2, jnp.int32), key(t))
        observed = ts.observed
        cuts.append(bool(ts.truncated[0]))
        assert not ts.terminated.any()
    assert cuts == [False, False, False, True] * 2
    for _ in range(4):
        total = 1.0 + gamma * total
        returns.append(total)
    # The formula in the docstring is the average of the returns up to the limit.
    folded = (1 - gamma * (1 - gamma**4) / (4 * (1 - gamma))) / (1 - gamma)
    np.testing.assert_allclose(np.mean(returns), folded)
    assert folded < 0.3 * env.value(np.zeros((1,)), gamma)


def test_endings_ends_in_every_way():
    env = Endings()
    state, observed = reset_envs(env, jax.random.split(key(), 64))
    seen = set()
    for t in range(12):
        before = observed.obs
        state, ts = step_envs(env, state, observed, jnp.zeros(64, jnp.int32), key(t))
        observed = ts.observed
        for row, over, cut in zip(np.argmax(before, -1), ts.terminated, ts.truncated, strict=True):
            seen.add((int(row), bool(over), bool(cut)))
    assert {(2, True, True), (2, True, False), (3, False, True), (4, False, True)} <= seen
    # Nothing but the last place of the road terminates; the road before it is never cut.
    assert all(place == 2 for place, over, _ in seen if over)
    assert all(place in (3, 4) or over for place, over, cut in seen if cut)


def test_continuous_target_lies_within_its_bounds():
    for env in (ContinuousTarget(), ContinuousTarget(0.0, 10.0)):
        targets = env.target(np.linspace(-1, 1, 5, dtype=np.float32))
        assert env.low < targets.min() and targets.max() < env.high and targets.max() > 1
    state, _ = env.reset(key())
    _, transition = env.step(state, env.target(state) + 2.0, key())
    np.testing.assert_allclose(transition.reward, -4.0, rtol=1e-5)


def test_make_jax_names_the_nearest():
    with pytest.raises(ValueError, match="advantage/CartPole-v1") as error:
        make_jax("advantage/CartPol-v1")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="advantage/CartPole-v1"):
        make_jax("CartPole-v1")
    with pytest.raises(ValueError, match="advantage/ProbeEndings-v0"):
        make_jax("advantage/endings")


@pytest.mark.parametrize("library", ["gymnax", "brax"])
def test_make_jax_says_what_to_install(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setitem(sys.modules, f"{library}.envs", None)
    monkeypatch.delitem(sys.modules, f"advantage.envs.{library}", raising=False)
    with pytest.raises(ImportError, match=r'pip install "advantage\[jax-envs\]"') as error:
        make_jax(f"{library}/Anything")
    assert "\n" not in str(error.value)


def test_is_jax_env():
    assert is_jax_env(CartPole()) and is_jax_env(Counting())
    assert not is_jax_env(CartPole) and not is_jax_env("advantage/CartPole-v1")
    assert not is_jax_env(gymnasium.make("CartPole-v1"))


def test_recall_needs_memory():
    """From the second step on observations are the same for both cues, and the reward is the cue times the action."""
    env, seen, rewards = Recall(), {}, {}
    for seed in range(8):
        state, obs = env.reset(key(seed))
        cue, seen_now = float(obs[0]), []
        for _ in range(env.delay + 1):
            state, transition = env.step(state, jnp.array([0.5]), key())
            seen_now.append(np.asarray(transition.obs))
        assert transition.terminated and not transition.truncated
        seen[cue], rewards[cue] = np.array(seen_now), float(transition.reward)
    assert rewards == {1.0: 0.5, -1.0: -0.5}
    np.testing.assert_array_equal(seen[1.0], seen[-1.0])

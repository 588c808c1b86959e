"""DQN: gradient steps of SB3, target synchronisation in environment steps, exploration, endings."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.stats

from advantage.algorithms import dqn
from advantage.drivers.fused import FusedDriver
from advantage.envs.probes import Endings
from advantage.memory import uniform
from advantage.memory.replayed import replayed
from advantage.memory.uniform import Batch
from advantage.networks import optimisers
from advantage.networks.features import Flatten
from advantage.networks.mlp import MLP, Linear
from advantage.networks.q_network import QNetwork
from advantage.types import NONFINITE, Agent, Chunk, Observed, Space, Spec

SB3 = np.load(Path(__file__).parents[1] / "oracles" / "sb3.npz")
OBS, THREE = Space("box", (4,), low=-np.inf, high=np.inf), Space("discrete", (), "int32", n=(3,), start=(0,))
SPEC = Spec(OBS, THREE)
SMALL = dqn.Config(net_arch=(4,), batch_size=8, buffer_size=64, learning_starts=0)
KEY = jax.random.PRNGKey(2)
GREATEST = np.iinfo(np.int32).max

learn = jax.jit(dqn.learn)
observe = jax.jit(dqn.observe)


def assert_same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.atleast_1d(x).view(np.uint8), np.atleast_1d(y).view(np.uint8))


def assert_close(a, b, atol):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)


def network_of(prefix):
    """SB3's weights `[out, in]` as our network `[in, out]`."""
    layers = [
        Linear(jnp.asarray(SB3[f"{prefix}/q_net.{i}.weight"].T), jnp.asarray(SB3[f"{prefix}/q_net.{i}.bias"]))
        for i in (0, 2, 4)
    ]
    return QNetwork(Flatten(OBS), MLP(tuple(layers[:2]), jax.nn.relu), layers[2])


def state_of(network, target, config=SMALL):
    zero = jnp.int32(0)
    return dqn.State(network, target, optimisers.init(config.optimizer, network), zero, zero, zero, KEY)


@functools.cache
def fresh():
    return jax.jit(dqn.init, static_argnums=(0, 1))(SMALL, SPEC, KEY)


def empty_rows(valid):
    """A chunk of which only `valid [T, N]` matters."""
    valid = jnp.asarray(valid, bool)
    zeros, flags = jnp.zeros((*valid.shape, 4)), jnp.zeros(valid.shape, bool)
    action = jnp.zeros(valid.shape, jnp.int32)
    return Chunk(zeros, flags, None, action, jnp.zeros(valid.shape), flags, flags, valid, zeros, zeros[0])


def batch(seed=0):
    rng = np.random.default_rng(seed)
    obs, next_obs = jnp.asarray(rng.normal(size=(2, 8, 4)), jnp.float32)
    reward = jnp.asarray(rng.normal(size=8), jnp.float32)
    return Batch(obs, jnp.asarray(rng.integers(3, size=8), jnp.int32), reward, jnp.full(8, 0.9), next_obs)


# -- against SB3 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["plain", "clipped"])
def test_learning_is_that_of_sb3(case):
    """Three gradient steps on one batch with ends of both kinds; `clipped` exceeds the gradient's norm."""
    prefix = f"dqn/{case}"
    settings = {
        name: float(SB3[f"{prefix}/settings/{name}"]) for name in ("learning_rate", "gamma", "max_grad_norm")
    }
    config = dqn.Config(**settings)
    rows = {name: jnp.asarray(SB3[f"{prefix}/{name}"]) for name in ("obs", "actions", "rewards", "next_obs")}
    discount = np.where(SB3[f"{prefix}/terminated"], 0.0, settings["gamma"]).astype(np.float32)
    given = Batch(
        rows["obs"],
        rows["actions"].astype(jnp.int32),
        rows["rewards"],
        jnp.asarray(discount),
        rows["next_obs"],
    )
    before = network_of(f"{prefix}/before")
    state = state_of(before, network_of(f"{prefix}/target"), config)
    for step in range(3):
        state, metrics, _ = learn(config, state, given)
        np.testing.assert_allclose(metrics["train/loss"], SB3[f"{prefix}/losses"][step], rtol=1e-4)
        np.testing.assert_allclose(
            metrics["train/q_value"], SB3[f"{prefix}/current_q"][step].mean(), rtol=1e-4, atol=1e-5
        )
        if step == 0:
            assert_close(state.network, network_of(f"{prefix}/after1"), 1e-4)
    assert_close(state.network, network_of(f"{prefix}/after3"), 2e-4)
    assert_same_bits(state.target_network, network_of(f"{prefix}/target"))
    assert int(state.n_updates) == 3


@pytest.mark.parametrize(("tau", "name"), [(1.0, "tau1"), (0.3, "tau03")])
def test_synchronisation_is_that_of_sb3(tau, name):
    """A copy with tau 1, to the last bit; a weighted mean below."""
    online = network_of("dqn/plain/after3")
    state = state_of(online, network_of("dqn/plain/target"))
    config = dataclasses.replace(SMALL, tau=tau, target_update_interval=1)
    after = observe(config, state, empty_rows([[True]]))
    assert_close(after.target_network, network_of(f"dqn/sync/{name}"), 1e-6)
    if tau == 1.0:
        assert_same_bits(after.target_network, online)


def synchronised(interval, num_envs, steps):
    """After which of `steps` vector steps the target network changed."""
    config = dataclasses.replace(SMALL, target_update_interval=interval)
    target = jax.tree.map(jnp.zeros_like, fresh().network)
    state, rows = fresh()._replace(target_network=target), empty_rows(np.ones((1, num_envs), bool))
    found = []
    for _ in range(steps):
        state = observe(config, state, rows)
        found.append(bool(jnp.any(state.target_network.head.weight != 0)))
        state = state._replace(target_network=target)
    return found


def test_synchronisation_at_the_steps_of_sb3():
    """Wherever SB3's rounding to vector steps is exact: the number of environments divides the interval."""
    cases = list(
        zip(SB3["dqn/sync/interval"], SB3["dqn/sync/n_envs"], SB3["dqn/sync/synchronised"], strict=True)
    )
    exact = [case for case in cases if case[0] % case[1] == 0]
    assert len(exact) >= 3
    for interval, num_envs, expected in exact:
        assert synchronised(int(interval), int(num_envs), len(expected)) == expected.tolist()


def test_exploration_is_that_of_sb3():
    """The schedule that DQN brings along."""
    schedule = dqn.schedules(dqn.Config())["exploration_rate"]
    progress, expected = SB3["dqn/epsilon/progress_remaining"], SB3["dqn/epsilon/value"]
    np.testing.assert_allclose([schedule(float(p)) for p in progress], expected, rtol=1e-6)


# -- the target network and the counters ---------------------------------------------------------------


@pytest.mark.parametrize(("steps", "num_envs"), [(1, 1), (1, 4), (2, 8), (16, 1), (4, 3)])
def test_synchronisation_counts_environment_steps(steps, num_envs):
    """48 steps, an interval of 10: four soft updates and 8 steps since, however the steps are divided."""
    config = dataclasses.replace(SMALL, tau=0.3, target_update_interval=10)
    state = fresh()._replace(target_network=jax.tree.map(jnp.zeros_like, fresh().network))
    for _ in range(48 // (steps * num_envs)):
        state = observe(config, state, empty_rows(np.ones((steps, num_envs), bool)))
    assert (int(state.steps), int(state.since_sync)) == (48, 8)
    share = 1 - 0.7**4
    assert_close(state.target_network, jax.tree.map(lambda x: share * x, fresh().network), 1e-6)


def test_only_valid_rows_count():
    """Padding is no step; a chunk of padding alone changes no bit."""
    config = dataclasses.replace(SMALL, target_update_interval=3, tau=0.5)
    target = jax.tree.map(jnp.zeros_like, fresh().network)
    rows = empty_rows([[True, False], [True, False], [False, False]])
    state = observe(config, fresh()._replace(target_network=target), rows)
    assert (int(state.steps), int(state.since_sync)) == (2, 2)
    assert_same_bits(observe(config, state, empty_rows(np.zeros((3, 2)))), state)


def test_steps_saturate():
    """At the largest 32-bit number the count stays: it is only compared with `learning_starts`."""
    rows = empty_rows(np.ones((4, 2), bool))
    state = fresh()._replace(steps=jnp.int32(GREATEST - 3))
    for _ in range(2):
        state = observe(SMALL, state, rows)
        assert int(state.steps) == GREATEST


def test_intervals_of_any_length():
    """An interval of 2^31 - 1 steps is kept exactly: after 5 + 8 more than it, 13 are left over."""
    config = dataclasses.replace(SMALL, target_update_interval=GREATEST)
    target = jax.tree.map(jnp.zeros_like, fresh().network)
    state = fresh()._replace(since_sync=jnp.int32(GREATEST - 4), target_network=target)
    state = observe(config, state, empty_rows(np.ones((4, 2), bool)))
    assert int(state.since_sync) == 4
    assert_same_bits(state.target_network, state.network)
    early = observe(config, fresh()._replace(target_network=target), empty_rows(np.ones((4, 2), bool)))
    assert_same_bits(early.target_network, target)


# -- learning ------------------------------------------------------------------------------------------


def test_endings_have_no_error_of_true_values():
    """What `Endings` really gives, replayed with n = 1..3, contradicts its values nowhere.

    A truncation bootstraps, a termination does not, and sums stop at both.
    """
    env = Endings()
    config = dqn.Config(gamma=0.9, train_freq=16, buffer_size=4096)

    def remember(config, state, memory, chunk):
        return state, uniform.push(memory, chunk), {NONFINITE: jnp.float32(0.0)}

    driver = FusedDriver(Agent(dqn, remember, replayed(dqn).init_memory), env, 0, num_envs=64)
    driver.init(config)
    list(driver.run(config, {}, 0, 2 * 16 * 64))
    memory = jax.tree.map(lambda x: jnp.asarray(x[0]), driver.memory)
    table = jnp.asarray(np.repeat(env.value(np.eye(5), 0.9)[:, None], 2, axis=1), jnp.float32)
    true = QNetwork(Flatten(env.spec.observation), MLP((), jax.nn.relu), Linear(table, jnp.zeros(2)))
    for n_steps in (1, 2, 3):
        rows = jax.jit(uniform.sample, static_argnums=(2, 3))(memory, KEY, 2048, n_steps, 0.9)
        assert (rows.discount == 0).any() and len(np.unique(rows.discount)) == n_steps + 1
        total, _ = jax.jit(dqn.loss)(config, true, true, rows)
        assert float(total) < 1e-9


def test_a_gradient_that_is_not_finite_changes_nothing():
    """Parameters and optimiser keep their bits, and the step is counted."""
    bad = batch()
    state, metrics, _ = learn(SMALL, fresh(), bad._replace(reward=bad.reward.at[0].set(jnp.nan)))
    assert float(metrics[NONFINITE]) == 1.0
    assert_same_bits((state.network, state.optimizer), (fresh().network, fresh().optimizer))


def test_no_gradient_through_the_target():
    """With one network in both places its gradient is that of a constant target."""

    def loss(network, target):
        return dqn.loss(SMALL, network, target, batch())[0]

    network = fresh().network
    both = jax.jit(jax.grad(lambda x: loss(x, x)))(network)
    assert_close(both, jax.jit(jax.grad(loss))(network, network), 1e-7)


def test_columns_do_not_broadcast():
    """Rewards `[B, 1]` are an error and not a `[B, B]` loss."""
    rows = batch()
    with pytest.raises(jaxtyping.TypeCheckError):
        dqn.loss(SMALL, fresh().network, fresh().network, rows._replace(reward=rows.reward[:, None]))


def test_learning_rates_side_by_side():
    """`vmap` over a hyper-parameter equals one run each; a rate of 0 learns nothing."""
    rates = jnp.array([0.0, 1e-3, 1e-2])

    state, rows = fresh(), batch()  # cached: made out here, so that no tracer is kept

    def run(rate):
        return dqn.learn(dataclasses.replace(SMALL, learning_rate=rate), state, rows)[0].network

    together = jax.jit(jax.vmap(run))(rates)
    for i, rate in enumerate(rates):
        alone, *_ = learn(dataclasses.replace(SMALL, learning_rate=rate), fresh(), batch())
        assert_close(jax.tree.map(lambda x, i=i: x[i], together), alone.network, 1e-6)
    assert_same_bits(jax.tree.map(lambda x: x[0], together), fresh().network)


# -- acting --------------------------------------------------------------------------------------------

explore = jax.jit(dqn.epsilon_greedy)
MANY = 6000
Q = jnp.broadcast_to(jnp.array([1.0, 5.0, 2.0, 4.0]), (MANY, 4))
MASK = jnp.broadcast_to(jnp.array([True, False, True, True]), (MANY, 4))


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("masked", [False, True])
def test_epsilon_greedy_frequencies(epsilon, masked):
    """Chi-square: the best legal action with 1 - epsilon, and each legal one with epsilon / legal more."""
    mask = MASK if masked else None
    legal = np.array([1, 0, 1, 1]) if masked else np.ones(4)
    expected = epsilon * legal / legal.sum()
    expected[3 if masked else 1] += 1 - epsilon
    action = np.asarray(explore(Q, jnp.float32(epsilon), mask, KEY))
    counts = np.bincount(action, minlength=4)
    assert counts[expected == 0].sum() == 0
    possible = expected > 0
    if possible.sum() > 1:
        assert scipy.stats.chisquare(counts[possible], MANY * expected[possible]).pvalue > 1e-3


def test_random_actions_do_not_depend_on_how_rare_they_are():
    """With epsilon 0.001 the few random actions are still even over all four."""
    keys = jax.random.split(KEY, 200)
    action = jax.jit(jax.vmap(lambda key: dqn.epsilon_greedy(Q, jnp.float32(1e-3), None, key)))(keys)
    counts = np.bincount(np.ravel(action), minlength=4)[[0, 2, 3]]
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    assert scipy.stats.binomtest(int(counts.sum()), MANY * 200, 0.75e-3).pvalue > 1e-3


def test_no_legal_action_is_no_crash():
    """Some action of the space comes out."""
    mask = jnp.zeros((MANY, 4), bool)
    for epsilon in (0.0, 1.0):
        action = explore(Q, jnp.float32(epsilon), mask, KEY)
        assert ((action >= 0) & (action < 4)).all()


def act(observed, epsilon, key, exploring):
    actor = dqn.Actor(fresh().network, jnp.float32(epsilon))
    return jax.jit(dqn.act, static_argnums=5)(SMALL, actor, (), observed, key, exploring)[0]


def test_acting_without_exploration_is_greedy():
    """Whatever epsilon and the key are; with exploration, epsilon is obeyed."""
    obs = jax.random.normal(KEY, (64, 4))
    observed = Observed(obs, jnp.ones(64, bool))
    best = np.asarray(fresh().network(obs)).argmax(axis=1)
    other = jax.random.PRNGKey(9)
    np.testing.assert_array_equal(act(observed, 1.0, KEY, False), best)
    np.testing.assert_array_equal(act(observed, 1.0, other, False), best)
    assert (act(observed, 1.0, KEY, True) != act(observed, 1.0, other, True)).any()
    np.testing.assert_array_equal(act(observed, 0.0, KEY, True), best)


@pytest.mark.parametrize(("steps", "expected"), [(0, 1.0), (99, 1.0), (100, 0.2), (10**6, 0.2)])
def test_random_until_learning_starts(steps, expected):
    """Epsilon is 1 before `learning_starts` steps, and what the schedule says from then on."""
    config = dataclasses.replace(SMALL, learning_starts=100, exploration_rate=0.2)
    actor = dqn.actor(config, fresh()._replace(steps=jnp.int32(steps)))
    assert float(actor.epsilon) == pytest.approx(expected)


# -- config --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 65}, "batch_size=65"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"train_freq": 0}, "train_freq=0"),
        ({"train_freq": (0, "episode")}, "train_freq="),
        ({"train_freq": 33}, "buffer_size=64"),
        ({"n_steps": 33}, "n_steps=33"),
        ({"n_steps": 0}, "n_steps=0"),
        ({"target_update_interval": 0}, "target_update_interval=0"),
    ],
)
def test_settings_that_cannot_work(changes, message):
    """Are refused before training, by name."""
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes).check(SPEC, 2)


def test_settings_that_work():
    """Give no notes."""
    assert SMALL.check(SPEC, 2) == []
    assert dqn.Config().check(SPEC, 1) == []


def test_a_fresh_target_is_a_copy():
    """Equal in every bit, and in arrays of its own: both are donated."""
    state = dqn.init(SMALL, SPEC, KEY)
    assert_same_bits(state.network, state.target_network)
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((state.network, state.target_network))]
    assert len(set(pointers)) == len(pointers)

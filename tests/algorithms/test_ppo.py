"""PPO: whole updates of SB3, the `valid` contract, endings, action spaces, what it compiles to."""

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
import scipy.stats

from advantage.algorithms import ppo, trpo
from advantage.algorithms.kl_penalty import kl_penalty_loss
from advantage.drivers.fused import FusedDriver
from advantage.envs.probes import ContinuousTarget, Endings
from advantage.memory.rollout import shuffled
from advantage.networks.actor_critic import Actor, ActorCritic, Architecture
from advantage.networks.features import Flatten
from advantage.networks.mlp import MLP, Linear
from advantage.networks.recurrent import Recurrence
from advantage.types import NONFINITE, Agent, Chunk, Observed, Space, Spec, sanitise

SB3 = np.load(Path(__file__).parents[1] / "oracles" / "sb3.npz")
CASES = ["discrete", "discrete_clip_vf", "box"]
T, N = 4, 3
OBS = Space("box", (3,), low=-np.inf, high=np.inf)
DISCRETE = Space("discrete", (), "int32", n=(3,), start=(0,))
SPEC = Spec(OBS, DISCRETE)
SMALL = ppo.Config(n_steps=T, batch_size=5, n_epochs=2, net_arch=Architecture((), (4,), (4,)))
KEY = jax.random.PRNGKey(1)

update = jax.jit(ppo.update)
prepare = jax.jit(lambda config, network, rows: ppo.prepare(config, network, sanitise(rows)))
init = jax.jit(ppo.init, static_argnums=(0, 1))


def assert_same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.atleast_1d(x).view(np.uint8), np.atleast_1d(y).view(np.uint8))


def assert_close(a, b, atol):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)


@functools.cache
def fresh(config=SMALL, spec=SPEC):
    return init(config, spec, KEY)


def chunk(valid=None, garbage=0.0, seed=0, masked=False):
    """Random rows with endings of both kinds; invalid ones hold `garbage`."""
    rng = np.random.default_rng(seed)
    valid = np.ones((T, N), bool) if valid is None else np.asarray(valid, bool)
    obs, final_obs = rng.normal(size=(2, T, N, 3)).astype(np.float32)
    reward, kind = rng.normal(size=(T, N)).astype(np.float32), rng.choice(3, size=(T, N), p=[0.6, 0.2, 0.2])
    before = np.concatenate([np.zeros((1, N), bool), (valid & (kind == 0))[:-1]])
    obs[~(valid | before)], final_obs[~valid], reward[~valid] = garbage, garbage, garbage
    kind[~valid] = int(np.isnan(garbage))
    last_obs = np.where(valid[-1, :, None], rng.normal(size=(N, 3)), garbage).astype(np.float32)
    mask = np.ones((T, N, 3), bool)
    mask[..., 2] = False
    mask[~valid] = not np.isnan(garbage)
    action = np.where(valid, rng.integers(2, size=(T, N)), -7 if np.isnan(garbage) else 0)
    return jax.tree.map(jnp.asarray, Chunk(
        obs, np.zeros((T, N), bool), mask if masked else None, action.astype(np.int32), reward,
        kind == 1, kind == 2, valid, final_obs, last_obs,
    ))  # fmt: skip


# -- against SB3 ---------------------------------------------------------------------------------------


def dense(weights, name):
    return Linear(jnp.asarray(weights[f"{name}.weight"].T), jnp.asarray(weights[f"{name}.bias"]))


def oracle(case):
    """`(config, spec, chunk, everything SB3 says)`."""
    prefix = f"ppo/{case}/"
    data = {key.removeprefix(prefix): SB3[key] for key in SB3.files if key.startswith(prefix)}
    settings = {
        key.removeprefix("settings/"): float(x) for key, x in data.items() if key.startswith("settings/")
    }
    assert settings.pop("adam_eps") == 1e-5
    if np.isnan(settings["clip_range_vf"]):
        settings["clip_range_vf"] = None
    config = ppo.Config(n_steps=16, batch_size=64, net_arch=Architecture((), (16, 16), (16, 16)), **settings)
    box = Space("box", (2,), low=-1.0, high=1.0)
    two = Space("discrete", (), "int32", n=(2,), start=(0,))
    spec = Spec(Space("box", (4,), low=-np.inf, high=np.inf), box if case == "box" else two)
    names = ("obs", "is_first", "actions", "rewards", "terminated", "truncated", "final_obs", "last_obs")
    arrays = {name: jnp.asarray(data[name]) for name in names}
    if case != "box":
        arrays["actions"] = arrays["actions"].astype(jnp.int32)
    rows = Chunk(
        arrays["obs"], arrays["is_first"], None, arrays["actions"], arrays["rewards"], arrays["terminated"],
        arrays["truncated"], jnp.ones((16, 4), bool), arrays["final_obs"], arrays["last_obs"],
    )  # fmt: skip
    return config, spec, rows, data


def network_of(spec, data, prefix):
    """SB3's weights `[out, in]` as our network `[in, out]`."""
    weights = {key.removeprefix(f"{prefix}/"): x for key, x in data.items() if key.startswith(f"{prefix}/")}
    log_std = jnp.asarray(weights["log_std"]) if "log_std" in weights else None
    policy, value = (
        MLP(tuple(dense(weights, f"mlp_extractor.{net}_net.{i}") for i in (0, 2)), jnp.tanh)
        for net in ("policy", "value")
    )
    none = MLP((), jnp.tanh)
    actor = Actor(Flatten(spec.observation), none, policy, dense(weights, "action_net"), log_std, spec.action)
    return ActorCritic(actor, value, dense(weights, "value_net"))


@pytest.mark.parametrize("case", CASES)
def test_rows_are_those_of_sb3(case):
    """Values, log-probabilities, advantages and returns of a rollout with ends of both kinds."""
    config, spec, rows, data = oracle(case)
    found = prepare(config, network_of(spec, data, "before"), rows)
    for name, expected in (
        ("value", "values"), ("log_prob", "log_probs"), ("advantage", "advantages"), ("returns", "returns"),
    ):  # fmt: skip
        np.testing.assert_allclose(getattr(found, name).reshape(16, 4), data[expected], rtol=1e-4, atol=2e-5)


@functools.cache
def trained(case, epochs):
    config, spec, rows, data = oracle(case)
    config = dataclasses.replace(config, n_epochs=epochs)
    network = network_of(spec, data, "before")
    state = fresh(config, spec)._replace(network=network)
    state, _, metrics = update(config, state, (), rows)
    return state, metrics, network_of(spec, data, f"after{epochs}"), network


@pytest.mark.parametrize(
    ("case", "epochs"), [("discrete", 1), ("discrete_clip_vf", 3), ("box", 1), ("box", 3)]
)
def test_update_is_that_of_sb3(case, epochs):
    """All weights after one and after three epochs, with clipping of values, entropy and gradient norm."""
    state, _, expected, before = trained(case, epochs)
    assert_close(state.network, expected, 1e-4)
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (expected, before)), strict=True)]
    assert min(moved) > 4e-3


@pytest.mark.parametrize("case", ["discrete", "box"])
def test_metrics_are_those_of_sb3(case):
    """Under SB3's keys, after one epoch."""
    _, metrics, _, _ = trained(case, 1)
    prefix = f"ppo/{case}/log1/"
    expected = {key.removeprefix(prefix): SB3[key] for key in SB3.files if key.startswith(prefix)}
    for name in {"learning_rate", "clip_range", "clip_range_vf"} & expected.keys():
        assert ppo.LOGGED[name] == f"train/{name}"
        del expected[name]
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[f"train/{name}"], value, rtol=1e-4, atol=1e-5, err_msg=name)
    assert metrics.keys() == {NONFINITE, *(f"train/{name}" for name in expected)}


# -- the policy that acted is the one that is compared ------------------------------------------------


def recorder():
    """PPO whose memory is the last chunk and whose update changes nothing."""

    def update(config, state, memory, chunk):
        return state, chunk, {NONFINITE: jnp.float32(0.0)}

    def init_memory(config, spec, num_envs):
        lead = (config.n_steps, num_envs)
        obs, action = (jax.tree.map(jnp.asarray, s.zeros(lead)) for s in (spec.observation, spec.action))
        flags = [jnp.zeros(lead, bool) for _ in range(4)]
        carry = ppo.initial_carry(config, spec, num_envs)
        return Chunk(obs, flags[0], None, action, jnp.zeros(lead), *flags[1:], obs, obs[0], carry)

    return Agent(ppo, update, init_memory)


@functools.cache
def rollout(env, config, num_envs):
    """A chunk that the fused driver collected, and the state that acted."""
    driver = FusedDriver(recorder(), env, 0, num_envs=num_envs)
    driver.init(config)
    list(driver.run(config, {}, 0, config.n_steps * num_envs))
    return jax.tree.map(lambda x: jnp.asarray(x[0]), (driver.memory, driver.state))


def log_ratio(config, network, rows):
    distribution, _ = network.both(rows.obs, rows.action_mask)
    return distribution.log_prob(rows.action) - rows.log_prob


def assert_ratio_is_one(config, network, rows):
    rows = prepare(config, network, rows)
    found = jax.jit(log_ratio)(config, network, rows)
    assert np.abs(np.expm1(found)).max() < 1e-6
    assert np.abs(rows.log_prob).max() > 0.01


GSDE = ppo.Config(n_steps=6, batch_size=24, use_sde=True, sde_sample_freq=2, log_std_init=-1.0)


@pytest.mark.parametrize(("env", "config"), [(Endings(), ppo.Config(n_steps=16)), (ContinuousTarget(), GSDE)])
def test_ratio_is_one_after_a_rollout(env, config):
    """On the first minibatch, for what the fused driver collected."""
    rows, state = rollout(env, config, 64)
    assert bool(rows.valid.all())
    assert_ratio_is_one(config, state.network, rows)


SPACES = {
    "discrete": DISCRETE,
    "multi_discrete": Space("multi_discrete", (2,), "int32", n=(3, 2), start=(0, 0)),
    "multi_binary": Space("multi_binary", (3,), "int8"),
    "box": Space("box", (2,), low=-1.0, high=1.0),
    "box_matrix": Space("box", (2, 3), low=-1.0, high=1.0),
    "binary_matrix": Space("multi_binary", (2, 2), "int8"),
    "discrete_matrix": Space("multi_discrete", (1, 2), "int32", n=(3, 2), start=(0, 0)),
    "gsde": Space("box", (2,), low=-1.0, high=1.0),
    "gsde_matrix": Space("box", (2, 2), low=-1.0, high=1.0),
    "gsde_without_layers": Space("box", (2,), low=-1.0, high=1.0),
}


@pytest.mark.parametrize("name", SPACES)
def test_every_action_space(name):
    """Actions have the space's shape and dtype, ratios are 1, and an update moves the policy."""
    spec = Spec(OBS, SPACES[name])
    config = dataclasses.replace(SMALL, use_sde=name.startswith("gsde"), n_epochs=1)
    if name == "gsde_without_layers":
        config = dataclasses.replace(
            config, net_arch=Architecture((), (), ()), full_std=False, use_expln=True
        )
    config.check(spec, N)
    state, rows = fresh(config, spec), chunk()

    @jax.jit
    def act(obs, key):
        carry = ppo.initial_carry(config, spec, N)
        return ppo.act(config, ppo.actor(config, state), carry, Observed(obs, jnp.ones(N, bool)), key, True)[
            0
        ]

    action = jnp.stack([act(obs, key) for obs, key in zip(rows.obs, jax.random.split(KEY, T), strict=True)])
    zeros = spec.action.zeros((T, N))
    assert (action.shape, action.dtype) == (zeros.shape, zeros.dtype)
    rows = rows._replace(action=action)
    assert_ratio_is_one(config, state.network, rows)
    if name in ("discrete", "multi_binary", "box", "gsde"):
        return  # an update of their kind is compiled elsewhere here
    after, _, metrics = update(config, state, (), rows)
    assert float(metrics[NONFINITE]) == 0.0 and np.isfinite(metrics["train/loss"])
    assert np.abs(after.network.actor.head.weight - state.network.actor.head.weight).max() > 0


def test_state_dependent_noise_has_its_density():
    """Standardised by the density's mean and deviation, gSDE's actions of 512 environments are normal."""
    config, spec = dataclasses.replace(GSDE, net_arch=Architecture((), (4,), (4,))), Spec(OBS, SPACES["gsde"])
    state, carry = fresh(config, spec), ppo.initial_carry(config, spec, 512)
    observed = Observed(jax.random.normal(KEY, (512, 3)), jnp.ones(512, bool))
    actor = ppo.actor(config, state)
    act = jax.jit(lambda carry, key: ppo.act(config, actor, carry, observed, key, True))
    actions = []
    for key in jax.random.split(KEY, 4):
        action, carry = act(carry, key)
        actions.append(np.asarray(action))
    distribution = actor.distribution(actor.latent(observed.obs))
    z = (actions[0] - np.asarray(distribution.mean)) / np.exp(distribution.log_std)
    assert scipy.stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    # The noise is one function of the state for `sde_sample_freq` = 2 steps, then another.
    np.testing.assert_allclose(actions[0], actions[1], rtol=1e-5)
    np.testing.assert_allclose(actions[2], actions[3], rtol=1e-5)
    assert np.abs(actions[1] - actions[2]).max() > 0.1


# -- endings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gae_lambda", [0.0, 0.9, 1.0])
def test_advantages_of_true_values_are_zero(gae_lambda):
    """In `Endings` nothing is random after its start: a truncation bootstraps, a termination does not."""
    config = ppo.Config(n_steps=16, gamma=0.9, gae_lambda=gae_lambda)
    rows, state = rollout(Endings(), ppo.Config(n_steps=16), 64)
    assert all(bool(x.any()) for x in (rows.terminated & ~rows.truncated, rows.truncated & ~rows.terminated))
    assert bool((rows.terminated & rows.truncated).any())
    table = Endings().value(np.eye(5), 0.9)
    head = Linear(jnp.asarray(table[:, None], jnp.float32), jnp.zeros(1))
    network = ActorCritic(state.network.actor, MLP((), jnp.tanh), head)
    found = prepare(config, network, rows)
    np.testing.assert_allclose(found.advantage, np.zeros(16 * 64), atol=2e-5)
    np.testing.assert_allclose(found.returns.reshape(16, 64), Endings().value(rows.obs, 0.9), atol=2e-5)


def test_next_step_form_gives_the_same_rows():
    """A truncated and a terminated episode, with dense final observations and with dummy rows."""
    rng = np.random.default_rng(0)
    obs, last = rng.normal(size=(6, 1, 3)).astype(np.float32), rng.normal(size=(1, 3)).astype(np.float32)
    flags = {name: np.zeros((6, 1), bool) for name in ("is_first", "terminated", "truncated")}
    flags["truncated"][1], flags["terminated"][3] = True, True
    valid, reward = np.ones((6, 1), bool), rng.normal(size=(6, 1)).astype(np.float32)
    valid[[2, 4]] = False
    action = np.zeros((6, 1), np.int32)
    terminated, truncated, first = flags["terminated"], flags["truncated"], flags["is_first"]
    dummy = Chunk(obs, first, None, action, reward, terminated, truncated, valid, None, last)
    kept = np.array([0, 1, 3, 5])
    final = np.zeros((4, 1, 3), np.float32)
    final[1], final[2] = obs[2], obs[4]
    short = Chunk(*(None if x is None else x[kept] for x in dummy[:8]), final, last)
    config = dataclasses.replace(SMALL, gamma=0.9)
    both = []
    for rows in (dummy, short):
        both.append(prepare(config, fresh().network, jax.tree.map(jnp.asarray, rows)))
    for name in ("advantage", "returns", "log_prob", "value"):
        found, expected = getattr(both[0], name)[kept], getattr(both[1], name)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# -- the `valid` contract --------------------------------------------------------------------------------

HOLES = [[1, 1, 1], [1, 0, 1], [1, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("masked", [False, True])
def test_garbage_changes_no_bit(masked):
    """NaN, impossible actions, empty masks and endings in invalid rows: the same result as zeros."""
    clean = update(SMALL, fresh(), (), chunk(HOLES, masked=masked))
    dirty = update(SMALL, fresh(), (), chunk(HOLES, np.nan, masked=masked))
    assert np.isfinite(clean[2]["train/loss"])
    assert_same_bits(clean, dirty)


def test_first_observation_of_an_invalid_row_after_an_end():
    """It is nobody's successor: NaN there does not reach the losses."""
    rows = chunk([[1, 1, 1], [1, 1, 1], [0, 1, 1], [1, 1, 1]])
    rows = rows._replace(truncated=rows.truncated.at[1, 0].set(True))
    bad = rows._replace(obs=rows.obs.at[2, 0].set(jnp.nan))
    good = rows._replace(obs=rows.obs.at[2, 0].set(0.0))
    assert_same_bits(update(SMALL, fresh(), (), good), update(SMALL, fresh(), (), bad))


def test_an_empty_chunk_is_the_identity():
    """Every bit of the state stays, the key and Adam's moments included."""
    state, _, _ = update(SMALL, fresh(), (), chunk())
    after, _, metrics = update(SMALL, state, (), chunk(np.zeros((T, N)), np.nan))
    assert_same_bits(state, after)
    assert float(metrics[NONFINITE]) == 0.0


def counted(config, network, rows):
    """A loss that says which rows it saw."""
    total = jnp.sum(rows.weight * network.value(rows.obs))
    seen = {"rows": jnp.sum(rows.weight), "returns": jnp.sum(rows.weight * rows.returns)}
    return total, {**seen, "train/approx_kl": jnp.float32(0.0)}


@pytest.mark.parametrize(("valid", "steps"), [(None, 3), (HOLES, 2), ([[1, 0, 0]] + [[0, 0, 0]] * 3, 1)])
def test_every_valid_row_is_seen_once_an_epoch(valid, steps):
    """Batches of 5 that do not divide 12, 8 or 1 rows: full ones first, and empty ones take no step."""
    config, rows = dataclasses.replace(SMALL, loss=counted), chunk(valid)
    state, _, metrics = update(config, fresh(), (), rows)
    prepared = prepare(config, fresh().network, rows)
    assert int(optax.tree_utils.tree_get(state.optimizer, "count")) == 2 * steps
    assert float(metrics["rows"]) * steps == pytest.approx(float(prepared.weight.sum()))
    expected = float(jnp.sum(prepared.returns * prepared.weight))
    assert float(metrics["returns"]) * steps == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert int(state.n_updates) == 2


def test_minibatches_are_shuffled():
    """Each epoch in another order, each update in others: `key` moves on."""
    config = dataclasses.replace(SMALL, batch_size=4, n_epochs=1)
    first, _, _ = update(config, fresh(), (), chunk())
    other, _, _ = update(config, fresh()._replace(key=first.key), (), chunk())
    assert np.abs(first.network.head.weight - other.network.head.weight).max() > 1e-6


# -- losses ----------------------------------------------------------------------------------------------


def orders(valid, n_epochs, batch_size):
    """The rows of every epoch, padding included."""
    weight = jnp.asarray(valid, jnp.float32)
    found = shuffled(jax.random.PRNGKey(0), weight, n_epochs, batch_size)
    return np.asarray(found).reshape(n_epochs, -1)


@pytest.mark.parametrize("count", [50, 2**15, 2**15 + 1])  # numbers ride in what is drawn, and then pairs
def test_every_epoch_is_a_permutation_of_its_own(count):
    """Every row once an epoch, valid ones first, then invalid ones and the padding of the last minibatch."""
    valid = np.arange(count) % 3 > 0
    found = orders(valid, 2, 32)
    padded = -(-count // 32) * 32
    for order in found:
        np.testing.assert_array_equal(np.sort(order), np.arange(padded))
        assert valid[order[: valid.sum()]].all()
        assert np.mean(np.diff(order[: valid.sum()]) > 0) < 0.65  # not in their own order
        means = order[: valid.sum() // 32 * 32].reshape(-1, 32).mean(axis=1) / count
        assert np.std(means) < 0.08  # of 32 uniform numbers: 0.05
    assert (found[0] != found[1]).any()


def test_orders_are_uniform():
    """Every row is as likely in every place (chi-squared over 8 rows in 8 places)."""
    found = orders(np.ones(8), 8000, 8)
    counts = np.stack([np.bincount(found[:, place], minlength=8) for place in range(8)])
    assert scipy.stats.chi2.sf(np.sum((counts - 1000) ** 2 / 1000), 7 * 7) > 1e-4


def test_target_kl_stops():
    """With a tiny target the second step is already too far: three epochs leave what one does."""
    whole = dataclasses.replace(SMALL, batch_size=12, n_epochs=3, learning_rate=0.05)
    stopped, _, metrics = update(dataclasses.replace(whole, target_kl=1e-6), fresh(), (), chunk())
    once, _, _ = update(dataclasses.replace(whole, n_epochs=1), fresh(), (), chunk())
    free, _, _ = update(whole, fresh(), (), chunk())
    assert_close(stopped.network, once.network, 1e-5)
    # As in SB3 the epoch in which it stops counts, even if it took no step.
    assert (int(stopped.n_updates), int(free.n_updates)) == (2, 3)
    patient, _, _ = update(dataclasses.replace(whole, target_kl=1e6), fresh(), (), chunk())
    assert_close(patient.network, free.network, 1e-5)
    assert np.abs(free.network.head.weight - once.network.head.weight).max() > 0.01
    assert np.isfinite(metrics["train/loss"])


@pytest.mark.parametrize("batch_size", [1, 6])
def test_equal_advantages_give_no_nan(batch_size):
    """A constant or single-row minibatch has no deviation to divide by."""
    rows = chunk()
    ended = jnp.ones((T, N), bool)
    obs = jnp.broadcast_to(rows.obs[:1, :1], rows.obs.shape)
    rows = rows._replace(obs=obs, reward=jnp.ones((T, N)), terminated=ended, truncated=~ended)
    config = dataclasses.replace(SMALL, batch_size=batch_size)
    state, _, metrics = update(config, fresh(), (), rows)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    assert float(metrics[NONFINITE]) == 0.0 and np.isfinite(metrics["train/loss"])


def test_a_gradient_that_is_not_finite_changes_nothing():
    """The parameters stay, and every step left out is counted."""
    rows = chunk()
    state, _, metrics = update(SMALL, fresh(), (), rows._replace(reward=rows.reward.at[0, 0].set(jnp.inf)))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    assert float(metrics[NONFINITE]) >= 2


class Column(eqx.Module):
    """A network that gives values as a column."""

    inner: ActorCritic

    @property
    def actor(self):
        return self.inner.actor

    def value(self, obs):
        return self.inner.value(obs)[..., None]

    def both(self, obs, action_mask):
        distribution, value = self.inner.both(obs, action_mask)
        return distribution, value[..., None]


def test_columns_do_not_broadcast():
    """Values `[B, 1]` against returns `[B]` are an error and not a `[B, B]` loss."""
    rows = prepare(SMALL, fresh().network, chunk())
    with pytest.raises(jaxtyping.TypeCheckError):
        ppo.loss(SMALL, Column(fresh().network), rows)
    with pytest.raises(jaxtyping.TypeCheckError):
        ppo.prepare(SMALL, Column(fresh().network), chunk())


# -- acting ----------------------------------------------------------------------------------------------


def test_acting_without_exploration_is_deterministic():
    """The same legal action for every key: the policy's mode. With exploration, samples of the policy."""
    state, obs = fresh(), jax.random.normal(KEY, (64, 3))
    mask = jnp.broadcast_to(jnp.array([True, False, True]), (64, 3))
    observed, actor = Observed(obs, jnp.ones(64, bool), mask), ppo.actor(SMALL, state)

    @functools.partial(jax.jit, static_argnums=1)
    def act(key, explore):
        return ppo.act(SMALL, actor, (), observed, key, explore)[0]

    keys = jax.random.split(KEY, 3)
    modes = [act(key, False) for key in keys]
    np.testing.assert_array_equal(modes[0], modes[1])
    logits = np.where(mask, actor.head(actor.latent(obs)), -np.inf)
    np.testing.assert_array_equal(modes[0], logits.argmax(axis=1))
    drawn = np.stack([act(key, True) for key in keys])
    assert set(drawn.ravel()) == {0, 2}
    assert (drawn[0] != drawn[1]).any()


# -- config ----------------------------------------------------------------------------------------------


def test_learning_rates_side_by_side():
    """`vmap` over a hyper-parameter equals one run each; a rate of 0 learns nothing."""
    rates = jnp.array([0.0, 1e-3, 1e-2])
    state, rollout = fresh(), chunk()  # cached: made out here, so that no tracer is kept

    def run(rate):
        return ppo.update(dataclasses.replace(SMALL, learning_rate=rate), state, (), rollout)[0]

    together = jax.jit(jax.vmap(run))(rates)
    for i, rate in enumerate(rates):
        alone, _, _ = update(dataclasses.replace(SMALL, learning_rate=rate), fresh(), (), chunk())
        assert_close(jax.tree.map(lambda x, i=i: x[i], together.network), alone.network, 1e-6)
    assert_same_bits(jax.tree.map(lambda x: x[0], together.network), fresh().network)


def test_the_program_does_not_grow_with_epochs_or_minibatches():
    """Loops, not copies of their bodies."""

    def length(**changes):
        config = dataclasses.replace(SMALL, **changes)
        lowered = jax.jit(functools.partial(ppo.update, config)).lower(fresh(), (), chunk())
        return len(lowered.as_text().splitlines())

    assert length(n_epochs=2) == length(n_epochs=50)
    assert length(batch_size=6) == length(batch_size=2)


@pytest.mark.parametrize(
    ("changes", "space", "message"),
    [
        ({"batch_size": 13}, DISCRETE, "batch_size=13"),
        ({"batch_size": 0}, DISCRETE, "batch_size=0"),
        ({"n_epochs": 0}, DISCRETE, "n_epochs=0"),
        ({"n_steps": 0}, DISCRETE, "n_steps=0"),
        ({"use_sde": True}, DISCRETE, "use_sde"),
        ({"desired_kl": 0.01, "adapts": "kl_coef"}, DISCRETE, "give loss=kl_penalty_loss"),
    ],
)
def test_settings_that_cannot_work(changes, space, message):
    """Are refused before training, by name."""
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes).check(Spec(OBS, space), N)


def test_notes():
    """A batch size that does not divide the rollout is allowed and said."""
    assert "batch_size=5" in SMALL.check(SPEC, N)[0]
    assert dataclasses.replace(SMALL, batch_size=6).check(SPEC, N) == []


def test_notes_of_a_policy_that_remembers():
    """Its minibatches hold windows: here 4 of 2 steps for each of 3 environments, 5 in a minibatch."""
    remembering = dataclasses.replace(SMALL, n_steps=8, batch_size=10, recurrence=Recurrence(4, sequence_length=2))
    assert remembering.check(SPEC, N) == [
        "batch_size=10 does not divide the rollout of 12 windows of 2 steps: the last minibatch of each epoch has 2"
    ]
    assert dataclasses.replace(remembering, batch_size=8).check(SPEC, N) == []


# -- what follows the KL --------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"n_epochs": 1, "batch_size": 12}, {"target_kl": 1e-6, "batch_size": 12}])
def test_what_follows_the_kl_sees_the_last_step(settings):
    """The KL of a whole update, its only or last gradient step included, by which the learning rate then falls."""
    config = dataclasses.replace(SMALL, learning_rate=0.3, desired_kl=0.01, **settings)
    rollout = chunk(valid=np.arange(T * N).reshape(T, N) % 5 != 0)
    state, _, metrics = update(config, fresh(), (), rollout)
    old, new = (prepare(config, network, rollout) for network in (fresh().network, state.network))
    log_ratio = (new.log_prob - old.log_prob)[old.weight > 0]
    np.testing.assert_allclose(metrics["train/update_kl"], np.mean(np.expm1(log_ratio) - log_ratio), rtol=1e-4)
    assert metrics["train/update_kl"] > 0.02
    np.testing.assert_allclose(state.factors["learning_rate"], 1 / 1.5, rtol=1e-6)
    np.testing.assert_allclose(metrics["train/adapted_learning_rate"], 0.3)
    after = update(config, state, (), rollout)[2]
    np.testing.assert_allclose(after["train/adapted_learning_rate"], 0.2, rtol=1e-6)


def test_an_empty_rollout_moves_nothing_that_follows():
    """Nor a bit of anything else."""
    config = dataclasses.replace(SMALL, desired_kl=0.01)
    state, _, _ = update(config, fresh(), (), chunk(valid=np.zeros((T, N), bool)))
    assert_same_bits(state, fresh())


# -- rows that do not count -----------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["ppo", "kl_penalty", "trpo"])
def test_rows_that_do_not_count_cannot_overflow(algorithm):
    """17 narrow Gaussians give the zeros behind a rollout a density of e^120, whose ratio is infinite."""
    config = dataclasses.replace(SMALL, log_std_init=-8.0)
    spec = Spec(OBS, Space("box", (17,), low=-1.0, high=1.0))
    network = fresh(config, spec).network
    rows = ppo.Rows(
        jnp.zeros((2, 3)), None, jnp.zeros((2, 17)), jnp.array([119.0, 0.0]), *jnp.ones((3, 2)), jnp.array([1.0, 0.0])
    )
    losses = {
        "ppo": lambda network, rows: ppo.loss(config, network, rows)[0],
        "kl_penalty": lambda network, rows: kl_penalty_loss(config, network, rows)[0],
        "trpo": lambda network, rows: trpo.surrogate(network.actor, trpo.Rows(*rows)),
    }
    found = jax.jit(jax.value_and_grad(losses[algorithm]))(network, rows)
    alone = jax.jit(jax.value_and_grad(losses[algorithm]))(network, jax.tree.map(lambda x: x[:1], rows))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    assert any(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(found[1]))


# -- devices ---------------------------------------------------------------------------------------------

SHARDED = """
import dataclasses
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from advantage.algorithms import ppo
from advantage.networks.actor_critic import Architecture
from advantage.types import Chunk, Space, Spec

assert jax.device_count() == 8
T, N = 4, 16
spec = Spec(Space("box", (3,), low=-1.0, high=1.0), Space("discrete", (), "int32", n=(3,), start=(0,)))
config = ppo.Config(n_steps=T, batch_size=16, n_epochs=2, net_arch=Architecture((), (8,), (8,)))
rng = np.random.default_rng(0)
kind = rng.choice(3, size=(T, N), p=[0.6, 0.2, 0.2])
obs, final_obs = rng.normal(size=(2, T, N, 3)).astype(np.float32)
chunk = Chunk(obs, np.zeros((T, N), bool), None, rng.integers(3, size=(T, N)).astype(np.int32),
              rng.normal(size=(T, N)).astype(np.float32), kind == 1, kind == 2, rng.random((T, N)) < 0.9,
              final_obs, rng.normal(size=(N, 3)).astype(np.float32))
state = ppo.init(config, spec, jax.random.PRNGKey(0))
mesh = Mesh(np.array(jax.devices()), ("n",))
rows = NamedSharding(mesh, P(None, "n"))
places = jax.tree.map(lambda x: rows, chunk)._replace(last_obs=NamedSharding(mesh, P("n")))
update = jax.jit(lambda state, chunk: ppo.update(config, state, (), chunk)[0])
alone = update(state, jax.device_put(chunk, jax.devices()[0]))
together = update(jax.device_put(state, NamedSharding(mesh, P())), jax.device_put(chunk, places))
assert len(jax.device_put(chunk, places).obs.sharding.device_set) == 8
for a, b, before in zip(*map(jax.tree.leaves, (alone.network, together.network, state.network)), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    assert np.abs(a - before).max() > 1e-4
print("equal")
"""


def test_environments_sharded_over_devices():
    """N axis over 8 virtual devices, state replicated: the parameters of one device, to 1e-5."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "NPROC": "16"}
    command = [sys.executable, "-c", SHARDED]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]

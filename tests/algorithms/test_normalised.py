"""Normalised algorithms: what they see, in which order statistics change, and the contracts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.algorithms import dqn, ppo
from advantage.algorithms.normalised import Memory, Normalised, State
from advantage.equations.moments import include
from advantage.equations.normalisation import Normalisation, normalisation
from advantage.memory.uniform import Batch
from advantage.models import agent_of
from advantage.types import Chunk, Observed, Space, Spec

T, N = 4, 2
SPEC = Spec(Space("box", (3,), low=-np.inf, high=np.inf), Space("discrete", (), "int32", n=(2,), start=(0,)))
KEY = jax.random.PRNGKey(0)
PPO = ppo.Config(n_steps=T, batch_size=8, n_epochs=2, net_arch=ppo.Architecture((), (4,), (4,)))
DQN = dqn.Config(net_arch=(4,), batch_size=4, buffer_size=64, learning_starts=0, train_freq=T)
SETTINGS = Normalisation(clip_obs=5.0, clip_reward=5.0, gamma=0.5)
BOTH = {"ppo": (ppo, PPO), "dqn": (dqn, DQN)}


def chunk(valid=None, garbage=0.0, seed=0):
    """Random rows with ends of both kinds; invalid ones hold `garbage`."""
    rng = np.random.default_rng(seed)
    valid = np.ones((T, N), bool) if valid is None else np.asarray(valid, bool)
    obs, final_obs = rng.normal(size=(2, T, N, 3)).astype(np.float32) * 20 + 100
    reward, kind = rng.normal(size=(T, N)).astype(np.float32) * 50, rng.choice(3, size=(T, N), p=[0.6, 0.2, 0.2])
    kind[~valid] = 0
    is_first = np.concatenate([np.ones((1, N), bool), kind[:-1] > 0])
    before = np.concatenate([np.zeros((1, N), bool), (valid & (kind == 0))[:-1]])
    obs[~(valid | before)], final_obs[~valid], reward[~valid] = garbage, garbage, garbage
    last_obs = np.where(valid[-1, :, None], rng.normal(size=(N, 3)), garbage).astype(np.float32)
    return jax.tree.map(jnp.asarray, Chunk(
        obs, is_first, None, rng.integers(2, size=(T, N)).astype(np.int32), reward, kind == 1, kind == 2, valid,
        final_obs, last_obs,
    ))  # fmt: skip


@functools.cache
def made(name, settings=SETTINGS):
    """`(config, update, fresh state and memory)` of a normalised algorithm."""
    algorithm, config = BOTH[name]
    agent = agent_of(Normalised(algorithm, settings))
    init = jax.jit(lambda: (agent.algorithm.init(config, SPEC, KEY), agent.init_memory(config, SPEC, N)))
    return config, jax.jit(functools.partial(agent.update, config)), init()


def assert_same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.atleast_1d(x).view(np.uint8), np.atleast_1d(y).view(np.uint8))


def assert_close(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **{"rtol": 1e-5, "atol": 1e-5, **tolerance})


def by_hand(obs, moments, clip=5.0):
    return np.clip((np.asarray(obs) - np.asarray(moments.mean)) / np.sqrt(np.asarray(moments.var) + 1e-8), -clip, clip)


# -- what is seen, and when statistics change ------------------------------------------------------------


def test_update_is_the_algorithms_on_what_acted_saw():
    """PPO's update on observations normalised by the statistics from before, and on rewards by those of now."""
    config, update, (state, memory) = made("ppo")
    state, memory, _ = update(state, memory, chunk(seed=1))
    rows, obs = chunk(seed=2), state.normaliser.obs["obs"]
    after, _, metrics = update(state, memory, rows)

    returns = np.zeros(N)
    seen = []
    for t in range(T):
        returns = np.where(rows.is_first[t], 0.0, returns) * 0.5 + np.asarray(rows.reward[t])
        seen.append(returns)
    expected = include(state.normaliser.returns, jnp.asarray(np.stack(seen), jnp.float32), rows.valid)
    assert_close(after.normaliser.returns, expected, rtol=1e-5)
    plain = rows._replace(
        obs=by_hand(rows.obs, obs), last_obs=by_hand(rows.last_obs, obs), final_obs=by_hand(rows.final_obs, obs),
        reward=np.clip(rows.reward / np.sqrt(expected.var + 1e-8), -5, 5),
    )  # fmt: skip
    inner, _, plain_metrics = jax.jit(ppo.update)(config, state.inner, (), plain)
    assert_close(after.inner, inner, rtol=1e-4, atol=1e-5)
    assert_close(metrics, plain_metrics, rtol=1e-3, atol=1e-4)
    assert_close(after.normaliser.obs["obs"], include(obs, rows.obs, rows.valid))
    assert int(after.normaliser.obs["obs"].count[1]) == 2 * T * N


def test_off_policy_counts_first_and_stores_raw():
    _config, update, (state, memory) = made("dqn")
    rows = chunk(seed=3)
    state, memory, metrics = update(state, memory, rows)
    assert_close(state.normaliser.obs["obs"].mean, np.mean(rows.obs, axis=(0, 1)), rtol=1e-4)
    stored = np.asarray(memory.inner.obs)
    np.testing.assert_array_equal(np.sort(stored[stored != 0]), np.sort(np.asarray(rows.obs).ravel()))
    assert float(metrics["train/loss"]) > 0


def test_a_batch_is_learned_from_normalised():
    config, update, (state, memory) = made("dqn")
    state, _, _ = update(state, memory, chunk(seed=3))
    rng = np.random.default_rng(0)
    obs, next_obs = rng.normal(size=(2, 4, 3)).astype(np.float32) * 20 + 100
    reward = np.array([3.0, -400.0, 0.0, 20.0], np.float32)
    batch = Batch(obs, jnp.array([0, 1, 1, 0]), reward, jnp.full(4, 0.9), next_obs)
    batch = jax.tree.map(jnp.asarray, batch)
    found, metrics, priorities = Normalised(dqn, SETTINGS).learn(config, state, batch)
    of, scale = state.normaliser.obs["obs"], np.sqrt(state.normaliser.returns.var + 1e-8)
    plain = batch._replace(obs=by_hand(obs, of), next_obs=by_hand(next_obs, of), reward=np.clip(reward / scale, -5, 5))
    inner, plain_metrics, plain_priorities = dqn.learn(config, state.inner, jax.tree.map(jnp.asarray, plain))
    assert_close(found.inner, inner)
    assert_close((metrics, priorities), (plain_metrics, plain_priorities))
    assert_same_bits(found.normaliser, state.normaliser)
    # Sums of three rewards have three times the bound.
    three = dataclasses.replace(config, n_steps=3)
    far = batch._replace(reward=jnp.full(4, 12.0 * scale))
    for steps, clipped in ((config, 5.0), (three, 12.0)):
        found = Normalised(dqn, SETTINGS).learn(steps, state, far)[1]
        expected = dqn.learn(steps, state.inner, jax.tree.map(jnp.asarray, plain._replace(reward=jnp.full(4, clipped))))
        assert_close(found["train/loss"], expected[1]["train/loss"], rtol=1e-4)


# -- the contracts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOTH)
def test_an_empty_chunk_is_the_identity(name):
    _config, update, held = made(name)
    state, memory, _ = update(*held, chunk())
    after = update(state, memory, chunk(np.zeros((T, N)), np.nan, seed=1))
    assert_same_bits((state, memory), after[:2])


@pytest.mark.parametrize("name", BOTH)
def test_garbage_in_invalid_rows_changes_no_bit(name):
    """And they are not counted."""
    _config, update, held = made(name)
    valid = np.array([[1, 1], [1, 0], [1, 0], [0, 0]], bool)
    clean, dirty = (update(*held, chunk(valid, garbage)) for garbage in (0.0, np.nan))
    assert_same_bits(clean[:2], dirty[:2])
    assert clean[0].normaliser.obs["obs"].count.tolist() == [0, 4]
    assert clean[0].normaliser.returns.count.tolist() == [0, 4]


@pytest.mark.parametrize("name", BOTH)
def test_switches_act_and_compile_nothing(name):
    _config, update, (state, memory) = made(name)
    state, memory, _ = update(state, memory, chunk())
    compiled = update._cache_size()
    frozen = state._replace(normaliser=state.normaliser._replace(training=jnp.asarray(False)))
    after, _, _ = update(frozen, memory, chunk(seed=1))
    assert_same_bits(after.normaliser, frozen.normaliser)
    raw = state._replace(normaliser=state.normaliser._replace(norm_reward=jnp.asarray(False)))
    scaled, plain = (update(x, memory, chunk(seed=1))[0] for x in (state, raw))
    assert_same_bits(scaled.normaliser.returns, plain.normaliser.returns)
    assert any((x != y).any() for x, y in zip(*map(jax.tree.leaves, (scaled.inner, plain.inner)), strict=True))
    assert update._cache_size() == compiled


def test_rewards_are_scaled_by_returns_and_not_centred(mirror):
    """Rewards that are always 1 would have no deviation of their own; their returns do."""
    algorithm = Normalised(mirror, SETTINGS)
    agent = agent_of(algorithm)
    rows = chunk()._replace(
        reward=jnp.ones((T, N)), is_first=jnp.zeros((T, N), bool).at[0].set(True),
        terminated=jnp.zeros((T, N), bool), truncated=jnp.zeros((T, N), bool),
    )  # fmt: skip
    state = algorithm.init(mirror.Config(), SPEC, KEY)
    _, memory, _ = agent.update(mirror.Config(), state, Memory((), jnp.zeros(N)), rows)
    scale = np.std([1.0, 1.5, 1.75, 1.875])
    np.testing.assert_allclose(memory.inner.reward, 1 / scale, rtol=1e-3)
    np.testing.assert_allclose(memory.returns, 1.875)


def test_gamma_is_the_algorithms_by_default(mirror):
    algorithm = Normalised(mirror, Normalisation())
    state = algorithm.init(mirror.Config(), SPEC, KEY)
    rows = chunk()._replace(is_first=jnp.zeros((T, N), bool), reward=jnp.ones((T, N)))
    for gamma in (0.0, 1.0):
        memory = agent_of(algorithm).update(mirror.Config(gamma=gamma), state, Memory((), jnp.zeros(N)), rows)[1]
        np.testing.assert_allclose(memory.returns, 1.0 if gamma == 0 else T)


# -- observations of other kinds ------------------------------------------------------------------------------


def test_only_the_keys_chosen_are_normalised(mirror):
    parts = {
        "a": Space("box", (2,), low=0.0, high=9.0), "b": Space("box", (1,), "int32", low=0.0, high=9.0),
        "d": Space("discrete", (), "int32", n=(3,), start=(0,)), "p": Space("box", (4, 4, 3), "uint8", low=0.0, high=255.0),
    }  # fmt: skip
    space = Space("dict", parts=tuple(parts.items()))
    assert list(Normalisation().parts(space)) == ["a", "b"]
    seen = dict(Normalisation(clip_obs=3.0).seen(space).parts)
    assert seen == parts | {"b": Space("box", (1,), "float32", low=-3.0, high=3.0)}
    algorithm = Normalised(mirror, Normalisation(norm_obs_keys=("b",)))
    state = algorithm.init(mirror.Config(), Spec(space, SPEC.action), KEY)
    assert list(state.normaliser.obs) == ["b"]
    moments = state.normaliser.obs["b"]._replace(mean=jnp.array([4.0]), var=jnp.array([4.0]))
    state = state._replace(normaliser=state.normaliser._replace(obs={"b": moments}))
    obs = space.zeros((N,)) | {"b": np.array([[8], [4]], np.int32), "a": np.full((N, 2), 7.0, np.float32)}
    obs = jax.tree.map(jnp.asarray, obs)
    actor = algorithm.actor(None, state)
    action, _ = algorithm.act(None, actor, (), Observed(obs, jnp.zeros(N, bool)), KEY, True)
    np.testing.assert_allclose(action["b"], [[2.0], [0.0]], rtol=1e-6)
    assert_same_bits({k: x for k, x in action.items() if k != "b"}, {k: x for k, x in obs.items() if k != "b"})


@pytest.mark.parametrize(
    ("settings", "space", "said"),
    [
        ({"norm_obs_keys": ("x",)}, "dict", "'x' is not in the observation space: choose from a"),
        ({"norm_obs_keys": ("d",)}, "dict", "'d' is no Box, or a picture: choose from a"),
        ({"norm_obs_keys": ("a",)}, "box", "for Dict observations only"),
        ({}, "discrete", "needs observations of a Box, not a discrete space: set norm_obs=False"),
        ({}, "picture", "not pictures: set norm_obs=False"),
        ({}, "tuple", "not a tuple space"),
    ],
)
def test_what_cannot_be_normalised_is_refused(settings, space, said):
    discrete = Space("discrete", (), "int32", n=(3,), start=(0,))
    spaces = {
        "box": SPEC.observation, "discrete": discrete, "picture": Space("box", (4, 4, 3), "uint8", low=0.0, high=255.0),
        "dict": Space("dict", parts=(("a", SPEC.observation), ("d", discrete))),
        "tuple": Space("tuple", parts=(("0", SPEC.observation),)),
    }  # fmt: skip
    with pytest.raises(ValueError, match=said):
        Normalisation(**settings).parts(spaces[space])
    assert Normalisation(norm_obs=False).parts(spaces[space]) == {}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"clip_obs": 0}, "clip_obs=0 .*give a positive number"),
        ({"clip_reward": -1.0}, "clip_reward=-1.0 .*positive"),
        ({"clip_obs": float("nan")}, "clip_obs=nan"),
        ({"gamma": 1.5}, "gamma=1.5 .*between 0 and 1"),
        ({"gamma": True}, "gamma=True"),
        ({"epsilon": -1e-8}, "epsilon=-1e-08 .*at least 0"),
        ({"clip_obs": "10"}, "clip_obs='10'"),
        ({"norm_obs_keys": "abc"}, "norm_obs_keys='abc' has to be a list"),
        ({"norm_rewards": False}, "no setting 'norm_rewards': did you mean 'norm_reward'"),
        ({"x": 1}, "no setting 'x': choose from norm_obs, "),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        normalisation(**settings)


def test_state_is_read_like_the_algorithms():
    """What `memory.replayed` reads and replaces."""
    _, _, (state, _) = made("dqn")
    assert isinstance(state, State) and int(state.n_updates) == 0
    changed = state._replace(key=jnp.array([7, 7], jnp.uint32))
    assert changed.inner.key.tolist() == changed.key.tolist() == [7, 7]
    assert_same_bits(changed.normaliser, state.normaliser)


def test_the_agent_of_an_algorithm_is_one_object():
    """Programs are compiled for it."""
    assert agent_of(Normalised(ppo, SETTINGS)) is agent_of(Normalised(ppo, dataclasses.replace(SETTINGS)))
    assert agent_of(Normalised(ppo, SETTINGS)) != agent_of(Normalised(ppo, Normalisation()))
    assert not hasattr(Normalised(ppo, SETTINGS), "learn") and hasattr(Normalised(dqn, SETTINGS), "learn")

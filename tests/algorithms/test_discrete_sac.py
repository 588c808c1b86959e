"""DiscreteSAC: its soft value by hand, its temperature, how it acts, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage import DiscreteSAC
from advantage.algorithms import discrete_sac
from advantage.memory.uniform import Batch
from advantage.types import Observed, Space, Spec

SPEC = Spec(Space("box", (2,), low=-1.0, high=1.0), Space("discrete", n=(3,), start=(0,), dtype="int32"))
SMALL = discrete_sac.Config(
    net_arch=discrete_sac.Widths((4,), (4,)), batch_size=8, buffer_size=64, learning_starts=10, learning_rate=0.01
)


@pytest.fixture(scope="module")
def state():
    return jax.jit(lambda key: discrete_sac.init(SMALL, SPEC, key))(jax.random.PRNGKey(0))


def batch_of(size=8):
    rng = np.random.default_rng(0)
    obs, after = rng.normal(size=(2, size, 2)).astype(np.float32)
    action = rng.integers(0, 3, size).astype(np.int32)
    reward, discount = rng.normal(size=size).astype(np.float32), np.full(size, 0.9, np.float32)
    discount[0] = 0.0
    return Batch(*map(jnp.asarray, (obs, action, reward, discount, after)))


MASKS = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 1], [0, 0, 1]] * 2, bool)


@pytest.mark.parametrize("mask", [None, MASKS])
def test_soft_value_by_hand(state, mask):
    """The expectation over all legal actions of the lower critic and the entropy bonus, in float64."""
    batch, alpha = batch_of(), 0.3
    given = None if mask is None else jnp.asarray(mask)
    value, entropy = discrete_sac.soft_value(state.actor, state.critics, jnp.float32(alpha), batch.obs, given)
    p = np.exp(np.asarray(state.actor(batch.obs).logits, np.float64)) * (1.0 if mask is None else mask)
    p /= p.sum(axis=1, keepdims=True)
    q, log = np.asarray(state.critics(batch.obs), np.float64).min(axis=0), np.log(np.where(p > 0, p, 1.0))
    np.testing.assert_allclose(value, (p * (q - alpha * log)).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(entropy, -(p * log).sum(axis=1), rtol=1e-5, atol=1e-6)


def test_a_gradient_step_with_masks(state):
    """Both losses see the masks of their own states, and half the entropy that is possible is the target."""
    batch = batch_of()._replace(mask=jnp.asarray(MASKS), next_mask=jnp.asarray(MASKS[::-1].copy()))
    after, metrics, errors = jax.jit(lambda s, b: discrete_sac.learn(SMALL, s, b))(state, batch)
    alpha = jnp.exp(state.log_alpha)
    next_value, _ = discrete_sac.soft_value(state.actor, state.target_critics, alpha, batch.next_obs, batch.next_mask)
    target = batch.reward + batch.discount * next_value
    found = np.asarray(state.critics(batch.obs))[:, np.arange(8), np.asarray(batch.action)]
    np.testing.assert_allclose(errors, np.abs(found - np.asarray(target)).mean(axis=0), rtol=1e-5)
    value, entropy = discrete_sac.soft_value(state.actor, after.critics, alpha, batch.obs, batch.mask)
    np.testing.assert_allclose(metrics["train/actor_loss"], -jnp.mean(value), rtol=1e-5)
    wanted = 0.5 * np.log(MASKS.sum(axis=1))
    expected = -np.log(alpha) * (wanted - np.asarray(entropy)).mean()
    np.testing.assert_allclose(metrics["train/ent_coef_loss"], expected, rtol=1e-4, atol=1e-6)
    assert np.isfinite(metrics["train/entropy"])


def test_where_one_action_is_legal_the_temperature_stays(state):
    """No policy could be less certain: a target above what is possible would raise the temperature for ever."""
    only = jnp.asarray(np.eye(3, dtype=bool)[np.arange(8) % 3])
    batch = batch_of()._replace(mask=only, next_mask=only)
    after, _, _ = jax.jit(lambda s, b: discrete_sac.learn(SMALL, s, b))(state, batch)
    np.testing.assert_allclose(after.log_alpha, state.log_alpha, atol=1e-6)


def test_critics_are_judged_at_the_action_taken(state):
    """Half the squared error of both critics, added up, at the chosen action alone."""
    batch, target = batch_of(), jnp.arange(8, dtype=jnp.float32)
    total, _ = discrete_sac.critic_loss(SMALL, state.critics, target, batch)
    q = np.asarray(state.critics(batch.obs), np.float64)[:, np.arange(8), np.asarray(batch.action)]
    np.testing.assert_allclose(total, 0.5 * ((q - np.arange(8)) ** 2).mean(axis=1).sum(), rtol=1e-5)


@pytest.mark.parametrize("target_entropy,grows", [(1.5, True), (0.01, False)])
def test_temperature_moves_towards_the_target_entropy(state, target_entropy, grows):
    """It rises while the policy is more certain than asked for, and falls while it is less."""
    import dataclasses

    config = dataclasses.replace(SMALL, target_entropy=target_entropy)
    after, metrics, _ = jax.jit(lambda s, b: discrete_sac.learn(config, s, b))(state, batch_of())
    assert 0.1 < float(metrics["train/entropy"]) < 1.2
    assert (float(after.log_alpha) > float(state.log_alpha)) is grows


def test_acting(state):
    """All actions alike until learning starts, the policy's own then; only legal ones; greedily the likeliest."""
    obs, keys = jnp.zeros((2000, 2)), jax.random.split(jax.random.PRNGKey(3))
    head = state.actor.head
    biased = jax.tree.map(lambda x: x, state.actor)
    biased = type(biased)(biased.features, biased.hidden, type(head)(head.weight * 0, jnp.asarray([0.0, 2.0, 1.0])))
    observed = Observed(obs, jnp.zeros(2000, bool))

    def shares(steps, **more):
        actor = discrete_sac.actor(SMALL, state._replace(actor=biased, steps=jnp.int32(steps)))
        action, _ = discrete_sac.act(SMALL, actor, (), observed._replace(**more), keys[0], True)
        return np.bincount(np.asarray(action), minlength=3) / 2000

    np.testing.assert_allclose(shares(0), 1 / 3, atol=0.04)
    np.testing.assert_allclose(shares(10), np.exp([0, 2, 1]) / np.exp([0, 2, 1]).sum(), atol=0.04)
    mask = jnp.broadcast_to(jnp.asarray([[True, False, True]]), (2000, 3))
    assert shares(10, action_mask=mask)[1] == shares(0, action_mask=mask)[1] == 0
    actor = discrete_sac.actor(SMALL, state._replace(actor=biased))
    best, _ = discrete_sac.act(SMALL, actor, (), observed._replace(action_mask=mask), keys[1], False)
    assert set(np.asarray(best).tolist()) == {2}


def test_it_learns_to_match():
    """Each of three seeds finds the action that the observation names."""
    model = DiscreteSAC(
        "MlpPolicy", "advantage/ProbeMatch-v0", n_envs=4, seeds=3, seed=0, learning_rate=3e-3, batch_size=32,
        buffer_size=2_000, learning_starts=100, train_freq=2, gradient_steps=1, target_entropy=0.2, tau=0.02,
        stats_window_size=50, policy_kwargs={"net_arch": [16]},
    )  # fmt: skip
    model.learn(4_000)
    scores = [model._driver.recent(seed).returns.mean() for seed in range(3)]
    assert min(scores) > 0.85, scores


def test_continuous_actions_are_refused():
    """And the algorithms that take them are named."""
    with pytest.raises(ValueError, match=r"DiscreteSAC cannot choose actions from a box space.*SAC"):
        DiscreteSAC("MlpPolicy", "Pendulum-v1")

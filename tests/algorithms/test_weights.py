"""What prioritised replay asks of every off-policy algorithm: weights of samples, and errors by which they are drawn."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.algorithms import c51, crossq, ddpg, discrete_sac, dqn, iqn, qrdqn, sac, td3, tqc
from advantage.drivers.common import compiled_quickly
from advantage.memory.uniform import Batch
from advantage.networks.batch_norm import evaluated, train_critics
from advantage.networks.continuous import Widths
from advantage.types import Space, Spec

B, KEY = 6, jax.random.PRNGKey(0)
OBS = Space("box", (3,), low=-np.inf, high=np.inf)
BOX, CHOICE = Space("box", (2,), low=-1.0, high=1.0), Space("discrete", (), "int32", n=(3,), start=(0,))
SMALL = {"net_arch": Widths((4,), (4,)), "batch_size": B, "buffer_size": 64}
SOFT = {**SMALL, "ent_coef": "auto_0.5"}
CONFIGS = {
    dqn: dqn.Config(**{**SMALL, "net_arch": (4,)}), c51: c51.Config(**{**SMALL, "net_arch": (4,)}, n_atoms=7),
    iqn: iqn.Config(**{**SMALL, "net_arch": (4,)}, n_tau_samples=5, quantile_embedding_dim=3),
    qrdqn: qrdqn.Config(**{**SMALL, "net_arch": (4,)}, n_quantiles=3), sac: sac.Config(**SOFT), discrete_sac: discrete_sac.Config(**SOFT),
    td3: td3.Config(policy_delay=1, **SMALL), ddpg: ddpg.Config(**SMALL),
    tqc: tqc.Config(n_quantiles=3, top_quantiles_to_drop_per_net=1, **SOFT), crossq: crossq.Config(policy_delay=1, **SOFT),
}  # fmt: skip
ALGORITHMS = pytest.mark.parametrize("algorithm", CONFIGS, ids=lambda x: x.__name__.split(".")[-1])


def discrete(algorithm):
    return algorithm in (dqn, c51, iqn, qrdqn, discrete_sac)


@functools.cache
def fresh(algorithm):
    spec = Spec(OBS, CHOICE if discrete(algorithm) else BOX)
    return compiled_quickly(lambda key: algorithm.init(CONFIGS[algorithm], spec, key))(KEY)


@functools.cache
def learner(algorithm):
    return compiled_quickly(algorithm.learn)


def learned(algorithm, batch, rate=0.01):
    """What one gradient step answers."""
    config = dataclasses.replace(CONFIGS[algorithm], learning_rate=rate)  # a number that compiles nothing
    return learner(algorithm)(config, fresh(algorithm), batch)


def batch_of(algorithm, discount=0.9):
    rng = np.random.default_rng(0)
    obs, next_obs = rng.normal(size=(2, B, 3)).astype(np.float32)
    action = rng.integers(3, size=B).astype(np.int32) if discrete(algorithm) else rng.uniform(-1, 1, (B, 2))
    action = action if discrete(algorithm) else action.astype(np.float32)
    reward = 3 * rng.normal(size=B).astype(np.float32)
    return Batch(*map(jnp.asarray, (obs, action, reward)), jnp.full(B, discount, jnp.float32), jnp.asarray(next_obs), weight=jnp.ones(B))


@ALGORITHMS
def test_a_sample_without_weight_changes_nothing(algorithm):
    """Whatever the third row says, the agent is the same after the step; with weight 1 it is another one.

    The norms of CrossQ mix all observations and actions of a batch, so there the row has another reward alone.
    """
    batch = batch_of(algorithm)
    changed = batch._replace(reward=batch.reward.at[2].set(50.0))
    if algorithm is not crossq:
        action = jnp.int32(1) if discrete(algorithm) else jnp.array([0.9, -0.9])
        changed = changed._replace(
            obs=batch.obs.at[2].set(5.0), next_obs=batch.next_obs.at[2].set(-5.0), action=batch.action.at[2].set(action)
        )
    for weight in (0.0, 1.0):
        weights = jnp.ones(B).at[2].set(weight)
        one, other = (jax.tree.leaves(learned(algorithm, x._replace(weight=weights))[0]) for x in (batch, changed))
        same = all(np.allclose(x, y, rtol=1e-5, atol=1e-6) for x, y in zip(one, other, strict=True))
        assert same == (weight == 0)


@ALGORITHMS
def test_weights_multiply_each_samples_loss(algorithm):
    """Of critics, actor and temperature: each loss is a mean of the samples' own, times their weights."""

    def losses(weight):
        # Without a step of the critics, which the actor would follow.
        metrics = learned(algorithm, batch_of(algorithm)._replace(weight=jnp.asarray(weight, jnp.float32)), 0.0)[1]
        return np.array([metrics[name] for name in sorted(metrics) if name.endswith("loss")])

    each = np.stack([losses(B * np.eye(B)[i]) for i in range(B)])
    assert each.shape[1] == {dqn: 1, c51: 1, iqn: 1, qrdqn: 1, td3: 2, ddpg: 2}.get(algorithm, 3) and (each.std(axis=0) > 0.01).all()
    weights = np.array([0.5, 0.0, 2.0, 1.0, 0.1, 0.3])
    np.testing.assert_allclose(losses(weights), np.mean(weights[:, None] * each, axis=0), rtol=1e-4, atol=1e-5)


@compiled_quickly
def crossq_values(state, batch):
    """Of both critics `[C, B]`, normalised together with what follows."""
    policy, key = evaluated(state.actor, state.running.actor), jax.random.split(state.key, 3)[1]
    following, _ = policy.distribution(policy.latent(batch.next_obs)).sample_and_log_prob(key)
    both = jnp.concatenate([batch.obs, batch.next_obs]), jnp.concatenate([batch.action, following])
    return train_critics(state.critics, state.running.critics, *both)[0][:, :B]


@compiled_quickly
def iqn_losses(state, batch):
    """Of each sample alone, by the others' weights of 0."""
    key = jax.random.fold_in(state.key, dqn.NOISE + 2)
    one = lambda weight: iqn.loss(CONFIGS[iqn], state.network, state.target_network, batch._replace(weight=weight), key)[0]
    return jax.vmap(one)(B * jnp.eye(B))


def expected_errors(algorithm, state, batch):
    """How wrong the critics are where episodes end: the target is the reward."""
    obs, action, reward = batch.obs, batch.action, np.asarray(batch.reward)
    if algorithm is dqn:
        return np.abs(np.asarray(state.network(obs))[np.arange(B), action] - reward)
    if algorithm is c51:  # all of the target is between the two atoms beside the reward
        log_probs = np.asarray(state.network.log_probs(obs), np.float64)[np.arange(B), action]
        atoms = np.linspace(-10, 10, 7)
        target = np.maximum(1 - np.abs(reward[:, None] - atoms) / (20 / 6), 0.0)
        return np.sum(np.where(target > 0, target * (np.log(np.maximum(target, 1e-30)) - log_probs), 0.0), axis=1)
    if algorithm is iqn:  # the same fractions, from the same key
        return np.asarray(iqn_losses(state, batch))
    if algorithm is qrdqn:
        error = reward[:, None] - np.asarray(state.network.quantiles(obs))[np.arange(B), action]
        huber = np.where(np.abs(error) < 1, 0.5 * error**2, np.abs(error) - 0.5)
        return (np.abs((np.arange(3) + 0.5) / 3 - (error < 0)) * huber).sum(axis=1)
    if algorithm is discrete_sac:
        return np.abs(np.asarray(state.critics(obs))[:, np.arange(B), action] - reward).mean(axis=0)
    if algorithm is crossq:
        return np.abs(np.asarray(crossq_values(state, batch)) - reward).mean(axis=0)
    values = np.asarray(state.critics(obs, action))
    if algorithm is tqc:  # [C, B, quantiles]
        error = reward[None, :, None] - values
        huber = np.where(np.abs(error) < 1, 0.5 * error**2, np.abs(error) - 0.5)
        return (np.abs((np.arange(3) + 0.5) / 3 - (error < 0)) * huber).mean(axis=(0, 2))
    return np.abs(values - reward).mean(axis=0)


@ALGORITHMS
def test_priorities_are_the_errors_of_before_the_step(algorithm):
    """A mean over the critics, unweighted; of quantiles their loss."""
    batch = batch_of(algorithm, discount=0.0)
    _, _, priorities = learned(algorithm, batch._replace(weight=jnp.full(B, 0.1, jnp.float32)))
    np.testing.assert_allclose(priorities, expected_errors(algorithm, fresh(algorithm), batch), rtol=1e-4, atol=1e-5)


def test_priorities_compute_nothing_twice():
    """XLA finds the errors in the loss: asked for them, a gradient step has as many operations, up to those of vectors.

    So it does for all algorithms; one of them compiles quickly.
    """
    algorithm, state, batch = dqn, fresh(dqn), batch_of(dqn)

    def operations(function):
        return compiled_quickly(function).lower(state, batch).compile().cost_analysis()["flops"]

    config = CONFIGS[algorithm]
    without = operations(lambda s, b: algorithm.learn(config, s, b)[:2])
    assert operations(lambda s, b: algorithm.learn(config, s, b)) < 1.02 * without

"""CrossQ: one pass for both ends of a transition, no gradient through the target, statistics, delays."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage import CrossQ
from advantage.algorithms import crossq
from advantage.memory.uniform import Batch
from advantage.networks.batch_norm import evaluated, train_critics
from advantage.networks.continuous import Widths
from advantage.types import NONFINITE, Observed, Space, Spec

SPEC = Spec(Space("box", (4,), low=-np.inf, high=np.inf), Space("box", (2,), low=-1.0, high=1.0))
KEY, ALPHA = jax.random.PRNGKey(0), jnp.float32(0.5)
SMALL = crossq.Config(net_arch=Widths((4,), (8,)), policy_delay=3, renorm_warmup_steps=2)

learn = jax.jit(crossq.learn)


@functools.cache
def fresh(config=SMALL):
    return jax.jit(crossq.init, static_argnums=(0, 1))(config, SPEC, KEY)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    obs = jnp.asarray(rng.normal(size=(16, 4)), jnp.float32)
    next_obs = jnp.asarray(3.0 + rng.normal(size=(16, 4)), jnp.float32)  # another distribution
    action = jnp.asarray(rng.uniform(-1, 1, (16, 2)), jnp.float32)
    return Batch(obs, action, jnp.asarray(rng.normal(size=16), jnp.float32), jnp.full(16, 0.9), next_obs)


def following(state, given):
    policy = evaluated(state.actor, state.running.actor)
    return policy.distribution(policy.latent(given.next_obs)).sample_and_log_prob(KEY)


def loss_of(critics, state, given, next_action, next_log_prob):
    return crossq.critic_loss(SMALL, critics, state.running.critics, ALPHA, next_action, next_log_prob, given)


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def differ(a, b):
    return any(not np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def in_numpy(state, given, next_action, next_log_prob, joint):
    """The loss of critics with one norm before each of two layers, normalised by both halves together or apart."""

    def values(x, critic):
        hidden, head = jax.tree.map(lambda leaf: np.asarray(leaf[critic], np.float64), (
            state.critics.hidden, state.critics.head))  # fmt: skip
        halves = [x] if joint else np.split(x, 2)
        out = []
        for half in halves:
            for i, layer in enumerate((*hidden.layers, head)):
                half = (half - half.mean(axis=0)) / np.sqrt(half.var(axis=0) + SMALL.batch_norm_eps)
                half = half @ layer.weight + layer.bias
                half = np.maximum(half, 0) if i == 0 else half
            out.append(half[:, 0])
        return np.concatenate(out)

    obs, next_obs, action = (np.asarray(x, np.float64) for x in (given.obs, given.next_obs, given.action))
    x = np.concatenate([np.concatenate([obs, action], 1), np.concatenate([next_obs, np.asarray(next_action)], 1)])
    both = np.stack([values(x, critic) for critic in range(2)])
    value, next_value = np.split(both, 2, axis=1)
    target = np.asarray(given.reward) + 0.9 * (next_value.min(axis=0) - 0.5 * np.asarray(next_log_prob))
    return 0.5 * np.mean((value - target) ** 2, axis=1).sum()


def test_both_ends_are_normalised_together():
    """The loss is that of statistics of the mixture; separate passes give another answer."""
    state, given = fresh(), batch()
    action, log_prob = following(state, given)
    loss, _ = loss_of(state.critics, state, given, action, log_prob)
    np.testing.assert_allclose(loss, in_numpy(state, given, action, log_prob, joint=True), rtol=1e-4)
    apart = in_numpy(state, given, action, log_prob, joint=False)
    assert abs(apart - float(loss)) > 0.01 * abs(apart)


def test_no_gradient_through_the_target():
    """The gradient is that of the same loss with the target's numbers given."""
    state, given = fresh(), batch()
    action, log_prob = following(state, given)
    obs = jnp.concatenate([given.obs, given.next_obs])
    actions = jnp.concatenate([given.action, action])
    both, _ = train_critics(state.critics, state.running.critics, obs, actions)
    numbers = given.reward + 0.9 * (jnp.min(both[:, 16:], axis=0) - ALPHA * log_prob)

    def constant(critics):
        value = train_critics(critics, state.running.critics, obs, actions)[0][:, :16]
        return 0.5 * jnp.sum(jnp.mean(jnp.square(value - numbers[None]), axis=1))

    ours = jax.grad(lambda critics: loss_of(critics, state, given, action, log_prob)[0])(state.critics)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(jax.grad(constant)(state.critics)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_nothing_follows_a_termination():
    """With a discount of 0 the next state's value does not count, only its share in the statistics."""
    state, given = fresh(), batch()._replace(discount=jnp.zeros(16))
    action, log_prob = following(state, given)
    loss, _ = loss_of(state.critics, state, given, action, log_prob)
    other, _ = loss_of(state.critics, state, given, action, log_prob + 100.0)
    assert loss == other


def test_actor_and_temperature_wait_and_statistics_move():
    """Of three gradient steps only the third changes the actor; the critics' statistics move at each."""
    state = fresh()
    before = state
    for step in range(1, 4):
        new, metrics, _ = learn(SMALL, state, batch(step))
        assert differ(new.critics, state.critics)
        assert [int(s) for s in new.running.critics[0].steps] == [step, step]
        assert differ(new.running.critics, state.running.critics)
        due = step == 3
        assert differ(new.actor, before.actor) == due and differ(new.log_alpha, before.log_alpha) == due
        assert differ(new.running.actor, before.running.actor) == due
        assert metrics[NONFINITE] == 0
        state = new
    assert metrics["train/actor_loss"] != 0 and int(state.running.actor[0].steps) == 1


def test_the_actor_meets_critics_in_evaluation():
    """The loss is that of critics by their running statistics, which its actions leave alone."""
    state, given = fresh(), batch()
    critics = evaluated(state.critics, state.running.critics)
    loss, (log_prob, statistics) = crossq.actor_loss(
        SMALL, state.actor, state.running.actor, critics, ALPHA, given, KEY
    )
    latent, expected = state.actor.hidden.train(given.obs, state.running.actor)
    action, _ = state.actor.distribution(latent).sample_and_log_prob(KEY)
    value = np.asarray(critics(given.obs, action)).min(axis=0)
    np.testing.assert_allclose(loss, np.mean(0.5 * np.asarray(log_prob) - value), rtol=1e-4)
    assert_same(statistics, expected)


def test_acting_is_evaluation():
    """An observation's action does not depend on what stands beside it, and acting counts nothing."""
    state = fresh()
    for step in range(3):
        state, *_ = learn(SMALL, state, batch(step))
    actor, carry = crossq.actor(SMALL, state), crossq.initial_carry(SMALL, SPEC, 16)
    obs = batch().obs

    def act(obs):
        observed = Observed(obs, jnp.zeros(obs.shape[0], bool), None)
        return crossq.act(SMALL, actor, carry, observed, KEY, False)[0]

    np.testing.assert_allclose(act(obs)[:2], act(obs[:2]), rtol=1e-5, atol=1e-6)


def test_a_batch_that_is_not_finite_changes_nothing():
    """A NaN observation is counted, and neither critics nor any statistics move."""
    state, given = fresh(), batch()
    new, metrics, _ = learn(SMALL, state, given._replace(obs=given.obs.at[0].set(jnp.nan)))
    assert metrics[NONFINITE] == 1
    assert_same((new.critics, new.running), (state.critics, state.running))


def test_the_signature_is_sb3_contribs():
    """Names and order of hyper-parameters up to ours; what `policy_kwargs` takes."""
    names = ("learning_rate buffer_size learning_starts batch_size gamma train_freq gradient_steps action_noise n_steps"
        " ent_coef target_entropy policy_delay use_sde sde_sample_freq use_sde_at_warmup").split()  # fmt: skip
    assert [field.name for field in dataclasses.fields(crossq.Config)][: len(names)] == names
    words = {"batch_norm_momentum": 0.05, "batch_norm_eps": 1e-5, "renorm_warmup_steps": 10}
    model = CrossQ("MlpPolicy", policy_kwargs=words)
    assert {name: getattr(model, name) for name in words} == words
    assert model.net_arch == ((256, 256), (1024, 1024)) and model.policy_delay == 3 and model.learning_rate == 1e-3


@pytest.mark.parametrize("wrong", [{"batch_norm_momentum": 1.5}, {"policy_delay": 0}, {"renorm_warmup_steps": -1}])
def test_what_cannot_work_is_refused(wrong):
    """Before training, by its name."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        crossq.Config(**wrong).check(SPEC, 1)

"""Soft actor-critic for discrete actions (Christodoulou, 2019, https://arxiv.org/abs/1910.07207)."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from advantage.equations.distributions import Categorical, Key, masked
from advantage.equations.objectives import chosen, squared_error, td_errors, td_target
from advantage.equations.returns import Scalar
from advantage.equations.schedules import Schedule
from advantage.equations.soft import soft_update
from advantage.memory.frequency import check_replay, episodes_per_update, steps_per_update
from advantage.memory.replayed import observe as observe  # counts steps
from advantage.memory.uniform import Batch
from advantage.networks import optimisers
from advantage.networks.continuous import Widths
from advantage.networks.discrete import CategoricalActor, DiscreteCritics, categorical_actor, discrete_critics
from advantage.networks.features import tied
from advantage.networks.mlp import Activation
from advantage.networks.optimisers import Optimizer, adam, descend
from advantage.networks.temperature import check_temperature, initial_log_alpha, temperature, temperature_step
from advantage.types import NONFINITE, Metrics, Observed, Spec, require
from advantage.types import to_env as to_env  # Discrete is shifted by its start

ACTION_SPACES = ("discrete",)
LOGGED = {"learning_rate": "train/learning_rate"}


def soft_value(
    actor: CategoricalActor, critics: DiscreteCritics, alpha: Array, obs: PyTree, action_mask: Bool[Array, "B A"] | None
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """`(sum_a pi(a | s) (min_i Q_i(s, a) - alpha log pi(a | s)), entropy)` over legal actions: no sampling (eq. 10 and 12)."""
    policy = actor(obs) if action_mask is None else masked(actor(obs), action_mask)
    log_probs = jax.nn.log_softmax(policy.logits)
    value = jnp.min(critics(obs), axis=0)
    return jnp.sum(jnp.exp(log_probs) * (value - alpha * log_probs), axis=-1), policy.entropy()


def half_entropy(actor: CategoricalActor, batch: Batch) -> Array | float:
    """Half the entropy of all legal actions alike, of each state where masks say so: `target_entropy="auto"`."""
    if batch.mask is None:
        return 0.5 * math.log(actor.head.bias.shape[-1])
    return 0.5 * jnp.log(jnp.sum(batch.mask, axis=-1).astype(jnp.float32))


def taken_values(critics: DiscreteCritics, batch: Batch) -> Float[Array, "C B"]:
    """`Q_i(s, a)` of the actions taken."""
    return jax.vmap(lambda one: chosen(one, batch.action))(critics(batch.obs))


def critic_loss(
    config: "Config", critics: DiscreteCritics, target: Float[Array, " B"], batch: Batch
) -> tuple[Float[Array, ""], Metrics]:
    """Half the squared error of each critic at the action taken, added up (eq. 4), to be minimised."""
    value = taken_values(critics, batch)
    errors = squared_error(value, jnp.broadcast_to(target[None], value.shape))
    total = 0.5 * jnp.mean(batch.weight * jnp.sum(errors, axis=0))
    return total, {"train/critic_loss": total, "train/q_value": jnp.mean(value)}


def actor_loss(
    config: "Config", actor: CategoricalActor, critics: DiscreteCritics, alpha: Array, batch: Batch
) -> tuple[Float[Array, ""], Float[Array, " B"]]:
    """`(minus the soft value, entropy)` (eq. 12), to be minimised."""
    value, entropy = soft_value(actor, critics, alpha, batch.obs, batch.mask)
    return -jnp.mean(batch.weight * value), entropy


class Config(eqx.Module):
    """DiscreteSAC's hyper-parameters under the names and with the defaults of SAC."""

    learning_rate: Scalar = 3e-4  # step size of all three optimisers; 1e-4 to 1e-3
    buffer_size: int = eqx.field(static=True, default=1_000_000)  # transitions remembered, all environments
    learning_starts: int = eqx.field(static=True, default=100)  # random steps before learning
    batch_size: int = eqx.field(static=True, default=256)  # transitions per gradient step
    tau: Scalar = 0.005  # share of the critics that their targets take over
    gamma: Scalar = 0.99  # discount per step; 0.9 to 0.9999
    train_freq: int | tuple[int, str] = eqx.field(static=True, default=1)  # vector steps or episodes per update
    gradient_steps: int = eqx.field(static=True, default=1)  # per update; -1: as many as steps collected
    n_steps: int = eqx.field(static=True, default=1)  # steps of a return before it bootstraps; 1 to 10
    ent_coef: float | str = eqx.field(static=True, default="auto")  # temperature alpha; auto_0.1: learned, from 0.1 on
    target_update_interval: int = eqx.field(static=True, default=1)  # gradient steps between updates of the targets
    target_entropy: float | str = eqx.field(static=True, default="auto")  # auto: half the entropy of chance
    updates_per_step: float | None = eqx.field(static=True, default=None)  # in place of gradient_steps: per environment step
    replay_beta: Scalar = 1.0  # exponent of importance weights now: set from its schedule before every update
    net_arch: Widths = eqx.field(static=True, default=Widths())  # layer widths
    activation_fn: Activation = eqx.field(static=True, default=jax.nn.relu)  # between hidden layers
    n_critics: int = eqx.field(static=True, default=2)  # of which the least value counts
    features_extractor: Callable[..., eqx.Module] | None = eqx.field(static=True, default=None)
    share_features_extractor: bool = eqx.field(static=True, default=False)  # one encoder, which the critics learn
    optimizer: Optimizer = eqx.field(static=True, default=adam)  # function of the learning rate
    actor: Callable[..., Any] = eqx.field(static=True, default=categorical_actor)
    critics: Callable[..., Any] = eqx.field(static=True, default=discrete_critics)
    critic_loss: Callable[..., tuple[Array, Metrics]] = eqx.field(static=True, default=critic_loss)
    actor_loss: Callable[..., tuple[Array, Array]] = eqx.field(static=True, default=actor_loss)

    steps_per_update = property(steps_per_update)
    episodes_per_update = property(episodes_per_update)

    def check(self, spec: Spec, num_envs: int) -> list[str]:
        """Raise `ValueError` for settings that cannot work; return notes on what will be done with others."""
        require(self, 0, math.inf, "learning_rate")
        require(self, 0, 1, "tau", "gamma")
        require(self, 1, math.inf, "target_update_interval", "n_critics")
        check_replay(self, num_envs)
        check_temperature(self.ent_coef, self.target_entropy)
        return []


class Optimizers(NamedTuple):
    """States of the three optimisers."""

    actor: PyTree
    critics: PyTree
    alpha: PyTree


class State(NamedTuple):
    """All that DiscreteSAC learns."""

    actor: CategoricalActor
    critics: DiscreteCritics
    target_critics: DiscreteCritics
    log_alpha: Array  # logarithm of the temperature, where it is learned
    optimizer: Optimizers
    steps: Array  # environment steps, up to 2^31 - 1: only compared with learning_starts
    n_updates: Array  # gradient steps so far
    key: Array


def init(config: Config, spec: Spec, key: Key) -> State:
    """A fresh agent."""
    actor_key, critics_key, key = jax.random.split(key, 3)
    common = {"activation": config.activation_fn, "features": config.features_extractor}
    actor = config.actor(spec, actor_key, net_arch=config.net_arch.pi, **common)
    critics = config.critics(
        spec, critics_key, net_arch=config.net_arch.qf, n_critics=config.n_critics, **common
    )
    actor = tied(config, actor, critics)
    log_alpha = initial_log_alpha(config.ent_coef)
    optimizers = Optimizers(
        optimisers.init(config.optimizer, actor),
        optimisers.init(config.optimizer, critics),
        optimisers.init(adam, log_alpha),
    )
    targets = jax.tree.map(jnp.copy, critics)  # their own buffers: both are donated
    return State(actor, critics, targets, log_alpha, optimizers, jnp.int32(0), jnp.int32(0), key)


def initial_carry(config: Config, spec: Spec, num_envs: int) -> tuple[()]:
    """No carry."""
    return ()


class Actor(NamedTuple):
    """What acting needs."""

    policy: CategoricalActor
    random: Bool[Array, ""]  # until `learning_starts`


def actor(config: Config, state: State) -> Actor:
    """The policy, and whether its place is taken by chance."""
    return Actor(state.actor, state.steps < config.learning_starts)


def act(
    config: Config, actor: Actor, carry: tuple[()], observed: Observed, key: Key, explore: bool
) -> tuple[Int[Array, " N"], tuple[()]]:
    """Sample actions `[N]`, or take the likeliest; legal ones."""
    distribution = actor.policy(observed.obs)
    if explore:
        # Until learning starts every action is as likely.
        distribution = Categorical(jnp.where(actor.random, 0.0, distribution.logits))
    if observed.action_mask is not None:
        distribution = masked(distribution, observed.action_mask)
    return distribution.sample(key).astype(jnp.int32) if explore else distribution.mode(), carry


def schedules(config: Config) -> dict[str, Schedule]:
    """Fields that change over training by themselves: none."""
    return {}


def learn(config: Config, state: State, batch: Batch) -> tuple[State, Metrics, Float[Array, " B"]]:
    """One gradient step of critics, actor and temperature; of those whose gradients are finite."""
    alpha = temperature(config.ent_coef, state.log_alpha)
    next_value, _ = soft_value(state.actor, state.target_critics, alpha, batch.next_obs, batch.next_mask)
    target = td_target(batch.reward, batch.discount, next_value)
    (_, metrics), gradients = jax.value_and_grad(config.critic_loss, argnums=1, has_aux=True)(
        config, state.critics, target, batch
    )
    priorities = td_errors(taken_values(state.critics, batch), target)
    critics, critics_optimizer, critics_applied = _descend(config, state.critics, gradients, state.optimizer.critics)
    actor = tied(config, state.actor, critics)
    # As in SB3 the actor follows the critics that have just been improved, all with the temperature of before.
    (policy_loss, entropy), gradients = jax.value_and_grad(config.actor_loss, argnums=1, has_aux=True)(
        config, actor, critics, alpha, batch
    )
    actor, actor_optimizer, actor_applied = _descend(config, actor, gradients, state.optimizer.actor)
    log_alpha, alpha_optimizer, alpha_loss = temperature_step(
        config, state.log_alpha, state.optimizer.alpha, -entropy, batch.weight, half_entropy(state.actor, batch)
    )
    due = (state.n_updates % config.target_update_interval == 0) & critics_applied
    targets = soft_update(state.target_critics, critics, jnp.where(due, config.tau, 0.0))
    metrics |= {"train/actor_loss": policy_loss, "train/ent_coef": alpha, "train/ent_coef_loss": alpha_loss}
    metrics["train/entropy"] = jnp.mean(entropy)
    metrics[NONFINITE] = (~(critics_applied & actor_applied)).astype(jnp.float32)
    optimizers = Optimizers(actor_optimizer, critics_optimizer, alpha_optimizer)
    new = State(
        actor, critics, targets, log_alpha, optimizers, state.steps, state.n_updates + 1, state.key
    )
    return new, metrics, priorities


def _descend(config: Config, network: PyTree, gradients: PyTree, optimizer: PyTree) -> tuple[PyTree, PyTree, Array]:
    return descend(config.optimizer, config.learning_rate, math.inf, network, gradients, optimizer)

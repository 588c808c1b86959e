"""Deep deterministic policy gradient (Lillicrap et al., 2016, https://arxiv.org/abs/1509.02971)."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from advantage.equations.distributions import Key
from advantage.equations.noise import ActionNoise, action_noise, check_noise
from advantage.equations.objectives import squared_error, td_errors, td_target
from advantage.equations.returns import Scalar
from advantage.equations.schedules import Schedule
from advantage.equations.soft import soft_update
from advantage.memory.frequency import check_replay, episodes_per_update, steps_per_update
from advantage.memory.replayed import observe as observe  # counts steps
from advantage.memory.uniform import Batch
from advantage.networks import optimisers
from advantage.networks.acting import Actor
from advantage.networks.acting import act_deterministic as act  # adds noise
from advantage.networks.acting import deterministic_carry as initial_carry
from advantage.networks.continuous import Critics, DeterministicActor, Widths, critics, deterministic_actor
from advantage.networks.features import tied
from advantage.networks.mlp import Activation
from advantage.networks.optimisers import Optimizer, adam, descend
from advantage.networks.recurrent import Recurrence
from advantage.types import NONFINITE, Metrics, Spec, require, require_bounds
from advantage.types import rescale_to_env as to_env  # actions within [-1, 1] are stretched to the bounds

ACTION_SPACES = ("box",)
LOGGED = {"learning_rate": "train/learning_rate"}


def target_value(config: "Config", actor: DeterministicActor, critics: Critics, batch: Batch) -> Float[Array, " B"]:
    """`r + gamma Q(s', mu(s'))`, both of the targets (algorithm 1)."""
    next_value = critics.first(batch.next_obs, actor(batch.next_obs))
    return td_target(batch.reward, batch.discount, next_value)


def critic_loss(
    config: "Config", critics: Critics, target: Float[Array, " B"], batch: Batch
) -> tuple[Float[Array, ""], Metrics]:
    """The critic's squared error (algorithm 1), to be minimised."""
    value = critics.first(batch.obs, batch.action)
    total = jnp.mean(batch.weight * squared_error(value, target))
    return total, {"train/critic_loss": total, "train/q_value": jnp.mean(value)}


def actor_loss(config: "Config", actor: DeterministicActor, critics: Critics, batch: Batch) -> Float[Array, ""]:
    """`-Q(s, mu(s))`: the deterministic policy gradient (Silver et al., 2014), to be minimised."""
    return -jnp.mean(batch.weight * critics.first(batch.obs, actor(batch.obs)))


class Config(eqx.Module):
    """DDPG's hyper-parameters under SB3's names, with SB3's defaults."""

    learning_rate: Scalar = 1e-3  # step size of both optimisers; 1e-4 to 1e-3
    buffer_size: int = eqx.field(static=True, default=1_000_000)  # transitions remembered, all environments
    learning_starts: int = eqx.field(static=True, default=100)  # random steps before learning
    batch_size: int = eqx.field(static=True, default=256)  # transitions per gradient step
    tau: Scalar = 0.005  # share of the online networks that their targets take over
    gamma: Scalar = 0.99  # discount per step; 0.9 to 0.9999
    train_freq: int | tuple[int, str] = eqx.field(static=True, default=1)  # vector steps or episodes per update
    gradient_steps: int = eqx.field(static=True, default=1)  # per update; -1: as many as steps collected
    action_noise: ActionNoise | None = eqx.field(static=True, default=None, converter=action_noise)  # exploration; a number: its deviation; None: none
    n_steps: int = eqx.field(static=True, default=1)  # steps of a return before it bootstraps; 1 to 10
    updates_per_step: float | None = eqx.field(static=True, default=None)  # in place of gradient_steps: per environment step
    replay_beta: Scalar = 1.0  # exponent of importance weights now: set from its schedule before every update
    net_arch: Widths = eqx.field(static=True, default=Widths((400, 300), (400, 300)))  # layer widths
    activation_fn: Activation = eqx.field(static=True, default=jax.nn.relu)  # between hidden layers
    features_extractor: Callable[..., eqx.Module] | None = eqx.field(static=True, default=None)
    recurrence: Recurrence | None = eqx.field(static=True, default=None)  # how a recurrent policy remembers
    share_features_extractor: bool = eqx.field(static=True, default=False)  # one encoder, which the critics learn
    optimizer: Optimizer = eqx.field(static=True, default=adam)  # function of the learning rate
    actor: Callable[..., Any] = eqx.field(static=True, default=deterministic_actor)
    critics: Callable[..., Any] = eqx.field(static=True, default=critics)
    critic_loss: Callable[..., tuple[Array, Metrics]] = eqx.field(static=True, default=critic_loss)
    actor_loss: Callable[..., Array] = eqx.field(static=True, default=actor_loss)

    steps_per_update = property(steps_per_update)
    episodes_per_update = property(episodes_per_update)

    def check(self, spec: Spec, num_envs: int) -> list[str]:
        """Raise `ValueError` for settings that cannot work; return notes on what will be done with others."""
        require_bounds("DDPG", spec.action)
        require(self, 0, math.inf, "learning_rate")
        require(self, 0, 1, "tau", "gamma")
        check_replay(self, num_envs)
        check_noise(self.action_noise, math.prod(spec.action.shape))
        return []


class Optimizers(NamedTuple):
    """States of both optimisers."""

    actor: PyTree
    critics: PyTree


class State(NamedTuple):
    """All that DDPG learns."""

    actor: DeterministicActor
    target_actor: DeterministicActor
    critics: Critics
    target_critics: Critics
    optimizer: Optimizers
    steps: Array  # environment steps, up to 2^31 - 1: only compared with learning_starts
    n_updates: Array  # gradient steps so far
    key: Array


def init(config: Config, spec: Spec, key: Key) -> State:
    """A fresh agent."""
    actor_key, critics_key, key = jax.random.split(key, 3)
    common = {"activation": config.activation_fn, "features": config.features_extractor}
    actor = config.actor(spec, actor_key, net_arch=config.net_arch.pi, **common)
    critics = config.critics(spec, critics_key, net_arch=config.net_arch.qf, n_critics=1, **common)
    actor = tied(config, actor, critics)
    optimizers = Optimizers(*[optimisers.init(config.optimizer, network) for network in (actor, critics)])
    # Their own buffers: all are donated.
    target_actor, target_critics = jax.tree.map(jnp.copy, (actor, critics))
    zeros = jnp.int32(0), jnp.int32(0)
    return State(actor, target_actor, critics, target_critics, optimizers, *zeros, key)


def actor(config: Config, state: State) -> Actor:
    """The policy, and whether its place is taken by chance."""
    return Actor(state.actor, state.steps < config.learning_starts)


def schedules(config: Config) -> dict[str, Schedule]:
    """Fields that change over training by themselves: none."""
    return {}


def learn(config: Config, state: State, batch: Batch) -> tuple[State, Metrics, Float[Array, " B"]]:
    """One gradient step of critic and actor, after which the targets move; none that is not finite."""
    batch = batch._replace(action=batch.action.reshape(batch.reward.shape[0], -1))
    target = target_value(config, state.target_actor, state.target_critics, batch)
    (_, metrics), gradients = jax.value_and_grad(config.critic_loss, argnums=1, has_aux=True)(
        config, state.critics, target, batch
    )
    priorities = td_errors(state.critics.first(batch.obs, batch.action)[None], target)
    critics, critics_optimizer, critics_applied = _descend(config, state.critics, gradients, state.optimizer.critics)
    actor = tied(config, state.actor, critics)
    # As in SB3 the actor follows the critic that has just been improved.
    metrics["train/actor_loss"], gradients = jax.value_and_grad(config.actor_loss, argnums=1)(
        config, actor, critics, batch
    )
    actor, actor_optimizer, actor_applied = _descend(config, actor, gradients, state.optimizer.actor)
    metrics[NONFINITE] = (~(critics_applied & actor_applied)).astype(jnp.float32)
    new = state._replace(
        actor=actor,
        target_actor=soft_update(state.target_actor, actor, config.tau),
        critics=critics,
        target_critics=soft_update(state.target_critics, critics, config.tau),
        optimizer=Optimizers(actor_optimizer, critics_optimizer),
        n_updates=state.n_updates + 1,
    )
    return new, metrics, priorities


def _descend(config: Config, network: PyTree, gradients: PyTree, optimizer: PyTree) -> tuple[PyTree, PyTree, Array]:
    return descend(config.optimizer, config.learning_rate, math.inf, network, gradients, optimizer)

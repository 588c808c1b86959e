"""Twin delayed deep deterministic policy gradient (Fujimoto et al., 2018, https://arxiv.org/abs/1802.09477)."""

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
from advantage.equations.soft import smoothed, soft_update
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
from advantage.networks.regularised import check_layers, hidden_layers
from advantage.types import NONFINITE, Metrics, Spec, require, require_bounds
from advantage.types import rescale_to_env as to_env  # actions within [-1, 1] are stretched to the bounds

ACTION_SPACES = ("box",)
LOGGED = {"learning_rate": "train/learning_rate"}


def clipped_double_q_target(
    config: "Config", actor: DeterministicActor, critics: Critics, batch: Batch, key: Key
) -> Float[Array, " B"]:
    """`r + gamma min_i Q_i(s', mu(s') + noise)`, both of the targets: clipped double Q, smoothed (eq. 10 and 14)."""
    noise = config.target_policy_noise * jax.random.normal(key, batch.action.shape)
    action = smoothed(actor(batch.next_obs), noise, config.target_noise_clip)
    following = critics(batch.next_obs, action, jax.random.fold_in(key, 1))
    return td_target(batch.reward, batch.discount, jnp.min(following, axis=0))


def critic_loss(
    config: "Config", critics: Critics, target: Float[Array, " B"], batch: Batch, key: Key | None = None
) -> tuple[Float[Array, ""], Metrics]:
    """The squared error of each critic, added up (algorithm 1), to be minimised."""
    value = critics(batch.obs, batch.action, key)
    errors = squared_error(value, jnp.broadcast_to(target[None], value.shape))
    total = jnp.mean(batch.weight * jnp.sum(errors, axis=0))
    return total, {"train/critic_loss": total, "train/q_value": jnp.mean(value)}


def actor_loss(
    config: "Config", actor: DeterministicActor, critics: Critics, batch: Batch, key: Key | None = None
) -> Float[Array, ""]:
    """`-Q_1(s, mu(s))`: the deterministic policy gradient (Silver et al., 2014), to be minimised."""
    return -jnp.mean(batch.weight * critics.first(batch.obs, actor(batch.obs), key))


class Config(eqx.Module):
    """TD3's hyper-parameters under SB3's names, with SB3's defaults."""

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
    policy_delay: int = eqx.field(static=True, default=2)  # gradient steps of the critics for one of the actor and targets
    target_policy_noise: Scalar = 0.2  # deviation of the noise that smooths the target
    target_noise_clip: Scalar = 0.5  # its bound
    updates_per_step: float | None = eqx.field(static=True, default=None)  # in place of gradient_steps: per environment step
    replay_beta: Scalar = 1.0  # exponent of importance weights now: set from its schedule before every update
    net_arch: Widths = eqx.field(static=True, default=Widths((400, 300), (400, 300)))  # layer widths
    activation_fn: Activation = eqx.field(static=True, default=jax.nn.relu)  # between hidden layers
    n_critics: int = eqx.field(static=True, default=2)  # of which the least value counts
    block: str = eqx.field(static=True, default="dense")  # kind of hidden layers: dense, or simba: residual
    layer_norm: bool = eqx.field(static=True, default=False)  # after each hidden layer of the critics
    dropout_rate: float = eqx.field(static=True, default=0.0)  # of the critics' hidden units; DroQ: 0.01
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
        require_bounds("TD3", spec.action)
        require(self, 0, math.inf, "learning_rate", "target_policy_noise", "target_noise_clip")
        require(self, 0, 1, "tau", "gamma")
        require(self, 1, math.inf, "policy_delay", "n_critics")
        check_layers(self)
        check_replay(self, num_envs)
        check_noise(self.action_noise, math.prod(spec.action.shape))
        return []


class Optimizers(NamedTuple):
    """States of both optimisers."""

    actor: PyTree
    critics: PyTree


class State(NamedTuple):
    """All that TD3 learns."""

    actor: DeterministicActor
    target_actor: DeterministicActor
    critics: Critics
    target_critics: Critics
    optimizer: Optimizers
    policy_loss: Array  # of the actor's last gradient step
    steps: Array  # environment steps, up to 2^31 - 1: only compared with learning_starts
    n_updates: Array  # gradient steps so far
    key: Array


def init(config: Config, spec: Spec, key: Key) -> State:
    """A fresh agent."""
    actor_key, critics_key, key = jax.random.split(key, 3)
    common = {"activation": config.activation_fn, "features": config.features_extractor}
    actor = config.actor(spec, actor_key, net_arch=config.net_arch.pi, layers=hidden_layers(config.block), **common)
    layers = hidden_layers(config.block, config.layer_norm, config.dropout_rate)
    critics = config.critics(
        spec, critics_key, net_arch=config.net_arch.qf, n_critics=config.n_critics, layers=layers, **common
    )
    actor = tied(config, actor, critics)
    optimizers = Optimizers(*[optimisers.init(config.optimizer, network) for network in (actor, critics)])
    # Their own buffers: all are donated.
    target_actor, target_critics = jax.tree.map(jnp.copy, (actor, critics))
    zeros = jnp.float32(0.0), jnp.int32(0), jnp.int32(0)
    return State(actor, target_actor, critics, target_critics, optimizers, *zeros, key)


def actor(config: Config, state: State) -> Actor:
    """The policy, and whether its place is taken by chance."""
    return Actor(state.actor, state.steps < config.learning_starts)


def schedules(config: Config) -> dict[str, Schedule]:
    """Fields that change over training by themselves: none."""
    return {}


def learn(config: Config, state: State, batch: Batch) -> tuple[State, Metrics, Float[Array, " B"]]:
    """One gradient step of the critics, and one of the actor where it is due; none that is not finite."""
    key, target_key = jax.random.split(state.key)
    batch = batch._replace(action=batch.action.reshape(batch.reward.shape[0], -1))
    target = clipped_double_q_target(config, state.target_actor, state.target_critics, batch, target_key)
    critic_key = jax.random.fold_in(target_key, 2)
    (_, metrics), gradients = jax.value_and_grad(config.critic_loss, argnums=1, has_aux=True)(
        config, state.critics, target, batch, critic_key
    )
    priorities = td_errors(state.critics(batch.obs, batch.action, critic_key), target)
    critics, optimizer, applied = _descend(config, state.critics, gradients, state.optimizer.critics)
    n_updates = state.n_updates + 1
    state = state._replace(
        actor=tied(config, state.actor, critics),
        critics=critics,
        optimizer=state.optimizer._replace(critics=optimizer),
        n_updates=n_updates,
        key=key,
    )
    due = (n_updates % config.policy_delay == 0) & applied
    state, actor_applied = jax.lax.cond(
        due, lambda state: _improve(config, state, batch), lambda state: (state, jnp.asarray(True)), state
    )
    metrics["train/actor_loss"] = state.policy_loss
    metrics[NONFINITE] = (~(applied & actor_applied)).astype(jnp.float32)
    return state, metrics, priorities


def _improve(config: Config, state: State, batch: Batch) -> tuple[State, Array]:
    """One gradient step of the actor, after which all targets move: `(state, applied)`."""
    loss, gradients = jax.value_and_grad(config.actor_loss, argnums=1)(
        config, state.actor, state.critics, batch, jax.random.fold_in(state.key, 3)
    )
    actor, optimizer, applied = _descend(config, state.actor, gradients, state.optimizer.actor)
    new = state._replace(
        actor=actor,
        target_actor=soft_update(state.target_actor, actor, config.tau),
        target_critics=soft_update(state.target_critics, state.critics, config.tau),
        optimizer=state.optimizer._replace(actor=optimizer),
        policy_loss=loss,
    )
    return new, applied


def _descend(config: Config, network: PyTree, gradients: PyTree, optimizer: PyTree) -> tuple[PyTree, PyTree, Array]:
    return descend(config.optimizer, config.learning_rate, math.inf, network, gradients, optimizer)

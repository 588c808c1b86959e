"""Soft actor-critic with automatic temperature (Haarnoja et al., 2018, https://arxiv.org/abs/1812.05905)."""

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
from advantage.networks.acting import Actor, Carry, squashed_actor, squashed_carry
from advantage.networks.acting import act_squashed as act  # samples within [-1, 1]
from advantage.networks.continuous import Critics, GaussianActor, Widths, critics, gaussian_actor
from advantage.networks.features import tied
from advantage.networks.mlp import Activation
from advantage.networks.optimisers import Optimizer, adam, descend
from advantage.networks.recurrent import Recurrence
from advantage.networks.regularised import check_layers, hidden_layers
from advantage.networks.temperature import check_temperature, initial_log_alpha, temperature, temperature_step
from advantage.types import NONFINITE, Metrics, Spec, require, require_bounds
from advantage.types import rescale_to_env as to_env  # actions within [-1, 1] are stretched to the bounds

ACTION_SPACES = ("box",)
LOGGED = {"learning_rate": "train/learning_rate"}


def soft_target(
    config: "Config", actor: GaussianActor, targets: Critics, alpha: Array, batch: Batch, key: Key
) -> Float[Array, " B"]:
    """`r + gamma (min_i Q_i(s', a') - alpha log pi(a' | s'))`, a' drawn anew (eq. 3 and 5)."""
    action, log_prob = actor.distribution(actor.latent(batch.next_obs)).sample_and_log_prob(key)
    next_value = jnp.min(targets(batch.next_obs, action, jax.random.fold_in(key, 1)), axis=0) - alpha * log_prob
    return td_target(batch.reward, batch.discount, next_value)


def critic_loss(
    config: "Config", critics: Critics, target: Float[Array, " B"], batch: Batch, key: Key | None = None
) -> tuple[Float[Array, ""], Metrics]:
    """Half the squared error of each critic, added up (eq. 5), to be minimised."""
    value = critics(batch.obs, batch.action, key)
    errors = squared_error(value, jnp.broadcast_to(target[None], value.shape))
    total = 0.5 * jnp.mean(batch.weight * jnp.sum(errors, axis=0))
    return total, {"train/critic_loss": total, "train/q_value": jnp.mean(value)}


def actor_loss(
    config: "Config", actor: GaussianActor, critics: Critics, alpha: Array, batch: Batch, key: Key
) -> tuple[Float[Array, ""], Float[Array, " B"]]:
    """`(alpha log pi(a | s) - min_i Q_i(s, a), log pi)`, a reparameterised (eq. 9), to be minimised."""
    action, log_prob = actor.distribution(actor.latent(batch.obs)).sample_and_log_prob(key)
    value = jnp.min(critics(batch.obs, action, jax.random.fold_in(key, 1)), axis=0)
    return jnp.mean(batch.weight * (alpha * log_prob - value)), log_prob


class Config(eqx.Module):
    """SAC's hyper-parameters under SB3's names, with SB3's defaults."""

    learning_rate: Scalar = 3e-4  # step size of all three optimisers; 1e-4 to 1e-3
    buffer_size: int = eqx.field(static=True, default=1_000_000)  # transitions remembered, all environments
    learning_starts: int = eqx.field(static=True, default=100)  # random steps before learning
    batch_size: int = eqx.field(static=True, default=256)  # transitions per gradient step
    tau: Scalar = 0.005  # share of the critics that their targets take over
    gamma: Scalar = 0.99  # discount per step; 0.9 to 0.9999
    train_freq: int | tuple[int, str] = eqx.field(static=True, default=1)  # vector steps or episodes per update
    gradient_steps: int = eqx.field(static=True, default=1)  # per update; -1: as many as steps collected
    action_noise: ActionNoise | None = eqx.field(static=True, default=None, converter=action_noise)  # added to actions; a number: its deviation
    n_steps: int = eqx.field(static=True, default=1)  # steps of a return before it bootstraps; 1 to 10
    ent_coef: float | str = eqx.field(static=True, default="auto")  # temperature alpha; auto_0.1: learned, from 0.1 on
    target_update_interval: int = eqx.field(static=True, default=1)  # gradient steps between updates of the targets
    target_entropy: float | str = eqx.field(static=True, default="auto")  # auto: minus the numbers of an action
    use_sde: bool = eqx.field(static=True, default=False)  # state-dependent exploration
    sde_sample_freq: int = eqx.field(static=True, default=-1)  # steps between new noise; -1: each update
    use_sde_at_warmup: bool = eqx.field(static=True, default=False)  # gSDE, not random steps, before learning
    updates_per_step: float | None = eqx.field(static=True, default=None)  # in place of gradient_steps: per environment step
    replay_beta: Scalar = 1.0  # exponent of importance weights now: set from its schedule before every update
    net_arch: Widths = eqx.field(static=True, default=Widths())  # layer widths
    activation_fn: Activation = eqx.field(static=True, default=jax.nn.relu)  # between hidden layers
    n_critics: int = eqx.field(static=True, default=2)  # of which the least value counts
    block: str = eqx.field(static=True, default="dense")  # kind of hidden layers: dense, or simba: residual
    layer_norm: bool = eqx.field(static=True, default=False)  # after each hidden layer of the critics
    dropout_rate: float = eqx.field(static=True, default=0.0)  # of the critics' hidden units; DroQ: 0.01
    log_std_init: Scalar = eqx.field(static=True, default=-3.0)  # gSDE: log of the first deviation
    use_expln: bool = eqx.field(static=True, default=False)  # gSDE: expln in place of exp
    clip_mean: Scalar = eqx.field(static=True, default=2.0)  # gSDE: bound of the Gaussian's mean
    features_extractor: Callable[..., eqx.Module] | None = eqx.field(static=True, default=None)
    recurrence: Recurrence | None = eqx.field(static=True, default=None)  # how a recurrent policy remembers
    share_features_extractor: bool = eqx.field(static=True, default=False)  # one encoder, which the critics learn
    optimizer: Optimizer = eqx.field(static=True, default=adam)  # function of the learning rate
    actor: Callable[..., Any] = eqx.field(static=True, default=gaussian_actor)
    critics: Callable[..., Any] = eqx.field(static=True, default=critics)
    critic_loss: Callable[..., tuple[Array, Metrics]] = eqx.field(static=True, default=critic_loss)
    actor_loss: Callable[..., tuple[Array, Array]] = eqx.field(static=True, default=actor_loss)

    steps_per_update = property(steps_per_update)
    episodes_per_update = property(episodes_per_update)

    def check(self, spec: Spec, num_envs: int) -> list[str]:
        """Raise `ValueError` for settings that cannot work; return notes on what will be done with others."""
        require_bounds("SAC", spec.action)
        require(self, 0, math.inf, "learning_rate")
        require(self, 0, 1, "tau", "gamma")
        require(self, 1, math.inf, "target_update_interval", "n_critics")
        check_layers(self)
        check_replay(self, num_envs)
        check_noise(self.action_noise, math.prod(spec.action.shape))
        check_temperature(self.ent_coef, self.target_entropy)
        return []


class Optimizers(NamedTuple):
    """States of the three optimisers."""

    actor: PyTree
    critics: PyTree
    alpha: PyTree


class State(NamedTuple):
    """All that SAC learns."""

    actor: GaussianActor
    critics: Critics
    target_critics: Critics
    log_alpha: Array  # logarithm of the temperature, where it is learned
    optimizer: Optimizers
    steps: Array  # environment steps, up to 2^31 - 1: only compared with learning_starts
    n_updates: Array  # gradient steps so far
    key: Array


def init(config: Config, spec: Spec, key: Key) -> State:
    """A fresh agent."""
    actor_key, critics_key, key = jax.random.split(key, 3)
    common = {"activation": config.activation_fn, "features": config.features_extractor}
    sde = {name: getattr(config, name) for name in ("use_sde", "log_std_init", "use_expln", "clip_mean")}
    actor = config.actor(spec, actor_key, net_arch=config.net_arch.pi, layers=hidden_layers(config.block), **sde, **common)
    layers = hidden_layers(config.block, config.layer_norm, config.dropout_rate)
    critics = config.critics(
        spec, critics_key, net_arch=config.net_arch.qf, n_critics=config.n_critics, layers=layers, **common
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


def initial_carry(config: Config, spec: Spec, num_envs: int) -> Carry:
    """The carry of gSDE and of action noise."""
    return squashed_carry(config, spec, num_envs, init)


def actor(config: Config, state: State) -> Actor:
    """What acting needs."""
    return squashed_actor(config, state.actor, state)


def schedules(config: Config) -> dict[str, Schedule]:
    """Fields that change over training by themselves: none."""
    return {}


def learn(config: Config, state: State, batch: Batch) -> tuple[State, Metrics, Float[Array, " B"]]:
    """One gradient step of critics, actor and temperature; of those whose gradients are finite."""
    key, target_key, actor_key = jax.random.split(state.key, 3)
    batch = batch._replace(action=batch.action.reshape(batch.reward.shape[0], -1))
    alpha = temperature(config.ent_coef, state.log_alpha)
    target = soft_target(config, state.actor, state.target_critics, alpha, batch, target_key)
    critic_key = jax.random.fold_in(target_key, 2)
    (_, metrics), gradients = jax.value_and_grad(config.critic_loss, argnums=1, has_aux=True)(
        config, state.critics, target, batch, critic_key
    )
    priorities = td_errors(state.critics(batch.obs, batch.action, critic_key), target)
    critics, critics_optimizer, critics_applied = _descend(config, state.critics, gradients, state.optimizer.critics)
    actor = tied(config, state.actor, critics)
    # As in SB3 the actor follows the critics that have just been improved, all with the temperature of before.
    (policy_loss, log_prob), gradients = jax.value_and_grad(config.actor_loss, argnums=1, has_aux=True)(
        config, actor, critics, alpha, batch, actor_key
    )
    actor, actor_optimizer, actor_applied = _descend(config, actor, gradients, state.optimizer.actor)
    log_alpha, alpha_optimizer, alpha_loss = temperature_step(
        config,
        state.log_alpha,
        state.optimizer.alpha,
        log_prob,
        batch.weight,
        -float(math.prod(state.actor.space.shape)),
    )
    due = (state.n_updates % config.target_update_interval == 0) & critics_applied
    targets = soft_update(state.target_critics, critics, jnp.where(due, config.tau, 0.0))
    metrics |= {"train/actor_loss": policy_loss, "train/ent_coef": alpha, "train/ent_coef_loss": alpha_loss}
    metrics[NONFINITE] = (~(critics_applied & actor_applied)).astype(jnp.float32)
    optimizers = Optimizers(actor_optimizer, critics_optimizer, alpha_optimizer)
    new = State(
        actor, critics, targets, log_alpha, optimizers, state.steps, state.n_updates + 1, key
    )
    return new, metrics, priorities


def _descend(config: Config, network: PyTree, gradients: PyTree, optimizer: PyTree) -> tuple[PyTree, PyTree, Array]:
    return descend(config.optimizer, config.learning_rate, math.inf, network, gradients, optimizer)

"""CrossQ: soft actor-critic with batch normalisation and no targets (Bhatt et al., 2024, https://arxiv.org/abs/1902.05605)."""

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
from advantage.memory.frequency import check_replay, episodes_per_update, steps_per_update
from advantage.memory.replayed import observe as observe  # counts steps
from advantage.memory.uniform import Batch
from advantage.networks import optimisers
from advantage.networks.acting import Actor, Carry, squashed_actor, squashed_carry
from advantage.networks.acting import act_squashed as act  # samples within [-1, 1]
from advantage.networks.batch_norm import (
    Statistics,
    batch_norm_layers,
    evaluated,
    fresh_statistics,
    train_actor,
    train_critics,
)
from advantage.networks.continuous import Critics, GaussianActor, Widths, critics, gaussian_actor
from advantage.networks.features import tied
from advantage.networks.mlp import Activation
from advantage.networks.optimisers import Optimizer, adam, adam_crossq, descend
from advantage.networks.temperature import check_temperature, initial_log_alpha, temperature, temperature_step
from advantage.types import NONFINITE, Metrics, Spec, require, require_bounds
from advantage.types import rescale_to_env as to_env  # actions within [-1, 1] are stretched to the bounds

ACTION_SPACES = ("box",)
LOGGED = {"learning_rate": "train/learning_rate"}


def values(
    critics: Critics,
    statistics: Statistics,
    alpha: Array,
    next_action: Float[Array, "B D"],
    next_log_prob: Float[Array, " B"],
    batch: Batch,
) -> tuple[Float[Array, "C B"], Float[Array, " B"], Statistics]:
    """What each critic says, the target, and the running statistics after it.

    Both ends of a transition pass the critics in one batch, so that one normalisation serves their mixture
    (section 3). The target, `r + gamma (min_i Q_i(s', a') - alpha log pi(a' | s'))`, has no gradient.
    """
    obs = jax.tree.map(lambda now, following: jnp.concatenate([now, following]), batch.obs, batch.next_obs)
    both, statistics = train_critics(critics, statistics, obs, jnp.concatenate([batch.action, next_action]))
    value, next_values = jnp.split(both, 2, axis=1)
    next_value = jnp.min(jax.lax.stop_gradient(next_values), axis=0) - alpha * next_log_prob
    target = td_target(batch.reward, batch.discount, next_value)
    return value, target, statistics


def critic_loss(
    config: "Config",
    critics: Critics,
    statistics: Statistics,
    alpha: Array,
    next_action: Float[Array, "B D"],
    next_log_prob: Float[Array, " B"],
    batch: Batch,
) -> tuple[Float[Array, ""], tuple[Metrics, Statistics]]:
    """Half the squared error of each critic, added up, to be minimised; and the running statistics after it."""
    value, target, statistics = values(critics, statistics, alpha, next_action, next_log_prob, batch)
    errors = squared_error(value, jnp.broadcast_to(target[None], value.shape))
    total = 0.5 * jnp.mean(batch.weight * jnp.sum(errors, axis=0))
    return total, ({"train/critic_loss": total, "train/q_value": jnp.mean(value)}, statistics)


def actor_loss(
    config: "Config",
    actor: GaussianActor,
    statistics: Statistics,
    critics: Critics,
    alpha: Array,
    batch: Batch,
    key: Key,
) -> tuple[Float[Array, ""], tuple[Float[Array, " B"], Statistics]]:
    """`(alpha log pi(a | s) - min_i Q_i(s, a), ...)`, to be minimised; log pi, and the running statistics after it.

    The critics are normalised by their running statistics: a batch of the actor's actions is another mixture.
    """
    latent, statistics = train_actor(actor, statistics, batch.obs)
    action, log_prob = actor.distribution(latent).sample_and_log_prob(key)
    value = jnp.min(critics(batch.obs, action), axis=0)
    return jnp.mean(batch.weight * (alpha * log_prob - value)), (log_prob, statistics)


class Config(eqx.Module):
    """CrossQ's hyper-parameters under SB3-contrib's names, with its defaults."""

    learning_rate: Scalar = 1e-3  # step size of all three optimisers; 1e-4 to 1e-3
    buffer_size: int = eqx.field(static=True, default=1_000_000)  # transitions remembered, all environments
    learning_starts: int = eqx.field(static=True, default=100)  # random steps before learning
    batch_size: int = eqx.field(static=True, default=256)  # transitions per gradient step
    gamma: Scalar = 0.99  # discount per step; 0.9 to 0.9999
    train_freq: int | tuple[int, str] = eqx.field(static=True, default=1)  # vector steps or episodes per update
    gradient_steps: int = eqx.field(static=True, default=1)  # per update; -1: as many as steps collected
    action_noise: ActionNoise | None = eqx.field(static=True, default=None, converter=action_noise)  # added to actions; a number: its deviation
    n_steps: int = eqx.field(static=True, default=1)  # steps of a return before it bootstraps; 1 to 10
    ent_coef: float | str = eqx.field(static=True, default="auto")  # temperature alpha; auto_0.1: learned, from 0.1 on
    target_entropy: float | str = eqx.field(static=True, default="auto")  # auto: minus the numbers of an action
    policy_delay: int = eqx.field(static=True, default=3)  # gradient steps of the critics for one of actor and temperature
    use_sde: bool = eqx.field(static=True, default=False)  # state-dependent exploration
    sde_sample_freq: int = eqx.field(static=True, default=-1)  # steps between new noise; -1: each update
    use_sde_at_warmup: bool = eqx.field(static=True, default=False)  # gSDE, not random steps, before learning
    updates_per_step: float | None = eqx.field(static=True, default=None)  # in place of gradient_steps: per environment step
    replay_beta: Scalar = 1.0  # exponent of importance weights now: set from its schedule before every update
    net_arch: Widths = eqx.field(static=True, default=Widths((256, 256), (1024, 1024)))  # layer widths
    activation_fn: Activation = eqx.field(static=True, default=jax.nn.relu)  # between hidden layers
    n_critics: int = eqx.field(static=True, default=2)  # of which the least value counts
    batch_norm_momentum: float = eqx.field(static=True, default=0.01)  # share of a batch in the running statistics
    batch_norm_eps: float = eqx.field(static=True, default=0.001)  # added to variances
    renorm_warmup_steps: int = eqx.field(static=True, default=100_000)  # batches before the running statistics correct a batch's
    log_std_init: Scalar = eqx.field(static=True, default=-3.0)  # gSDE: log of the first deviation
    use_expln: bool = eqx.field(static=True, default=False)  # gSDE: expln in place of exp
    clip_mean: Scalar = eqx.field(static=True, default=2.0)  # gSDE: bound of the Gaussian's mean
    features_extractor: Callable[..., eqx.Module] | None = eqx.field(static=True, default=None)
    share_features_extractor: bool = eqx.field(static=True, default=False)  # one encoder, which the critics learn
    optimizer: Optimizer = eqx.field(static=True, default=adam_crossq)  # function of the learning rate
    actor: Callable[..., Any] = eqx.field(static=True, default=gaussian_actor)
    critics: Callable[..., Any] = eqx.field(static=True, default=critics)
    critic_loss: Callable[..., tuple[Array, Any]] = eqx.field(static=True, default=critic_loss)
    actor_loss: Callable[..., tuple[Array, Any]] = eqx.field(static=True, default=actor_loss)

    steps_per_update = property(steps_per_update)
    episodes_per_update = property(episodes_per_update)

    def check(self, spec: Spec, num_envs: int) -> list[str]:
        """Raise `ValueError` for settings that cannot work; return notes on what will be done with others."""
        require_bounds("CrossQ", spec.action)
        require(self, 0, math.inf, "learning_rate")
        require(self, 0, 1, "gamma", "batch_norm_momentum")
        require(self, 0, math.inf, "batch_norm_eps", "renorm_warmup_steps")
        require(self, 1, math.inf, "policy_delay", "n_critics")
        check_replay(self, num_envs)
        check_noise(self.action_noise, math.prod(spec.action.shape))
        check_temperature(self.ent_coef, self.target_entropy)
        return []


class Optimizers(NamedTuple):
    """States of the three optimisers."""

    actor: PyTree
    critics: PyTree
    alpha: PyTree


class Running(NamedTuple):
    """What the norms have seen."""

    actor: Statistics
    critics: Statistics


class State(NamedTuple):
    """All that CrossQ learns."""

    actor: GaussianActor
    critics: Critics
    running: Running
    log_alpha: Array  # logarithm of the temperature, where it is learned
    optimizer: Optimizers
    losses: Array  # of actor and temperature, at their last gradient step
    steps: Array  # environment steps, up to 2^31 - 1: only compared with learning_starts
    n_updates: Array  # gradient steps so far
    key: Array


def init(config: Config, spec: Spec, key: Key) -> State:
    """A fresh agent."""
    actor_key, critics_key, key = jax.random.split(key, 3)
    common = {"activation": config.activation_fn, "features": config.features_extractor}
    norm = (config.batch_norm_momentum, config.batch_norm_eps, config.renorm_warmup_steps)
    common["layers"] = batch_norm_layers(*norm)
    sde = {name: getattr(config, name) for name in ("use_sde", "log_std_init", "use_expln", "clip_mean")}
    actor = config.actor(spec, actor_key, net_arch=config.net_arch.pi, **sde, **common)
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
    running = Running(fresh_statistics(actor), fresh_statistics(critics))
    return State(actor, critics, running, log_alpha, optimizers, jnp.zeros(2), jnp.int32(0), jnp.int32(0), key)


def initial_carry(config: Config, spec: Spec, num_envs: int) -> Carry:
    """The carry of gSDE and of action noise."""
    return squashed_carry(config, spec, num_envs, init)


def actor(config: Config, state: State) -> Actor:
    """What acting needs."""
    return squashed_actor(config, evaluated(state.actor, state.running.actor), state)


def schedules(config: Config) -> dict[str, Schedule]:
    """Fields that change over training by themselves: none."""
    return {}


def learn(config: Config, state: State, batch: Batch) -> tuple[State, Metrics, Float[Array, " B"]]:
    """One gradient step of the critics, and one of actor and temperature where due; none that is not finite."""
    key, target_key, actor_key = jax.random.split(state.key, 3)
    batch = batch._replace(action=batch.action.reshape(batch.reward.shape[0], -1))
    alpha = temperature(config.ent_coef, state.log_alpha)
    policy = evaluated(state.actor, state.running.actor)
    following = policy.distribution(policy.latent(batch.next_obs)).sample_and_log_prob(target_key)
    (_, (metrics, statistics)), gradients = jax.value_and_grad(config.critic_loss, argnums=1, has_aux=True)(
        config, state.critics, state.running.critics, alpha, *following, batch
    )
    priorities = td_errors(*values(state.critics, state.running.critics, alpha, *following, batch)[:2])
    critics, optimizer, applied = _descend(config, state.critics, gradients, state.optimizer.critics)
    n_updates = state.n_updates + 1
    state = state._replace(
        actor=tied(config, state.actor, critics),
        critics=critics,
        running=state.running._replace(critics=_kept(applied, statistics, state.running.critics)),
        optimizer=state.optimizer._replace(critics=optimizer),
        n_updates=n_updates,
        key=key,
    )
    due = (n_updates % config.policy_delay == 0) & applied
    state, actor_applied = jax.lax.cond(
        due,
        lambda state: _improve(config, state, alpha, batch, actor_key),
        lambda state: (state, jnp.asarray(True)),
        state,
    )
    metrics |= {"train/actor_loss": state.losses[0], "train/ent_coef": alpha, "train/ent_coef_loss": state.losses[1]}
    metrics[NONFINITE] = (~(applied & actor_applied)).astype(jnp.float32)
    return state, metrics, priorities


def _improve(config: Config, state: State, alpha: Array, batch: Batch, key: Key) -> tuple[State, Array]:
    """One gradient step of actor and temperature: `(state, applied)`."""
    critics = evaluated(state.critics, state.running.critics)
    (policy_loss, (log_prob, statistics)), gradients = jax.value_and_grad(config.actor_loss, argnums=1, has_aux=True)(
        config, state.actor, state.running.actor, critics, alpha, batch, key
    )
    actor, optimizer, applied = _descend(config, state.actor, gradients, state.optimizer.actor)
    log_alpha, alpha_optimizer, alpha_loss = temperature_step(
        config,
        state.log_alpha,
        state.optimizer.alpha,
        log_prob,
        batch.weight,
        -float(math.prod(state.actor.space.shape)),
    )
    new = state._replace(
        actor=actor,
        running=state.running._replace(actor=_kept(applied, statistics, state.running.actor)),
        log_alpha=log_alpha,
        optimizer=state.optimizer._replace(actor=optimizer, alpha=alpha_optimizer),
        losses=jnp.stack([policy_loss, alpha_loss]),
    )
    return new, applied


def _kept(applied: Array, new: Statistics, old: Statistics) -> Statistics:
    """What a batch left in the statistics, unless its gradients were not finite."""
    return jax.tree.map(lambda new, old: jnp.where(applied, new, old), new, old)


def _descend(config: Config, network: PyTree, gradients: PyTree, optimizer: PyTree) -> tuple[PyTree, PyTree, Array]:
    return descend(config.optimizer, config.learning_rate, math.inf, network, gradients, optimizer)

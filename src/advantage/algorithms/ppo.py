"""Proximal policy optimisation (Schulman et al., 2017, https://arxiv.org/abs/1707.06347), clipped objective."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from advantage.equations.distributions import Key
from advantage.equations.divergence import ADAPTED, adapted, check_adapted, followed
from advantage.equations.noise import HeldNoise
from advantage.equations.objectives import (
    clipped_surrogate,
    clipped_value,
    kl_estimate,
    masked_mean,
    normalised,
    squared_error,
)
from advantage.equations.returns import Scalar
from advantage.equations.schedules import Schedule
from advantage.equations.threefry import written_out
from advantage.memory.rollout import (
    check_sequences,
    estimates,
    flat_rows,
    in_minibatches,
    odd_minibatch,
    policy_actions,
    rollout_metrics,
)
from advantage.networks import optimisers
from advantage.networks.actor_critic import Actor, ActorCritic, Architecture, actor_critic
from advantage.networks.mlp import Activation
from advantage.networks.optimisers import Optimizer, adam_ppo, descend
from advantage.networks.recurrent import Recurrence
from advantage.networks.sampling import act_sampling as act  # samples from the policy
from advantage.networks.sampling import check_sde, fresh_network, sampling_carry
from advantage.types import NONFINITE, Chunk, Metrics, Spec, require, sanitise
from advantage.types import to_env as to_env  # a Gaussian's action is clipped to the bounds

ACTION_SPACES = ("box", "discrete", "multi_discrete", "multi_binary")
LOGGED = {
    "learning_rate": "train/learning_rate",
    "clip_range": "train/clip_range",
    "clip_range_vf": "train/clip_range_vf",
}


class Rows(NamedTuple):
    """What the losses read, one row a time step: [T*N, ...] or a minibatch [B, ...]."""

    obs: PyTree
    action_mask: Array | None
    action: Array
    log_prob: Float[Array, " B"]
    value: Float[Array, " B"]
    advantage: Float[Array, " B"]
    returns: Float[Array, " B"]
    weight: Float[Array, " B"]  # 1 where the row is valid


def loss(config: "Config", network: ActorCritic, rows: Rows) -> tuple[Float[Array, ""], Metrics]:
    """Clipped surrogate, value error and entropy of one minibatch (eq. 9), to be minimised."""

    def surrogate(log_prob: Float[Array, " B"], advantage: Float[Array, " B"]) -> Float[Array, " B"]:
        return clipped_surrogate(log_prob, rows.log_prob, advantage, config.clip_range)

    return surrogate_loss(surrogate, config, network, rows)


def surrogate_loss(
    surrogate: Callable[[Array, Array], Array], config: "Config", network: ActorCritic, rows: Rows
) -> tuple[Float[Array, ""], Metrics]:
    """Minus the surrogate objective, value error and minus the entropy, each a mean."""
    distribution, value = network.both(rows.obs, rows.action_mask)
    # Where a row does not count its ratio is 1: what overflows would not be silenced by a weight of 0.
    log_prob = jnp.where(rows.weight > 0, distribution.log_prob(rows.action), rows.log_prob)
    entropy = distribution.entropy()
    advantage = normalised(rows.advantage, rows.weight) if config.normalize_advantage else rows.advantage
    if config.clip_range_vf is not None:
        value = clipped_value(value, rows.value, config.clip_range_vf)

    def mean(x: Float[Array, " B"]) -> Float[Array, ""]:
        return masked_mean(x, rows.weight)

    policy_loss, entropy_loss = -mean(surrogate(log_prob, advantage)), -mean(entropy)
    value_loss = mean(squared_error(value, rows.returns))
    total = policy_loss + config.ent_coef * entropy_loss + config.vf_coef * value_loss
    log_ratio = log_prob - rows.log_prob
    outside = jnp.abs(jnp.expm1(log_ratio)) > config.clip_range
    return total, {
        "train/loss": total,
        "train/policy_gradient_loss": policy_loss,
        "train/value_loss": value_loss,
        "train/entropy_loss": entropy_loss,
        "train/approx_kl": mean(kl_estimate(log_ratio)),
        "train/clip_fraction": mean(outside.astype(jnp.float32)),
    }


class Config(eqx.Module):
    """PPO's hyper-parameters under SB3's names, with SB3's defaults."""

    learning_rate: Scalar = 3e-4  # step size of the optimiser; 1e-5 to 1e-3
    n_steps: int = eqx.field(static=True, default=2048)  # steps per environment and update; 16 to 2048
    batch_size: int = eqx.field(static=True, default=64)  # rows of one minibatch
    n_epochs: int = eqx.field(static=True, default=10)  # passes over each rollout; 3 to 30
    gamma: Scalar = 0.99  # discount per step; 0.9 to 0.9999
    gae_lambda: Scalar = 0.95  # bias against variance of advantages; 0.8 to 1
    clip_range: Scalar = 0.2  # how far the probability ratio may move; 0.1 to 0.3
    clip_range_vf: Scalar | None = None  # the same for values, in units of return; None: not clipped
    normalize_advantage: bool = eqx.field(static=True, default=True)  # per minibatch
    ent_coef: Scalar = 0.0  # weight of the entropy bonus; 0 to 0.02
    vf_coef: Scalar = 0.5  # weight of the value loss
    max_grad_norm: Scalar = 0.5  # largest joint norm of the gradient
    use_sde: bool = eqx.field(static=True, default=False)  # state-dependent exploration (Box actions)
    sde_sample_freq: int = eqx.field(static=True, default=-1)  # steps between new noise; -1: each rollout
    target_kl: Scalar | None = None  # stop an update's epochs at 1.5 times this KL; None: never
    kl_coef: Scalar = 1.0  # weight of the penalty, with loss=kl_penalty_loss
    desired_kl: Scalar | None = None  # the KL of an update that `adapts` aims at; None: nothing is adapted
    adapts: str = eqx.field(static=True, default="learning_rate")  # what follows the KL: that, or kl_coef
    net_arch: Architecture = eqx.field(static=True, default=Architecture())  # layer widths
    activation_fn: Activation = eqx.field(static=True, default=jnp.tanh)  # between hidden layers
    ortho_init: bool = eqx.field(static=True, default=True)  # orthogonal weights to start from
    log_std_init: Scalar = eqx.field(static=True, default=0.0)  # log of the Gaussian's first deviation
    full_std: bool = eqx.field(static=True, default=True)  # gSDE: a deviation per action component
    use_expln: bool = eqx.field(static=True, default=False)  # gSDE: expln in place of exp
    features_extractor: Callable[..., eqx.Module] | None = eqx.field(static=True, default=None)
    share_features_extractor: bool = eqx.field(static=True, default=True)  # between policy and value function
    recurrence: Recurrence | None = eqx.field(static=True, default=None)  # of policies that remember
    optimizer: Optimizer = eqx.field(static=True, default=adam_ppo)  # function of the learning rate
    network: Callable[..., Any] = eqx.field(static=True, default=actor_critic)
    loss: Callable[..., tuple[Array, Metrics]] = eqx.field(static=True, default=loss)

    @property
    def steps_per_update(self) -> int:
        """T, in steps of the whole vector of environments."""
        return self.n_steps

    def check(self, spec: Spec, num_envs: int) -> list[str]:
        """Raise `ValueError` for settings that cannot work; return notes on what will be done with others."""
        require(self, 1, math.inf, "n_steps", "batch_size", "n_epochs")
        require(self, 0, 1, "gamma", "gae_lambda")
        require(self, 0, math.inf, "learning_rate", "clip_range", "clip_range_vf", "max_grad_norm", "target_kl")
        require(self, 0, math.inf, "kl_coef", "desired_kl")
        check_adapted(self, penalised=self.loss is not loss)
        rollout = self.n_steps * num_envs
        if self.batch_size > rollout:
            raise ValueError(
                f"batch_size={self.batch_size} is larger than the rollout of n_steps * n_envs = {rollout} rows:"
                f" choose at most {rollout}, or raise n_steps"
            )
        check_sde(self, spec)
        check_sequences(self)
        return odd_minibatch(self, num_envs)


class State(NamedTuple):
    """All that PPO learns."""

    network: ActorCritic
    optimizer: PyTree
    n_updates: Array  # epochs so far, as SB3 counts
    factors: dict[str, Array]  # of what can adapt to the KL
    key: Array


def init(config: Config, spec: Spec, key: Key) -> State:
    """A fresh agent."""
    network_key, features_key, key = jax.random.split(key, 3)
    network = fresh_network(config, spec, network_key, features_key)
    factors = {name: jnp.float32(1.0) for name in ADAPTED}
    return State(network, optimisers.init(config.optimizer, network), jnp.int32(0), factors, key)


def initial_carry(config: Config, spec: Spec, num_envs: int) -> tuple[()] | HeldNoise:
    """No carry, or gSDE's noise."""
    return sampling_carry(config, spec, num_envs, init)


def actor(config: Config, state: State) -> Actor:
    """What acting needs: the policy without the value function."""
    return state.network.actor


def schedules(config: Config) -> dict[str, Schedule]:
    """Fields that change over training by themselves: none."""
    return {}


class Learner(NamedTuple):
    """What changes from one minibatch to the next."""

    network: ActorCritic
    optimizer: PyTree
    going_on: Array  # False once the KL was too large, or where no row is valid
    applied: Array  # gradient steps made
    totals: Metrics  # sums over them


def update(config: Config, state: State, memory: Any, chunk: Chunk) -> tuple[State, Any, Metrics]:
    """`n_epochs` passes over one rollout `[T, N]` in minibatches of `batch_size` rows."""
    chunk, config = sanitise(chunk), adapted(config, state.factors)
    rows = prepare(config, state.network, chunk)
    key, order_key = jax.random.split(written_out(state.key))
    minibatches, all_rows = in_minibatches(config, order_key, rows)

    def minibatch(chosen: Int[Array, " B"]) -> Rows:
        return jax.tree.map(lambda x: x[chosen], all_rows)

    going_on = jnp.any(chunk.valid)
    _, metrics = jax.eval_shape(lambda: config.loss(config, state.network, minibatch(minibatches[0])))
    totals = {name: jnp.float32(0.0) for name in (*metrics, NONFINITE)}
    learner = Learner(state.network, state.optimizer, going_on, jnp.int32(0), totals)
    learner, _ = jax.lax.scan(
        lambda learner, chosen: (_gradient_step(config, learner, minibatch(chosen)), None), learner, minibatches
    )
    # An epoch cut short by target_kl counts, as in SB3; an empty chunk changes no bit.
    holding = jnp.any(all_rows.weight[minibatches] > 0, axis=1)
    per_epoch = jnp.maximum(jnp.sum(holding, dtype=jnp.int32) // config.n_epochs, 1)
    n_updates = state.n_updates + learner.applied // per_epoch + (going_on & ~learner.going_on)
    key = jnp.where(going_on, jax.random.key_data(key), state.key)
    metrics = _means(learner)
    factors = state.factors
    if config.desired_kl is not None:
        metrics["train/update_kl"] = moved(learner.network, rows)
        metrics[f"train/adapted_{config.adapts}"] = jnp.asarray(getattr(config, config.adapts), jnp.float32)
        after = followed(config, factors, metrics["train/update_kl"])
        factors = jax.tree.map(lambda new, old: jnp.where(going_on, new, old), after, factors)
    new = State(learner.network, learner.optimizer, n_updates, factors, key)
    return new, memory, metrics | rollout_metrics(new.network, rows, n_updates)


def _means(learner: Learner) -> Metrics:
    """Means over the gradient steps made."""
    steps = jnp.maximum(learner.applied, 1).astype(jnp.float32)
    return {name: x if name == NONFINITE else x / steps for name, x in learner.totals.items()}


def moved(network: ActorCritic, rows: Rows) -> Float[Array, ""]:
    """The mean KL(the policy that acted || the network's), estimated from the actions taken."""
    log_prob = network.both(rows.obs, rows.action_mask)[0].log_prob(rows.action)
    return masked_mean(kl_estimate(jnp.where(rows.weight > 0, log_prob - rows.log_prob, 0.0)), rows.weight)


def prepare(config: Config, network: ActorCritic, chunk: Chunk) -> Rows:
    """Log-probabilities, values and advantages under the policy that acted, in one batched pass."""
    found = estimates(network.value, chunk, config.gamma, config.gae_lambda)
    action, weight = policy_actions(chunk), chunk.valid.astype(jnp.float32)
    log_prob = network.actor.distribution(network.actor.latent(chunk.obs), chunk.action_mask).log_prob(action)
    return flat_rows(
        Rows(chunk.obs, chunk.action_mask, action, log_prob, found.value, found.advantage, found.returns, weight)
    )


def _gradient_step(config: Config, learner: Learner, rows: Rows) -> Learner:
    """One gradient step; the identity where no row is valid, a gradient is not finite or the KL too large."""
    network, optimizer, going_on, count, totals = learner
    (_, metrics), gradients = jax.value_and_grad(config.loss, argnums=1, has_aux=True)(config, network, rows)
    if config.target_kl is not None:
        going_on &= metrics["train/approx_kl"] <= 1.5 * config.target_kl
    wanted = going_on & jnp.any(rows.weight > 0)
    network, optimizer, applied = descend(
        config.optimizer, config.learning_rate, config.max_grad_norm, network, gradients, optimizer, wanted
    )
    # A term that is not finite shows in the metrics, though the step is left out.
    counted = {name: jnp.where(wanted, x, 0.0) for name, x in metrics.items()}
    counted[NONFINITE] = (wanted & ~applied).astype(jnp.float32)
    return Learner(network, optimizer, going_on, count + applied, jax.tree.map(jnp.add, totals, counted))


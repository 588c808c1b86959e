"""Trust region policy optimisation (Schulman et al., 2015, https://arxiv.org/abs/1502.05477)."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from advantage.equations.distributions import Distribution, Key
from advantage.equations.natural import Vector, conjugate_gradient, largest_step, line_search
from advantage.equations.noise import HeldNoise
from advantage.equations.objectives import masked_mean, normalised, squared_error
from advantage.equations.returns import Scalar
from advantage.equations.schedules import Schedule
from advantage.equations.threefry import written_out
from advantage.memory.rollout import estimates, flat_rows, padded, policy_actions, rollout_metrics, shuffled
from advantage.networks import optimisers
from advantage.networks.actor_critic import Actor, ActorCritic, Architecture, actor_critic
from advantage.networks.mlp import Activation
from advantage.networks.optimisers import Optimizer, adam_ppo, descend
from advantage.networks.sampling import act_sampling as act  # samples from the policy
from advantage.networks.sampling import check_sde, fresh_network, sampling_carry
from advantage.types import NONFINITE, Chunk, Metrics, Spec, require, sanitise
from advantage.types import to_env as to_env  # a Gaussian's action is clipped to the bounds

ACTION_SPACES = ("box", "discrete", "multi_discrete", "multi_binary")
LOGGED = {"learning_rate": "train/learning_rate"}


class Rows(NamedTuple):
    """What the objectives read, one row a time step: [T*N, ...] or a minibatch [B, ...]."""

    obs: PyTree
    action_mask: Array | None
    action: Array
    log_prob: Float[Array, " B"]
    value: Float[Array, " B"]
    advantage: Float[Array, " B"]
    returns: Float[Array, " B"]
    weight: Float[Array, " B"]  # 1 where the row is valid


def surrogate(actor: Actor, rows: Rows) -> Float[Array, ""]:
    """The mean of `pi(a | s) / pi_old(a | s) A` (eq. 14), to be maximised."""
    # Where a row does not count its ratio is 1: what overflows would not be silenced by a weight of 0.
    log_prob = jnp.where(rows.weight > 0, distribution_of(actor, rows).log_prob(rows.action), rows.log_prob)
    return masked_mean(jnp.exp(log_prob - rows.log_prob) * rows.advantage, rows.weight)


def divergence(actor: Actor, old: Distribution, rows: Rows) -> Float[Array, ""]:
    """The mean of `KL(pi_old(. | s) || pi(. | s))` (eq. 14), to be kept below `target_kl`."""
    return masked_mean(old.kl(distribution_of(actor, rows)), rows.weight)


def value_loss(critic: ActorCritic, rows: Rows) -> Float[Array, ""]:
    """The value function's mean squared error, to be minimised."""
    return masked_mean(squared_error(critic.value(rows.obs), rows.returns), rows.weight)


class Config(eqx.Module):
    """TRPO's hyper-parameters under SB3-contrib's names, with its defaults."""

    learning_rate: Scalar = 1e-3  # step size of the value function; the policy's follows from target_kl
    n_steps: int = eqx.field(static=True, default=2048)  # steps per environment and update; 512 to 8192
    batch_size: int = eqx.field(static=True, default=128)  # rows of one minibatch of the value function
    gamma: Scalar = 0.99  # discount per step; 0.9 to 0.9999
    cg_max_steps: int = eqx.field(static=True, default=15)  # steps of the conjugate gradient; 10 to 25
    cg_damping: Scalar = 0.1  # added to the Fisher matrix's diagonal; 1e-3 to 0.1
    line_search_shrinking_factor: float = eqx.field(static=True, default=0.8)  # of each next step tried
    line_search_max_iter: int = eqx.field(static=True, default=10)  # steps tried
    n_critic_updates: int = eqx.field(static=True, default=10)  # passes of the value function over each rollout
    gae_lambda: Scalar = 0.95  # bias against variance of advantages; 0.8 to 1
    use_sde: bool = eqx.field(static=True, default=False)  # state-dependent exploration (Box actions)
    sde_sample_freq: int = eqx.field(static=True, default=-1)  # steps between new noise; -1: each rollout
    normalize_advantage: bool = eqx.field(static=True, default=True)  # over the rollout
    target_kl: Scalar = 0.01  # how far an update may move the policy; 0.001 to 0.05
    sub_sampling_factor: int = eqx.field(static=True, default=1)  # every k-th step of a rollout makes the policy's step
    net_arch: Architecture = eqx.field(static=True, default=Architecture())  # layer widths
    activation_fn: Activation = eqx.field(static=True, default=jnp.tanh)  # between hidden layers
    ortho_init: bool = eqx.field(static=True, default=True)  # orthogonal weights to start from
    log_std_init: Scalar = eqx.field(static=True, default=0.0)  # log of the Gaussian's first deviation
    full_std: bool = eqx.field(static=True, default=True)  # gSDE: a deviation per action component
    use_expln: bool = eqx.field(static=True, default=False)  # gSDE: expln in place of exp
    features_extractor: Callable[..., eqx.Module] | None = eqx.field(static=True, default=None)
    share_features_extractor: bool = eqx.field(static=True, default=True)  # between policy and value function
    optimizer: Optimizer = eqx.field(static=True, default=adam_ppo)  # of the value function
    network: Callable[..., Any] = eqx.field(static=True, default=actor_critic)

    @property
    def steps_per_update(self) -> int:
        """T, in steps of the whole vector of environments."""
        return self.n_steps

    def check(self, spec: Spec, num_envs: int) -> list[str]:
        """Raise `ValueError` for settings that cannot work; return notes on what will be done with others."""
        counts = ("cg_max_steps", "line_search_max_iter", "n_critic_updates", "sub_sampling_factor")
        require(self, 1, math.inf, "n_steps", "batch_size", *counts)
        require(self, 0, 1, "gamma", "gae_lambda", "line_search_shrinking_factor")
        require(self, 0, math.inf, "learning_rate", "cg_damping", "target_kl")
        rollout = self.n_steps * num_envs
        if self.batch_size > rollout:
            raise ValueError(
                f"batch_size={self.batch_size} is larger than the rollout of n_steps * n_envs = {rollout} rows:"
                f" choose at most {rollout}, or raise n_steps"
            )
        if self.sub_sampling_factor > self.n_steps:
            raise ValueError(
                f"sub_sampling_factor={self.sub_sampling_factor} is larger than n_steps={self.n_steps}: choose less"
            )
        check_sde(self, spec)
        return []


class State(NamedTuple):
    """All that TRPO learns."""

    network: ActorCritic
    optimizer: PyTree  # of the value function
    n_updates: Array  # steps of the policy so far
    key: Array


def init(config: Config, spec: Spec, key: Key) -> State:
    """A fresh agent."""
    network_key, features_key, key = jax.random.split(key, 3)
    network = fresh_network(config, spec, network_key, features_key)
    return State(network, optimisers.init(config.optimizer, _without_actor(network)), jnp.int32(0), key)


def initial_carry(config: Config, spec: Spec, num_envs: int) -> tuple[()] | HeldNoise:
    """No carry, or gSDE's noise."""
    return sampling_carry(config, spec, num_envs, init)


def actor(config: Config, state: State) -> Actor:
    """What acting needs: the policy without the value function."""
    return state.network.actor


def schedules(config: Config) -> dict[str, Schedule]:
    """Fields that change over training by themselves: none."""
    return {}


def update(config: Config, state: State, memory: Any, chunk: Chunk) -> tuple[State, Any, Metrics]:
    """One natural step of the policy and `n_critic_updates` passes of the value function over a rollout `[T, N]`."""
    chunk = sanitise(chunk)
    rows = prepare(config, state.network, chunk)
    going_on = jnp.any(chunk.valid)
    network, metrics = _improve(config, state.network, every_kth_step(rows, config.sub_sampling_factor, config.n_steps))
    network, optimizer, key, fitted = _fit(config, network, state.optimizer, rows, state.key)
    fitted[NONFINITE] += metrics[NONFINITE]
    metrics |= fitted
    new = State(network, optimizer, state.n_updates + 1, key)
    # An empty chunk changes no bit.
    new = jax.tree.map(lambda new, old: jnp.where(going_on, new, old), new, state)
    return new, memory, metrics | rollout_metrics(new.network, rows, new.n_updates)


def prepare(config: Config, network: ActorCritic, chunk: Chunk) -> Rows:
    """Log-probabilities, values and advantages under the policy that acted."""
    found = estimates(network.value, chunk, config.gamma, config.gae_lambda)
    action, weight = policy_actions(chunk), chunk.valid.astype(jnp.float32)
    rows = flat_rows(
        Rows(chunk.obs, chunk.action_mask, action, found.value, found.value, found.advantage, found.returns, weight)
    )
    return rows._replace(log_prob=distribution_of(network.actor, rows).log_prob(rows.action))


def every_kth_step(rows: Rows, k: int, n_steps: int) -> Rows:
    """The rows of every k-th step, of all environments."""
    return jax.tree.map(lambda x: x.reshape(n_steps, -1, *x.shape[1:])[::k].reshape(-1, *x.shape[1:]), rows)


def distribution_of(actor: Actor, rows: Rows) -> Distribution:
    """The policy at every row."""
    return actor.distribution(actor.latent(rows.obs), rows.action_mask)


def _improve(config: Config, network: ActorCritic, rows: Rows) -> tuple[ActorCritic, Metrics]:
    """Move the policy along the natural gradient, as far as KL and surrogate allow (algorithm 1)."""
    if config.normalize_advantage:
        rows = rows._replace(advantage=normalised(rows.advantage, rows.weight))
    parameters, actor_of = ravel_pytree(network.actor)
    old = distribution_of(network.actor, rows)
    before, gradient = jax.value_and_grad(lambda x: surrogate(actor_of(x), rows))(parameters)
    step = natural_step(
        lambda x: divergence(actor_of(x), old, rows), parameters, gradient, config.target_kl, config.cg_damping,
        config.cg_max_steps,
    )  # fmt: skip

    def evaluate(point: Vector) -> tuple[Array, tuple[Array, Array]]:
        candidate = actor_of(point)
        reached, kl = surrogate(candidate, rows), divergence(candidate, old, rows)
        return (kl < config.target_kl) & (reached > before), (reached, kl)

    found = line_search(
        evaluate, parameters, step, (before, jnp.float32(0.0)), config.line_search_shrinking_factor,
        config.line_search_max_iter,
    )  # fmt: skip
    metrics = {
        "train/policy_objective": found.values[0],
        "train/kl_divergence_loss": found.values[1],
        "train/is_line_search_success": found.success.astype(jnp.float32),
        NONFINITE: (~jnp.all(jnp.isfinite(gradient) & jnp.isfinite(step))).astype(jnp.float32),
    }
    return eqx.tree_at(lambda network: network.actor, network, actor_of(found.point)), metrics


def natural_step(
    divergence: Callable[[Vector], Float[Array, ""]],
    parameters: Vector,
    gradient: Vector,
    target_kl: Scalar,
    damping: Scalar,
    max_steps: int,
) -> Vector:
    """The step along `H^-1 gradient` at whose end `divergence` is `target_kl` to second order (appendix C).

    H, the Hessian of the divergence, is the Fisher matrix; only its products with vectors are formed.
    """
    _, hessian_product = jax.linearize(jax.grad(divergence), parameters)

    def product(vector: Vector) -> Vector:
        return hessian_product(vector) + damping * vector

    direction = conjugate_gradient(product, gradient, max_steps)
    # At an optimum there is no direction, and no step.
    length = jnp.where(jnp.any(direction != 0), largest_step(direction, product(direction), target_kl), 0.0)
    return length * direction


def _fit(
    config: Config, network: ActorCritic, optimizer: PyTree, rows: Rows, key: Array
) -> tuple[ActorCritic, PyTree, Array, Metrics]:
    """Passes of the value function over the rollout; what it shares with the policy stays."""
    key, order_key = jax.random.split(written_out(key))
    minibatches = shuffled(order_key, rows.weight, config.n_critic_updates, config.batch_size)
    all_rows = padded(rows, config.batch_size)

    def loss(critic: PyTree, chosen: Rows) -> Array:
        return value_loss(_with_actor(critic, network.actor), chosen)

    def fit_once(carry: tuple[PyTree, PyTree], chosen: Int[Array, " B"]):
        critic, optimizer = carry
        minibatch = jax.tree.map(lambda x: x[chosen], all_rows)
        wanted = minibatch.weight[0] > 0  # valid rows come first
        error, gradients = jax.value_and_grad(loss)(critic, minibatch)
        critic, optimizer, applied = descend(
            config.optimizer, config.learning_rate, math.inf, critic, gradients, optimizer, wanted
        )
        return (critic, optimizer), (jnp.where(wanted, error, 0.0), applied, wanted)

    start = (_without_actor(network), optimizer)
    (critic, optimizer), (errors, applied, wanted) = jax.lax.scan(fit_once, start, minibatches)
    metrics = {
        "train/value_loss": jnp.sum(errors) / jnp.maximum(jnp.sum(wanted), 1).astype(jnp.float32),
        NONFINITE: jnp.sum(wanted & ~applied).astype(jnp.float32),
    }
    return _with_actor(critic, network.actor), optimizer, jax.random.key_data(key), metrics


def _without_actor(network: ActorCritic) -> PyTree:
    return eqx.tree_at(lambda network: network.actor, network, None)


def _with_actor(critic: PyTree, actor: Actor) -> ActorCritic:
    return eqx.tree_at(lambda network: network.actor, critic, actor, is_leaf=lambda x: x is None)

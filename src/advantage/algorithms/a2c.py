"""Advantage actor-critic, the synchronous form of A3C (Mnih et al., 2016, https://arxiv.org/abs/1602.01783)."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from advantage.equations.distributions import Key
from advantage.equations.noise import HeldNoise
from advantage.equations.objectives import masked_mean, normalised, squared_error
from advantage.equations.returns import Scalar
from advantage.equations.schedules import Schedule
from advantage.memory.rollout import check_sequences, estimates, flat_rows, policy_actions, rollout_metrics
from advantage.networks import optimisers
from advantage.networks.actor_critic import Actor, ActorCritic, Architecture, actor_critic
from advantage.networks.mlp import Activation
from advantage.networks.optimisers import Optimizer, adam_ppo, descend, named
from advantage.networks.recurrent import Recurrence
from advantage.networks.sampling import act_sampling as act  # samples from the policy
from advantage.networks.sampling import check_sde, fresh_network, sampling_carry
from advantage.types import NONFINITE, Chunk, Metrics, Spec, require, sanitise
from advantage.types import to_env as to_env  # a Gaussian's action is clipped to the bounds

ACTION_SPACES = ("box", "discrete", "multi_discrete", "multi_binary")
LOGGED = {"learning_rate": "train/learning_rate"}


class Rows(NamedTuple):
    """What the loss reads, one row a time step `[T*N, ...]`."""

    obs: PyTree
    action_mask: Array | None
    action: Array
    value: Float[Array, " B"]
    advantage: Float[Array, " B"]
    returns: Float[Array, " B"]
    weight: Float[Array, " B"]  # 1 where the row is valid


def loss(config: "Config", network: ActorCritic, rows: Rows) -> tuple[Float[Array, ""], Metrics]:
    """Policy gradient, value error and entropy of a rollout (section 4.2), to be minimised."""
    distribution, value = network.both(rows.obs, rows.action_mask)
    advantage = normalised(rows.advantage, rows.weight) if config.normalize_advantage else rows.advantage
    policy_loss = -masked_mean(distribution.log_prob(rows.action) * advantage, rows.weight)
    entropy_loss = -masked_mean(distribution.entropy(), rows.weight)
    value_loss = masked_mean(squared_error(value, rows.returns), rows.weight)
    total = policy_loss + config.ent_coef * entropy_loss + config.vf_coef * value_loss
    return total, {
        "train/policy_loss": policy_loss,
        "train/value_loss": value_loss,
        "train/entropy_loss": entropy_loss,
    }


class Config(eqx.Module):
    """A2C's hyper-parameters under SB3's names, with SB3's defaults."""

    learning_rate: Scalar = 7e-4  # step size of the optimiser; 1e-4 to 1e-2
    n_steps: int = eqx.field(static=True, default=5)  # steps per environment and update; 5 to 64
    gamma: Scalar = 0.99  # discount per step; 0.9 to 0.9999
    gae_lambda: Scalar = 1.0  # bias against variance of advantages; 1: n-step returns
    ent_coef: Scalar = 0.0  # weight of the entropy bonus; 0 to 0.02
    vf_coef: Scalar = 0.5  # weight of the value loss
    max_grad_norm: Scalar = 0.5  # largest joint norm of the gradient
    rms_prop_eps: float = eqx.field(static=True, default=1e-5)  # RMSProp: added to the root of the mean square
    use_rms_prop: bool = eqx.field(static=True, default=True)  # RMSProp, else Adam
    use_sde: bool = eqx.field(static=True, default=False)  # state-dependent exploration (Box actions)
    sde_sample_freq: int = eqx.field(static=True, default=-1)  # steps between new noise; -1: each rollout
    normalize_advantage: bool = eqx.field(static=True, default=False)  # over the rollout
    net_arch: Architecture = eqx.field(static=True, default=Architecture())  # layer widths
    activation_fn: Activation = eqx.field(static=True, default=jnp.tanh)  # between hidden layers
    ortho_init: bool = eqx.field(static=True, default=True)  # orthogonal weights to start from
    log_std_init: Scalar = eqx.field(static=True, default=0.0)  # log of the Gaussian's first deviation
    full_std: bool = eqx.field(static=True, default=True)  # gSDE: a deviation per action component
    use_expln: bool = eqx.field(static=True, default=False)  # gSDE: expln in place of exp
    features_extractor: Callable[..., eqx.Module] | None = eqx.field(static=True, default=None)
    share_features_extractor: bool = eqx.field(static=True, default=True)  # between policy and value function
    recurrence: Recurrence | None = eqx.field(static=True, default=None)  # of policies that remember
    optimizer: Optimizer | None = eqx.field(static=True, default=None)  # of the learning rate; None: as use_rms_prop says
    network: Callable[..., Any] = eqx.field(static=True, default=actor_critic)
    loss: Callable[..., tuple[Array, Metrics]] = eqx.field(static=True, default=loss)

    @property
    def steps_per_update(self) -> int:
        """T, in steps of the whole vector of environments."""
        return self.n_steps

    def check(self, spec: Spec, num_envs: int) -> list[str]:
        """Raise `ValueError` for settings that cannot work; return notes on what will be done with others."""
        require(self, 1, math.inf, "n_steps")
        require(self, 0, 1, "gamma", "gae_lambda")
        require(self, 0, math.inf, "learning_rate", "max_grad_norm", "rms_prop_eps")
        check_sde(self, spec)
        check_sequences(self)
        return []


class State(NamedTuple):
    """All that A2C learns."""

    network: ActorCritic
    optimizer: PyTree
    n_updates: Array  # gradient steps so far
    key: Array


def optimiser(config: Config) -> Optimizer:
    """What the network descends by."""
    if config.optimizer is not None:
        return config.optimizer
    # Torch's, as in SB3: epsilon beside the root, and a mean square that begins at 0.
    return named("rmsprop", (("eps", config.rms_prop_eps),)) if config.use_rms_prop else adam_ppo


def init(config: Config, spec: Spec, key: Key) -> State:
    """A fresh agent."""
    network_key, features_key, key = jax.random.split(key, 3)
    network = fresh_network(config, spec, network_key, features_key)
    return State(network, optimisers.init(optimiser(config), network), jnp.int32(0), key)


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
    """One gradient step on a rollout `[T, N]`; the identity where no row is valid or a gradient is not finite."""
    chunk = sanitise(chunk)
    rows = prepare(config, state.network, chunk)
    (_, metrics), gradients = jax.value_and_grad(config.loss, argnums=1, has_aux=True)(config, state.network, rows)
    wanted = jnp.any(chunk.valid)
    network, optimizer, applied = descend(
        optimiser(config), config.learning_rate, config.max_grad_norm, state.network, gradients, state.optimizer, wanted
    )
    new = State(network, optimizer, state.n_updates + applied.astype(jnp.int32), state.key)
    metrics[NONFINITE] = (wanted & ~applied).astype(jnp.float32)
    return new, memory, metrics | rollout_metrics(network, rows, new.n_updates)


def prepare(config: Config, network: ActorCritic, chunk: Chunk) -> Rows:
    """Advantages and returns by the values of the network that acted."""
    found = estimates(network.value, chunk, config.gamma, config.gae_lambda)
    weight = chunk.valid.astype(jnp.float32)
    return flat_rows(
        Rows(
            chunk.obs, chunk.action_mask, policy_actions(chunk), found.value, found.advantage, found.returns, weight
        )
    )

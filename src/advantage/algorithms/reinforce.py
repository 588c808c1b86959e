"""REINFORCE with reward-to-go and a baseline (Williams, 1992, https://doi.org/10.1007/BF00992696)."""

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
from advantage.memory.frequency import episodes_per_update, frequency, steps_per_update
from advantage.memory.rollout import estimates, flat_rows, policy_actions, rollout_metrics
from advantage.networks import optimisers
from advantage.networks.actor_critic import Actor, ActorCritic, Architecture, actor_critic
from advantage.networks.mlp import Activation
from advantage.networks.optimisers import Optimizer, adam, descend
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
    returns: Float[Array, " B"]  # reward-to-go
    advantage: Float[Array, " B"]  # returns above the baseline
    weight: Float[Array, " B"]  # 1 where the row is valid


def no_baseline(average: Array, value: Float[Array, "T N"]) -> Float[Array, "T N"]:
    """Returns as they are."""
    return jnp.zeros_like(value)


def average_baseline(average: Array, value: Float[Array, "T N"]) -> Float[Array, "T N"]:
    """One number for all: the moving average of earlier returns."""
    return jnp.broadcast_to(average, value.shape)


def value_baseline(average: Array, value: Float[Array, "T N"]) -> Float[Array, "T N"]:
    """What the learned value function expects in each state (Sutton & Barto, 2018, section 13.4)."""
    return value


BASELINES = {"none": no_baseline, "average": average_baseline, "value": value_baseline}


def loss(config: "Config", network: ActorCritic, rows: Rows) -> tuple[Float[Array, ""], Metrics]:
    """`-log pi(a | s) (G - b)`, and the value function's error, to be minimised."""
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
    """REINFORCE's hyper-parameters, in the words of the other algorithms."""

    learning_rate: Scalar = 1e-3  # step size of the optimiser; 1e-4 to 1e-2
    train_freq: int | tuple[int, str] = eqx.field(static=True, default=512)  # vector steps or (k, "episode") per update
    gamma: Scalar = 0.99  # discount per step; 0.9 to 0.9999
    baseline: str = eqx.field(static=True, default="value")  # taken off returns: none, average or value
    baseline_rate: Scalar = 0.1  # share of the newest returns in the moving average
    normalize_advantage: bool = eqx.field(static=True, default=False)  # over the rollout
    ent_coef: Scalar = 0.0  # weight of the entropy bonus; 0 to 0.02
    vf_coef: Scalar = 0.5  # weight of the value loss
    max_grad_norm: Scalar = 0.5  # largest joint norm of the gradient
    use_sde: bool = eqx.field(static=True, default=False)  # state-dependent exploration (Box actions)
    sde_sample_freq: int = eqx.field(static=True, default=-1)  # steps between new noise; -1: each rollout
    net_arch: Architecture = eqx.field(static=True, default=Architecture())  # layer widths
    activation_fn: Activation = eqx.field(static=True, default=jnp.tanh)  # between hidden layers
    ortho_init: bool = eqx.field(static=True, default=True)  # orthogonal weights to start from
    log_std_init: Scalar = eqx.field(static=True, default=0.0)  # log of the Gaussian's first deviation
    full_std: bool = eqx.field(static=True, default=True)  # gSDE: a deviation per action component
    use_expln: bool = eqx.field(static=True, default=False)  # gSDE: expln in place of exp
    features_extractor: Callable[..., eqx.Module] | None = eqx.field(static=True, default=None)
    share_features_extractor: bool = eqx.field(static=True, default=True)  # between policy and value function
    optimizer: Optimizer = eqx.field(static=True, default=adam)  # function of the learning rate
    network: Callable[..., Any] = eqx.field(static=True, default=actor_critic)
    loss: Callable[..., tuple[Array, Metrics]] = eqx.field(static=True, default=loss)

    steps_per_update = property(steps_per_update)
    episodes_per_update = property(episodes_per_update)

    def check(self, spec: Spec, num_envs: int) -> list[str]:
        """Raise `ValueError` for settings that cannot work; return notes on what will be done with others."""
        frequency(self)
        require(self, 0, 1, "gamma", "baseline_rate")
        require(self, 0, math.inf, "learning_rate", "max_grad_norm")
        if self.baseline not in BASELINES:
            raise ValueError(f"baseline={self.baseline!r} is not known: choose from {', '.join(BASELINES)}")
        check_sde(self, spec)
        return []


class State(NamedTuple):
    """All that REINFORCE learns."""

    network: ActorCritic
    average: Array  # moving average of returns
    optimizer: PyTree
    n_updates: Array  # gradient steps so far
    key: Array


def init(config: Config, spec: Spec, key: Key) -> State:
    """A fresh agent."""
    network_key, features_key, key = jax.random.split(key, 3)
    network = fresh_network(config, spec, network_key, features_key)
    return State(network, jnp.float32(0.0), optimisers.init(config.optimizer, network), jnp.int32(0), key)


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
    rows = prepare(config, state, chunk)
    (_, metrics), gradients = jax.value_and_grad(config.loss, argnums=1, has_aux=True)(config, state.network, rows)
    wanted = jnp.any(chunk.valid)
    network, optimizer, applied = descend(
        config.optimizer, config.learning_rate, config.max_grad_norm, state.network, gradients, state.optimizer, wanted
    )
    # The first average is that of the first rollout, not of nothing.
    rate = jnp.where(state.n_updates == 0, 1.0, config.baseline_rate)
    moved = state.average + rate * (masked_mean(rows.returns, rows.weight) - state.average)
    n_updates = state.n_updates + applied.astype(jnp.int32)
    new = State(network, jnp.where(applied, moved, state.average), optimizer, n_updates, state.key)
    metrics[NONFINITE] = (wanted & ~applied).astype(jnp.float32)
    return new, memory, metrics | rollout_metrics(network, rows, n_updates)


def prepare(config: Config, state: State, chunk: Chunk) -> Rows:
    """Rewards-to-go, and how far they are above the baseline.

    Where an episode was cut, by a time limit or by the rollout's end, the value function stands for what would have
    followed, whatever the baseline: a sum that just stops there would call the cut an end.
    """
    found = estimates(state.network.value, chunk, config.gamma, 1.0)
    advantage = found.returns - BASELINES[config.baseline](state.average, found.value)
    weight = chunk.valid.astype(jnp.float32)
    return flat_rows(
        Rows(chunk.obs, chunk.action_mask, policy_actions(chunk), found.value, found.returns, advantage, weight)
    )

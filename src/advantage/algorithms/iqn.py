"""Implicit quantile networks (Dabney et al., 2018, https://arxiv.org/abs/1806.06923).

The network answers any quantile of an action's returns; each gradient step asks for others. The mean over some is the
value that acts. In every other respect DQN: what is not here is `dqn`'s.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from advantage.algorithms.double_dqn import greedy_action
from advantage.algorithms.dqn import ACTION_SPACES as ACTION_SPACES
from advantage.algorithms.dqn import LOGGED as LOGGED
from advantage.algorithms.dqn import NOISE, State, begun, epsilon_greedy, made
from advantage.algorithms.dqn import act as act
from advantage.algorithms.dqn import actor as actor
from advantage.algorithms.dqn import initial_carry as initial_carry
from advantage.algorithms.dqn import learn as dqn_learn
from advantage.algorithms.dqn import observe as observe
from advantage.algorithms.dqn import schedules as schedules
from advantage.algorithms.dqn import to_env as to_env
from advantage.equations.distributions import Key
from advantage.equations.objectives import td_target
from advantage.equations.quantiles import quantile_huber
from advantage.equations.returns import Scalar
from advantage.equations.threefry import written_out
from advantage.memory.frequency import check_replay, episodes_per_update, steps_per_update
from advantage.memory.uniform import Batch
from advantage.networks.distributional import of_actions
from advantage.networks.implicit import ImplicitNetwork, implicit_network
from advantage.networks.mlp import Activation
from advantage.networks.optimisers import Optimizer, adam_qrdqn
from advantage.networks.recurrent import Recurrence
from advantage.types import Metrics, Spec, require


def loss(
    config: "Config", network: ImplicitNetwork, target_network: ImplicitNetwork, batch: Batch, key: Key
) -> tuple[Float[Array, ""], tuple[Metrics, Float[Array, " B"]]]:
    """Quantile regression at fractions drawn for each sample, added up over them, to be minimised (eq. 3).

    The target is `r + gamma Z'_tau'(s', a*)`, with a* by `config.next_action`. Returns `(loss, (metrics, the loss of
    each))`: prioritised replay draws by the latter.
    """
    keys, rows = jax.random.split(key), batch.reward.shape[0]
    fractions = jax.random.uniform(keys[0], (rows, config.n_tau_samples))
    of_target = jax.random.uniform(keys[1], (rows, config.n_tau_prime_samples))
    action = config.next_action(network, target_network, batch.next_obs, batch.next_mask)
    following = of_actions(target_network.quantiles(batch.next_obs, of_target), action)
    target = jax.vmap(td_target, (None, None, 1), 1)(batch.reward, batch.discount, following)
    quantiles = of_actions(network.quantiles(batch.obs, fractions), batch.action)
    each = jnp.sum(quantile_huber(quantiles, target, fractions), axis=-1)
    total = jnp.mean(batch.weight * each)
    return total, ({"train/loss": total, "train/q_value": jnp.mean(quantiles)}, jax.lax.stop_gradient(each))


class Config(eqx.Module):
    """IQN's hyper-parameters under QR-DQN's names, with its defaults; fractions as in the paper."""

    learning_rate: Scalar = 5e-5  # step size of the optimiser; 1e-5 to 1e-3
    buffer_size: int = eqx.field(static=True, default=1_000_000)  # transitions remembered, all environments
    learning_starts: int = eqx.field(static=True, default=100)  # random steps before learning
    batch_size: int = eqx.field(static=True, default=32)  # transitions per gradient step
    tau: Scalar = 1.0  # share of the online network that the target takes over; 1: a copy
    gamma: Scalar = 0.99  # discount per step; 0.9 to 0.9999
    train_freq: int | tuple[int, str] = eqx.field(static=True, default=4)  # vector steps or episodes per update
    gradient_steps: int = eqx.field(static=True, default=1)  # per update; -1: as many as steps collected
    n_steps: int = eqx.field(static=True, default=1)  # steps of a return before it bootstraps; 1 to 10
    target_update_interval: int = eqx.field(static=True, default=10_000)  # environment steps
    exploration_fraction: Scalar = 0.005  # share of training over which epsilon falls
    exploration_initial_eps: Scalar = 1.0  # epsilon at the start
    exploration_final_eps: Scalar = 0.01  # epsilon from then on
    max_grad_norm: Scalar | None = None  # largest joint norm of the gradient; None: any
    n_tau_samples: int = eqx.field(static=True, default=64)  # fractions at which a distribution is learned
    n_tau_prime_samples: int = eqx.field(static=True, default=64)  # fractions of its target
    n_quantile_samples: int = eqx.field(static=True, default=32)  # fractions over which a value that acts is a mean
    quantile_embedding_dim: int = eqx.field(static=True, default=64)  # cosines that describe a fraction
    updates_per_step: float | None = eqx.field(static=True, default=None)  # in place of gradient_steps: per environment step
    replay_beta: Scalar = 1.0  # exponent of importance weights now: set from its schedule before every update
    net_arch: tuple[int, ...] = eqx.field(static=True, default=(64, 64))  # layer widths
    activation_fn: Activation = eqx.field(static=True, default=jax.nn.relu)  # between hidden layers
    features_extractor: Callable[..., eqx.Module] | None = eqx.field(static=True, default=None)
    recurrence: Recurrence | None = eqx.field(static=True, default=None)  # how a recurrent policy remembers
    optimizer: Optimizer = eqx.field(static=True, default=adam_qrdqn)  # function of the learning rate
    network: Callable[..., Any] = eqx.field(static=True, default=implicit_network)
    next_action: Callable[..., Array] = eqx.field(static=True, default=greedy_action)  # whose returns are taken
    loss: Callable[..., tuple[Array, tuple[Metrics, Array]]] = eqx.field(static=True, default=loss)
    exploration: Callable[..., Array] = eqx.field(static=True, default=epsilon_greedy)
    exploration_rate: Scalar = 1.0  # epsilon now: set from its schedule before every update

    steps_per_update = property(steps_per_update)
    episodes_per_update = property(episodes_per_update)

    def check(self, spec: Spec, num_envs: int) -> list[str]:
        """Raise `ValueError` for settings that cannot work; return notes on what will be done with others."""
        counts = ("n_tau_samples", "n_tau_prime_samples", "n_quantile_samples", "quantile_embedding_dim")
        require(self, 1, math.inf, "target_update_interval", *counts)
        require(self, 0, math.inf, "learning_rate", "max_grad_norm")
        require(self, 0, 1, "tau", "gamma", "exploration_fraction", "exploration_initial_eps", "exploration_final_eps")
        check_replay(self, num_envs)
        return []


def init(config: Config, spec: Spec, key: Key) -> State:
    """A fresh agent."""
    sizes = {"samples": config.n_quantile_samples, "embedding": config.quantile_embedding_dim}
    return begun(config, *made(config, spec, key, **sizes))


def learn(config: Config, state: State, batch: Batch) -> tuple[State, Metrics, Float[Array, " B"]]:
    """DQN's gradient step, with a key for the fractions that the loss draws."""
    key = jax.random.fold_in(written_out(state.key), NOISE + 2)
    return dqn_learn(dataclasses.replace(config, loss=functools.partial(config.loss, key=key)), state, batch)

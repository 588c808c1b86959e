"""Categorical DQN, C51: a distribution of returns over fixed atoms (Bellemare et al., 2017, https://arxiv.org/abs/1707.06887).

The network says of each action how likely each of `n_atoms` returns is; its mean is the value that acts. In every other
respect DQN: what is not here is `dqn`'s.
"""

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
from advantage.algorithms.dqn import State, begun, epsilon_greedy, made
from advantage.algorithms.dqn import act as act
from advantage.algorithms.dqn import actor as actor
from advantage.algorithms.dqn import initial_carry as initial_carry
from advantage.algorithms.dqn import learn as learn
from advantage.algorithms.dqn import observe as observe
from advantage.algorithms.dqn import schedules as schedules
from advantage.algorithms.dqn import to_env as to_env
from advantage.equations.categorical import atoms, cross_entropy, divergence, projected
from advantage.equations.distributions import Key
from advantage.equations.objectives import td_target
from advantage.equations.returns import Scalar
from advantage.memory.frequency import check_replay, episodes_per_update, steps_per_update
from advantage.memory.uniform import Batch
from advantage.networks.distributional import CategoricalNetwork, of_actions
from advantage.networks.mlp import Activation
from advantage.networks.optimisers import Optimizer, adam
from advantage.networks.q_network import q_network
from advantage.networks.recurrent import Recurrence
from advantage.types import Metrics, Spec, require


def target_probs(
    config: "Config", network: CategoricalNetwork, target_network: CategoricalNetwork, batch: Batch
) -> Float[Array, "B N"]:
    """The distribution of `r + gamma Z'(s', a*)` on the atoms (eq. 7); a* is `config.next_action`."""
    support = atoms(config.v_min, config.v_max, config.n_atoms)
    action = config.next_action(network, target_network, batch.next_obs, batch.next_mask)
    probs = jnp.exp(of_actions(target_network.log_probs(batch.next_obs), action))
    returns = jax.vmap(td_target, (None, None, 1), 1)(
        batch.reward, batch.discount, jnp.broadcast_to(support[None], probs.shape)
    )
    return projected(probs, returns, support)


def loss(
    config: "Config", network: CategoricalNetwork, target_network: CategoricalNetwork, batch: Batch
) -> tuple[Float[Array, ""], tuple[Metrics, Float[Array, " B"]]]:
    """Cross-entropy of the returns of the actions taken, to be minimised (algorithm 1).

    Returns `(loss, (metrics, divergence of each))`: prioritised replay draws by the latter, as Rainbow's does.
    """
    target = jax.lax.stop_gradient(target_probs(config, network, target_network, batch))
    log_probs = of_actions(network.log_probs(batch.obs), batch.action)
    total = jnp.mean(batch.weight * cross_entropy(target, log_probs))
    value = jnp.exp(log_probs) @ atoms(config.v_min, config.v_max, config.n_atoms)
    return total, ({"train/loss": total, "train/q_value": jnp.mean(value)}, divergence(target, log_probs))


class Config(eqx.Module):
    """C51's hyper-parameters under the names of DQN; the atoms are those of the paper, for rewards clipped to [-1, 1]."""

    learning_rate: Scalar = 1e-4  # step size of the optimiser; 1e-5 to 1e-3
    buffer_size: int = eqx.field(static=True, default=1_000_000)  # transitions remembered, all environments
    learning_starts: int = eqx.field(static=True, default=100)  # random steps before learning
    batch_size: int = eqx.field(static=True, default=32)  # transitions per gradient step
    tau: Scalar = 1.0  # share of the online network that the target takes over; 1: a copy
    gamma: Scalar = 0.99  # discount per step; 0.9 to 0.9999
    train_freq: int | tuple[int, str] = eqx.field(static=True, default=4)  # vector steps or episodes per update
    gradient_steps: int = eqx.field(static=True, default=1)  # per update; -1: as many as steps collected
    n_steps: int = eqx.field(static=True, default=1)  # steps of a return before it bootstraps; 1 to 10
    target_update_interval: int = eqx.field(static=True, default=10_000)  # environment steps
    exploration_fraction: Scalar = 0.1  # share of training over which epsilon falls
    exploration_initial_eps: Scalar = 1.0  # epsilon at the start
    exploration_final_eps: Scalar = 0.05  # epsilon from then on
    max_grad_norm: Scalar = 10.0  # largest joint norm of the gradient
    n_atoms: int = eqx.field(static=True, default=51)  # returns that have probabilities
    v_min: float = eqx.field(static=True, default=-10.0)  # the least of them, a discounted return
    v_max: float = eqx.field(static=True, default=10.0)  # the greatest of them
    updates_per_step: float | None = eqx.field(static=True, default=None)  # in place of gradient_steps: per environment step
    replay_beta: Scalar = 1.0  # exponent of importance weights now: set from its schedule before every update
    net_arch: tuple[int, ...] = eqx.field(static=True, default=(64, 64))  # layer widths
    activation_fn: Activation = eqx.field(static=True, default=jax.nn.relu)  # between hidden layers
    features_extractor: Callable[..., eqx.Module] | None = eqx.field(static=True, default=None)
    recurrence: Recurrence | None = eqx.field(static=True, default=None)  # how a recurrent policy remembers
    optimizer: Optimizer = eqx.field(static=True, default=adam)  # function of the learning rate
    network: Callable[..., Any] = eqx.field(static=True, default=q_network)
    next_action: Callable[..., Array] = eqx.field(static=True, default=greedy_action)  # whose returns are taken
    loss: Callable[..., tuple[Array, tuple[Metrics, Array]]] = eqx.field(static=True, default=loss)
    exploration: Callable[..., Array] = eqx.field(static=True, default=epsilon_greedy)
    exploration_rate: Scalar = 1.0  # epsilon now: set from its schedule before every update

    steps_per_update = property(steps_per_update)
    episodes_per_update = property(episodes_per_update)

    def check(self, spec: Spec, num_envs: int) -> list[str]:
        """Raise `ValueError` for settings that cannot work; return notes on what will be done with others."""
        require(self, 1, math.inf, "target_update_interval")
        require(self, 2, math.inf, "n_atoms")
        require(self, 0, math.inf, "learning_rate", "max_grad_norm")
        require(self, 0, 1, "tau", "gamma", "exploration_fraction", "exploration_initial_eps", "exploration_final_eps")
        if not self.v_min < self.v_max:
            raise ValueError(f"v_min={self.v_min!r} has to be less than v_max={self.v_max!r}: they bound discounted returns")
        check_replay(self, num_envs)
        return []


def init(config: Config, spec: Spec, key: Key) -> State:
    """A fresh agent."""
    network, key = made(config, spec, key, numbers=config.n_atoms)
    return begun(config, CategoricalNetwork(network, config.n_atoms, config.v_min, config.v_max), key)

"""Deep Q-learning with replay and a target network (Mnih et al., 2015, https://doi.org/10.1038/nature14236)."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from advantage.equations.distributions import Key
from advantage.equations.objectives import action_values, huber, td_target
from advantage.equations.returns import Scalar
from advantage.equations.schedules import Linear, Schedule
from advantage.equations.soft import soft_update
from advantage.equations.threefry import written_out
from advantage.memory.frequency import check_replay, episodes_per_update, steps_per_update
from advantage.memory.replayed import observe as counted
from advantage.memory.uniform import Batch
from advantage.networks import optimisers
from advantage.networks.mlp import Activation
from advantage.networks.noisy import drawn
from advantage.networks.optimisers import Optimizer, adam, descend
from advantage.networks.q_network import ActionValues, legal_values, q_network
from advantage.networks.recurrent import Recurrence
from advantage.types import NONFINITE, Chunk, Metrics, Observed, Spec, require
from advantage.types import to_env as to_env  # Discrete is shifted by its start

ACTION_SPACES = ("discrete",)
NOISE = 0x6E6F6973  # folded into a key where noise is drawn, so that what else is drawn stays as it is
LOGGED = {"learning_rate": "train/learning_rate", "exploration_rate": "rollout/exploration_rate"}


def greedy_value(
    network: ActionValues, target_network: ActionValues, obs: PyTree, action_mask: Bool[Array, "B A"] | None
) -> Float[Array, " B"]:
    """`max_a Q'(s, a)`, what the target network says of the legal action it thinks best (Mnih et al., 2015)."""
    return jnp.max(legal_values(target_network(obs), action_mask), axis=-1)


def td_error(
    config: "Config", network: ActionValues, target_network: ActionValues, batch: Batch
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """`(Q(s, a) - (r + gamma V(s')), Q(s, a))`, without a gradient for the target (Mnih et al., 2015, eq. 1).

    V is `config.bootstrap`: of DQN `greedy_value`.
    """
    next_value = config.bootstrap(network, target_network, batch.next_obs, batch.next_mask)
    target = jax.lax.stop_gradient(td_target(batch.reward, batch.discount, next_value))
    value = action_values(network(batch.obs), batch.action)
    return value - target, value


def loss(
    config: "Config", network: ActionValues, target_network: ActionValues, batch: Batch
) -> tuple[Float[Array, ""], tuple[Metrics, Float[Array, " B"]]]:
    """Huber loss of the temporal-difference error, to be minimised (Mnih et al., 2015, eq. 1).

    Returns `(loss, (metrics, how wrong it was about each))`: prioritised replay draws by the latter.
    """
    error, value = td_error(config, network, target_network, batch)
    total = jnp.mean(batch.weight * huber(error))
    return total, ({"train/loss": total, "train/q_value": jnp.mean(value)}, jnp.abs(error))


def epsilon_greedy(
    q: Float[Array, "N A"], epsilon: Float[Array, ""], action_mask: Bool[Array, "N A"] | None, key: Key
) -> Int[Array, " N"]:
    """The best legal action, or with probability epsilon any legal one, from one uniform draw each."""
    legal = jnp.ones(q.shape, bool) if action_mask is None else action_mask
    best = jnp.argmax(legal_values(q, action_mask), axis=-1)
    drawn = jax.random.uniform(key, q.shape[:1])
    # Given that it fell below epsilon, drawn / epsilon is uniform again: it picks the action.
    choices = jnp.sum(legal, axis=-1).astype(jnp.float32)
    rank = jnp.floor(drawn / jnp.maximum(epsilon, 1e-12) * choices).astype(jnp.int32)
    random = jnp.argmax(jnp.cumsum(legal, axis=-1) > rank[:, None], axis=-1)
    return jnp.where(drawn < epsilon, random, best).astype(jnp.int32)


class Config(eqx.Module):
    """DQN's hyper-parameters under SB3's names, with SB3's defaults."""

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
    updates_per_step: float | None = eqx.field(static=True, default=None)  # in place of gradient_steps: per environment step
    replay_beta: Scalar = 1.0  # exponent of importance weights now: set from its schedule before every update
    net_arch: tuple[int, ...] = eqx.field(static=True, default=(64, 64))  # layer widths
    activation_fn: Activation = eqx.field(static=True, default=jax.nn.relu)  # between hidden layers
    features_extractor: Callable[..., eqx.Module] | None = eqx.field(static=True, default=None)
    recurrence: Recurrence | None = eqx.field(static=True, default=None)  # how a recurrent policy remembers
    optimizer: Optimizer = eqx.field(static=True, default=adam)  # function of the learning rate
    network: Callable[..., Any] = eqx.field(static=True, default=q_network)
    bootstrap: Callable[..., Array] = eqx.field(static=True, default=greedy_value)  # the value of what followed
    loss: Callable[..., tuple[Array, tuple[Metrics, Array]]] = eqx.field(static=True, default=loss)
    exploration: Callable[..., Array] = eqx.field(static=True, default=epsilon_greedy)
    exploration_rate: Scalar = 1.0  # epsilon now: set from its schedule before every update

    steps_per_update = property(steps_per_update)
    episodes_per_update = property(episodes_per_update)

    def check(self, spec: Spec, num_envs: int) -> list[str]:
        """Raise `ValueError` for settings that cannot work; return notes on what will be done with others."""
        require(self, 1, math.inf, "target_update_interval")
        require(self, 0, math.inf, "learning_rate", "max_grad_norm")
        require(self, 0, 1, "tau", "gamma", "exploration_fraction", "exploration_initial_eps", "exploration_final_eps")
        check_replay(self, num_envs)
        return []


class State(NamedTuple):
    """All that DQN learns, and its relatives, which share what follows with `Config` of their own."""

    network: ActionValues
    target_network: ActionValues
    optimizer: PyTree
    steps: Array  # environment steps, up to 2^31 - 1: only compared with learning_starts
    since_sync: Array  # environment steps since the target network was last updated
    n_updates: Array  # gradient steps so far
    key: Array


def init(config: Config, spec: Spec, key: Key) -> State:
    """A fresh agent."""
    return begun(config, *made(config, spec, key))


def made(config: Any, spec: Spec, key: Key, **options: Any) -> tuple[ActionValues, Key]:
    """A fresh network, and a key for what comes next."""
    network_key, features_key, key = jax.random.split(key, 3)
    features = None if config.features_extractor is None else config.features_extractor(spec.observation, features_key)
    common = {"net_arch": config.net_arch, "activation": config.activation_fn, "features": features}
    return config.network(spec, network_key, **common, **options), key


def begun(config: Any, network: ActionValues, key: Key) -> State:
    """The agent that begins with a network."""
    target = jax.tree.map(jnp.copy, network)  # its own buffers: both are donated
    zeros = [jnp.zeros((), jnp.int32) for _ in range(3)]
    return State(network, target, optimisers.init(config.optimizer, network), *zeros, key)


def initial_carry(config: Any, spec: Spec, num_envs: int) -> tuple[()]:
    """No carry."""
    return ()


class Actor(NamedTuple):
    """What acting needs."""

    network: ActionValues
    epsilon: Float[Array, ""]


def actor(config: Any, state: State) -> Actor:
    """The network and epsilon: 1 until `learning_starts`, then what the schedule says."""
    return Actor(state.network, jnp.where(state.steps < config.learning_starts, 1.0, config.exploration_rate))


def act(
    config: Any, actor: Actor, carry: Any, observed: Observed, key: Key, explore: bool
) -> tuple[Int[Array, " N"], Any]:
    """Epsilon-greedy actions, or the best ones."""
    epsilon = actor.epsilon if explore else jnp.float32(0.0)
    network = drawn(actor.network, jax.random.fold_in(key, NOISE)) if explore else actor.network
    return config.exploration(network(observed.obs), epsilon, observed.action_mask, key), carry


def schedules(config: Any) -> dict[str, Schedule]:
    """Fields that change over training by themselves: epsilon."""
    start, end = float(config.exploration_initial_eps), float(config.exploration_final_eps)
    return {"exploration_rate": Linear(start, end, float(config.exploration_fraction))}


def observe(config: Any, state: State, chunk: Chunk) -> State:
    """Count a chunk's steps and update the target network once for each interval it completes."""
    collected = jnp.sum(chunk.valid, dtype=jnp.int32)
    # Unsigned: an interval may be as long as the largest of 32 bits, which the sum exceeds.
    interval = jnp.uint32(config.target_update_interval)
    since = state.since_sync.astype(jnp.uint32) + collected.astype(jnp.uint32)
    syncs = since // interval
    # The online network stands still meanwhile, so k soft updates are one with 1 - (1 - tau)^k.
    share = 1.0 - jnp.power(1.0 - config.tau, syncs.astype(jnp.float32))
    moved = soft_update(state.target_network, state.network, share)
    target = jax.tree.map(lambda old, new: jnp.where(syncs > 0, new, old), state.target_network, moved)
    state = counted(config, state, chunk)
    return state._replace(target_network=target, since_sync=(since % interval).astype(jnp.int32))


def learn(config: Any, state: State, batch: Batch) -> tuple[State, Metrics, Float[Array, " B"]]:
    """One gradient step; the identity where a gradient is not finite."""
    keys = [jax.random.fold_in(written_out(state.key), NOISE + i) for i in range(2)]
    (_, (metrics, error)), gradients = jax.value_and_grad(config.loss, argnums=1, has_aux=True)(
        config, drawn(state.network, keys[0]), drawn(state.target_network, keys[1]), batch
    )
    network, optimizer_state, applied = descend(
        config.optimizer, config.learning_rate, config.max_grad_norm, state.network, gradients, state.optimizer
    )
    metrics[NONFINITE] = (~applied).astype(jnp.float32)
    state = state._replace(network=network, optimizer=optimizer_state, n_updates=state.n_updates + 1)
    return state, metrics, error

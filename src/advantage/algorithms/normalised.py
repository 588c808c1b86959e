"""Any algorithm, on normalised observations and rewards (Engstrom et al., 2020, https://arxiv.org/abs/2005.12729).

A composition and no algorithm: what it wraps never knows of it. Statistics are part of the State, so every
seed has its own and a file holds them. Observations are normalised as the algorithm reads them: in `act`, in
a chunk, in a batch from replay, which stores them raw.

- On-policy: a chunk is normalised by the statistics that acted, then learned from, then counted.
- Off-policy: a chunk is counted first; batches are normalised by the statistics of the moment.
- Rewards are divided by the standard deviation of the discounted return, this chunk's included.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from advantage.equations.moments import Moments, fresh, include, running_returns, standardised
from advantage.equations.normalisation import Normalisation
from advantage.networks.recurrent import Windows
from advantage.types import Agent, Chunk, Metrics, Observed, Spec, sanitise

Statistics = dict[str, tuple]
"""Mean and variance of observations, by key."""


class Normaliser(NamedTuple):
    """One seed's statistics, and whether they are in use: switching compiles nothing."""

    obs: dict[str, Moments]  # by key; "obs" where observations are a plain Box
    returns: Moments  # of the discounted return
    training: Bool[Array, ""]  # whether they go on changing
    norm_reward: Bool[Array, ""]

    @property
    def statistics(self) -> Statistics:
        """Mean and variance of the observations."""
        return {name: (moments.mean, moments.var) for name, moments in self.obs.items()}


class State(eqx.Module):
    """The algorithm's State and the statistics."""

    inner: PyTree
    normaliser: Normaliser

    @property
    def steps(self) -> Array:
        """The algorithm's."""
        return self.inner.steps

    @property
    def n_updates(self) -> Array:
        """The algorithm's."""
        return self.inner.n_updates

    @property
    def key(self) -> Array:
        """The algorithm's."""
        return self.inner.key

    def _replace(self, **fields: PyTree) -> "State":
        """As of a named tuple; what is not its own is the algorithm's."""
        own = {name: fields.pop(name) for name in ("inner", "normaliser") if name in fields}
        state = dataclasses.replace(self, **own)
        return dataclasses.replace(state, inner=state.inner._replace(**fields)) if fields else state


class Actor(NamedTuple):
    """What acting needs."""

    inner: PyTree
    obs: Statistics


class Memory(NamedTuple):
    """The algorithm's memory, and each environment's discounted return so far."""

    inner: PyTree
    returns: Float[Array, " N"]


@dataclasses.dataclass(frozen=True)
class Normalised:
    """An algorithm on normalised observations and rewards; what is not said here is the algorithm's own."""

    algorithm: Any  # follows `types.Algorithm`
    settings: Normalisation

    def __getattr__(self, name: str) -> Any:
        part = getattr(object.__getattribute__(self, "algorithm"), name)
        own = {"update": _update, "observe": _observe, "learn": _learn}.get(name)
        return part if own is None else functools.partial(own, self)

    def inner_spec(self, spec: Spec) -> Spec:
        """What the algorithm sees of the environment."""
        return dataclasses.replace(spec, observation=self.settings.seen(spec.observation))

    def init(self, config: Any, spec: Spec, key: Array) -> State:
        """A fresh agent that has seen nothing."""
        parts = self.settings.parts(spec.observation)
        obs = {name: fresh(part.shape) for name, part in parts.items()}
        flags = jnp.asarray(True), jnp.asarray(self.settings.norm_reward)
        return State(self.algorithm.init(config, self.inner_spec(spec), key), Normaliser(obs, fresh(()), *flags))

    def initial_carry(self, config: Any, spec: Spec, num_envs: int) -> PyTree:
        """The algorithm's."""
        return self.algorithm.initial_carry(config, self.inner_spec(spec), num_envs)

    def actor(self, config: Any, state: State) -> Actor:
        """The algorithm's, and the observations' mean and variance."""
        return Actor(self.algorithm.actor(config, state.inner), state.normaliser.statistics)

    def act(
        self, config: Any, actor: Actor, carry: PyTree, observed: Observed, key: Array, explore: bool
    ) -> tuple[PyTree, PyTree]:
        """The algorithm's action on what it sees."""
        observed = observed._replace(obs=self.seen(actor.obs, observed.obs))
        return self.algorithm.act(config, actor.inner, carry, observed, key, explore)

    def seen(self, statistics: Statistics, obs: PyTree) -> PyTree:
        """Observations `[..., *shape]` by these means and variances; those in windows where they are."""
        if isinstance(obs, Windows):
            following = None if obs.following is None else self.seen(statistics, obs.following)
            return obs._replace(obs=self.seen(statistics, obs.obs), following=following)
        epsilon, clip = self.settings.epsilon, self.settings.clip_obs
        plain = not isinstance(obs, dict)
        parts = {"obs": obs} if plain else obs
        parts = parts | {name: standardised(parts[name], *of, epsilon, clip) for name, of in statistics.items()}
        return parts["obs"] if plain else parts

    def scaled(self, normaliser: Normaliser, reward: Float[Array, "..."], steps: int = 1) -> Float[Array, "..."]:
        """Rewards, or sums of `steps` rewards, by the scale of returns."""
        zero, clip = jnp.zeros((), jnp.float32), self.settings.clip_reward * steps
        scaled = standardised(reward, zero, normaliser.returns.var, self.settings.epsilon, clip)
        return jnp.where(normaliser.norm_reward, scaled, reward)


def normalised_agent(agent: Agent) -> Agent:
    """The agent of a `Normalised` algorithm, with the discounted returns of its environments in its memory."""
    settings = agent.algorithm.settings

    def update(config: Any, state: State, memory: Memory, chunk: Chunk) -> tuple[State, Memory, Metrics]:
        gamma = config.gamma if settings.gamma is None else settings.gamma
        returns, after = running_returns(chunk.reward, chunk.is_first, chunk.valid, gamma, memory.returns)
        normaliser = state.normaliser
        counted = include(normaliser.returns, returns, chunk.valid & normaliser.training)
        state = state._replace(normaliser=normaliser._replace(returns=counted))
        state, inner, metrics = agent.update(config, state, memory.inner, chunk)
        return state, Memory(inner, after), metrics

    def init_memory(config: Any, spec: Spec, num_envs: int) -> Memory:
        return Memory(agent.init_memory(config, spec, num_envs), jnp.zeros(num_envs, jnp.float32))

    def drawn(config: Any, state: State, memory: Memory) -> tuple[State, Any]:
        return agent.drawn(config, state, memory.inner)

    def push(memory: Memory, chunk: Chunk) -> Memory:
        return memory._replace(inner=agent.push(memory.inner, chunk))

    if agent.drawn is None:
        return Agent(agent.algorithm, update, init_memory)
    return Agent(agent.algorithm, update, init_memory, drawn, push)


def _update(
    self: Normalised, config: Any, state: State, memory: PyTree, chunk: Chunk
) -> tuple[State, PyTree, Metrics]:
    """On-policy: learn by the statistics that acted, then count."""
    chunk = sanitise(chunk)
    seen = _seen_chunk(self, state.normaliser, chunk)
    inner, memory, metrics = self.algorithm.update(config, state.inner, memory, seen)
    return State(inner, _counted(state.normaliser, chunk)), memory, metrics


def _observe(self: Normalised, config: Any, state: State, chunk: Chunk) -> State:
    """Off-policy: count, then what the algorithm does once per chunk."""
    chunk = sanitise(chunk)
    normaliser = _counted(state.normaliser, chunk)
    return State(self.algorithm.observe(config, state.inner, _seen_chunk(self, normaliser, chunk)), normaliser)


def _learn(self: Normalised, config: Any, state: State, batch: Any) -> tuple:
    """Off-policy: one minibatch, by the statistics of the moment."""
    normaliser = state.normaliser
    statistics = normaliser.statistics
    seen = batch._replace(
        obs=self.seen(statistics, batch.obs),
        next_obs=self.seen(statistics, batch.next_obs),
        reward=self.scaled(normaliser, batch.reward, getattr(config, "n_steps", 1)),
    )
    inner, *rest = self.algorithm.learn(config, state.inner, seen)
    return State(inner, normaliser), *rest


def _seen_chunk(self: Normalised, normaliser: Normaliser, chunk: Chunk) -> Chunk:
    see = functools.partial(self.seen, normaliser.statistics)
    return chunk._replace(
        obs=see(chunk.obs),
        last_obs=see(chunk.last_obs),
        final_obs=None if chunk.final_obs is None else see(chunk.final_obs),
        reward=self.scaled(normaliser, chunk.reward),
    )


def _counted(normaliser: Normaliser, chunk: Chunk) -> Normaliser:
    """The statistics with the observations of a chunk's valid rows."""
    parts = chunk.obs if isinstance(chunk.obs, dict) else {"obs": chunk.obs}
    valid = chunk.valid & normaliser.training
    obs = {name: include(moments, parts[name], valid) for name, moments in normaliser.obs.items()}
    return normaliser._replace(obs=obs)

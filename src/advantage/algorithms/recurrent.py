"""Any algorithm whose networks remember: recurrent SAC, TD3, DDPG and TQC, DQN and its relatives, PPO and A2C.

Compositions and no algorithms: what they wrap never knows of them. Actor and critics get features from memories of
their own (Ni et al., 2022, https://arxiv.org/abs/2110.05038: one for both learns worse). A network of action values acts
and learns by one, from stored states (Kapturowski et al., 2019, R2D2, https://openreview.net/forum?id=r1lyTjAqYX).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from advantage.memory.rollout import sequence_length
from advantage.networks.recurrent import Carry, Encoded, RecurrentFeatures, Steps, empty_carry, recurrent_features
from advantage.types import Chunk, Metrics, Observed, Spec, sanitise


class Remembered(NamedTuple):
    """What acting carries from step to step."""

    memory: PyTree  # the actor's carry; on-policy also the value function's
    inner: PyTree  # the algorithm's own: noise


@dataclasses.dataclass(frozen=True)
class Recurrent:
    """An off-policy algorithm on features that remember; what is not said here is the algorithm's own.

    Acting carries the actor's memory from step to step. `memory.sequences` gives `learn` windows of the past, as rows
    like any others.
    """

    algorithm: Any  # follows `types.Algorithm`; its config has a `recurrence`

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "algorithm"), name)

    def init(self, config: Any, spec: Spec, key: Array) -> PyTree:
        """A fresh agent; in a window what acts begins with what it remembered then, critics with nothing."""
        words = config.recurrence, config.features_extractor
        if not hasattr(config, "critics"):
            return self.algorithm.init(dataclasses.replace(config, features_extractor=recurrent_features(*words)), spec, key)
        of_actor, of_critics = (recurrent_features(*words, stored) for stored in (True, False))
        builders = {"actor": _on(config.actor, of_actor), "critics": _on(config.critics, of_critics)}
        return self.algorithm.init(dataclasses.replace(config, **builders), spec, key)

    def initial_carry(self, config: Any, spec: Spec, num_envs: int) -> Remembered:
        """Nothing remembered, and the algorithm's own."""
        inner = self.algorithm.initial_carry(config, spec, num_envs)
        return Remembered(empty_carry(config.recurrence, num_envs), inner)

    def act(
        self, config: Any, actor: Any, carry: Remembered, observed: Observed, key: Array, explore: bool
    ) -> tuple[Array, Remembered]:
        """The algorithm's action on what the actor sees and remembers."""
        acting = actor.policy if hasattr(actor, "policy") else actor.network
        features, memory = acting.features.step(carry.memory, observed.obs, observed.is_first)
        observed = observed._replace(obs=Encoded(features))
        action, inner = self.algorithm.act(config, actor, carry.inner, observed, key, explore)
        return action, Remembered(memory, inner)


class Acting(NamedTuple):
    """What acting needs."""

    policy: PyTree  # the algorithm's
    values: RecurrentFeatures  # of the value function, whose memory goes along


@dataclasses.dataclass(frozen=True)
class RecurrentOnPolicy:
    """An on-policy algorithm on features that remember; what is not said here is the algorithm's own.

    Acting carries the memories of policy and value function. What both remembered before each row of a rollout is
    computed anew from what they remembered before its first, so that `update` sees rows like any others.
    """

    algorithm: Any  # follows `types.Algorithm`; its config has a `recurrence`

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "algorithm"), name)

    def init(self, config: Any, spec: Spec, key: Array) -> PyTree:
        """A fresh agent.

        Raises:
            ValueError: a network of the user's does not stand on the memories that it is given.
        """
        state = self.algorithm.init(_remembering(config), spec, key)
        for part in (getattr(state.network, "actor", None), state.network):
            if not isinstance(getattr(part, "features", None), RecurrentFeatures):
                raise ValueError(
                    f"network={config.network!r} of a recurrent policy has to hold what it is given as `features` in"
                    " `network.actor.features` and as `value_features` in `network.features`"
                )
        return state

    def initial_carry(self, config: Any, spec: Spec, num_envs: int) -> Remembered:
        """Nothing remembered, and the algorithm's own."""
        inner = self.algorithm.initial_carry(_remembering(config), spec, num_envs)
        return Remembered(tuple(empty_carry(config.recurrence, num_envs) for _ in range(2)), inner)

    def actor(self, config: Any, state: PyTree) -> Acting:
        """The algorithm's, and the value function's memory."""
        return Acting(self.algorithm.actor(config, state), state.network.features)

    def act(
        self, config: Any, actor: Acting, carry: Remembered, observed: Observed, key: Array, explore: bool
    ) -> tuple[Array, Remembered]:
        """The algorithm's action on what the actor sees and remembers."""
        rows = observed.obs, observed.is_first
        features, of_policy = actor.policy.features.step(carry.memory[0], *rows)
        _, of_values = actor.values.step(carry.memory[1], *rows)
        observed = observed._replace(obs=Encoded(features))
        action, inner = self.algorithm.act(config, actor.policy, carry.inner, observed, key, explore)
        return action, Remembered((of_policy, of_values), inner)

    def update(self, config: Any, state: PyTree, memory: Any, chunk: Chunk) -> tuple[PyTree, Any, Metrics]:
        """The algorithm's update on a rollout whose every row knows what was remembered before it."""
        features = state.network.actor.features, state.network.features
        config = dataclasses.replace(config, loss=_in_sequences(config.loss, sequence_length(config)))
        return self.algorithm.update(config, state, memory, remembered(features, sanitise(chunk)))


def remembered(features: tuple[RecurrentFeatures, ...], chunk: Chunk) -> Chunk:
    """A sanitised chunk with `Steps` for observations, by the features that acted."""
    starts = chunk.carry.memory
    after = tuple(
        one.sequence(start, chunk.obs, chunk.is_first)[1] for one, start in zip(features, starts, strict=True)
    )
    before = jax.tree.map(lambda start, x: jnp.concatenate([start[None], x[:-1]]), starts, after)
    # What followed a row goes on from what is remembered after it, also where an episode ended.
    goes_on = jnp.zeros_like(chunk.is_first)
    last = jax.tree.map(lambda x: x[-1], after)
    return chunk._replace(
        obs=Steps(chunk.obs, chunk.is_first, before),
        final_obs=None if chunk.final_obs is None else Steps(chunk.final_obs, goes_on, after),
        last_obs=Steps(chunk.last_obs, goes_on[-1], last),
    )


def _in_sequences(loss: Callable[..., Any], length: int) -> Callable[..., Any]:
    """The loss of rows that are sequences of `length`, along which the memory learns."""
    return lambda config, network, rows: loss(
        config, network, rows._replace(obs=dataclasses.replace(rows.obs, length=length))
    )


def _remembering(config: Any) -> Any:
    """A config whose network stands on memories, one of the policy and one of the value function."""

    def network(spec: Spec, key: Array, **words: Any) -> Any:
        key, *keys = jax.random.split(key, 3)
        features, value_features = (
            recurrent_features(config.recurrence, config.features_extractor, which=i)(spec.observation, key)
            for i, key in enumerate(keys)
        )
        return config.network(spec, key, **words, features=features, value_features=value_features)

    return dataclasses.replace(config, network=network, features_extractor=None)


def _on(build: Callable[..., Any], features: Callable[..., Any]) -> Callable[..., Any]:
    """A builder of networks that puts them on these features."""
    return lambda *arguments, **words: build(*arguments, **{**words, "features": features})

"""Any off-policy actor-critic whose networks remember: recurrent SAC, TD3, DDPG and TQC.

A composition and no algorithm: what it wraps never knows of it. Actor and critics get features from memories of their
own (Ni et al., 2022, https://arxiv.org/abs/2110.05038: one for both learns worse); acting carries the actor's from step
to step. `memory.sequences` gives `learn` windows of the past, as rows like any others.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, PyTree

from advantage.networks.recurrent import Carry, Encoded, empty_carry, recurrent_features
from advantage.types import Observed, Spec


class Remembered(NamedTuple):
    """What acting carries from step to step."""

    memory: Carry  # the actor's
    inner: PyTree  # the algorithm's own: noise


@dataclasses.dataclass(frozen=True)
class Recurrent:
    """An algorithm on features that remember; what is not said here is the algorithm's own."""

    algorithm: Any  # follows `types.Algorithm`; its config has a `recurrence`

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "algorithm"), name)

    def init(self, config: Any, spec: Spec, key: Array) -> PyTree:
        """A fresh agent; in a window its actor begins with what it remembered then, its critics with nothing."""
        words = config.recurrence, config.features_extractor
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
        features, memory = actor.policy.features.step(carry.memory, observed.obs, observed.is_first)
        observed = observed._replace(obs=Encoded(features))
        action, inner = self.algorithm.act(config, actor, carry.inner, observed, key, explore)
        return action, Remembered(memory, inner)


def _on(build: Callable[..., Any], features: Callable[..., Any]) -> Callable[..., Any]:
    """A builder of networks that puts them on these features."""
    return lambda *arguments, **words: build(*arguments, **{**words, "features": features})

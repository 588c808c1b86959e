"""Actors and critics of off-policy control with discrete actions: one output for each action."""

from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array, Float, PyTree

from advantage.equations.distributions import Categorical, Key
from advantage.networks.features import Flatten
from advantage.networks.mlp import MLP, Activation, Linear, dense_layers
from advantage.types import Space, Spec

Features = Callable[[Space, Key], eqx.Module] | None


class CategoricalActor(eqx.Module):
    """The distribution over actions in a state."""

    features: Flatten | eqx.Module
    hidden: MLP
    head: Linear

    def __call__(self, obs: PyTree) -> Categorical:
        return Categorical(self.head(self.hidden(self.features(obs))))


class DiscreteCritics(eqx.Module):
    """C action-value functions side by side; `hidden` and `head` have a leading axis C."""

    features: Flatten | eqx.Module
    hidden: MLP
    head: Linear

    def __call__(self, obs: PyTree) -> Float[Array, "C *batch A"]:
        x = self.features(obs)
        return jax.vmap(lambda hidden, head: head(hidden(x)))(self.hidden, self.head)


def categorical_actor(
    spec: Spec,
    key: Key,
    *,
    net_arch: tuple[int, ...] = (256, 256),
    activation: Activation = jax.nn.relu,
    features: Features = None,
) -> CategoricalActor:
    """ReLU layers from torch's default initialisation. `features` replaces the flattening of observations:
    `features(space, key)` gives a module with `size` that maps `[*batch, ...]` to `[*batch, size]`."""
    features_key, key = jax.random.split(key)
    extractor = Flatten(spec.observation) if features is None else features(spec.observation, features_key)
    return CategoricalActor(extractor, *dense_layers(key, extractor.size, net_arch, spec.action.n[0], activation))


def discrete_critics(
    spec: Spec,
    key: Key,
    *,
    net_arch: tuple[int, ...] = (256, 256),
    activation: Activation = jax.nn.relu,
    n_critics: int = 2,
    features: Features = None,
) -> DiscreteCritics:
    """`n_critics` action-value functions, which share `features` (as for `categorical_actor`) and nothing else."""
    features_key, key = jax.random.split(key)
    extractor = Flatten(spec.observation) if features is None else features(spec.observation, features_key)

    def one(key: Key) -> tuple[MLP, Linear]:
        return dense_layers(key, extractor.size, net_arch, spec.action.n[0], activation)

    return DiscreteCritics(extractor, *jax.vmap(one)(jax.random.split(key, n_critics)))

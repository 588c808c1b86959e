"""Actors and critics of off-policy control with discrete actions: one output for each action."""

import equinox as eqx
import jax
from jaxtyping import Array, Float, PyTree

from advantage.equations.distributions import Categorical, Key
from advantage.networks.continuous import Features, on_features, side_by_side
from advantage.networks.features import Flatten
from advantage.networks.mlp import MLP, Activation, Linear
from advantage.types import Spec


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
    return CategoricalActor(*on_features(spec, key, net_arch, spec.action.n[0], activation, features))


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
    return DiscreteCritics(*side_by_side(spec, key, net_arch, spec.action.n[0], activation, n_critics, features))

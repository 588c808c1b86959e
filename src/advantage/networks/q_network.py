"""Action-value network of the value-based family."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from advantage.equations.distributions import Key
from advantage.networks.features import Flatten
from advantage.networks.mlp import MLP, Activation, Linear, dense_networks
from advantage.types import Spec

ActionValues = Callable[[PyTree], Array]
"""`Q(s, .)` `[*batch, actions]` of observations: `QNetwork`, `DuelingNetwork`, or one of yours."""


class QNetwork(eqx.Module):
    """`Q(s, .)` `[*batch, actions]`, or several numbers for each action, side by side."""

    features: Flatten | eqx.Module
    hidden: MLP
    head: Linear

    def __call__(self, obs: PyTree) -> Float[Array, "*batch A"]:
        return self.head(self.hidden(self.features(obs)))


def legal_values(q: Float[Array, "B A"], action_mask: Bool[Array, "B A"] | None) -> Float[Array, "B A"]:
    """`Q(s, .)` with minus infinity for illegal actions: no maximum is taken by one. None: all are legal."""
    return q if action_mask is None else jnp.where(action_mask, q, -jnp.inf)


def q_network(
    spec: Spec,
    key: Key,
    *,
    net_arch: tuple[int, ...] = (64, 64),
    activation: Activation = jax.nn.relu,
    features: eqx.Module | None = None,
    numbers: int = 1,
) -> QNetwork:
    """SB3's Q-network: ReLU layers from torch's default initialisation.

    `features` replaces the flattening of observations: a module with `size` that maps `[*batch, ...]`
    to `[*batch, size]`. `numbers` are put out for each action.
    """
    features = Flatten(spec.observation) if features is None else features
    width = (features.size, *net_arch)[-1]
    (hidden,), (head,) = dense_networks(
        key, [(features.size, net_arch)], [(width, spec.action.n[0] * numbers, 1.0)], activation, ortho_init=False
    )
    return QNetwork(features, hidden, head)

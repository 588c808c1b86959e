"""A network that answers any quantile of an action's returns (Dabney et al., 2018, https://arxiv.org/abs/1806.06923)."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from advantage.equations.distributions import Key
from advantage.equations.quantiles import quantile_midpoints
from advantage.networks.features import Flatten
from advantage.networks.mlp import MLP, Activation, Linear, dense_networks
from advantage.types import Spec


class ImplicitNetwork(eqx.Module):
    """`Z_tau(s, .)`: features of the state times an embedding of the fraction tau, then the last layers (section 3.1)."""

    features: Flatten | eqx.Module
    shared: MLP
    embedding: Linear
    hidden: MLP
    head: Linear
    samples: int = eqx.field(static=True)  # fractions over which a value is a mean

    def __call__(self, obs: PyTree) -> Float[Array, "*batch A"]:
        """The means, over the midpoints of `samples` equal shares of probability."""
        state = self.shared(self.features(obs))
        midpoints = quantile_midpoints(self.samples).reshape((1,) * (state.ndim - 1) + (-1,))
        return jnp.mean(self._of(state, jnp.broadcast_to(midpoints, (*state.shape[:-1], self.samples))), axis=-1)

    def quantiles(self, obs: PyTree, fractions: Float[Array, "*batch N"]) -> Float[Array, "*batch A N"]:
        """The quantiles of these fractions, of each action."""
        return self._of(self.shared(self.features(obs)), fractions)

    def _of(self, state: Float[Array, "*batch F"], fractions: Float[Array, "*batch N"]) -> Float[Array, "*batch A N"]:
        count = self.embedding.weight.shape[0]
        waves = jnp.arange(count, dtype=jnp.float32).reshape((1,) * fractions.ndim + (-1,))
        embedded = jax.nn.relu(self.embedding(jnp.cos(jnp.pi * fractions[..., None] * waves)))  # eq. 4
        return jnp.moveaxis(self.head(self.hidden(state[..., None, :] * embedded)), -1, -2)


def implicit_network(
    spec: Spec,
    key: Key,
    *,
    samples: int,
    embedding: int,
    net_arch: tuple[int, ...] = (64, 64),
    activation: Activation = jax.nn.relu,
    features: eqx.Module | None = None,
) -> Any:
    """As `q_network`; the last layer of `net_arch` comes after the fraction is known.

    `embedding` cosines describe a fraction, and values are means over `samples` of them.
    """
    features = Flatten(spec.observation) if features is None else features
    before, own = net_arch[:-1], net_arch[-1:]
    width = (features.size, *before)[-1]
    (shared, hidden), (embed, head) = dense_networks(
        key,
        [(features.size, before), (width, own)],
        [(embedding, width, 1.0), ((width, *own)[-1], spec.action.n[0], 1.0)],
        activation,
        ortho_init=False,
    )
    return ImplicitNetwork(features, shared, embed, hidden, head, samples)

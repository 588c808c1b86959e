"""Dueling networks: the value of the state, and what each action is better (Wang et al., 2016, https://arxiv.org/abs/1511.06581)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from advantage.equations.distributions import Key
from advantage.networks.features import Flatten
from advantage.networks.mlp import MLP, Activation, Linear, dense_networks
from advantage.types import Spec


class DuelingNetwork(eqx.Module):
    """`Q(s, .)` `[*batch, actions]` from two streams (Wang et al., 2016, https://arxiv.org/abs/1511.06581).

    Of several numbers for each action, side by side, each is made from its own value and advantages, as in Rainbow.
    """

    features: Flatten | eqx.Module
    hidden: MLP
    value_stream: MLP
    advantage_stream: MLP
    value_head: Linear
    advantage_head: Linear
    numbers: int = eqx.field(static=True, default=1)

    def __call__(self, obs: PyTree) -> Float[Array, "*batch AN"]:
        """`V(s) + A(s, .) - mean A(s, .)` (eq. 9): V is the values' mean, which no shift of A changes."""
        shared = self.hidden(self.features(obs))
        value = self.value_head(self.value_stream(shared))
        flat = self.advantage_head(self.advantage_stream(shared))
        advantage = flat.reshape(*flat.shape[:-1], -1, self.numbers)
        centred = advantage - jnp.mean(advantage, axis=-2, keepdims=True)
        return (value[..., None, :] + centred).reshape(flat.shape)


def dueling_network(
    spec: Spec,
    key: Key,
    *,
    net_arch: tuple[int, ...] = (64, 64),
    activation: Activation = jax.nn.relu,
    features: eqx.Module | None = None,
    numbers: int = 1,
) -> DuelingNetwork:
    """As `q_network`; the last layer of `net_arch` is there twice, for the state's value and for the advantages."""
    features = Flatten(spec.observation) if features is None else features
    shared, own = net_arch[:-1], net_arch[-1:]
    width = (features.size, *shared)[-1]
    last = (width, *own)[-1]
    (hidden, *streams), heads = dense_networks(
        key,
        [(features.size, shared), (width, own), (width, own)],
        [(last, numbers, 1.0), (last, spec.action.n[0] * numbers, 1.0)],
        activation,
        ortho_init=False,
    )
    return DuelingNetwork(features, hidden, *streams, *heads, numbers)

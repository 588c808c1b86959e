"""Networks that give each action a distribution of returns; called, they answer its mean, as a `QNetwork` does."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from advantage.equations.categorical import atoms
from advantage.networks.q_network import ActionValues


class CategoricalNetwork(eqx.Module):
    """Probabilities of `n_atoms` returns, evenly spaced from `v_min` to `v_max` (Bellemare et al., 2017, section 4.1)."""

    network: ActionValues  # `[*batch, actions * n_atoms]` of observations
    n_atoms: int = eqx.field(static=True)
    v_min: float = eqx.field(static=True)
    v_max: float = eqx.field(static=True)

    def __call__(self, obs: PyTree) -> Float[Array, "*batch A"]:
        """The means."""
        return jnp.exp(self.log_probs(obs)) @ atoms(self.v_min, self.v_max, self.n_atoms)

    @property
    def features(self) -> eqx.Module:
        """What the network stands on."""
        return self.network.features

    def log_probs(self, obs: PyTree) -> Float[Array, "*batch A N"]:
        """Logarithms of the probabilities."""
        return jax.nn.log_softmax(side_by_side(self.network(obs), self.n_atoms))


class QuantileNetwork(eqx.Module):
    """`n_quantiles` numbers, of which each has an equal share of probability (Dabney et al., 2018, section 3)."""

    network: ActionValues  # `[*batch, actions * n_quantiles]` of observations
    n_quantiles: int = eqx.field(static=True)

    def __call__(self, obs: PyTree) -> Float[Array, "*batch A"]:
        """The means."""
        return jnp.mean(self.quantiles(obs), axis=-1)

    @property
    def features(self) -> eqx.Module:
        """What the network stands on."""
        return self.network.features

    def quantiles(self, obs: PyTree) -> Float[Array, "*batch A N"]:
        """The numbers, in no order."""
        return side_by_side(self.network(obs), self.n_quantiles)


def side_by_side(flat: Float[Array, "*batch AN"], count: int) -> Float[Array, "*batch A N"]:
    """`count` numbers of each action."""
    return flat.reshape(*flat.shape[:-1], -1, count)


def of_actions(x: Float[Array, "B A N"], action: Array) -> Float[Array, "B N"]:
    """Those of the given actions `[B]`, as a sum: the gradient of a gather is a scatter, which is slow on a CPU."""
    chosen = jnp.arange(x.shape[1], dtype=action.dtype)[None] == action[:, None]
    return jnp.sum(jnp.where(chosen[..., None], x, 0.0), axis=1)

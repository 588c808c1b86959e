"""Distributions of returns over a fixed set of numbers."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def atoms(v_min: float, v_max: float, count: int) -> Float[Array, " N"]:
    """The returns that have probabilities: evenly spaced, both ends among them."""
    return jnp.linspace(v_min, v_max, count, dtype=jnp.float32)


def projected(
    probs: Float[Array, "B N"], returns: Float[Array, "B N"], support: Float[Array, " N"]
) -> Float[Array, "B N"]:
    """Probabilities of other `returns`, moved to the support (Bellemare et al., 2017, eq. 7 and algorithm 1).

    What lies between two atoms is shared out between them, the nearer getting more, so that the mean stays; what lies
    outside goes to the end. Of all pairs at once: no index depends on data. https://arxiv.org/abs/1707.06887
    """
    width = (support[-1] - support[0]) / (support.shape[0] - 1)
    clipped = jnp.clip(returns, support[0], support[-1])
    distance = jnp.abs(clipped[:, None, :] - support[None, :, None]) / width  # from each atom to each return
    return jnp.sum(jnp.clip(1.0 - distance, 0.0, 1.0) * probs[:, None, :], axis=-1)


def cross_entropy(target: Float[Array, "B N"], log_probs: Float[Array, "B N"]) -> Float[Array, " B"]:
    """`-sum p log q` (Bellemare et al., 2017, algorithm 1), from which the Kullback-Leibler divergence differs by a constant."""
    return -jnp.sum(target * log_probs, axis=-1)


def divergence(target: Float[Array, "B N"], log_probs: Float[Array, "B N"]) -> Float[Array, " B"]:
    """`KL(p || q) = sum p log(p / q)`: what Rainbow draws by (Hessel et al., 2018, https://arxiv.org/abs/1710.02298)."""
    held = target > 0
    entropy = jnp.sum(jnp.where(held, target * jnp.log(jnp.where(held, target, 1.0)), 0.0), axis=-1)
    return jnp.maximum(entropy + cross_entropy(target, log_probs), 0.0)

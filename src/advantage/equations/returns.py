"""Returns and advantages: what a chunk of rewards and values says about its actions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Scalar = Float[Array, ""] | float


def generalised_advantage(
    reward: Float[Array, "T *N"],
    value: Float[Array, "T *N"],
    next_value: Float[Array, "T *N"],
    ended: Bool[Array, "T *N"],
    gamma: Scalar,
    gae_lambda: Scalar,
) -> Float[Array, "T *N"]:
    """Generalised advantage estimates (Schulman et al., 2016, eq. 16; https://arxiv.org/abs/1506.02438).

    `A_t = delta_t + gamma lambda A_{t+1}` with `delta_t = r_t + gamma V(s_{t+1}) - V(s_t)`. The sum stops
    after a row that `ended`, whether the episode terminated (`next_value` is then 0) or was cut
    (`next_value` is the value of its final observation). Value targets are `A_t + V(s_t)`.
    """
    delta = reward + gamma * next_value - value
    decay = gamma * gae_lambda * jnp.where(ended, 0.0, 1.0)

    def backwards(following, row):
        delta_t, decay_t = row
        advantage = delta_t + decay_t * following
        return advantage, advantage

    _, advantage = jax.lax.scan(backwards, jnp.zeros_like(delta[0]), (delta, decay), reverse=True)
    return advantage


def n_step_return(
    reward: Float[Array, "B n"], going_on: Bool[Array, "B n"], gamma: Scalar
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """`(sum_{i<m} gamma^i r_i, gamma^m)`, m the rows up to and with the first that does not go on.

    `going_on[i]` says that row i + 1 belongs to the same episode and was recorded. Sutton & Barto (2018),
    eq. 7.1; http://incompleteideas.net/book/the-book-2nd.html.
    """
    # Row i counts when every row before it goes on.
    counts = jnp.cumprod(going_on[:, :-1].astype(reward.dtype), axis=1)
    counts = jnp.concatenate([jnp.ones_like(reward[:, :1]), counts], axis=1)
    powers = jnp.power(gamma, jnp.arange(reward.shape[1], dtype=reward.dtype))[None]
    steps = jnp.sum(counts, axis=1)
    return jnp.sum(counts * powers * reward, axis=1), jnp.power(gamma, steps)

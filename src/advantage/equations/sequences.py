"""Answers of several tokens that get one reward: advantages within a group, ratios of tokens and of whole answers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from advantage.equations.returns import Scalar

DEVIATION = 1e-4
"""Added to a group's deviation, so that a group of nearly equal rewards has small advantages."""


def centred_in_groups(reward: Float[Array, " B"], size: int) -> Float[Array, " B"]:
    """A reward less the mean of its group; groups of `size` follow one another (Liu et al., 2025, https://arxiv.org/abs/2503.20783)."""
    groups = reward.reshape((-1, size))
    return (groups - jnp.mean(groups, axis=1, keepdims=True)).reshape(-1)


def normalised_in_groups(reward: Float[Array, " B"], size: int) -> Float[Array, " B"]:
    """The same, divided by the group's deviation (Shao et al., 2024, section 4.1.2, https://arxiv.org/abs/2402.03300).

    The deviation is the sample's (`n - 1`).
    """
    deviation = jnp.std(reward.reshape((-1, size)), axis=1, ddof=1)
    return centred_in_groups(reward, size) / (jnp.repeat(deviation, size) + DEVIATION)


def leave_one_out(reward: Float[Array, " B"], size: int) -> Float[Array, " B"]:
    """A reward less the mean of the others in its group (Kool et al., 2019; Ahmadian et al., 2024, https://arxiv.org/abs/2402.14740)."""
    return centred_in_groups(reward, size) * (size / (size - 1))


def asymmetric_surrogate(
    log_prob: Float[Array, " B"], old_log_prob: Float[Array, " B"], advantage: Float[Array, " B"], low: Scalar, high: Scalar
) -> Float[Array, " B"]:
    """PPO's surrogate with the ratio kept within `1 - low` and `1 + high` (Yu et al., 2025, eq. 10, https://arxiv.org/abs/2503.14476)."""
    ratio = jnp.exp(log_prob - old_log_prob)
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - low, 1 + high) * advantage)


def of_whole_answers(log_ratio: Float[Array, "B G"], mask: Float[Array, "B G"]) -> Float[Array, "B G"]:
    """Each token's log-ratio replaced by the mean of its answer's; the gradient reaches every token.

    Zheng et al. (2025), eq. 7, https://arxiv.org/abs/2507.18071
    """
    mean = jnp.sum(log_ratio * mask, axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1.0)
    return jnp.broadcast_to(mean[:, None], log_ratio.shape)


def truncated_importance(log_prob: Float[Array, "*batch"], sampled: Float[Array, "*batch"], most: Scalar) -> Float[Array, "*batch"]:
    """`min(p / q, most)` without a gradient: what a token counts that was drawn from q where p was meant.

    Ionides (2008), https://doi.org/10.1198/106186008X320456; of a sampler whose arithmetic is not the trainer's: Yao et al.
    (2025), https://fengyao.notion.site/off-policy-rl.
    """
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(log_prob - sampled), most))

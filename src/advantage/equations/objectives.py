"""Objectives: per-sample terms that algorithms mask, weigh and reduce."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from advantage.equations.returns import Scalar


def clipped_surrogate(
    log_prob: Float[Array, " B"],
    old_log_prob: Float[Array, " B"],
    advantage: Float[Array, " B"],
    clip_range: Scalar,
) -> Float[Array, " B"]:
    """PPO's pessimistic surrogate objective, to be maximised (Schulman et al., 2017, eq. 7).

    https://arxiv.org/abs/1707.06347
    """
    ratio = jnp.exp(log_prob - old_log_prob)
    clipped = jnp.clip(ratio, 1 - clip_range, 1 + clip_range)
    return jnp.minimum(ratio * advantage, clipped * advantage)


def clipped_value(
    value: Float[Array, " B"], old_value: Float[Array, " B"], clip_range: Scalar
) -> Float[Array, " B"]:
    """A value kept within `clip_range` of the one that acted (Engstrom et al., 2020, section 3).

    https://arxiv.org/abs/2005.12729; as SB3 does, without the maximum over both errors.
    """
    return old_value + jnp.clip(value - old_value, -clip_range, clip_range)


def squared_error(prediction: Float[Array, "*batch"], target: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """`(prediction - target)^2`, without the factor one half (as SB3 and `torch.nn.MSELoss`)."""
    return jnp.square(prediction - target)


def kl_estimate(log_ratio: Float[Array, " B"]) -> Float[Array, " B"]:
    """Unbiased, never negative estimate of KL(old || new) from `log(new / old)` of old samples.

    Estimator k3 of Schulman (2020), http://joschu.net/blog/kl-approx.html.
    """
    return jnp.expm1(log_ratio) - log_ratio


def td_target(
    reward: Float[Array, " B"], discount: Float[Array, " B"], next_value: Float[Array, " B"]
) -> Float[Array, " B"]:
    """`r + discount * V(s')`; `discount` is `gamma^n`, and 0 after a termination (Sutton, 1988)."""
    return reward + discount * next_value


def td_errors(values: Float[Array, "C B"], target: Float[Array, " B"]) -> Float[Array, " B"]:
    """`|Q_i(s, a) - target|`, a mean over C critics: priorities (Schaul et al., 2016, https://arxiv.org/abs/1511.05952)."""
    return jnp.mean(jnp.abs(values - target[None]), axis=0)


def action_values(q: Float[Array, "B A"], action: Int[Array, " B"]) -> Float[Array, " B"]:
    """`Q(s, a)` of the given actions."""
    return chosen(q, action)


def chosen(x: Float[Array, "*batch A"], action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """`x[..., action]`, as a sum: the gradient of a gather is a scatter, which is slow on a CPU."""
    choices = jnp.arange(x.shape[-1], dtype=action.dtype).reshape((1,) * action.ndim + (-1,))
    return jnp.sum(jnp.where(action[..., None] == choices, x, 0.0), axis=-1)


def huber(error: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Quadratic within 1, linear outside: DQN's error clipping (Mnih et al., 2015, Methods).

    https://doi.org/10.1038/nature14236; equal to `torch.nn.SmoothL1Loss` with beta 1.
    """
    small = jnp.clip(error, -1.0, 1.0)
    return small * (error - 0.5 * small)


def masked_mean(x: Float[Array, "..."], weight: Float[Array, "..."]) -> Float[Array, ""]:
    """Mean of `x` where `weight` is 1; 0 where nothing is."""
    return jnp.sum(x * weight) / jnp.maximum(jnp.sum(weight), 1.0)


def normalised(x: Float[Array, " B"], weight: Float[Array, " B"]) -> Float[Array, " B"]:
    """Zero mean and unit standard deviation over the rows with weight 1; padding does not count.

    The deviation is the sample's (`n - 1`, as torch's). A single row is left as it is: it has none.
    """
    count = jnp.sum(weight)
    centred = x - masked_mean(x, weight)
    variance = jnp.sum(weight * jnp.square(centred)) / jnp.maximum(count - 1.0, 1.0)
    return jnp.where(count > 1.0, centred / (jnp.sqrt(variance) + 1e-8), x)


def explained_variance(
    prediction: Float[Array, "..."], target: Float[Array, "..."], weight: Float[Array, "..."]
) -> Float[Array, ""]:
    """`1 - Var(target - prediction) / Var(target)`: 1 is perfect, 0 no better than a constant."""

    def variance(x: Float[Array, "..."]) -> Float[Array, ""]:
        return masked_mean(jnp.square(x - masked_mean(x, weight)), weight)

    total = variance(target)
    return jnp.where(total == 0.0, jnp.nan, 1.0 - variance(target - prediction) / total)


def clip_by_global_norm(
    gradients: PyTree[Float[Array, "..."]], max_norm: Scalar
) -> tuple[PyTree[Float[Array, "..."]], Float[Array, ""]]:
    """`(gradients scaled so that their joint norm is at most max_norm, the norm before)`.

    Pascanu et al. (2013), https://arxiv.org/abs/1211.5063; with torch's guard of 1e-6 in the divisor.
    """
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradients)))
    scale = jnp.minimum(1.0, max_norm / (norm + 1e-6))
    return jax.tree.map(lambda g: g * scale, gradients), norm

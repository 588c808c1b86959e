"""What keeps a policy near the one that acted by their KL divergence: a penalty, and steps that follow it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from advantage.equations.objectives import kl_estimate
from advantage.equations.returns import Scalar

ADAPTED = {"learning_rate": (2.0, 1 / 1.5, 0.01, 10.0), "kl_coef": (1.5, 2.0, 1e-3, 1e3)}
"""What may follow the KL: beyond so many times `desired_kl` it changes by this factor, below as many parts by its inverse;
and the least and most it becomes, as parts of what it was.

`kl_coef` by Schulman et al. (2017, section 4, https://arxiv.org/abs/1707.06347), the learning rate by Rudin et al.
(2022, https://arxiv.org/abs/2109.11978), once an update.
"""


def penalised_surrogate(
    log_prob: Float[Array, " B"], old_log_prob: Float[Array, " B"], advantage: Float[Array, " B"], kl_coef: Scalar
) -> Float[Array, " B"]:
    """The surrogate less `kl_coef` times KL(old || new), to be maximised (Schulman et al., 2017, eq. 8).

    https://arxiv.org/abs/1707.06347; the KL is estimated from the actions taken, and so is its gradient, without bias.
    """
    log_ratio = log_prob - old_log_prob
    return jnp.exp(log_ratio) * advantage - kl_coef * kl_estimate(log_ratio)


def adapted(config: Any, factors: Mapping[str, Float[Array, ""]]) -> Any:
    """The config with what follows the KL multiplied by its factor, where anything does."""
    if config.desired_kl is None:
        return config
    return dataclasses.replace(config, **{config.adapts: getattr(config, config.adapts) * factors[config.adapts]})


def followed(config: Any, factors: Mapping[str, Float[Array, ""]], kl: Float[Array, ""]) -> dict[str, Float[Array, ""]]:
    """The factors after an update that moved the policy by `kl`."""
    beyond, change, least, most = ADAPTED[config.adapts]
    too_large, too_small = kl > beyond * config.desired_kl, kl < config.desired_kl / beyond
    step = jnp.where(too_large, change, jnp.where(too_small, 1.0 / change, 1.0))
    return {**factors, config.adapts: jnp.clip(factors[config.adapts] * step, least, most)}


def check_adapted(config: Any, penalised: bool) -> None:
    """Raise `ValueError` for what does not adapt, or where nothing is `penalised` by the KL."""
    if config.adapts not in ADAPTED:
        raise ValueError(f"adapts={config.adapts!r} is not known: choose from {', '.join(ADAPTED)}")
    if config.desired_kl is not None and config.desired_kl <= 0:
        raise ValueError(f"desired_kl={config.desired_kl!r} has to be above 0: give such as 0.01, or None")
    if config.adapts == "kl_coef" and config.desired_kl is None:
        raise ValueError("adapts='kl_coef' without desired_kl adapts nothing: give desired_kl, such as 0.01")
    if config.adapts == "kl_coef" and not penalised:
        raise ValueError("adapts='kl_coef' with the clipped loss, which has no penalty: give loss=kl_penalty_loss")


def steered_coefficient(kl_coef: Scalar, kl: Scalar, target: Scalar, gain: Scalar = 0.1) -> Float[Array, ""]:
    """The penalty's weight after a batch with this KL, so that the KL comes near `target`.

    Ziegler et al. (2019), section 2.2, https://arxiv.org/abs/1909.08593: it changes by at most `0.2 gain` of itself.
    """
    return kl_coef * (1.0 + gain * jnp.clip(kl / target - 1.0, -0.2, 0.2))

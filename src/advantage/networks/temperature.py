"""SAC's temperature: how it is given, where it starts, and its step towards the target entropy."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from advantage.equations.soft import temperature_objective
from advantage.networks.optimisers import adam, descend


def learns_temperature(ent_coef: float | int | str) -> bool:
    """Whether SAC's temperature, given as `ent_coef`, is learned: `"auto"` or `"auto_0.1"`."""
    return str(ent_coef).startswith("auto")


def first_temperature(ent_coef: float | int | str) -> float:
    """SAC's temperature at the start: 1 where nothing else is said.

    Raises:
        ValueError: it is no number.
    """
    text = str(ent_coef)
    return 1.0 if text == "auto" else float(text.removeprefix("auto_"))


def check_temperature(ent_coef: float | int | str, target_entropy: float | int | str) -> None:
    """Raise `ValueError` unless a temperature and its target entropy are understood, and can be."""
    try:
        first = first_temperature(ent_coef)
    except ValueError:
        first = -1.0
    # Learned as its logarithm: from 0 it could not move.
    if not 0 <= first < math.inf or (first == 0 and learns_temperature(ent_coef)):
        raise ValueError(f"ent_coef={ent_coef!r} is not understood: give 'auto', 'auto_0.1' or a number of at least 0")
    try:
        fits = target_entropy == "auto" or math.isfinite(float(target_entropy))
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"target_entropy={target_entropy!r} is not understood: give 'auto' or a number")


def initial_log_alpha(ent_coef: float | int | str) -> Float[Array, ""]:
    """The logarithm that is learned, at the start; 0 where the temperature is fixed."""
    return jnp.float32(math.log(first_temperature(ent_coef)) if learns_temperature(ent_coef) else 0.0)


def temperature(ent_coef: float | int | str, log_alpha: Float[Array, ""]) -> Float[Array, ""]:
    """The temperature now."""
    return jnp.exp(log_alpha) if learns_temperature(ent_coef) else jnp.float32(first_temperature(ent_coef))


def temperature_step(
    config: Any,
    log_alpha: Float[Array, ""],
    optimizer: PyTree,
    log_prob: Float[Array, " B"],
    weight: Array | float,
    automatic: Array | float,
) -> tuple[Array, PyTree, Array]:
    """Towards the target entropy, which is `automatic` for `"auto"`: `(log_alpha, optimiser, loss)`; fixed: none."""
    target_entropy = automatic if config.target_entropy == "auto" else float(config.target_entropy)

    def objective(log_alpha: Array) -> Array:
        return jnp.mean(weight * temperature_objective(log_alpha, log_prob, target_entropy))

    loss, gradient = jax.value_and_grad(objective)(log_alpha)
    log_alpha, optimizer, _ = descend(
        adam, config.learning_rate, math.inf, log_alpha, gradient, optimizer, learns_temperature(config.ent_coef)
    )
    return log_alpha, optimizer, loss

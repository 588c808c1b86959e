"""The natural gradient: where it points, found without its matrix, and how far to go along it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from advantage.equations.returns import Scalar

Vector = Float[Array, " P"]


def conjugate_gradient(
    product: Callable[[Vector], Vector], target: Vector, max_steps: int, tolerance: float = 1e-10
) -> Vector:
    """`x` with `product(x) = target`, for a linear, symmetric and positive `product`.

    Hestenes & Stiefel (1952), https://doi.org/10.6028/jres.049.044; Nocedal & Wright (2006), algorithm 5.2. Begins
    at zero and stops after `max_steps`, or as soon as the squared norm of the residual is below `tolerance`.
    """

    def unfinished(carry: tuple[Array, ...]) -> Array:
        step, _, _, _, square = carry
        return (step < max_steps) & (square >= tolerance)

    def step_once(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        step, x, residual, direction, square = carry
        image = product(direction)
        length = square / jnp.dot(direction, image)
        x, residual = x + length * direction, residual - length * image
        new_square = jnp.dot(residual, residual)
        return step + 1, x, residual, residual + new_square / square * direction, new_square

    start = (jnp.int32(0), jnp.zeros_like(target), target, target, jnp.dot(target, target))
    return jax.lax.while_loop(unfinished, step_once, start)[1]


def largest_step(direction: Vector, image: Vector, bound: Scalar) -> Float[Array, ""]:
    """How far along `direction` half the quadratic form `direction . image` reaches `bound`.

    `sqrt(2 bound / (s^T H s))` (Schulman et al., 2015, appendix C, https://arxiv.org/abs/1502.05477).
    """
    return jnp.sqrt(2.0 * bound / jnp.dot(direction, image))


class Found(NamedTuple):
    """What a line search ended with."""

    point: Vector
    values: tuple[Float[Array, ""], ...]  # of the point
    success: Bool[Array, ""]


def line_search(
    evaluate: Callable[[Vector], tuple[Bool[Array, ""], tuple[Float[Array, ""], ...]]],
    start: Vector,
    step: Vector,
    values: tuple[Float[Array, ""], ...],
    shrinking_factor: float,
    max_iter: int,
) -> Found:
    """The first of `start + step`, `start + f step`, `start + f^2 step`, ... that is accepted (appendix C).

    `evaluate(point)` answers `(accepted, values)`. After `max_iter` refusals it is `start` with its own `values`.
    """

    def unfinished(carry: tuple[Array, Found]) -> Array:
        return ~carry[1].success & (carry[0] < max_iter)

    def trial(carry: tuple[Array, Found]) -> tuple[Array, Found]:
        count, _ = carry
        point = start + shrinking_factor**count * step
        accepted, found = evaluate(point)
        return count + 1, Found(point, found, accepted)

    _, last = jax.lax.while_loop(unfinished, trial, (jnp.int32(0), Found(start, values, jnp.asarray(False))))
    return jax.tree.map(lambda new, old: jnp.where(last.success, new, old), last, Found(start, values, last.success))

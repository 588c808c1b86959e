"""The conjugate gradient against a direct solve, and the line search against a loop by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.equations.natural import conjugate_gradient, largest_step, line_search


def system(size, seed=0):
    """A positive matrix and a right-hand side."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size))
    return root @ root.T / size + 0.5 * np.eye(size), rng.normal(size=size)


@pytest.mark.parametrize("size", [1, 5, 12])
def test_as_many_steps_as_numbers_solve_the_system(size):
    matrix, target = system(size)
    product = lambda x: jnp.asarray(matrix, jnp.float32) @ x
    found = conjugate_gradient(product, jnp.asarray(target, jnp.float32), size)
    np.testing.assert_allclose(found, np.linalg.solve(matrix, target), rtol=1e-3, atol=1e-4)


def test_one_step_is_steepest_descent():
    """`(b.b / b.Ab) b`, and each further step comes nearer in the norm of the matrix."""
    matrix, target = system(8)
    product = lambda x: jnp.asarray(matrix, jnp.float32) @ x
    iterates = [np.asarray(conjugate_gradient(product, jnp.asarray(target, jnp.float32), k)) for k in range(1, 6)]
    np.testing.assert_allclose(iterates[0], target @ target / (target @ matrix @ target) * target, rtol=1e-4)
    errors = [iterate - np.linalg.solve(matrix, target) for iterate in iterates]
    distances = [error @ matrix @ error for error in errors]
    assert all(b < a for a, b in zip(distances, distances[1:], strict=False))


def test_a_solved_system_is_left_alone():
    """A right-hand side of zero: no division by zero."""
    assert np.array_equal(conjugate_gradient(lambda x: 2.0 * x, jnp.zeros(3), 10), np.zeros(3))
    assert np.array_equal(conjugate_gradient(lambda x: 2.0 * x, jnp.array([2.0, 4.0]), 10), [1.0, 2.0])


def test_the_largest_step_reaches_the_bound():
    matrix, direction = system(4)
    image = matrix @ direction
    length = float(largest_step(jnp.asarray(direction, jnp.float32), jnp.asarray(image, jnp.float32), 0.3))
    np.testing.assert_allclose(0.5 * length**2 * direction @ image, 0.3, rtol=1e-5)


@pytest.mark.parametrize(("below", "expected"), [(20.0, 8.0), (5.0, 4.0), (2.5, 2.0), (0.9, 0.0), (-1.0, 0.0)])
def test_the_first_step_that_is_accepted(below, expected):
    """Steps of 8, 4, 2 and 1; after four refusals nothing has moved."""
    evaluate = lambda point: (point[0] < below, (point[0] * 10,))
    found = jax.jit(lambda: line_search(evaluate, jnp.zeros(1), jnp.full(1, 8.0), (jnp.float32(-1.0),), 0.5, 4))()
    assert float(found.point[0]) == expected and bool(found.success) == (expected > 0)
    assert float(found.values[0]) == (expected * 10 if expected else -1.0)

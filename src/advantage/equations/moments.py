"""Running mean and variance of a stream that comes in chunks, and what is normalised with them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num, UInt32

from advantage.equations.returns import Scalar

PRIOR = 1e-4
"""The weight, in samples, of mean 0 and variance 1, where a stream begins (as SB3's `RunningMeanStd`)."""


class Moments(NamedTuple):
    """Mean and variance of a stream of arrays.

    Float32 stalls: beside 2^24 samples a single one is rounded away. So samples are counted in 64 bits, and
    what float32 cannot hold of the mean and of the variance is kept beside them.
    """

    mean: Float[Array, "*shape"]
    var: Float[Array, "*shape"]  # of the population, as `numpy.var`
    mean_rest: Float[Array, "*shape"]
    var_rest: Float[Array, "*shape"]
    count: UInt32[Array, "2"]  # samples: the high and the low 32 bits


def fresh(shape: tuple[int, ...]) -> Moments:
    """Nothing seen yet."""
    zero, one = (np.full(shape, x, np.float32) for x in (0, 1))
    return Moments(*[jnp.asarray(x) for x in (zero, one, zero, zero)], jnp.zeros(2, jnp.uint32))


def combined(
    mean: Float[Array | np.ndarray, "*shape"],
    var: Float[Array | np.ndarray, "*shape"],
    count: Scalar,
    batch_mean: Float[Array | np.ndarray, "*shape"],
    batch_var: Float[Array | np.ndarray, "*shape"],
    batch_count: Scalar,
) -> tuple[Float[Array | np.ndarray, "*shape"] | float, Float[Array | np.ndarray, "*shape"] | float]:
    """Mean and variance of two sets of samples together (Chan, Golub & LeVeque, 1979, eq. 2.1).

    http://i.stanford.edu/pub/cstr/reports/cs/tr/79/773/CS-TR-79-773.pdf
    """
    kept, share = count / (count + batch_count), batch_count / (count + batch_count)
    delta = batch_mean - mean
    return mean * kept + batch_mean * share, var * kept + batch_var * share + delta * delta * (share * kept)


def samples(moments: Moments) -> Float[Array, ""]:
    """How many were seen, with the prior's weight."""
    high, low = moments.count[0].astype(jnp.float32), moments.count[1].astype(jnp.float32)
    return high * jnp.float32(2**32) + low + jnp.float32(PRIOR)


def include(moments: Moments, x: Num[Array, "T N *shape"], valid: Bool[Array, "T N"]) -> Moments:
    """The moments with the valid rows of a chunk; the same bits where there are none.

    Rows too large for the square of a float32 are left out: the variance would be infinite for ever.
    """
    number = jnp.sum(valid, dtype=jnp.uint32)
    rows, wanted = x.astype(jnp.float32), valid.reshape(valid.shape + (1,) * (x.ndim - 2))
    count = number.astype(jnp.float32)
    divisor = jnp.maximum(count, 1.0)
    batch_mean = jnp.sum(jnp.where(wanted, rows, 0.0), axis=(0, 1)) / divisor
    squares = jnp.square(rows - batch_mean[None, None])
    batch_var = jnp.sum(jnp.where(wanted, squares, 0.0), axis=(0, 1)) / divisor
    new = _combined(moments, batch_mean, batch_var, count)
    low = moments.count[1] + number
    high = moments.count[0] + (low < number).astype(jnp.uint32)
    new = new._replace(count=jnp.stack([high, low]))
    good = (number > 0) & jnp.all(jnp.isfinite(new.var))
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, moments)


def _combined(
    moments: Moments, batch_mean: Float[Array, "*shape"], batch_var: Float[Array, "*shape"], count: Float[Array, ""]
) -> Moments:
    """`combined` in float32 without loss: a small batch is a change, of which nothing is rounded away."""
    before = samples(moments)
    mean, var = combined(moments.mean, moments.var, before, batch_mean, batch_var, count)
    share = count / (before + count)
    delta = batch_mean - moments.mean
    d_mean = delta * share
    d_var = (batch_var - moments.var + delta * (delta - d_mean)) * share
    zero = jnp.zeros_like(mean)
    small = share < 0.5  # of a large one the change would be as large as what it changes, and cancel digits
    mean, mean_rest = two_sum(
        jnp.where(small, moments.mean, mean), jnp.where(small, moments.mean_rest + d_mean, zero)
    )
    var, var_rest = two_sum(jnp.where(small, moments.var, var), jnp.where(small, moments.var_rest + d_var, zero))
    return Moments(mean, var, mean_rest, var_rest, moments.count)


def two_sum(a: Float[Array, "*shape"], b: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], ...]:
    """`(a + b rounded, what rounding took away)`, exactly (Knuth, The Art of Computer Programming, 4.2.2 B)."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def standardised(
    x: Num[Array, "..."], mean: Float[Array, "*shape"], var: Float[Array, "*shape"], epsilon: Scalar, clip: Scalar
) -> Float[Array, "..."]:
    """`(x - mean) / sqrt(var + epsilon)` of rows `[..., *shape]`, within `-clip..clip`."""
    # Left to itself, XLA makes x / sqrt(v) a product with a reciprocal or a reciprocal root, or not, as its passes go:
    # a seed among others would differ in the last bit from that seed alone. The maximum also prevents a division by 0.
    scale = 1.0 / jnp.maximum(jnp.sqrt(var + epsilon), jnp.finfo(jnp.float32).tiny)
    mean, scale = (m.reshape((1,) * (x.ndim - m.ndim) + m.shape) for m in (mean, scale))
    return jnp.clip((x.astype(jnp.float32) - mean) * scale, -clip, clip)


def running_returns(
    reward: Float[Array, "T N"],
    is_first: Bool[Array, "T N"],
    valid: Bool[Array, "T N"],
    gamma: Scalar,
    before: Float[Array, " N"],
) -> tuple[Float[Array, "T N"], Float[Array, " N"]]:
    """Discounted sums of past rewards, `R_t = gamma R_{t-1} + r_t` from 0 in each episode, and the last ones.

    The spread of these measures the scale of returns (Engstrom et al., 2020, section 3;
    https://arxiv.org/abs/2005.12729). Invalid rows change nothing.
    """

    def forwards(so_far, row):
        reward_t, first_t, valid_t = row
        so_far = jnp.where(valid_t, jnp.where(first_t, 0.0, so_far) * gamma + reward_t, so_far)
        return so_far, so_far

    after, returns = jax.lax.scan(forwards, before, (reward, is_first, valid))
    return returns, after

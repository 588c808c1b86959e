"""Running moments: numbers by hand, NumPy and Stable-Baselines3 on the same streams, and counts beyond float32."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.equations.moments import (
    PRIOR,
    Moments,
    combined,
    fresh,
    include,
    running_returns,
    samples,
    standardised,
    two_sum,
)

pytestmark = pytest.mark.usefixtures("strict")
SB3 = np.load(Path(__file__).parents[1] / "oracles" / "sb3_normalise.npz")
see = jax.jit(include)


def all_valid(x):
    return jnp.ones(x.shape[:2], bool)


def same_bits(a, b):
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in zip(a, b, strict=True))


def test_combined_by_hand():
    """1, 3 (mean 2, variance 1), then 6, 6: mean 4, variance (9 + 1 + 4 + 4) / 4 = 4.5."""
    one = np.ones(1)
    mean, var = combined(2 * one, one, 2.0, 6 * one, 0 * one, 2.0)
    np.testing.assert_allclose([mean[0], var[0]], [4.0, 4.5], rtol=1e-12)
    assert combined(2 * one, one, 2.0, 9 * one, 9 * one, 0.0) == (2.0, 1.0)


@pytest.mark.parametrize("seen", [2, 1000])
def test_a_chunk_by_hand(seen):
    """`seen` samples of mean 2 and variance 1, then 6, 6, as a large and as a small share of them."""
    start = fresh(())._replace(mean=jnp.float32(2.0), count=jnp.array([0, seen], jnp.uint32))
    x = jnp.array([[6.0, 6.0]], jnp.float32)
    after, total = see(start, x, all_valid(x)), seen + 2
    np.testing.assert_allclose(after.mean, (2 * seen + 12) / total, rtol=1e-4)
    np.testing.assert_allclose(after.var, seen / total + 16 * 2 * seen / total**2, rtol=1e-4)


def test_stream_in_chunks_is_that_of_sb3():
    numbers, moments = SB3["running/numbers"].astype(np.float32), fresh((2,))
    for i, batch in enumerate(np.split(numbers, np.cumsum(SB3["running/sizes"])[:-1])):
        moments = see(moments, jnp.asarray(batch[:, None]), jnp.ones((len(batch), 1), bool))
        np.testing.assert_allclose(moments.mean, SB3["running/mean"][i], rtol=2e-5, atol=1e-5)
        np.testing.assert_allclose(moments.var, SB3["running/var"][i], rtol=2e-4)
        np.testing.assert_allclose(samples(moments), SB3["running/count"][i], rtol=1e-6)


def test_invalid_rows_do_not_count():
    """Nor does what they hold: 2 and 4 are seen, and NaN, infinity and 1e30 are not."""
    x = jnp.array([[2.0, jnp.nan], [jnp.inf, 4.0], [1e30, jnp.nan]], jnp.float32)
    valid = jnp.array([[True, False], [False, True], [False, False]])
    moments = see(fresh(()), x, valid)
    np.testing.assert_allclose([moments.mean, moments.var], [3.0, 1.0], rtol=1e-3)
    assert moments.count.tolist() == [0, 2]
    assert same_bits(moments, see(moments, x, jnp.zeros((3, 2), bool)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32])
def test_any_number_is_seen(dtype):
    moments = see(fresh((2,)), jnp.asarray([[[1, 200], [3, 100]]], dtype), jnp.ones((1, 2), bool))
    np.testing.assert_allclose(moments.mean, [2, 150], rtol=1e-3)
    np.testing.assert_allclose(moments.var, [1, 2500], rtol=1e-2)


@pytest.mark.parametrize("before", [2**26, 2**34])
def test_statistics_do_not_stall(before):
    """After 2^26 ones, a million times four twos: a float32 mean would stay at 1, and a float32 count where it is."""
    start = fresh(())._replace(mean=jnp.float32(1), var=jnp.float32(0.0))
    start = start._replace(count=jnp.array([before >> 32, before & 0xFFFFFFFF], jnp.uint32))
    batch, steps = jnp.full((4, 1), 2.0, jnp.float32), 1_000_000
    go = jax.jit(lambda m: jax.lax.fori_loop(0, steps, lambda _, m: include(m, batch, all_valid(batch)), m))
    after = go(start)
    share = 4 * steps / (before + 4 * steps)
    mean = np.float64(after.mean) + np.float64(after.mean_rest)
    var = np.float64(after.var) + np.float64(after.var_rest)
    np.testing.assert_allclose(mean - 1, share, rtol=1e-3)
    np.testing.assert_allclose(var, share * (1 - share), rtol=1e-3)
    high, low = after.count.tolist()
    assert (high << 32) + low == before + 4 * steps


def test_the_count_carries():
    moments = fresh(())._replace(count=jnp.array([3, 2**32 - 2], jnp.uint32))
    x = jnp.zeros((3, 1), jnp.float32)
    assert see(moments, x, all_valid(x)).count.tolist() == [4, 1]
    np.testing.assert_allclose(samples(fresh(())), PRIOR)


def test_a_square_too_large_is_left_out():
    """It would make the variance infinite, and every later observation zero."""
    x = jnp.array([[1e25]], jnp.float32)
    assert same_bits(fresh(()), see(fresh(()), x, all_valid(x)))


def test_two_sum_is_exact():
    total, rest = jax.jit(two_sum)(jnp.float32(1.0), jnp.float32(1e-9))
    assert float(total) == 1.0 and float(rest) == np.float32(1e-9)
    total, rest = jax.jit(two_sum)(jnp.float32(1e-9), jnp.float32(1.0))
    assert float(total) == 1.0 and float(rest) == np.float32(1e-9)


def test_standardised_by_hand():
    """(5 - 1) / sqrt(3.99 + 0.01) = 2, clipped to 1.5; (1 - 1) / ... = 0; rows of any number of axes."""
    x = jnp.array([[5, 1], [1, -7]], jnp.int32)[:, None]
    mean, var = jnp.array([1.0, 1.0], jnp.float32), jnp.array([3.99, 63.99], jnp.float32)
    found = standardised(x, mean, var, 0.01, 1.5)
    np.testing.assert_allclose(found[:, 0], [[1.5, 0.0], [0.0, -1.0]], rtol=1e-6)
    assert found.dtype == jnp.float32


def test_running_returns_by_hand():
    """gamma 0.5: 1, then 2 + 0.5; a new episode with 4; an invalid row changes nothing, what came before counts."""
    reward = jnp.array([[1.0, 1.0], [2.0, jnp.nan], [4.0, 3.0]], jnp.float32)
    is_first = jnp.array([[True, False], [False, False], [True, False]])
    valid = jnp.array([[True, True], [True, False], [True, True]])
    returns, after = running_returns(reward, is_first, valid, 0.5, jnp.array([100.0, 8.0], jnp.float32))
    np.testing.assert_array_equal(returns, [[1.0, 5.0], [2.5, 5.0], [4.0, 5.5]])
    np.testing.assert_array_equal(after, [4.0, 5.5])


def test_moments_are_those_of_numpy():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(6, 5, 3)) * [1e-3, 1.0, 1e3] + [1.0, 0.0, 3e3]).astype(np.float32)
    moments = fresh((3,))
    for part in np.split(x, 3):
        moments = see(moments, jnp.asarray(part), jnp.ones((2, 5), bool))
    assert isinstance(moments, Moments)
    rows = x.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-5, atol=1e-4)
    # The prior of weight 1e-4 adds its variance of 1 and its distance from the mean.
    share = PRIOR / (30 + PRIOR)
    expected = rows.var(axis=0) * (1 - share) + share + rows.mean(axis=0) ** 2 * share
    np.testing.assert_allclose(moments.var, expected, rtol=1e-3)

"""Interquartile mean and bootstrap interval against numbers worked out by hand."""

import itertools
import time

import numpy as np
import pytest

from advantage.experiments.statistics import bootstrap_interval, iqm


def test_iqm_by_hand():
    # 8 values: two are cut at each end, (3 + 4 + 5 + 6) / 4.
    assert iqm([100, 1, 2, 3, 4, 5, 6, -100]) == pytest.approx((1 + 2 + 3 + 4 + 5 + 6 - 1 - 6) / 4)
    assert iqm([0, 1, 2, 30]) == 1.5
    # 10 values: floor(2.5) = 2 are cut at each end.
    assert iqm(np.arange(10)) == 4.5
    assert iqm([0, 0, 1, 1, 1, 1, 1, 7, 50, 50]) == pytest.approx(12 / 6)
    # Fewer than 4: the mean.
    assert iqm([1, 2, 6]) == 3.0
    assert iqm([5]) == 5.0


def test_iqm_along_an_axis():
    x = np.array([[0.0, 1.0, 2.0, 30.0], [4.0, 4.0, 4.0, 4.0]])
    np.testing.assert_array_equal(iqm(x, axis=1), [1.5, 4.0])
    np.testing.assert_array_equal(iqm(x, axis=0), [2.0, 2.5, 3.0, 17.0])
    assert iqm(x) == pytest.approx((2 + 4 + 4 + 4) / 4)


def test_iqm_shows_a_diverged_seed():
    assert np.isnan(iqm([1.0, 2.0, 3.0, np.nan]))
    np.testing.assert_array_equal(iqm([[1.0, np.nan], [1.0, 2.0]], axis=0), [1.0, np.nan])


def test_iqm_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one score"):
        iqm([])


def test_interval_of_two_seeds_by_hand():
    # Resampled means of (0, 1): 0 and 1 with probability 1/4 each, 0.5 with 1/2.
    assert bootstrap_interval([0, 1], confidence=0.95) == (0.0, 1.0)
    assert bootstrap_interval([0, 1], confidence=0.4) == (0.5, 0.5)


def test_interval_agrees_with_all_resamples_enumerated():
    scores = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    every = iqm(scores[np.array(list(itertools.product(range(5), repeat=5)))], axis=1)
    expected = np.quantile(every, [0.05, 0.95])
    got = bootstrap_interval(scores, confidence=0.9, samples=50_000)
    np.testing.assert_allclose(got, expected, atol=0.35)


def test_interval_has_the_normal_width_for_many_seeds():
    scores = np.random.default_rng(1).normal(size=400)
    low, high = bootstrap_interval(scores, statistic=np.mean, samples=5_000)
    half = 1.96 * scores.std() / np.sqrt(400)
    assert low == pytest.approx(scores.mean() - half, abs=0.01)
    assert high == pytest.approx(scores.mean() + half, abs=0.01)


def test_interval_is_reproducible_and_follows_its_arguments():
    scores = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0])
    assert bootstrap_interval(scores) == bootstrap_interval(scores)
    assert bootstrap_interval(scores, samples=100, seed=1) != bootstrap_interval(scores, samples=100)
    low, high = bootstrap_interval(scores, statistic=np.median)
    assert scores.min() <= low < np.median(scores) < high <= scores.max()
    assert all(isinstance(bound, float) for bound in (low, high))


def test_interval_of_one_seed_or_with_nan_is_unknown():
    assert np.isnan(bootstrap_interval([5.0])).all()
    assert np.isnan(bootstrap_interval([5.0, np.nan, 1.0])).all()
    assert bootstrap_interval([5.0, 5.0]) == (5.0, 5.0)


def test_interval_refuses_other_shapes_and_confidences():
    with pytest.raises(ValueError, match=r"shape \[seeds\]"):
        bootstrap_interval(np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"shape \[seeds\]"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="between 0 and 1"):
        bootstrap_interval([1, 2], confidence=95)


def test_interval_is_fast():
    start = time.perf_counter()
    bootstrap_interval(np.arange(10.0))
    assert time.perf_counter() - start < 0.3

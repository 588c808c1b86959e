"""Statistics over seeds and tasks against numbers worked out by hand and against rliable's."""

import itertools
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from advantage.experiments import statistics
from advantage.experiments.statistics import (
    aggregate,
    bootstrap_interval,
    chance_if_equal,
    iqm,
    mean,
    median,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    sample_efficiency,
    seeds_needed,
)

ORACLE = np.load(Path(__file__).parents[1] / "oracles" / "rliable.npz", allow_pickle=False)


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


# -- seeds and tasks ----------------------------------------------------------------------------------------


def test_aggregates_by_hand():
    scores = np.array([[0.0, 2.0], [1.0, 3.0], [2.0, 0.4], [3.0, 5.0]])
    assert mean(scores) == pytest.approx(16.4 / 8)
    assert median(scores) == pytest.approx((6 / 4 + 10.4 / 4) / 2)
    # Short of 1: by 1 and by 0.6.
    assert optimality_gap(scores) == pytest.approx(1.6 / 8)
    assert optimality_gap(scores, target=2) == pytest.approx((2 + 1 + 1.6) / 8)
    # Over both axes together: 0 and 0.4, 3 and 5 are cut; one of the two 3s stays.
    assert aggregate(scores).value == pytest.approx((1 + 2 + 2 + 3) / 4)
    assert aggregate([5.0, 6.0, 10.0], "mean").value == 7.0


@pytest.mark.parametrize("name", ["iqm", "mean", "median", "optimality_gap"])
def test_aggregates_are_those_of_rliable(name):
    value, low, high = aggregate(ORACLE["x"], name)
    assert value == pytest.approx(float(ORACLE[f"aggregate/{name}/value"]), abs=1e-12)
    np.testing.assert_allclose((low, high), ORACLE[f"aggregate/{name}/interval"], atol=0.01)


def test_profile_is_that_of_rliable():
    value, low, high = performance_profile(ORACLE["x"], ORACLE["profile/thresholds"])
    np.testing.assert_allclose(value, ORACLE["profile/value"], atol=1e-12)
    # Shares of 50 runs: an edge may fall on the neighbouring one.
    np.testing.assert_allclose((low, high), ORACLE["profile/interval"], atol=0.021)


def test_probability_of_improvement_is_that_of_rliable():
    value, low, high = probability_of_improvement(ORACLE["x"], ORACLE["y"])
    assert value == pytest.approx(float(ORACLE["improvement/value"]), abs=1e-12)
    np.testing.assert_allclose((low, high), ORACLE["improvement/interval"], atol=0.01)


def test_sample_efficiency_is_that_of_rliable():
    value, low, high = sample_efficiency(ORACLE["curve/scores"])
    np.testing.assert_allclose(value, ORACLE["curve/value"], atol=1e-12)
    np.testing.assert_allclose((low, high), ORACLE["curve/interval"], atol=0.01)


def test_the_bootstrap_is_stratified():
    """Tasks without spread over seeds leave no doubt, however far apart they are."""
    scores = np.tile([0.0, 1.0, 10.0], (5, 1))
    assert aggregate(scores, "mean") == (11 / 3, 11 / 3, 11 / 3)
    # Each task draws for itself: the two resampled means are independent, so their mean spreads less.
    column = np.arange(8.0)
    one, two = aggregate(column, "mean"), aggregate(np.stack([column, column], axis=1), "mean")
    assert (two.high - two.low) / (one.high - one.low) == pytest.approx(np.sqrt(0.5), abs=0.03)


def test_aggregate_of_one_task_is_the_interval_over_seeds():
    scores = np.random.default_rng(3).normal(size=9)
    np.testing.assert_allclose(aggregate(scores)[1:], bootstrap_interval(scores), atol=0.03)


def test_aggregate_takes_functions():
    worst = aggregate([[1.0], [2.0], [4.0]], lambda scores: scores.min(axis=(-2, -1)))
    # The lowest of three draws of three: 4 with 1/27, 1 with 19/27.
    assert worst == (1.0, 1.0, 4.0)


def test_aggregate_shows_a_diverged_seed():
    assert np.isnan(aggregate([1.0, 2.0, np.nan, 4.0])).all()


def test_many_resamples_are_drawn_in_parts(monkeypatch):
    scores = np.arange(12.0).reshape(4, 3)
    together = aggregate(scores, "mean", samples=5_000)
    monkeypatch.setattr(statistics, "NUMBERS_AT_ONCE", 500)
    np.testing.assert_allclose(aggregate(scores, "mean", samples=5_000), together, atol=0.15)


def test_profile_by_hand():
    scores = [[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]
    value, low, high = performance_profile(scores, [0.0, 1.0, 2.5, 5.0])
    np.testing.assert_allclose(value, [1, 5 / 6, 4 / 6, 0])
    # Above 1 are two of the first task's three runs, and all of the second's.
    np.testing.assert_allclose([low[1], high[1]], [3 / 6, 1])
    assert (low[0], high[0], low[3], high[3]) == (1, 1, 0, 0)


def test_probability_of_improvement_by_hand():
    # 4 > 1, 2, 3 and 2 > 1; 2 ties with 2: (3 + 1 + 0.5) / 6.
    assert probability_of_improvement([4, 2], [1, 2, 3]).value == pytest.approx(4.5 / 6)
    assert probability_of_improvement([1, 2, 3], [4, 2]).value == pytest.approx(1.5 / 6)
    assert probability_of_improvement([7, 7, 7], [7, 7, 7]) == (0.5, 0.5, 0.5)
    assert probability_of_improvement([2, 3, 4], [1, 1, 1]) == (1, 1, 1)
    # Tasks count alike: 1 and 0.5.
    assert probability_of_improvement([[1, 0], [1, 0]], [[0, 0], [0, 0]]).value == 0.75


def test_probability_of_improvement_resamples_both_sides():
    x, y = np.array([0.0, 2.0, 4.0]), np.array([1.0, 1.0, 3.0])
    every = list(itertools.product(range(3), repeat=3))
    chances = [(x[list(i)][:, None] > y[list(j)]).mean() for i in every for j in every]
    value, low, high = probability_of_improvement(x, y, confidence=0.8, samples=50_000)
    assert value == pytest.approx(5 / 9)
    assert (low, high) == pytest.approx(tuple(np.quantile(chances, [0.1, 0.9])), abs=1e-9)


def test_too_few_seeds_have_no_interval():
    assert aggregate([1.0, 3.0]) == (2.0, None, None)
    assert probability_of_improvement([1, 2, 3, 4], [0, 0]) == (1.0, None, None)
    value, low, high = performance_profile([1.0, 3.0], [2.0])
    assert value.tolist() == [0.5] and low is None and high is None
    value, low, high = sample_efficiency(np.ones((2, 1, 4)))
    assert value.tolist() == [1] * 4 and low is None and high is None


def test_chance_if_equal_by_hand():
    # Complete separation: the two extremes of all ways to deal.
    assert chance_if_equal([4, 5, 6], [1, 2, 3]) == pytest.approx(2 / 20)
    assert chance_if_equal([1, 2, 3, 4], [5, 6, 7, 8]) == pytest.approx(2 / 70)
    assert chance_if_equal([1, 1, 1], [1, 1, 1]) == 1.0
    # Rank sums of two of (1, 2.5, 2.5, 4): 3.5, 3.5, 5, 5, 6.5, 6.5.
    assert chance_if_equal([0, 1], [1, 2]) == pytest.approx(4 / 6)


def test_chance_if_equal_is_mann_and_whitneys():
    x, y = np.random.default_rng(0).normal(size=(2, 12))
    y = y + 0.7
    expected = stats.mannwhitneyu(x, y, method="exact").pvalue
    assert chance_if_equal(x, y) == pytest.approx(expected, abs=0.006)
    assert chance_if_equal(x[:7], y[:5]) == pytest.approx(stats.mannwhitneyu(x[:7], y[:5]).pvalue)


def test_chance_if_equal_keeps_its_promise_where_the_interval_does_not():
    rng, pairs = np.random.default_rng(0), 300
    interval = chance = 0
    for _ in range(pairs):
        x, y = rng.normal(size=(2, 5))
        _, low, high = probability_of_improvement(x, y, samples=500)
        interval += low > 0.5 or high < 0.5
        chance += chance_if_equal(x, y) <= 0.05
    assert interval / pairs > 0.065 and chance / pairs < 0.055


def test_seeds_needed():
    rng = np.random.default_rng(0)
    x = rng.normal(size=30)
    near, far = seeds_needed(x, x + 0.3), seeds_needed(x, x + 1.0)
    assert 4 <= far < near < 500
    # The standard error of P is about sqrt(1 / 6 m): 1.96 of it have to fit between P and one half.
    distance = 0.5 - probability_of_improvement(x, x + 1.0).value
    assert far == pytest.approx(1.96**2 / (6 * distance**2), rel=0.3)
    assert seeds_needed([1, 2, 3], [4, 5, 6]) == 4
    assert seeds_needed([1, 2, 3], [1, 2, 3]) is None


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: aggregate([]), r"scores has shape \(0,\)"),
        (
            lambda: aggregate(np.ones((2, 2, 2))),
            r"give at least one score, shape \[seeds\] or \[seeds, tasks\]",
        ),
        (lambda: aggregate([1, 2, 3], "iqr"), "statistic='iqr' is not known: choose from iqm, mean"),
        (lambda: aggregate([1, 2, 3], confidence=95), "confidence=95 has to lie between 0 and 1: 0.95"),
        (lambda: aggregate([1, 2, 3], samples=0), "samples=0 has to be at least 1"),
        (lambda: sample_efficiency(np.ones((3, 2))), r"shape \[seeds, tasks, points\]"),
        (lambda: performance_profile([1, 2, 3], np.array(0.5)), r"thresholds has shape \(\)"),
        (
            lambda: performance_profile([1, np.nan, 3], [0.5]),
            r"scores is NaN at \(1, 0\): leave that run out",
        ),
        (lambda: probability_of_improvement([1, 2], [[1, 2], [3, 4]]), "x has 1 tasks and y has 2"),
        (lambda: probability_of_improvement([1, 2], [np.nan, 4]), r"y is NaN at \(0, 0\)"),
        (lambda: chance_if_equal([[1, 2]], [1, 2]), "x has 2 tasks and y has 1"),
    ],
)
def test_bad_input_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()

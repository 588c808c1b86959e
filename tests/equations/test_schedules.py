"""Schedules: SB3's exploration, tables, and names."""

from pathlib import Path

import numpy as np
import pytest

from advantage.equations.schedules import Linear, Table, parse

SB3 = np.load(Path(__file__).parents[1] / "oracles" / "sb3.npz")


def test_linear_is_that_of_sb3():
    """DQN's default exploration at 21 points of progress."""
    progress, expected = SB3["dqn/epsilon/progress_remaining"], SB3["dqn/epsilon/value"]
    schedule = Linear(1.0, 0.05, 0.1)
    np.testing.assert_allclose([schedule(float(p)) for p in progress], expected, rtol=1e-12)


def test_linear_reaches_its_end():
    """A learning rate that falls over all of training is 0 at its end, and never beyond."""
    assert Linear(3e-4)(1.0) == 3e-4
    assert Linear(3e-4)(0.0) == 0.0
    assert Linear(1.0, 0.5, 0.2)(0.3) == 0.5


def test_linear_over_no_time_is_its_end():
    """A fraction of 0 has fallen as soon as anything is done."""
    assert Linear(1.0, 0.05, 0.0)(0.999) == pytest.approx(0.05)


def test_table_interpolates():
    """Three values: at the start, the middle and the end of training."""
    table = Table((1.0, 0.5, 0.1))
    np.testing.assert_allclose([table(p) for p in (1.0, 0.75, 0.5, 0.25, 0.0)], [1.0, 0.75, 0.5, 0.3, 0.1])


def test_table_of_a_linear_schedule_is_that_schedule():
    """What a model file holds of a function gives its values again."""
    points = np.linspace(1.0, 0.0, 101).tolist()
    original = Linear(1.0, 0.05, 0.5)
    table = Table(tuple(original(p) for p in points))
    np.testing.assert_allclose([table(p) for p in points], [original(p) for p in points], atol=1e-12)


@pytest.mark.parametrize("text", ["lin_0.001", "linear_1e-3"])
def test_parse_named(text):
    """A name gives a schedule that falls to 0."""
    assert parse(text) == Linear(0.001)


def test_parse_number():
    """A number stays one."""
    assert parse("3e-4") == 3e-4


@pytest.mark.parametrize("text", ["cosine_0.1", "lin_", "lin_fast", "", "0.1x"])
def test_parse_says_what_it_knows(text):
    """Neither a number nor a name: the error says what to give."""
    with pytest.raises(ValueError, match="linear_0.001"):
        parse(text)

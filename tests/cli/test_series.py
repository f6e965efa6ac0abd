"""Series: exact while it is short, and never more than its capacity."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookbus.cli.series import CAPACITY, Series, smoothed


def series_of(values: list[float]) -> Series:
    """Return a series of values at the iterations 1, 2, 3..."""
    series = Series()
    for iteration, value in enumerate(values, 1):
        series.append(iteration, value)
    return series


@given(st.lists(st.floats(-1e6, 1e6), max_size=60))
def test_what_fits_is_kept_as_it_is(values: list[float]) -> None:
    """Each value is a point of its own, at its iteration."""
    points = series_of(values).points()

    assert (points.mean.tolist(), points.iters.tolist()) == (values, list(range(1, len(values) + 1)))
    assert points.width == 1


def test_a_long_series_stays_small_and_loses_no_peak() -> None:
    """A million values become at most CAPACITY points, with the one peak among them and the right mean."""
    values = np.sin(np.arange(1_000_000) / 1000)
    values[654_321] = 42.0
    points = series_of(values.tolist()).points()

    assert len(points.iters) <= CAPACITY
    assert points.high.max() == 42.0
    assert points.low.min() == values.min()
    assert abs(points.iters[points.high.argmax()] - 654_322) < points.width
    assert points.mean[0] == pytest.approx(values[: points.width - 1].mean())


def test_values_that_are_not_finite_are_gaps_and_are_counted() -> None:
    """NaN and infinities have a place on the axis and no value."""
    points = series_of([1.0, math.nan, math.inf, -math.inf, 2.0]).points()

    assert np.isfinite(points.mean).tolist() == [True, False, False, False, True]
    assert (points.missing, points.last) == (3, 2.0)


def test_nothing_but_nan_has_no_newest_value() -> None:
    """A series without one finite value says so."""
    assert series_of([math.nan]).points().last is None


def test_what_training_does_again_is_forgotten_first() -> None:
    """After a rollback to iteration 2, the values from 3 on are the new ones."""
    series = series_of([1.0, 2.0, 3.0, 4.0])
    series.cut(3)
    series.append(3, 30.0)

    assert series.points().mean.tolist() == [1.0, 2.0, 30.0]


def test_a_smoothed_curve_keeps_its_ends_and_its_gaps() -> None:
    """Means are centred, so a straight line stays one; a gap stays a gap."""
    straight = np.arange(400.0)
    with_gap = np.where(straight == 200, np.nan, straight)

    assert np.allclose(smoothed(straight)[0], straight)
    assert np.flatnonzero(np.isnan(smoothed(with_gap)[0])).tolist() == [200]

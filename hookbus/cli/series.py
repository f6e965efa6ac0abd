"""The values of one name over the iterations of a run, in bounded memory however long the run is.

Up to `CAPACITY` values are kept as they are. Beyond that, neighbouring iterations share a bucket that remembers the least and the
greatest value, their sum and how many there were, so that no peak disappears from the picture.
"""

from __future__ import annotations

__all__ = ("CAPACITY", "Points", "Series", "smoothed")

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]

CAPACITY = 2048
"""How many points a curve has at most: about one for each pixel of a wide picture."""

_BATCH = 1 << 14
"""How many values wait until they are sorted into buckets together."""

_LARGEST = 1e200
"""What is greater counts as infinite: the ends of an axis are calculated in floats, too."""

_SMOOTHED_SHARE = 40
"""A smoothed value is the mean over one part in so many of the curve."""


class Points(NamedTuple):
    """A curve: for each point the last iteration it stands for, and the values there; NaN where none was finite."""

    iters: Whole
    mean: Floats
    low: Floats
    high: Floats
    width: int
    """How many iterations share a point; 1 where every value is a point of its own."""
    missing: int
    """Values that were NaN or infinite."""

    @property
    def last(self) -> float | None:
        """The newest finite value, or None."""
        finite = self.mean[np.isfinite(self.mean)]
        return float(finite[-1]) if len(finite) else None


class _Buckets(NamedTuple):
    last_iter: Whole
    low: Floats
    high: Floats
    total: Floats
    finite: Whole
    missing: Whole

    @classmethod
    def of(cls, iters: list[int], values: list[float]) -> Self:
        """Return a bucket for each value."""
        raw = np.array(values, np.float64)
        is_finite = np.abs(raw) < _LARGEST  # false for NaN
        plain = np.where(is_finite, raw, np.nan)
        return cls(
            np.array(iters, np.int64), plain, plain, np.where(is_finite, raw, 0.0), is_finite.astype(np.int64), 1 - is_finite
        )

    def joined(self, other: _Buckets) -> _Buckets:
        return _Buckets(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))

    def chosen(self, rows: Any) -> _Buckets:
        return _Buckets(*(column[rows] for column in self))

    def merged(self, width: int) -> _Buckets:
        """Return one bucket for each `width` iterations that have any."""
        if not len(self.last_iter):
            return self
        rows = self.chosen(np.argsort(self.last_iter, kind="stable"))
        starts = np.flatnonzero(np.diff(rows.last_iter // width, prepend=-1))
        with np.errstate(over="ignore"):  # the sum of huge values is infinite, and not drawn
            return _Buckets(
                np.maximum.reduceat(rows.last_iter, starts),
                np.fmin.reduceat(rows.low, starts),
                np.fmax.reduceat(rows.high, starts),
                np.add.reduceat(rows.total, starts),
                np.add.reduceat(rows.finite, starts),
                np.add.reduceat(rows.missing, starts),
            )


class Series:
    """Takes value after value, and gives the curve."""

    def __init__(self) -> None:
        self._iters: list[int] = []
        self._values: list[float] = []
        self._buckets = _Buckets.of([], [])
        self._width = 1

    def append(self, iteration: int, value: float) -> None:
        """Add one value, which may be NaN or infinite."""
        self._iters.append(iteration)
        self._values.append(value)
        if len(self._iters) >= _BATCH:
            self._sort_in()

    def cut(self, first: int) -> None:
        """Forget everything from an iteration on: training went back, and comes there again."""
        self._sort_in()
        if len(self._buckets.last_iter) and self._buckets.last_iter[-1] >= first:
            self._buckets = self._buckets.chosen(self._buckets.last_iter < first)

    def points(self) -> Points:
        """Return the curve so far."""
        self._sort_in()
        buckets = self._buckets
        mean = np.divide(buckets.total, buckets.finite, out=np.full(len(buckets.total), np.nan), where=buckets.finite > 0)
        mean[~np.isfinite(mean)] = np.nan
        return Points(buckets.last_iter, mean, buckets.low, buckets.high, self._width, int(buckets.missing.sum()))

    def _sort_in(self) -> None:
        if not self._iters:
            return
        buckets = self._buckets.joined(_Buckets.of(self._iters, self._values)).merged(self._width)
        self._iters, self._values = [], []
        while len(buckets.last_iter) > CAPACITY:
            self._width *= 2
            buckets = buckets.merged(self._width)
        self._buckets = buckets


def smoothed(values: Floats) -> tuple[Floats, int]:
    """Return means over a window that is centred on each value and leaves out NaN, and the length of that window.

    At the ends the window is as long as fits on both sides, so the curve begins and ends where the values do.
    """
    half = max(1, len(values) // _SMOOTHED_SHARE // 2)
    at = np.arange(len(values))
    reach = np.minimum(half, np.minimum(at, len(values) - 1 - at))
    is_finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(is_finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(is_finite)])
    count = counts[at + reach + 1] - counts[at - reach]
    total = sums[at + reach + 1] - sums[at - reach]
    means = np.divide(total, count, out=np.full(len(values), np.nan), where=is_finite)
    return means, 2 * half + 1

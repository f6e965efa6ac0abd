"""The history of one scalar: appending is O(1) for ever, and older views are never disturbed.

Values, counts and steps lie in flat arrays of doubles and integers that grow by doubling. Only the buffer that owns
them writes to them, and only behind the end of every view it has given out, so a view needs no lock. What is
recorded into a view goes to a tail of its own.
"""

from __future__ import annotations

__all__ = ("HistoryBuffer",)

import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, TypeVar

from hookbus.errors import ConfigError, choices

S = TypeVar("S", bound=Callable[..., Any])

_Columns = tuple["array[Any]", "array[Any]", "array[Any]"]

_FIRST_CAPACITY = 64
_VALUES, _COUNTS, _STEPS = range(3)


def _columns(capacity: int) -> _Columns:
    """Return empty storage: values, counts and steps."""
    empty = bytes(8 * capacity)
    return array("d", empty), array("q", empty), array("q", empty)


class HistoryBuffer:
    """Values with the number of samples each one stands for, and statistics over their newest part.

    A value recorded with `count=k` is taken as a sum over `k` samples, so `mean` divides by the counts.

    Args:
        log_history: values to begin with.
        count_history: their counts; 1 for each if left out.
        max_length: how many of the newest entries are kept.

    Raises:
        ConfigError: the histories differ in length, or `max_length` is not at least 1.
    """

    _statistics: ClassVar[dict[str, Callable[..., Any]]] = {}

    __slots__ = ("_max_length", "_owns", "_start", "_stop", "_stored", "_tail", "num_updates")

    def __init__(self, log_history: Iterable[float] = (), count_history: Iterable[int] = (), max_length: int = 1_000_000) -> None:
        if max_length < 1:
            msg = f"max_length must be at least 1, got {max_length}"
            raise ConfigError(msg)
        values = [float(value) for value in log_history]
        counts = [int(count) for count in count_history] or [1] * len(values)
        self._max_length = max_length
        self._stored = _columns(_FIRST_CAPACITY)
        self._tail = _columns(0)
        self._start = self._stop = 0
        self._owns = True
        self.num_updates = 0
        """How many values were ever recorded, those beyond `max_length` included."""
        self.extend(values, counts, list(range(len(values))))

    def __len__(self) -> int:
        return min(self._stop - self._start + len(self._tail[0]), self._max_length)

    def __repr__(self) -> str:
        newest = f", newest {self.current():g}" if len(self) else ""
        return f"HistoryBuffer({len(self)} values{newest})"

    # --- recording ----------------------------------------------------------------------------------------------------

    def update(self, value: float, count: int = 1, step: int | None = None) -> None:
        """Append one value; `step` is the iteration it belongs to, by default the number of values so far."""
        end = self._stop
        if self._owns and end < len(self._stored[0]):
            values, counts, steps = self._stored
            values[end], counts[end], steps[end] = value, count, self.num_updates if step is None else step
            self._stop = end + 1
            self.num_updates += 1
            if end - self._start >= self._max_length:
                self._start += 1
        else:
            self.extend([value], [count], [self.num_updates if step is None else step])

    def extend(self, values: Sequence[float], counts: Sequence[int], steps: Sequence[int]) -> None:
        """Append several values at once.

        Raises:
            ConfigError: they differ in number.
        """
        if not len(values) == len(counts) == len(steps):
            msg = f"values, counts and steps must be of one length, got {len(values)}, {len(counts)} and {len(steps)}"
            raise ConfigError(msg)
        rows = (array("d", values), array("q", counts), array("q", steps))
        if self._owns:
            self._append(rows, len(values))
        else:  # the storage belongs to another buffer
            values_tail, counts_tail, steps_tail = self._tail
            self._tail = (values_tail + rows[0], counts_tail + rows[1], steps_tail + rows[2])
        self.num_updates += len(values)
        excess = self._stop - self._start + len(self._tail[0]) - self._max_length
        self._start = min(self._stop, self._start + max(0, excess))

    def view(self) -> HistoryBuffer:
        """Return the buffer as it stands, unaffected by what is recorded later; the storage is shared."""
        view: HistoryBuffer = object.__new__(HistoryBuffer)
        view._stored, view._tail, view._owns = self._stored, self._tail, False
        view._start, view._stop, view._max_length = self._start, self._stop, self._max_length
        view.num_updates = self.num_updates
        return view

    def _append(self, rows: _Columns, number: int) -> None:
        end = self._stop + number
        if end > len(self._stored[0]):
            self._move(number)
            end = self._stop + number
        for column, new in zip(self._stored, rows, strict=True):
            column[self._stop : end] = new
        self._stop = end

    def _move(self, number: int) -> None:
        """Move what is kept into larger columns; the old ones stay as they are for their views."""
        kept = self._stop - self._start
        larger = _columns(max(_FIRST_CAPACITY, 2 * (kept + number)))
        for new, old in zip(larger, self._stored, strict=True):
            new[:kept] = old[self._start : self._stop]
        self._stored, self._start, self._stop = larger, 0, kept

    # --- reading ------------------------------------------------------------------------------------------------------

    @property
    def data(self) -> tuple[list[float], list[int]]:
        """The kept values and their counts."""
        return self._column(_VALUES), self._column(_COUNTS)

    @property
    def steps(self) -> list[int]:
        """The iteration each kept value belongs to."""
        return self._column(_STEPS)

    def newest(self, window: int | None = None) -> tuple[list[float], list[int], list[int]]:
        """Return the newest `window` values, their counts and their steps."""
        return self._column(_VALUES, window), self._column(_COUNTS, window), self._column(_STEPS, window)

    def mean(self, window: int | None = None) -> float:
        """Return the sum of the newest `window` values over the sum of their counts; NaN if there are none."""
        counts = sum(self._column(_COUNTS, window))
        return sum(self._column(_VALUES, window)) / counts if counts else math.nan

    def max(self, window: int | None = None) -> float:
        """Return the greatest of the newest `window` values; NaN if one of them is."""
        return self._extreme(max, window)

    def min(self, window: int | None = None) -> float:
        """Return the least of the newest `window` values; NaN if one of them is."""
        return self._extreme(min, window)

    def current(self) -> float:
        """Return the newest value."""
        return self._values(1)[0]

    def _extreme(self, choose: Callable[[list[float]], float], window: int | None) -> float:
        values = self._values(window)
        return math.nan if any(map(math.isnan, values)) else choose(values)

    def _values(self, window: int | None) -> list[float]:
        values: list[float] = self._column(_VALUES, window)
        if not values:
            msg = "the history is empty: nothing has been recorded yet"
            raise ValueError(msg)
        return values

    def _column(self, index: int, window: int | None = None) -> list[Any]:
        """Return the newest `window` entries of a column, or all that are kept."""
        if window is not None and window < 1:
            msg = f"window must be at least 1, got {window}"
            raise ConfigError(msg)
        window = self._max_length if window is None else min(window, self._max_length)
        tail = self._tail[index][-window:]
        first = max(self._start, self._stop - (window - len(tail)))
        return [*self._stored[index][first : self._stop], *tail]

    def statistics(self, name: str, *args: Any, **options: Any) -> Any:
        """Return a statistic by name: `mean`, `max`, `min`, `current` or a registered one.

        Raises:
            ConfigError: nothing of that name is registered.
        """
        statistic = self._statistics.get(name)
        if statistic is None:
            msg = f"unknown statistic {name!r}; {choices(name, self._statistics)}"
            raise ConfigError(msg)
        return statistic(self, *args, **options)

    @classmethod
    def register_statistics(cls, statistic: S) -> S:
        """Register a function of a buffer under its own name; usable as a decorator.

        Raises:
            ConfigError: the name is taken.
        """
        name = statistic.__name__
        if name in cls._statistics:
            msg = f"a statistic named {name!r} is registered already"
            raise ConfigError(msg)
        cls._statistics[name] = statistic
        return statistic


for _statistic in (HistoryBuffer.mean, HistoryBuffer.max, HistoryBuffer.min, HistoryBuffer.current):
    HistoryBuffer.register_statistics(_statistic)

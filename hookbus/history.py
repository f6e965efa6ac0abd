"""The history of one scalar: appending is O(1) for ever, and older views are never disturbed.

Values, counts and steps lie in chunks of flat arrays, which are never moved: a longer history has more of them, and one
that keeps no more drops the oldest. Only the buffer that owns the chunks writes to them, and only behind the end of
every view it has given out, so a view needs no lock. What is recorded into a view goes to a tail of its own.
"""

from __future__ import annotations

__all__ = ("HistoryBuffer",)

import math
import struct
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, TypeVar

from hookbus.errors import ConfigError, choices

S = TypeVar("S", bound=Callable[..., Any])

_Columns = tuple["array[Any]", "array[Any]", "array[Any]"]

_SMALLEST_CHUNK = 64
_LARGEST_CHUNK = 16_384
_VALUES, _COUNTS, _STEPS = range(3)
_BYTES = 8
"""What one number takes, in each of the columns."""


def _columns(capacity: int) -> _Columns:
    """Return empty columns: values, counts and steps."""
    empty = bytes(_BYTES * capacity)
    return array("d", empty), array("q", empty), array("q", empty)


def _write(columns: _Columns, place: int, values: Sequence[float], counts: Sequence[int], steps: Sequence[int]) -> None:
    numbers = len(values)
    stored_values, stored_counts, stored_steps = columns
    try:  # packing takes half the time of making arrays first
        struct.pack_into(f"{numbers}d", stored_values, _BYTES * place, *values)
        struct.pack_into(f"{numbers}q", stored_counts, _BYTES * place, *counts)
        struct.pack_into(f"{numbers}q", stored_steps, _BYTES * place, *steps)
    except struct.error:
        _arrays(values, counts, steps)  # says better what is wrong
        raise


def _arrays(values: Sequence[float], counts: Sequence[int], steps: Sequence[int]) -> _Columns:
    return array("d", values), array("q", counts), array("q", steps)


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

    __slots__ = ("_chunks", "_filled", "_max_length", "_owns", "_tail", "num_updates")

    def __init__(self, log_history: Iterable[float] = (), count_history: Iterable[int] = (), max_length: int = 1_000_000) -> None:
        if max_length < 1:
            msg = f"max_length must be at least 1, got {max_length}"
            raise ConfigError(msg)
        values = [float(value) for value in log_history]
        counts = [int(count) for count in count_history] or [1] * len(values)
        self._max_length = max_length
        self._chunks: tuple[_Columns, ...] = (_columns(_SMALLEST_CHUNK),)
        self._filled = 0
        """How much of the newest chunk is filled; the others are full."""
        self._tail = _columns(0)
        self._owns = True
        self.num_updates = 0
        """How many values were ever recorded, those beyond `max_length` included."""
        self.extend(values, counts, list(range(len(values))))

    def __len__(self) -> int:
        return min(self.num_updates, self._max_length)

    def __repr__(self) -> str:
        newest = f", newest {self.current():g}" if len(self) else ""
        return f"HistoryBuffer({len(self)} values{newest})"

    # --- recording ----------------------------------------------------------------------------------------------------

    def update(self, value: float, count: int = 1, step: int | None = None) -> None:
        """Append one value; `step` is the iteration it belongs to, by default the number of values so far."""
        end = self._filled
        values, counts, steps = self._chunks[-1]
        if self._owns and end < len(values):
            values[end], counts[end], steps[end] = value, count, self.num_updates if step is None else step
            self._filled = end + 1
            self.num_updates += 1
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
        if self._owns:
            self._append(values, counts, steps)
        else:  # the chunks belong to another buffer
            new_values, new_counts, new_steps = _arrays(values, counts, steps)
            values_tail, counts_tail, steps_tail = self._tail
            self._tail = (values_tail + new_values, counts_tail + new_counts, steps_tail + new_steps)
        self.num_updates += len(values)

    def view(self) -> HistoryBuffer:
        """Return the buffer as it stands, unaffected by what is recorded later; the chunks are shared."""
        view: HistoryBuffer = object.__new__(HistoryBuffer)
        view._owns = False
        view._chunks, view._filled, view._tail = self._chunks, self._filled, self._tail
        view._max_length, view.num_updates = self._max_length, self.num_updates
        return view

    def _append(self, values: Sequence[float], counts: Sequence[int], steps: Sequence[int]) -> None:
        """Write into the chunks; they count as filled only when everything was accepted."""
        number, newest = len(values), self._chunks[-1]
        room = len(newest[0]) - self._filled
        if number <= room:
            _write(newest, self._filled, values, counts, steps)
            self._filled += number
            return
        _write(newest, self._filled, values[:room], counts[:room], steps[:room])
        chunks, place, size = [*self._chunks], room, len(newest[0])
        while place < number:
            size = min(2 * size, _LARGEST_CHUNK)
            part = slice(place, place + size)
            chunks.append(_columns(size))
            _write(chunks[-1], 0, values[part], counts[part], steps[part])
            place += size
        self._chunks, self._filled = tuple(chunks), size - (place - number)
        self._drop_old_chunks()

    def _drop_old_chunks(self) -> None:
        lengths = [len(values) for values, _, _ in self._chunks]
        needless = sum(lengths[:-1]) + self._filled - self._max_length
        first = 0
        while lengths[first] <= needless:
            needless -= lengths[first]
            first += 1
        self._chunks = self._chunks[first:]

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
        missing = len(self) if window is None else min(window, len(self))
        column, end, tail = self._chunks[-1][index], self._filled, self._tail[index]
        if missing <= len(tail):
            return tail[len(tail) - missing :].tolist()
        missing -= len(tail)
        if missing <= end:
            return [*column[end - missing : end], *tail]
        return [*self._end_of_full_chunks(index, missing - end), *column[:end], *tail]

    def _end_of_full_chunks(self, index: int, missing: int) -> array[Any]:
        pieces: list[array[Any]] = []
        for columns in reversed(self._chunks[:-1]):
            column = columns[index]
            pieces.append(column[max(0, len(column) - missing) :])
            missing -= len(pieces[-1])
            if not missing:
                break
        joined = pieces.pop()
        for piece in reversed(pieces):
            joined.extend(piece)
        return joined

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

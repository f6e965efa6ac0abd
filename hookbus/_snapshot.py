"""One committed version of a message hub: a base, and the part of a log written when it was committed.

The writer appends to the log and from time to time folds it into a new base. A snapshot never changes, and whoever
reads one folds on a private copy.
"""

from __future__ import annotations

__all__ = ("INFO", "MISSING", "Entry", "Snapshot", "apply_info", "apply_scalars")

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hookbus.errors import MetricNotFound, choices
from hookbus.history import HistoryBuffer

MISSING: Any = object()
"""In the place of a piece of information that was removed."""


Entry = tuple[Mapping[str, Any], int, int]
"""A log entry, a plain tuple for speed: values by key, their count, their step; with count `INFO` pieces of information."""

INFO = 0


class Snapshot(msgspec.Struct, frozen=True, eq=False):
    """One committed version of a hub; it never changes."""

    version: int
    """Rises with every commit of the same hub."""
    _info: dict[str, Any]
    _buffers: dict[str, HistoryBuffer]
    _log: list[Entry]
    _length: int

    @property
    def runtime_info(self) -> dict[str, Any]:
        """Every piece of information by its key."""
        info = dict(self._info)
        for entry in self._log[: self._length]:
            apply_info(info, entry)
        return info

    @property
    def log_scalars(self) -> dict[str, HistoryBuffer]:
        """The history of every scalar by its key."""
        buffers = {key: buffer.view() for key, buffer in self._buffers.items()}
        apply_scalars(buffers, self._log[: self._length])
        return buffers

    @property
    def scalars(self) -> dict[str, float]:
        """The newest value of every scalar."""
        return {key: buffer.current() for key, buffer in self.log_scalars.items() if len(buffer)}

    def get_info(self, key: str, default: Any = None) -> Any:
        """Return a piece of information, or `default` where there is none."""
        for entry in reversed(self._log[: self._length]):
            values, count, _ = entry
            if count == INFO and key in values:
                return default if values[key] is MISSING else values[key]
        return self._info.get(key, default)

    def get_scalar(self, key: str) -> HistoryBuffer:
        """Return the history of a scalar as of this version.

        Raises:
            MetricNotFound: nothing was recorded under that key.
        """
        known = self._buffers.get(key)
        log = self._log[: self._length]
        rows = [(values[key], count, step) for values, count, step in log if key in values and count != INFO]
        if known is None and not rows:
            msg = f"no scalar {key!r} in the message hub; {choices(key, self.log_scalars)}"
            raise MetricNotFound(msg)
        buffer = HistoryBuffer() if known is None else known.view()
        if rows:
            buffer.extend(*zip(*rows, strict=True))
        return buffer


def apply_info(info: dict[str, Any], entry: Entry) -> None:
    """Carry out the information of a log entry on a dict."""
    values, count, _ = entry
    if count != INFO:
        return
    for key, value in values.items():
        if value is MISSING:
            info.pop(key, None)
        else:
            info[key] = value


def apply_scalars(buffers: dict[str, HistoryBuffer], entries: Sequence[Entry]) -> None:
    """Append the scalars of log entries to buffers, in one go per key."""
    columns: defaultdict[str, tuple[list[float], list[int], list[int]]] = defaultdict(lambda: ([], [], []))
    for written, count, step in entries:
        if count == INFO:
            continue
        for key, value in written.items():
            values, counts, steps = columns[key]
            values.append(value)
            counts.append(count)
            steps.append(step)
    for key, (values, counts, steps) in columns.items():
        if key not in buffers:
            buffers[key] = HistoryBuffer()
        buffers[key].extend(values, counts, steps)

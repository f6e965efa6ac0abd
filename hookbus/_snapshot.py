"""One committed version of a message hub: a base, and the part of a log written when it was committed.

The writer appends to the log and from time to time folds it into a new base. A snapshot never changes, and whoever
reads one folds on a private copy.
"""

from __future__ import annotations

__all__ = ("INFO", "MISSING", "Entry", "Snapshot", "apply_info", "apply_scalars")

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import msgspec

from hookbus.errors import MetricNotFound, choices
from hookbus.history import HistoryBuffer

MISSING: Any = object()
"""In the place of a piece of information that was removed."""


Entry = tuple[str, Any, int, int]
"""A log entry, a plain tuple for speed: a key, its value, its count and its step; with count `INFO` a piece of information."""

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
        apply_info(info, self._log[: self._length])
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
        for written, value, count, _ in reversed(self._log[: self._length]):
            if written == key and count == INFO:
                return default if value is MISSING else value
        return self._info.get(key, default)

    def get_scalar(self, key: str) -> HistoryBuffer:
        """Return the history of a scalar as of this version.

        Raises:
            MetricNotFound: nothing was recorded under that key.
        """
        known = self._buffers.get(key)
        read = {} if known is None else {key: known.view()}
        apply_scalars(read, [entry for entry in self._log[: self._length] if entry[0] == key])
        if not read:
            msg = f"no scalar {key!r} in the message hub; {choices(key, self.log_scalars)}"
            raise MetricNotFound(msg)
        return read[key]


def apply_info(info: dict[str, Any], entries: Iterable[Entry]) -> None:
    """Carry out the information of log entries on a dict."""
    for key, value, count, _ in entries:
        if count != INFO:
            continue
        if value is MISSING:
            info.pop(key, None)
        else:
            info[key] = value


def apply_scalars(buffers: dict[str, HistoryBuffer], entries: Iterable[Entry]) -> None:
    """Append the scalars of log entries to buffers, in one go per key."""
    rows: defaultdict[str, list[Any]] = defaultdict(list)
    for entry in entries:
        if entry[2] != INFO:
            rows[entry[0]].extend(entry)  # flat, because slices of a long list are the quickest way to its columns
    for key, flat in rows.items():
        if key not in buffers:
            buffers[key] = HistoryBuffer()
        buffers[key].extend(flat[1::4], flat[2::4], flat[3::4])

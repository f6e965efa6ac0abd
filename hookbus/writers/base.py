"""What a writer is given, and what it has to offer."""

from __future__ import annotations

__all__ = ("Record", "Writer")

import logging
from pathlib import Path
from typing import Any

import msgspec

from hookbus.types import Mode


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a log: the values of one moment, and the same as text."""

    mode: Mode
    epoch: int
    """The running epoch in training, completed epochs in validation and test."""
    iter: int
    """Completed iterations."""
    values: dict[str, Any]
    text: str


class Writer:
    """One destination: `open` at the start of a run, `write` record after record, `close` at the end, once or more."""

    def open(self, logger: logging.Logger, log_dir: Path) -> None:
        """Learn where the run logs to; the destination itself may wait for the first record."""

    def write(self, record: Record) -> None:
        """Take one record."""
        msg = f"{type(self).__name__} must define write(record)"
        raise NotImplementedError(msg)

    def flush(self) -> None:
        """Bring everything to its destination."""

    def close(self) -> None:
        """Flush, and let go of the destination."""

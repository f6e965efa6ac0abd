"""What a writer is given, and what it has to offer."""

from __future__ import annotations

__all__ = ("Record", "RunPlace", "Writer")

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


class RunPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run logs to, and from where on."""

    logger: logging.Logger
    log_dir: Path
    first_iter: int = 1
    """The first training iteration to come; what an earlier run in `log_dir` recorded from there on is out of date."""


class Writer:
    """One destination: `open` before the first record of a run, `write` record after record, `close` at the end, once or more."""

    def open(self, place: RunPlace) -> None:
        """Learn where the run logs to; the destination itself may wait for the first record."""

    def write(self, record: Record) -> None:
        """Take one record."""
        msg = f"{type(self).__name__} must define write(record)"
        raise NotImplementedError(msg)

    def show(self, record: Record) -> None:
        """Show how far a validation or test has come; nothing to be kept, so only destinations for people do."""

    def flush(self) -> None:
        """Bring everything to its destination; called at the end of each validation and test."""

    def close(self) -> None:
        """Flush, and let go of the destination."""

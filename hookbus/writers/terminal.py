"""Log lines for people, through the logger of the run: terminal and `train.log`."""

from __future__ import annotations

__all__ = ("TerminalWriter",)

import logging

from hookbus.writers.base import Record, RunPlace, Writer


class TerminalWriter(Writer):
    """Writes the text of each record as one line."""

    def __init__(self) -> None:
        self._logger: logging.Logger | None = None

    def open(self, place: RunPlace) -> None:
        """Write to the logger of the run."""
        self._logger = place.logger

    def write(self, record: Record) -> None:
        """Log the line."""
        assert self._logger is not None
        self._logger.info("%s", record.text)

    def show(self, record: Record) -> None:
        """Log the line."""
        self.write(record)

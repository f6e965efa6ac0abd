"""Log lines for people, through the logger of the run: terminal and `train.log`; on a terminal with a progress bar below."""

from __future__ import annotations

__all__ = ("TerminalWriter",)

import logging
import os
from typing import Any, Literal

from rich.file_proxy import FileProxy

from hookbus._config import shown
from hookbus.errors import ConfigError
from hookbus.writers._live_line import ClearingStream, LiveLine
from hookbus.writers._progress_line import ProgressLine
from hookbus.writers._terminal_claim import TerminalClaim
from hookbus.writers.base import Record, RunPlace, Writer


class TerminalWriter(Writer):
    """Writes the text of each record as one line, and shows a progress bar where somebody may be looking.

    Args:
        progress: `"auto"` shows the bar on a terminal, unless a program reads it (`CI` is set, `TERM` is `dumb`) or another
            live display is there; True does so also where only a program seems to be reading; False never does.

    Raises:
        ConfigError: `progress` is none of these.
    """

    def __init__(self, progress: Literal["auto"] | bool = "auto") -> None:
        if progress not in ("auto", True, False):
            msg = f"TerminalWriter.progress = {shown(progress)}: expected 'auto', True or False"
            raise ConfigError(msg)
        self._progress = progress
        self._logger: logging.Logger | None = None
        self._line: ProgressLine | None = None
        self._live: LiveLine | None = None
        self._replaced: tuple[logging.StreamHandler[Any], Any] | None = None
        """The handler whose lines go another way for the time being, and the stream that it had."""

    def open(self, place: RunPlace) -> None:
        """Write to the logger of the run, and begin to show the bar."""
        self.close()
        self._logger = place.logger
        handler = _on_a_terminal(place.logger)
        if handler is not None and place.position is not None and self._is_wanted():
            self._line = ProgressLine(place.position)
            self._begin(handler, self._line)

    def write(self, record: Record) -> None:
        """Log the line."""
        assert self._logger is not None
        if self._line is not None:
            self._line.learn(record)
        self._logger.info("%s", record.text)

    def show(self, record: Record) -> None:
        """Log the line, unless the bar shows the same."""
        if self._live is None:
            self.write(record)

    def close(self) -> None:
        """Remove the bar."""
        live, self._live = self._live, None
        replaced, self._replaced = self._replaced, None
        try:
            if live is not None:
                live.stop()
        finally:
            if replaced is not None:
                handler, stream = replaced
                handler.setStream(stream)

    def _is_wanted(self) -> bool:
        if self._progress == "auto":
            return os.environ.get("CI", "") in ("", "0", "false") and os.environ.get("TERM") != "dumb"
        return self._progress

    def _begin(self, handler: logging.StreamHandler[Any], line: ProgressLine) -> None:
        """Show the bar, or keep out of the way of the one that another run shows."""
        stream = handler.stream
        claim = TerminalClaim.of(stream)
        if claim is None:
            handler.setStream(ClearingStream(stream))
        else:
            self._live = LiveLine(stream, claim, line)
            self._live.start()
            handler.setStream(self._live)
        self._replaced = handler, stream


def _on_a_terminal(logger: logging.Logger) -> logging.StreamHandler[Any] | None:
    """Return the handler that writes to a terminal; None where there is none, or where a live display of rich has it."""
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            stream = handler.stream
            if not isinstance(stream, FileProxy) and getattr(stream, "isatty", bool)():
                return handler
    return None

"""The logger of one run: lines on the terminal and in `train.log`; no other logger is touched."""

from __future__ import annotations

__all__ = ("RunLogger",)

import logging
import sys
from pathlib import Path

from hookbus._config import shown
from hookbus.errors import ConfigError, choices

_TERMINAL = "%(asctime)s - %(levelname)s - %(message)s"


class _OneLine(logging.Formatter):
    """Keeps one record on one line, whatever control characters its text holds."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  named by the standard library
        text = super().formatMessage(record)
        if text.isprintable():
            return text
        return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class RunLogger(logging.Logger):
    """A logger that belongs to one runner and goes with it.

    Raises:
        ConfigError: there is no such level.
    """

    def __init__(self, name: str, level: str | int) -> None:
        try:
            super().__init__(name, level)
        except (TypeError, ValueError):
            msg = (
                f"log_level = {shown(level)}: expected a number or a name; {choices(str(level), logging.getLevelNamesMapping())}"
            )
            raise ConfigError(msg) from None
        self.propagate = False

    def open(self, log_dir: Path) -> None:
        """Begin to write to the terminal and to `train.log` in `log_dir`."""
        self.close()
        handlers: tuple[tuple[logging.Handler, str], ...] = (
            (logging.StreamHandler(sys.stderr), "%m/%d %H:%M:%S"),
            (logging.FileHandler(log_dir / "train.log", encoding="utf-8"), "%Y/%m/%d %H:%M:%S"),
        )
        for handler, dates in handlers:
            handler.setFormatter(_OneLine(_TERMINAL, datefmt=dates))
            self.addHandler(handler)

    def close(self) -> None:
        """Close the file and leave the terminal."""
        for handler in list(self.handlers):
            self.removeHandler(handler)
            handler.close()

"""The logger of one run: lines on the terminal and in `train.log`; no other logger is touched."""

from __future__ import annotations

__all__ = ("RunLogger", "named_after", "unused_timestamp")

import itertools
import logging
import re
import sys
import threading
import time
from pathlib import Path

from hookbus._config import shown
from hookbus.errors import ConfigError, choices


class _OneLine(logging.Formatter):
    """Keeps one record on one line, whatever control characters its text holds; terminal and file share the text."""

    def format(self, record: logging.LogRecord) -> str:
        text: str | None = getattr(record, "one_line", None)
        if text is None:
            text = record.one_line = super().format(record)
        return text

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
        file = logging.FileHandler(log_dir / "train.log", encoding="utf-8")
        handlers: tuple[logging.Handler, ...] = (logging.StreamHandler(sys.stderr), file)
        for handler in handlers:
            handler.setFormatter(_OneLine("%(asctime)s - %(levelname)s - %(message)s", datefmt="%Y/%m/%d %H:%M:%S"))
            self.addHandler(handler)

    def close(self) -> None:
        """Close the file and leave the terminal."""
        for handler in list(self.handlers):
            self.removeHandler(handler)
            handler.close()


_promised: set[Path] = set()
"""The log directories of runners that were built in this second; they are made when a run begins."""

_promising = threading.Lock()


def named_after(work_dir: Path) -> str:
    """Return the name of an experiment after its directory, with what no name may hold replaced."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", work_dir.resolve().name).lstrip("._-")[:100] or "run"


def unused_timestamp(work_dir: Path) -> str:
    """Return the time of this start, with a number behind it where the directory of that second belongs to another start."""
    second = time.strftime("%Y%m%d_%H%M%S")
    parent = work_dir.resolve()
    names = itertools.chain([second], (f"{second}_{number}" for number in itertools.count(2)))
    with _promising:
        _promised.difference_update([path for path in _promised if not path.name.startswith(second)])
        name = next(name for name in names if not (parent / name).exists() and parent / name not in _promised)
        _promised.add(parent / name)
    return name

"""A terminal that nobody looks at, and what stands on its screen."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from tests.writers.waiting import comes_true


class Screen:
    """Reads what is written to a terminal."""

    def __init__(self, descriptor: int) -> None:
        self.raw = ""
        self._descriptor = descriptor
        self._thread = threading.Thread(target=self._read, name="screen")
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._descriptor, 65536)
            except OSError:  # the other end is closed
                return
            self.raw += data.decode("utf-8", "replace")

    def shows(self, words: str) -> bool:
        """Return whether some words are written soon."""
        return comes_true(lambda: words in self.raw)

    def lines(self) -> list[str]:
        """Return what a person sees in the end: obeys carriage returns, emptied lines and the cursor going up."""
        lines, row = [""], 0
        for part in re.split(r"(\r|\n|\x1b\[[0-9;?]*[a-zA-Z])", self.raw):
            if part == "\n":
                row += 1
                lines += [""] * (row == len(lines))
            elif part == "\x1b[2K":
                lines[row] = ""
            elif part.startswith("\x1b["):
                row = max(0, row - int(part[2:-1] or 1)) if part.endswith("A") else row
            elif part != "\r":
                lines[row] += part
        return [line for line in lines if line]

    def join(self) -> None:
        """Read to the end."""
        self._thread.join()


@contextmanager
def terminal(columns: int = 120) -> Iterator[tuple[IO[str], Screen]]:
    """Give a stream that is a terminal, and its screen."""
    import fcntl
    import struct
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(theirs, "w", encoding="utf-8") as stream:
        screen = Screen(ours)
        yield stream, screen
    screen.join()
    os.close(ours)


def logger_on(stream: IO[str]) -> logging.Logger:
    """Return a logger that writes to a stream."""
    logger = logging.getLogger("tests.writers.terminals").getChild(str(id(stream)))
    logger.propagate = False
    logger.setLevel("INFO")
    logger.handlers = [logging.StreamHandler(stream)]
    return logger

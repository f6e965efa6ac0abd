"""A line at the bottom of a terminal that is drawn anew ten times a second, with the lines of the log above it."""

from __future__ import annotations

__all__ = ("ClearingStream", "LiveLine")

import atexit
import threading
from typing import IO, Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from hookbus.writers._terminal_claim import TerminalClaim

REFRESH = 0.1
"""Seconds between two drawings."""
CLEAR = "\r\x1b[2K"
"""Goes to the first column and empties the line."""


class LiveLine:
    """Draws on a thread of its own until it is stopped; what is printed meanwhile stands above.

    Args:
        stream: the terminal.
        claim: the right to draw on it.
        line: what is drawn.
    """

    def __init__(self, stream: IO[str], claim: TerminalClaim, line: RenderableType) -> None:
        self._claim = claim
        self._console = Console(file=stream, force_jupyter=False, force_terminal=True)
        self._live = Live(line, console=self._console, auto_refresh=False, transient=True)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._draw, name="hookbus-progress", daemon=True)

    def start(self) -> None:
        """Begin to draw."""
        self._live.start(refresh=True)
        atexit.register(self.stop)  # whoever leaves in a hurry gets the cursor back
        self._thread.start()

    def stop(self) -> None:
        """Remove the line and let go of the terminal."""
        atexit.unregister(self.stop)
        self._ended.set()
        self._thread.join()
        try:
            self._live.stop()
        finally:
            self._claim.release()

    def write(self, text: str) -> None:
        """Print what a logging handler writes, above the line; it is not wrapped, so that it can be copied."""
        self._console.print(Text(text.rstrip("\n")), soft_wrap=True)

    def flush(self) -> None:
        """Do nothing: what is written is there."""

    def _draw(self) -> None:
        while not self._ended.wait(REFRESH):
            try:
                self._live.refresh()
            except (OSError, ValueError):  # the terminal is gone, and with it whoever could have been told
                return


class ClearingStream:
    """A terminal that another run draws its line on: empties that line before each one of the log; it is drawn anew soon."""

    def __init__(self, stream: IO[Any]) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write in place of what is drawn there."""
        self._stream.write(CLEAR + text)

    def flush(self) -> None:
        """Bring it to the terminal."""
        self._stream.flush()

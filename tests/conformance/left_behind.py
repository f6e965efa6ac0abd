"""What broken hooks and writers leave behind on purpose, and how it is cleared away."""

from __future__ import annotations

import threading
from typing import IO, Any

files: list[IO[Any]] = []
"""Files that were opened and not closed."""

_left: list[tuple[threading.Thread, threading.Event]] = []
"""Threads that broken hooks and writers started, with what ends them."""


def start_a_thread() -> threading.Event:
    """Start a thread, and return what ends it."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="left behind")
    thread.start()
    _left.append((thread, end))
    return end


def clear_away() -> None:
    """End the threads and close the files."""
    while _left:
        thread, end = _left.pop()
        end.set()
        thread.join()
    while files:
        files.pop().close()

"""The right to draw on a terminal: one run has it at a time, among all processes."""

from __future__ import annotations

__all__ = ("TerminalClaim",)

import os
import threading
from typing import IO, Any

_claimed: set[str] = set()
"""The terminals that runs of this process draw on."""

_claiming = threading.Lock()


class TerminalClaim:
    """Holds a terminal until it is released, or its process ends."""

    def __init__(self, name: str, descriptor: int | None) -> None:
        self._name = name
        self._descriptor = descriptor

    @classmethod
    def of(cls, stream: IO[Any]) -> TerminalClaim | None:
        """Return a claim of the terminal behind a stream; None where another run has it."""
        name = os.ttyname(stream.fileno())
        with _claiming:
            if name in _claimed:
                return None
            descriptor = _lock_among_processes(name)
            if descriptor == _TAKEN:
                return None
            _claimed.add(name)
        return cls(name, descriptor)

    def release(self) -> None:
        """Let another run have it."""
        with _claiming:
            _claimed.discard(self._name)
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None


_TAKEN = -1


def _lock_among_processes(name: str) -> int | None:
    """Return a descriptor of the terminal that is locked; None where the system has no such locks."""
    try:
        import fcntl
    except ImportError:  # Windows: only the runs of this process know of one another
        return None
    # Opened anew: what a shell hands to its programs is one open file, and a lock on that is shared by them.
    descriptor = os.open(name, os.O_RDWR | os.O_NOCTTY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return _TAKEN
    return descriptor

"""SIGINT and SIGTERM while a run is going on: the first one stops it at the next step boundary, a second one at once.

So a run that is told to end, by a person or by a scheduler of jobs, ends as after `stop()`, with its last checkpoint where
that is wanted; then the signal has the effect it would have had. Handlers of the user's own are left alone.
"""

from __future__ import annotations

__all__ = ("SignalGuard",)

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from hookbus.training_thread import TrainingThread

_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)


class SignalGuard:
    """Holds signals back for the duration of a run; a context manager, which raises at its end what was held back.

    Args:
        thread: the training thread, which is told through its mailbox; the signal handler itself does nothing else.
        warn: says so.
        wanted: False to leave all signals alone.
    """

    def __init__(self, thread: TrainingThread, warn: Callable[[str], object], *, wanted: bool = True) -> None:
        self._thread = thread
        self._warn = warn
        self._wanted = wanted
        self._received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> SignalGuard:
        """Take over the signals whose handlers are Python's own; on another thread than the main one do nothing."""
        if self._wanted and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) in _DEFAULTS:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        """Give the signals back; one that was held back takes effect now, unless something else is on its way.

        Raises:
            KeyboardInterrupt: SIGINT came.
            SystemExit: SIGTERM came; the exit code is 143.
        """
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._received is not None and error_type is None:
            _take_effect(self._received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            _take_effect(number)
        self._received = number
        self._thread.mailbox.put(self._stop)

    def _stop(self) -> None:
        """Stop the run, on the training thread."""
        name = signal.Signals(self._received or signal.SIGINT).name
        self._warn(f"{name}: the run stops at the next step boundary; a second one stops it at once")
        self._thread.stop().forgive()


def _take_effect(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)

"""What happens when a handler raises: the error goes on as itself with a note, or is logged and counted."""

from __future__ import annotations

__all__ = ("FailureLog", "add_note", "end_in_failure", "raise_all")

import logging
import traceback
from collections.abc import Sequence
from typing import Any

from hookbus.bridge import CrossingCancelled
from hookbus.bus.subscription import Subscription
from hookbus.errors import Skip, describe_error
from hookbus.events import Event


def end_in_failure(subscriptions: Sequence[Subscription[Any]], index: int, error: BaseException, event: Event) -> None:
    """Count the failure of one handler of a plan, note on the error where it was, and count who misses out."""
    for later in subscriptions[index + 1 :]:
        later.missed += 1
    if isinstance(error, CrossingCancelled):
        return
    failed = subscriptions[index]
    failed.failures += 1
    if not isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):  # those pass through untouched
        add_note(error, failed, event)


def add_note(error: BaseException, subscription: Subscription[Any], event: Event) -> None:
    """Note on an error which handler raised it, and for which event."""
    error.add_note(f"while {subscription.name} handled {event!r}")
    if isinstance(error, TimeoutError) and subscription.timeout is not None:
        error.add_note(f"it may take {subscription.timeout:g} s, its timeout=")
    if isinstance(error, Skip):
        error.add_note(f"{type(event).__name__} announces nothing that could be skipped")


class FailureLog:
    """Where failures go that do not end the run: each is counted, and logged the first time it looks like this."""

    def __init__(self) -> None:
        self.logger = logging.getLogger("hookbus")

    def take(self, subscription: Subscription[Any], error: Exception, event: Event) -> None:
        """Count a failure; log it if it is a new one."""
        subscription.failures += 1
        places = traceback.extract_tb(error.__traceback__)
        likeness = f"{type(error).__name__} at {places[-1].filename}:{places[-1].lineno}" if places else describe_error(error)
        if likeness in subscription.seen_messages:
            return
        subscription.seen_messages.add(likeness)
        message = "%s failed on %r and goes on (on_error='log'; repeats are counted, not logged): %s"
        try:
            self.logger.error(message, subscription.name, event, describe_error(error), exc_info=error)
        except Exception:  # noqa: BLE001  an error whose text cannot be built must not become another one
            self.logger.error(message, subscription.name, event, describe_error(error))


def raise_all(errors: Sequence[BaseException]) -> None:
    """Raise the first of several errors, the others noted on it; a cancellation or an interrupt is never only a note."""
    if not errors:
        return
    first = next((error for error in errors if not isinstance(error, Exception)), errors[0])
    for error in errors:
        if error is first:
            continue
        first.add_note(f"and {'also' if error is errors[0] else 'later'}: {describe_error(error)}")
        for note in getattr(error, "__notes__", ()):
            first.add_note(f"    {note}")
    raise first

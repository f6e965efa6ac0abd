"""The outbox: where a publisher leaves events for background subscribers, at the cost of one append.

```text
publisher          put -> [event, event, ...]                       one append, however many subscribers listen
home event loop               pump -> hand_out -> backlog, backlog, ...     every 10 ms while events come
                                                     |        |
consumers                                         its task   its thread     in order per subscriber
```

The pump sleeps while nothing comes and is woken once; then it looks every 10 ms until a look finds nothing. So a quiet
bus costs one wake-up, and a busy one none. Should the loop be too busy to look, the publisher hands out itself from
`LIMIT` events on, so that the outbox never grows beyond it.
"""

from __future__ import annotations

__all__ = ("LIMIT", "Listener", "Marks", "Outbox", "all_past", "watched")

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from hookbus.bus.backlog import Backlog, Outcome
from hookbus.bus.failures import FailureLog, add_note, raise_all
from hookbus.bus.subscription import Subscription
from hookbus.errors import describe_error
from hookbus.events import Event

LIMIT = 1024
"""How many events may lie in the outbox before the publisher hands them out itself."""

Listener: TypeAlias = Subscription[Any]
"""A background subscription."""

Marks: TypeAlias = Sequence[tuple[Backlog, int]]
"""Up to which number each backlog has to come."""


class Outbox:
    """The outbox of one bus; whoever hosts the bus brings the pump."""

    def __init__(self, failure_log: FailureLog) -> None:
        self.wake: Callable[[], object] = _nobody_hosts
        """Wakes the pump; any thread may call it."""
        self.is_unattended = True
        """Whether the pump sleeps and has to be woken."""
        self.on_error: Callable[[], object] | None = None
        """Told when an error waits that is to end the run."""
        self._entries: deque[tuple[Event, int, Sequence[Listener]]] = deque()
        self._newcomers: deque[Listener] = deque()
        self._lock = threading.RLock()
        self._is_handing_out = False
        self._served: dict[Listener, None] = {}
        self._errors: deque[BaseException] = deque()
        self._failure_log = failure_log

    def __bool__(self) -> bool:
        return bool(self._entries)

    def put(self, event: Event, number: int, listeners: Sequence[Listener]) -> None:
        """Leave an event for subscribers; `number` is how often its type was published."""
        self._entries.append((event, number, listeners))
        if self.is_unattended:
            self.is_unattended = False
            self.wake()
        if len(self._entries) > LIMIT:
            self.hand_out()

    def hand_out(self) -> bool:
        """Give everything to those it is for; return whether there was something."""
        spent: list[Listener] = []
        with self._lock:  # the pump and a publisher may both be at it, and the order must stay
            if self._is_handing_out:  # on this very thread: a filter looks at the bus that asks it
                return False
            self._is_handing_out = True
            try:
                found = bool(self._entries)
                while self._entries:
                    event, number, listeners = self._entries.popleft()
                    for listener in listeners:
                        self._offer(listener, event, number, spent)
            finally:
                self._is_handing_out = False
        for listener in spent:
            listener.cancel()
        return found

    def _offer(self, listener: Listener, event: Event, number: int, spent: list[Listener]) -> None:
        backlog = _backlog(listener)
        if listener.pull_error is not None:
            backlog.refuse(Outcome.CANCELLED)  # the reader's last word is the error of its filter
            return
        if listener.is_filtered:
            try:
                if not listener.wants(event, number):
                    return
            except Exception as error:  # noqa: BLE001  it is the subscriber's, and is treated like one of its handler
                backlog.refuse(Outcome.FAILED)
                if listener.is_pulled:
                    listener.pull_error = error  # for whoever reads the stream, once everything before is read
                    spent.append(listener)
                else:
                    self.fail(listener, error, event)
                return
            if listener.once:
                listener.spent = True
                spent.append(listener)
        if not listener.is_pulled and listener not in self._served:
            self._served[listener] = None
            self._newcomers.append(listener)
        backlog.offer(event)

    def rest(self) -> bool:
        """Have the next publish wake the pump; return False where something has come that nobody would tell it of."""
        self.is_unattended = True
        with self._lock:  # somebody else may be handing out, to a newcomer even
            return not self._entries and not self._newcomers

    def next_newcomer(self) -> Listener | None:
        """Return a subscription with events for which the pump has to start a consumer; None where there is none."""
        try:
            return self._newcomers.popleft()
        except IndexError:
            return None

    # --- waiting ------------------------------------------------------------------------------------------------------

    def served(self) -> list[Listener]:
        """Return the subscriptions that were given something and are not pulled."""
        return list(self._served)

    def forget(self, listener: Listener) -> None:
        """Let go of a subscription that was cancelled and has come to its end."""
        if not listener.active:
            self._served.pop(listener, None)

    def mark(self, listeners: Iterable[Listener]) -> Marks:
        """Return up to which number each of them has to come until everything handed out so far is done with."""
        marks = [(_backlog(listener), _backlog(listener).published) for listener in listeners]
        return [(backlog, number) for backlog, number in marks if not backlog.is_past(number)]

    # --- errors -------------------------------------------------------------------------------------------------------

    def fail(self, listener: Listener, error: BaseException, event: Event) -> None:
        """Take the error of a handler: log it, or keep it for the run."""
        if listener.on_error == "log" and isinstance(error, Exception):
            try:
                self._failure_log.take(listener, error, event)
            except Exception as trouble:  # noqa: BLE001  a log that fails must end the run, and not who serves the bus
                self.end_run_with(trouble)
            return
        add_note(error, listener, event)
        self.end_run_with(error)

    def end_run_with(self, error: BaseException) -> None:
        """Keep an error for the run, or for whoever leaves the bus."""
        self._errors.append(error)
        if self.on_error is not None:
            self.on_error()

    def raise_errors(self) -> None:
        """Raise what is to end the run; the first error, the others noted on it."""
        errors = [self._errors.popleft() for _ in range(len(self._errors))]
        raise_all(errors)

    # --- hosting ------------------------------------------------------------------------------------------------------

    def open(self, wake: Callable[[], object], on_error: Callable[[], object]) -> None:
        """Begin to be served by a pump, which sleeps."""
        while self._errors:  # they came when the one who was to hear of them had left
            message = "a background handler failed when the bus had been left: %s"
            self._failure_log.logger.error(message, describe_error(self._errors.popleft()))
        self.wake, self.on_error = wake, on_error
        self.is_unattended = True

    def close(self) -> list[Listener]:
        """End being served; what waits is cancelled, but for what is pulled. Return who was served."""
        self.hand_out()
        self.wake, self.on_error, self.is_unattended = _nobody_hosts, None, True
        self._newcomers.clear()
        served, self._served = list(self._served), {}
        return served


def all_past(marks: Marks) -> bool:
    """Return whether everything up to the marks is done with."""
    return all(backlog.is_past(number) for backlog, number in marks)


@contextmanager
def watched(backlogs: Sequence[Backlog], tell: Callable[[], object]) -> Iterator[None]:
    """Be told after each event that is done with."""
    for backlog in backlogs:
        backlog.watchers.append(tell)
    try:
        yield
    finally:
        for backlog in backlogs:
            backlog.watchers.remove(tell)


def _backlog(listener: Listener) -> Backlog:
    assert listener.backlog is not None
    return listener.backlog


def _nobody_hosts() -> None:
    """Leave what is put where it is; a plan with background subscribers is refused while nobody hosts the bus."""

"""What waits for one background subscriber: its events in order, bounded, with counts that balance at any moment.

Two sides touch it: whoever hands out events, one thread at a time, and the one consumer. Each step of either is done
under a lock of its own that nobody holds for longer than such a step.
"""

from __future__ import annotations

__all__ = ("Backlog", "BacklogCounts", "Outcome")

import threading
from collections import deque
from collections.abc import Callable
from enum import Enum

import msgspec

from hookbus.bus.background import Background
from hookbus.events import Event


class Outcome(Enum):
    """What became of an event that a consumer took."""

    HANDLED = "handled"
    FAILED = "failed"
    CANCELLED = "cancelled"


class BacklogCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the events for one subscriber; `published` is the sum of the others."""

    published: int
    handled: int
    failed: int
    dropped: int
    cancelled: int
    pending: int


class Backlog:
    """The events that wait for one subscriber."""

    def __init__(self, options: Background) -> None:
        self.options = options
        self.alarm: Callable[[], object] | None = None
        """Wakes the consumer; set while it rests."""
        self.watchers: list[Callable[[], object]] = []
        """Told after each event that is taken or done with, and when no more will be taken."""
        self.published = 0
        """How many events were handed out; each bears its number."""
        self._events: deque[tuple[int, Event]] = deque()
        self._taken: int | None = None
        """The number of the event that is being handled."""
        self._outcomes = dict.fromkeys(Outcome, 0)
        self._dropped = 0
        self._is_closed = False
        self._is_dropping = False
        """Whether a publisher has waited in vain, so that events are dropped until none waits."""
        self._lock = threading.RLock()  # reentrant, because a signal handler may read the counts

    # --- whoever hands out events -------------------------------------------------------------------------------------

    def offer(self, event: Event) -> None:
        """Take an event, or count it as dropped or cancelled."""
        with self._lock:
            self.published += 1
            if self._is_closed:
                self._outcomes[Outcome.CANCELLED] += 1
                return
            was_empty = not self._events
            if not self._make_room():
                self._dropped += 1
                return
            self._events.append((self.published, event))
        if was_empty:  # else the consumer does not rest, or was woken for what lies there
            self.ring()

    def _make_room(self) -> bool:
        match self.options.overflow:
            case "latest":
                self._dropped += len(self._events)
                self._events.clear()
            case "drop_oldest" if len(self._events) >= self.options.maxsize:
                self._events.popleft()
                self._dropped += 1
            case "block" if self._is_dropping:
                self._is_dropping = bool(self._events) or self._taken is not None
                return not self._is_dropping
        return True

    def refuse(self, outcome: Outcome) -> None:
        """Count an event that cannot be handed out."""
        with self._lock:
            self.published += 1
            self._outcomes[outcome] += 1

    def begin_dropping(self) -> None:
        """Drop what comes, until the consumer has caught up."""
        self._is_dropping = True

    def close(self, *, keep: bool = False) -> None:
        """Take no more; what waits is cancelled, unless it is to be kept."""
        with self._lock:
            self._is_closed = True
            if not keep:
                self._outcomes[Outcome.CANCELLED] += len(self._events)
                self._events.clear()
        self.ring()
        self._tell()

    def successor(self) -> Backlog:
        """Return an empty one that takes events and counts on, for new consumers.

        One of before may still hold an event and this backlog, which stays closed to it; its event counts as cancelled.
        """
        counts = self.counts()
        successor = Backlog(self.options)
        successor.published, successor._dropped = counts.published, counts.dropped
        successor._outcomes = {
            Outcome.HANDLED: counts.handled,
            Outcome.FAILED: counts.failed,
            Outcome.CANCELLED: counts.cancelled + counts.pending,
        }
        return successor

    def ring(self) -> None:
        """Wake the consumer, where it rests."""
        alarm = self.alarm
        if alarm is not None:
            alarm()

    # --- the consumer -------------------------------------------------------------------------------------------------

    def take(self) -> Event | None:
        """Return the next event, or None where none waits; it counts as pending until it is settled."""
        with self._lock:
            if not self._events:
                return None
            self._taken, event = self._events.popleft()
        self._tell()  # there is room
        return event

    def settle(self, outcome: Outcome) -> None:
        """Say what became of the event that was taken."""
        with self._lock:
            self._taken = None
            self._outcomes[outcome] += 1
        self._tell()

    def _tell(self) -> None:
        for tell in tuple(self.watchers):
            tell()

    # --- anybody ------------------------------------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be taken."""
        return not self._events

    @property
    def is_full(self) -> bool:
        """Whether as many events wait as may."""
        return len(self._events) >= self.options.maxsize

    @property
    def is_dropping(self) -> bool:
        """Whether a publisher has waited in vain."""
        return self._is_dropping

    @property
    def is_closed(self) -> bool:
        """Whether nothing more will come."""
        return self._is_closed

    def is_past(self, number: int) -> bool:
        """Return whether every event up to that number is done with."""
        with self._lock:
            pending = self._taken if self._taken is not None else self._events[0][0] if self._events else None
            return pending is None or pending > number

    def counts(self) -> BacklogCounts:
        """Return what became of everything so far."""
        with self._lock:
            return BacklogCounts(
                published=self.published,
                handled=self._outcomes[Outcome.HANDLED],
                failed=self._outcomes[Outcome.FAILED],
                dropped=self._dropped,
                cancelled=self._outcomes[Outcome.CANCELLED],
                pending=len(self._events) + (self._taken is not None),
            )

"""One handler on one event: its place in the order, its filters, its error policy, its counts."""

from __future__ import annotations

__all__ = ("Counter", "ErrorPolicy", "Lane", "LateCounter", "Subscription", "SubscriptionStats")

from collections.abc import Callable
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

import msgspec

from hookbus.events import Event
from hookbus.types import Handler

if TYPE_CHECKING:
    from hookbus.bus.arguments import CallPlan
    from hookbus.bus.backlog import Backlog, BacklogCounts

E = TypeVar("E", bound=Event)

ErrorPolicy: TypeAlias = Literal["raise", "log"]
"""What a handler's error does: end the run, or be logged and counted."""


class Lane(Enum):
    """Who runs a handler, and what the publisher does meanwhile."""

    INLINE = "inline"
    """The publishing thread calls it."""
    AWAITED = "awaited"
    """The event loop runs it; the publisher waits, then goes on to the next handler."""
    BACKGROUND = "background"
    """A task of the event loop or a thread runs it later; the publisher does not wait."""


class SubscriptionStats(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one subscription so far."""

    name: str
    event: str
    lane: str
    calls: int
    """How often the handler was called, or was about to be in a publish that still goes on."""
    failures: int
    published: int = 0
    """Background: events for this handler; always the sum of handled, failures, dropped, cancelled and pending."""
    handled: int = 0
    """Background: events that it handled."""
    dropped: int = 0
    """Background: events that went because more came than may wait."""
    cancelled: int = 0
    """Background: events that waited, or were being handled, when the bus was left or the subscription cancelled."""
    pending: int = 0
    """Background: events that wait or are being handled."""


class Counter:
    """How often one event type was published on one bus; the only count that the hot path keeps."""

    __slots__ = ("published",)

    def __init__(self) -> None:
        self.published = 0


class LateCounter:
    """Takes the place of the counter in a plan that is no longer valid, for a publish that had picked that plan before."""

    def __init__(self, counter: Counter, count_late: Callable[[], None]) -> None:
        self._counter = counter
        self._count_late = count_late

    @property
    def published(self) -> int:
        """How often the event type was published."""
        return self._counter.published

    @published.setter
    def published(self, _: int) -> None:
        self._count_late()


class Subscription(Generic[E]):
    """One handler on one event type; `cancel` it, or use it as a context manager."""

    def __init__(
        self,
        event_type: type[E],
        handler: Handler,
        *,
        name: str,
        priority: int,
        order: int,
        lane: Lane,
        call: CallPlan,
        every: int,
        once: bool,
        when: Callable[[E], object] | None,
        timeout: float | None,
        on_error: ErrorPolicy,
        on_cancel: Callable[[Subscription[Any]], None],
        backlog: Backlog | None = None,
        is_pulled: bool = False,
    ) -> None:
        self.event_type = event_type
        self.handler = handler
        self.name = name
        self.priority = priority
        self.order = order
        self.lane = lane
        self.call = call
        self.every = every
        self.once = once
        self.when = when
        self.timeout = timeout
        self.on_error: ErrorPolicy = on_error
        self.active = True
        """Whether it takes part in publishes that begin from now on."""
        self.spent = False
        """Whether `once` has had its one time."""
        self.failures = 0
        self.filtered_calls = 0
        """Calls that passed a filter; without filters calls follow from the counters."""
        self.missed = 0
        """Publishes that ended before this handler's turn."""
        self.took = 0.0
        """Seconds that it took in the crossing that goes on."""
        self.seen_messages: set[str] = set()
        self.backlog = backlog
        """What waits for it, in the background lane."""
        self.is_pulled = is_pulled
        """Whether somebody reads it as a stream, so that nothing has to be called."""
        self.pull_error: BaseException | None = None
        """What the reader of a stream is to be told when nothing more comes."""
        self.timed_calls = 0
        self.timed_seconds = 0.0
        """What the timed ones among its calls took."""
        self.calls_before = 0
        """Calls before the timing began."""
        self._on_cancel = on_cancel
        self._since: dict[type[Event], tuple[Counter, int]] = {}
        self._calls_when_cancelled = 0

    def __repr__(self) -> str:
        state = "" if self.active else ", cancelled"
        return f"<Subscription {self.name} on {self.event_type.__name__}, priority {self.priority}, {self.lane.value}{state}>"

    def __enter__(self) -> Subscription[E]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Take no part in publishes that begin from now on."""
        self._on_cancel(self)

    def end(self) -> None:
        """Stop counting; called by the bus, once."""
        self.active = False
        self._calls_when_cancelled = self._counted_calls()
        self._since.clear()
        if self.backlog is not None:
            self.backlog.close(keep=self.spent or self.is_pulled)

    def note_time(self, seconds: float) -> None:
        """Book one call."""
        self.timed_calls += 1
        self.timed_seconds += seconds

    def forget_times(self) -> None:
        """Begin the timing anew."""
        self.timed_calls, self.timed_seconds = 0, 0.0
        self.calls_before = self.stats().calls

    def wants(self, event: E, number: int) -> bool:
        """Return whether an event passes the filters, as the code of a plan decides for the other lanes."""
        if self.once and self.spent:
            return False
        if self.every > 1:
            counted = type(event).counted
            if (number if counted is None else getattr(event, counted[0]) + counted[1]) % self.every:
                return False
        return self.when is None or bool(self.when(event))

    @property
    def is_filtered(self) -> bool:
        """Whether some publishes pass it by."""
        return self.every > 1 or self.once or self.when is not None

    def count_from(self, event_type: type[Event], counter: Counter) -> None:
        """Note that this subscription takes part in the publishes of an event type from now on."""
        self._since.setdefault(event_type, (counter, counter.published))

    def count_late(self) -> None:
        """Count a publish that this subscription was cancelled too late for; an active one counts itself."""
        if not self.active:
            self._calls_when_cancelled += 1

    def shift_count(self, event_type: type[Event], by: int) -> None:
        """Leave the calls as they are although the counter of an event type was moved."""
        if event_type in self._since:
            counter, start = self._since[event_type]
            self._since[event_type] = counter, start + by

    def stats(self) -> SubscriptionStats:
        """Return the counts so far."""
        if self.backlog is not None:
            return self._background_stats(self.backlog.counts())
        calls = self.filtered_calls if self.is_filtered else self._counted_calls() - self.missed
        return SubscriptionStats(
            name=self.name,
            event=self.event_type.__name__,
            lane=self.lane.value,
            calls=calls,
            failures=self.failures,
        )

    def _background_stats(self, counts: BacklogCounts) -> SubscriptionStats:
        return SubscriptionStats(
            name=self.name,
            event=self.event_type.__name__,
            lane=self.lane.value,
            calls=counts.handled + counts.failed,
            failures=counts.failed,
            published=counts.published,
            handled=counts.handled,
            dropped=counts.dropped,
            cancelled=counts.cancelled,
            pending=counts.pending,
        )

    def _counted_calls(self) -> int:
        return self._calls_when_cancelled + sum(counter.published - start for counter, start in self._since.values())

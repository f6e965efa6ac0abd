"""What a bus published, in order."""

from __future__ import annotations

__all__ = ("Recorder", "record")

import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TypeVar, cast

from hookbus.bus import EventBus, Subscription
from hookbus.bus.checks import check_event_type
from hookbus.events import Event
from hookbus.mailbox import Acknowledgement

E = TypeVar("E", bound=Event)


def record(bus: EventBus, *event_types: type[Event]) -> Recorder:
    """Record the events of some types and of their subclasses, by default all, from now on.

    Used as a context manager it stops at the end of the block; what it has recorded stays. An event is recorded where
    its publish begins: before the handlers that were subscribed later, and before what they publish themselves.
    """
    return Recorder(bus, event_types or (Event,))


class Recorder:
    """The events that a bus published while it listened; see `record`."""

    def __init__(self, bus: EventBus, event_types: tuple[type[Event], ...]) -> None:
        self.events: list[Event] = []
        """In the order in which their publishes began."""
        self._lock = threading.Lock()
        self._awaited: list[tuple[Callable[[Event], object], Acknowledgement[Any]]] = []
        self._subscriptions = [self._listen(bus, place, event_types) for place in range(len(event_types))]

    def __repr__(self) -> str:
        return f"<Recorder of {len(self.events)} events>"

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    @property
    def names(self) -> list[str]:
        """The names of the events' classes."""
        return [type(event).__name__ for event in self.events]

    def of(self, event_type: type[E]) -> list[E]:
        """Return the events of a type and its subclasses."""
        return [event for event in self.events if isinstance(event, event_type)]

    def clear(self) -> None:
        """Forget what was recorded so far."""
        with self._lock:
            self.events.clear()

    def stop(self) -> None:
        """Record nothing more."""
        for subscription in self._subscriptions:
            subscription.cancel()

    def wait_for(self, event_type: type[E], when: Callable[[E], object] = lambda event: True) -> Acknowledgement[E]:
        """Return an acknowledgement that gives the first event of a type for which `when` is true, recorded ones included.

        `await` it in a coroutine, or call `result(timeout)` on a thread other than the one that publishes.
        """
        check_event_type(event_type)
        answer: Acknowledgement[E] = Acknowledgement(f"waiting for {event_type.__name__}")

        def matches(event: Event) -> bool:
            return isinstance(event, event_type) and bool(when(event))

        with self._lock:
            found = next(filter(matches, self.events), None)
            if found is None:
                self._awaited.append((matches, answer))
        if found is not None:
            answer.set_result(cast("E", found))
        return answer

    def _listen(self, bus: EventBus, place: int, event_types: tuple[type[Event], ...]) -> Subscription[Any]:
        """Subscribe to the type in one place of several; an event of more than one is recorded for the first."""
        earlier = event_types[:place]
        when = (lambda event: not isinstance(event, earlier)) if earlier else None
        return bus.subscribe(event_types[place], self._take, when=when, priority="HIGHEST", name="record")

    def _take(self, event: Event) -> None:
        with self._lock:
            self.events.append(event)
            answered = [waiter for waiter in self._awaited if waiter[0](event)]
            self._awaited = [waiter for waiter in self._awaited if waiter not in answered]
        for _, answer in answered:
            answer.set_result(event)

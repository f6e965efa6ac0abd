"""Looking at a bus: who hears what, how often, and what it costs."""

from __future__ import annotations

__all__ = ("HandlerCost", "Looking", "describe_costs")

import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TextIO

import msgspec

from hookbus.bus.explain import PlanEntry, describe_plans
from hookbus.bus.plan import Plan
from hookbus.bus.subscribing import Subscribing
from hookbus.bus.subscription import Counter, Subscription, SubscriptionStats
from hookbus.events import MOUNT_POINTS, Event, MountPoint


class HandlerCost(msgspec.Struct, frozen=True, kw_only=True):
    """What one handler cost."""

    handler: str
    event: str
    lane: str
    calls: int
    seconds: float
    """What all its calls took together; estimated from the timed ones. A background handler's time is not the publisher's."""
    share: float
    """Of the time that has passed since the bus was entered."""


class Looking(Subscribing):
    """The side of an event bus that tells what goes on in it."""

    def __init__(self) -> None:
        super().__init__()
        self._counters: dict[type[Event], Counter] = {}
        self._entered_at = time.perf_counter()
        self._final_costs: list[HandlerCost] | None = None
        self._hand_out: Callable[[], object] = lambda: None

    @abstractmethod
    def _plan(self, event_type: type[Event]) -> Plan:
        """Return the plan of an event type, compiled where it is not."""

    def plan(self, event_type: type[Event]) -> tuple[PlanEntry, ...]:
        """Return the handlers of an event type in the order in which they run."""
        return tuple(PlanEntry.of(subscription) for subscription in self._plan(event_type).subscriptions)

    def describe(self) -> str:
        """Return the plans of all events that anybody hears, as text."""
        with self._lock:
            types = dict.fromkeys([*MOUNT_POINTS.values(), *self._counters])
            for subscription in self._subscriptions:
                if not any(issubclass(event_type, subscription.event_type) for event_type in types):
                    types[subscription.event_type] = None
        return describe_plans((event_type, self.plan(event_type)) for event_type in types)

    def explain(self, file: TextIO | None = None, *, costs: bool = False) -> None:
        """Print who hears what, in order; with `costs` also what each handler took so far, the dearest first."""
        print(self.describe(), file=file or sys.stdout)
        if costs:
            print(describe_costs(self.costs()), file=file or sys.stdout)

    def stats(self) -> list[SubscriptionStats]:
        """Return the counts of every subscription, in order."""
        self._hand_out()  # what lies in the outbox is not counted yet
        with self._lock:
            return [subscription.stats() for subscription in self._subscriptions]

    def costs(self) -> list[HandlerCost]:
        """Return what each handler cost since the bus was entered, the dearest first.

        Calls at every step are timed now and then, all others each time, so that this costs next to nothing.
        """
        if self._final_costs is not None:
            return self._final_costs
        with self._lock:
            timed = [subscription for subscription in self._subscriptions if subscription.timed_calls]
        passed = time.perf_counter() - self._entered_at
        return sorted((_cost(subscription, passed) for subscription in timed), key=lambda cost: -cost.seconds)

    def close_costs(self) -> list[HandlerCost]:
        """Return the costs, which stay readable as they are now until the bus is entered again."""
        self._final_costs = self.costs()
        return self._final_costs

    def _forget_costs(self) -> None:
        self._final_costs = None
        self._entered_at = time.perf_counter()
        for subscription in self._subscriptions:
            subscription.forget_times()

    def state_dict(self) -> dict[str, Any]:
        """Return what `every=` counts for events that count their publishes."""
        with self._lock:
            return {
                "published": {_tag(t): c.published for t, c in self._counters.items() if c.published and _counts_publishes(t)}
            }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on counting where a saved bus stood."""
        for event_type in _all_event_types(Event):
            published = state_dict["published"].get(_tag(event_type))
            if published is not None and _counts_publishes(event_type):
                with self._lock:
                    counter = self._counters.setdefault(event_type, Counter())
                    for subscription in self._subscriptions:
                        subscription.shift_count(event_type, published - counter.published)
                    counter.published = published


def describe_costs(costs: Iterable[HandlerCost]) -> str:
    """Return costs as lines of text."""
    lines = [
        f"{100 * cost.share:6.2f} %  {cost.seconds:9.3f} s in {cost.calls:>8} calls  {cost.handler} on {cost.event}"
        f"{f'  [{cost.lane}]' if cost.lane != 'inline' else ''}"
        for cost in costs
    ]
    return "\n".join(lines) if lines else "no handler was timed yet"


def _cost(subscription: Subscription[Any], passed: float) -> HandlerCost:
    calls = max(subscription.stats().calls - subscription.calls_before, subscription.timed_calls)
    seconds = subscription.timed_seconds / subscription.timed_calls * calls
    return HandlerCost(
        handler=subscription.name,
        event=subscription.event_type.__name__,
        lane=subscription.lane.value,
        calls=calls,
        seconds=seconds,
        share=seconds / passed if passed > 0 else 0.0,
    )


def _counts_publishes(event_type: type[Event]) -> bool:
    """Return whether `every=` counts the publishes of an event, over all starts of a run."""
    return event_type.counted is None and not issubclass(event_type, MountPoint)


def _tag(event_type: type[Event]) -> str:
    return str(event_type.__struct_config__.tag)


def _all_event_types(base: type[Event]) -> Iterator[type[Event]]:
    for event_type in base.__subclasses__():
        yield event_type
        yield from _all_event_types(event_type)

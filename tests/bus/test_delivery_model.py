"""Order, exactly once and counts against a small model: any sequence of subscribing, cancelling, publishing and failing."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule, run_state_machine_as_test

from hookbus.bus import EventBus, Subscription
from hookbus.bus.subscription import ErrorPolicy
from hookbus.events import Event
from hookbus.types import Backend
from tests.bus.ticks import LoudTick, Tick, Tock

BACKENDS: list[Backend] = ["asyncio", "trio"]


class Failure(Exception):
    """What a handler of the model raises."""


@dataclass(eq=False)
class Handler:
    """A handler as the model knows it."""

    id: int
    event_type: type[Event]
    priority: int
    act: str
    on_error: ErrorPolicy
    every: int
    calls: int = 0
    failures: int = 0
    target: Handler | None = None


@dataclass
class Model:
    """What a bus has to do, in thirty lines."""

    handlers: list[Handler] = field(default_factory=list)
    published: Counter[type[Event]] = field(default_factory=Counter)
    log: list[tuple[int, str, int]] = field(default_factory=list)

    def publish(self, event_type: type[Event]) -> None:
        self.published[event_type] += 1
        number = self.published[event_type]
        plan = [handler for handler in self.handlers if issubclass(event_type, handler.event_type)]
        for handler in sorted(plan, key=lambda handler: (handler.priority, handler.id)):
            if number % handler.every:
                continue
            handler.calls += 1
            self.log.append((handler.id, event_type.__name__, number))
            try:
                self.perform(handler)
            except Failure:
                handler.failures += 1
                if handler.on_error == "raise":
                    raise

    def perform(self, handler: Handler) -> None:
        if handler.act == "fail":
            raise Failure(handler.id)
        if handler.act == "nest":
            self.publish(Tock)
        if handler.act == "cancel" and handler.target in self.handlers:
            self.handlers.remove(handler.target)


class BusMachine(RuleBasedStateMachine):
    """Does the same to a bus and to the model, and compares."""

    backend: Backend = "asyncio"
    subscriptions = Bundle("subscriptions")

    @initialize()
    def enter(self) -> None:
        """Open the bus."""
        self.bus = EventBus(backend=self.backend)
        self.model = Model()
        self.log: list[tuple[int, str, int]] = []
        self.published: Counter[type[Event]] = Counter()
        self.known: dict[int, Subscription[Any]] = {}
        self.all: list[Handler] = []
        self.bus.__enter__()

    def teardown(self) -> None:
        """Close the bus."""
        if hasattr(self, "bus"):
            self.bus.__exit__(None, None, None)

    @rule(
        target=subscriptions,
        event_type=st.sampled_from([Tick, LoudTick, Tock]),
        priority=st.sampled_from([0, 50, 50, 100]),
        lane=st.sampled_from(["inline", "awaited"]),
        act=st.sampled_from(["nothing", "nothing", "nest", "fail", "cancel"]),
        on_error=st.sampled_from(["raise", "log"]),
        every=st.sampled_from([1, 1, 1, 2]),
        other=st.integers(0, 30),
    )
    def subscribe(
        self, event_type: type[Event], priority: int, lane: str, act: str, on_error: ErrorPolicy, every: int, other: int
    ) -> int:
        """Add a handler that may publish, fail or cancel another one; those of Tock do not publish."""
        act = "nothing" if event_type is Tock and act == "nest" else act
        handler = Handler(len(self.all), event_type, priority, act, on_error, every)
        handler.target = self.all[other % len(self.all)] if self.all else None

        def perform(event: Event, n: int) -> None:
            self.log.append((handler.id, type(event).__name__, n))
            if act == "fail":
                raise Failure(handler.id)
            if act == "cancel" and handler.target is not None:
                self.known[handler.target.id].cancel()

        def inline(event: Event, n: int) -> None:
            perform(event, n)
            if act == "nest":
                self.bus.emit(self.next_event(Tock))

        async def awaited(event: Event, n: int) -> None:
            perform(event, n)
            if act == "nest":
                await self.bus.publish(self.next_event(Tock))

        self.all.append(handler)
        self.model.handlers.append(handler)
        self.known[handler.id] = self.bus.subscribe(
            event_type,
            awaited if lane == "awaited" else inline,
            priority=priority,
            on_error=on_error,
            every=every,
            name=str(handler.id),
        )
        return handler.id

    def next_event(self, event_type: type[Event]) -> Event:
        """Return an event that carries the number of its publish."""
        self.published[event_type] += 1
        return event_type(n=self.published[event_type])

    @rule(id=consumes(subscriptions))
    def cancel(self, id: int) -> None:
        """Take a handler off; it may be off already."""
        self.known[id].cancel()
        if self.all[id] in self.model.handlers:
            self.model.handlers.remove(self.all[id])

    @rule(event_type=st.sampled_from([Tick, LoudTick, Tock]))
    def publish(self, event_type: type[Event]) -> None:
        """Publish, and see the same error come out, or none."""
        expected = actual = None
        try:
            self.model.publish(event_type)
        except Failure as error:
            expected = error.args
        try:
            self.bus.emit(self.next_event(event_type))
        except Failure as error:
            actual = error.args
        assert actual == expected

    @rule()
    def look(self) -> None:
        """Compile plans at odd moments; looking changes nothing."""
        self.bus.describe()

    @invariant()
    def agrees(self) -> None:
        """Same deliveries in the same order, same counts, for those that are off as well."""
        if not hasattr(self, "bus"):
            return
        assert self.log == self.model.log
        assert len(set(self.log)) == len(self.log)
        stats = [self.known[handler.id].stats() for handler in self.all]
        assert [(s.calls, s.failures) for s in stats] == [(handler.calls, handler.failures) for handler in self.all]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bus_does_what_the_model_says(backend: Backend) -> None:
    """For any sequence of steps."""
    machine = type("Machine", (BusMachine,), {"backend": backend})
    run_state_machine_as_test(machine, settings=settings(max_examples=40, stateful_step_count=25, deadline=None))


def test_exactly_once() -> None:
    """Over 100,000 deliveries while another thread subscribes and cancels: each at most once, none lost, counts agree."""
    bus, stable, publishes = EventBus(), 40, 2500
    deliveries: Counter[tuple[int, int]] = Counter()
    gone: list[tuple[int, Subscription[Tick]]] = []
    stop = threading.Event()
    began = threading.Event()

    def listen(id: int) -> Subscription[Tick]:
        def handler(n: int) -> None:
            deliveries[n, id] += 1

        return bus.subscribe(Tick, handler, priority=id % 101, name=str(id))

    def disturb() -> None:
        id = stable
        while not stop.is_set():
            with listen(id) as subscription:
                began.set()
                bus.has_subscribers(Tick)
            gone.append((id, subscription))
            id += 1

    kept = [listen(id) for id in range(stable)]
    thread = threading.Thread(target=disturb)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        thread.start()
        began.wait()
        for n in range(publishes):
            bus.emit(Tick(n=n))
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)

    assert set(deliveries.values()) == {1}
    per_handler = Counter(id for _, id in deliveries)
    assert [per_handler[id] for id in range(stable)] == [publishes] * stable
    assert [subscription.stats().calls for subscription in kept] == [publishes] * stable
    wrong = {id: (s.stats().calls, per_handler[id]) for id, s in gone if s.stats().calls != per_handler[id]}
    assert not wrong

"""What handlers cost: times that are plausible, in every lane, and a timing that changes nothing."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest

from hookbus.bus import EventBus, HandlerCost
from hookbus.events import AfterTrainIter, Event
from hookbus.types import Backend
from tests.bus.ticks import Tick, calls, step, train_iter

BACKENDS: list[Backend] = ["asyncio", "trio"]
DEAR = 0.004
"""Seconds that the dear handler works."""


def work(seconds: float) -> None:
    """Keep a thread busy."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def dear(event: Event) -> None:
    """Work for a while."""
    work(DEAR)


def cheap(event: Event) -> None:
    """Do nothing."""


async def dear_awaited(event: Event) -> None:
    """Work for a while on the loop."""
    work(DEAR)


def by_name(bus: EventBus) -> dict[str, HandlerCost]:
    """Return the costs by the names of the handlers."""
    return {cost.handler: cost for cost in bus.costs()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_handler_took_is_known_in_every_lane(backend: Backend) -> None:
    """No less than it worked, no more than has passed; the dear ones stand before the cheap ones."""
    bus = EventBus(backend=backend, cost_warning=10.0)
    bus.subscribe(Tick, dear, name="inline")
    bus.subscribe(Tick, dear_awaited, name="awaited")
    bus.subscribe(Tick, dear, name="background", background=True)
    bus.subscribe(Tick, dear_awaited, name="background awaited", background=True)
    bus.subscribe(Tick, cheap, name="cheap")
    started = time.perf_counter()
    with bus:
        for _ in range(10):
            bus.emit(Tick())
        bus.drain()
        passed = time.perf_counter() - started
        costs = by_name(bus)
    assert set(costs) == {"inline", "awaited", "background", "background awaited", "cheap"}
    for name, cost in costs.items():
        assert cost.calls == 10
        if name != "cheap":
            assert 10 * DEAR <= cost.seconds <= passed
            assert 0 < cost.share <= 1
    assert {cost.lane for cost in costs.values()} == {"inline", "awaited", "background"}
    seconds = [cost.seconds for cost in costs.values()]
    assert seconds == sorted(seconds, reverse=True)


def test_calls_that_were_not_timed_are_estimated_from_those_that_were() -> None:
    """One of ten steps is timed, as a run does."""
    bus = EventBus()
    bus.subscribe(AfterTrainIter, dear)
    for iter in range(30):
        bus.time_steps(iter % 10 == 0)
        bus.emit(train_iter(iter), step())
    cost = by_name(bus)["dear"]
    assert cost.calls == 30
    assert cost.seconds >= 30 * DEAR
    [subscription] = bus._subscriptions
    assert subscription.timed_calls == 3


def test_steps_are_not_timed_unless_asked_for() -> None:
    """Rarer events always are."""
    bus = EventBus()
    bus.subscribe(AfterTrainIter, cheap, name="step")
    bus.subscribe(Tick, cheap, name="rare")
    for iter in range(5):
        bus.emit(train_iter(iter), step())
        bus.emit(Tick())
    assert list(by_name(bus)) == ["rare"]


def test_a_filtered_handler_is_timed_only_where_it_is_called() -> None:
    """Its filter is not its cost."""
    bus = EventBus()
    subscription = bus.subscribe(Tick, dear, every=5)
    for _ in range(20):
        bus.emit(Tick())
    cost = by_name(bus)["dear"]
    assert cost.calls == subscription.timed_calls == 4
    assert cost.seconds >= 4 * DEAR


def test_a_crossing_that_neighbours_share_is_not_booked_twice() -> None:
    """Each has its own time; the way there and back is the first one's."""
    bus = EventBus(cost_warning=10.0)
    for name in ("first", "second"):
        bus.subscribe(Tick, dear_awaited, name=name)
    with bus:
        started = time.perf_counter()
        for _ in range(10):
            bus.emit(Tick())
        passed = time.perf_counter() - started
        costs = by_name(bus)
    assert sum(cost.seconds for cost in costs.values()) <= passed
    assert all(cost.seconds >= 10 * DEAR for cost in costs.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_second_visit_begins_anew(backend: Backend) -> None:
    """Costs are those since the bus was entered."""
    bus = EventBus(backend=backend, cost_warning=10.0)
    bus.subscribe(Tick, dear_awaited)
    for times in (8, 3):
        with bus:
            for _ in range(times):
                bus.emit(Tick())
            [cost] = bus.costs()
            assert cost.calls == times
            assert cost.seconds >= times * DEAR


def test_timing_changes_nothing_but_the_times() -> None:
    """Same calls, same order, same filters, same errors, same vetoes: with a clock around every step and without."""

    def do(bus: EventBus, seen: list[Any]) -> None:
        def failing(n: int) -> None:
            if n % 3 == 0:
                raise KeyError(n)

        async def awaited(event: Event) -> None:
            seen.append(("awaited", event))

        bus.subscribe(AfterTrainIter, lambda event: seen.append(("low", event)), priority="LOW")
        bus.subscribe(AfterTrainIter, lambda iter, outputs: seen.append((iter, outputs)), every=2)
        bus.subscribe(AfterTrainIter, awaited, every=3)
        bus.subscribe(AfterTrainIter, lambda iter: failing(iter), on_error="log", name="failing")
        bus.subscribe(AfterTrainIter, lambda iter: seen.append(("once", iter)), once=True, when=lambda event: event.iter > 3)

    records = []
    for is_timing in (False, True):
        bus, seen = EventBus(), list[Any]()
        do(bus, seen)
        with bus:
            bus.time_steps(is_timing)
            for iter in range(12):
                bus.emit(train_iter(iter), step())
        records.append((seen, calls(bus)))
    assert records[0] == records[1]


def test_an_error_in_a_timed_step_comes_out_as_in_any_other() -> None:
    """With the same note."""
    errors = []
    for is_timing in (False, True):
        bus = EventBus()

        def fails() -> None:
            raise ZeroDivisionError

        bus.subscribe(AfterTrainIter, fails)
        bus.time_steps(is_timing)
        with pytest.raises(ZeroDivisionError) as caught:
            bus.emit(train_iter(), step())
        errors.append(caught.value.__notes__)
    assert errors[0] == errors[1]


def test_costs_are_printed_for_people() -> None:
    """The dearest first, with its share; where nothing was timed, that is said."""
    bus, text = EventBus(), io.StringIO()
    bus.explain(text, costs=True)
    assert "no handler was timed yet" in text.getvalue()
    bus.subscribe(Tick, cheap)
    bus.subscribe(Tick, dear)
    for _ in range(3):
        bus.emit(Tick())
    text = io.StringIO()
    bus.explain(text, costs=True)
    lines = [line for line in text.getvalue().splitlines() if "calls" in line]
    assert ["dear on Tick" in line for line in lines] == [True, False]
    assert "%" in lines[0]
    assert "3 calls" in lines[0]

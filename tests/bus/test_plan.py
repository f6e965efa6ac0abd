"""The order of handlers, their filters, and the code that is generated for them."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any

import anyio.lowlevel
import pytest

import hookbus.bus.subscribing
from hookbus.bus import EventBus, Subscription
from hookbus.events import (
    MOUNT_POINTS,
    AfterOptimizerStep,
    AfterTestEpoch,
    AfterTestIter,
    AfterTrainEpoch,
    AfterTrainIter,
    AfterVal,
    AfterValEpoch,
    AfterValIter,
    BeforeTrain,
    Event,
    IterEvent,
    MountPoint,
)
from hookbus.priority import Priority
from hookbus.types import Backend
from tests.bus.ticks import LoudTick, Tick, Tock, calls, step, train_iter

BACKENDS: list[Backend] = ["asyncio", "trio"]


def make(seen: list[Any], mark: Any, lane: str = "inline") -> Callable[[], Any]:
    """Return a handler of one lane that leaves its mark."""

    async def awaited() -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(mark)

    return awaited if lane == "awaited" else lambda: seen.append(mark)


def check_order(bus: EventBus, backend_order: Sequence[Priority], lanes: Sequence[str]) -> None:
    """Check that handlers run by priority, then in the order of subscription, whatever lane they are on."""
    seen: list[tuple[int, int]] = []
    for round in range(2):
        for place, priority in enumerate(backend_order):
            bus.subscribe(Tick, make(seen, (int(priority), round), lanes[(place + round) % len(lanes)]), priority=priority)
    with bus:
        bus.emit(Tick())
    assert seen == sorted(seen)
    assert len(seen) == 2 * len(backend_order)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lanes", [["inline"], ["awaited"], ["inline", "awaited"], ["awaited", "awaited", "inline"]])
def test_handlers_run_by_priority_then_by_subscription(backend: Backend, lanes: list[str]) -> None:
    """Sync and async ones in one order, whatever the order in which they were subscribed."""
    check_order(EventBus(backend=backend), list(Priority), lanes)
    check_order(EventBus(backend=backend), list(reversed(Priority)), lanes)
    for some in permutations([Priority.LOW, Priority.HIGHEST, Priority.NORMAL]):
        check_order(EventBus(backend=backend), some, lanes)


def test_a_bus_that_does_not_sort_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above fails on one that keeps the order of subscription, and on one that turns ties around."""
    monkeypatch.setattr(hookbus.bus.subscribing, "insort", lambda handlers, new, key: handlers.append(new))
    with pytest.raises(AssertionError):
        check_order(EventBus(), list(reversed(Priority)), ["inline"])

    def ties_reversed(handlers: list[Any], new: Any, key: Any) -> None:
        handlers.append(new)
        handlers.sort(key=lambda subscription: (subscription.priority, -subscription.order))

    monkeypatch.setattr(hookbus.bus.subscribing, "insort", ties_reversed)
    with pytest.raises(AssertionError):
        check_order(EventBus(), list(Priority), ["inline"])


# --- filters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [["inline"], ["awaited"], ["awaited", "awaited"], ["awaited", "inline", "awaited"]])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"every": 3}, [2, 5, 8]),
        ({"once": True}, [0]),
        ({"when": lambda event: event.iter in (1, 4)}, [1, 4]),
        ({"every": 2, "once": True}, [1]),
        ({"every": 2, "when": lambda event: event.iter > 4}, [5, 7, 9]),
        ({"once": True, "when": lambda event: event.iter > 4}, [5]),
        ({"every": 4, "once": True, "when": lambda event: event.iter > 4}, [7]),
    ],
)
async def test_filters_let_through_what_they_say(lanes: list[str], options: dict[str, Any], expected: list[int]) -> None:
    """Alone and together, for inline, awaited and neighbouring handlers; the calls are counted."""
    seen: list[list[int]] = [[] for _ in lanes]
    bus = EventBus()

    def listen(place: int, lane: str) -> Subscription[AfterTrainIter]:
        async def awaited(iter: int) -> None:
            seen[place].append(iter)

        handler = awaited if lane == "awaited" else lambda iter: seen[place].append(iter)
        return bus.subscribe(AfterTrainIter, handler, **options)

    subscriptions = [listen(place, lane) for place, lane in enumerate(lanes)]
    async with bus:
        for iter in range(10):
            await bus.publish(train_iter(iter))

    assert seen == [expected] * len(lanes)
    assert [subscription.stats().calls for subscription in subscriptions] == [len(expected)] * len(lanes)
    assert all(subscription.active is not options.get("once", False) for subscription in subscriptions)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lanes", [["inline"], ["awaited", "awaited"], ["awaited", "inline", "awaited"]])
def test_filters_work_alike_when_a_thread_emits(backend: Backend, lanes: list[str]) -> None:
    """Where crossings are decided before they are made."""
    seen: list[list[int]] = [[] for _ in lanes]
    filters: list[dict[str, Any]] = [{"every": 3}, {"every": 2, "once": True}, {"when": lambda event: event.iter % 5 == 0}]
    expected = [[2, 5, 8], [1], [0, 5]]
    for kind, wanted in zip(filters, expected, strict=True):
        bus = EventBus(backend=backend)
        for place, lane in enumerate(lanes):

            async def awaited(iter: int, place: int = place) -> None:
                seen[place].append(iter)

            def inline(iter: int, place: int = place) -> None:
                seen[place].append(iter)

            bus.subscribe(AfterTrainIter, awaited if lane == "awaited" else inline, **kind)
        with bus:
            for iter in range(10):
                bus.emit(train_iter(iter))
        assert seen == [wanted] * len(lanes)
        for marks in seen:
            marks.clear()


def fields(event_type: type[Event], number: int) -> dict[str, Any]:
    """Return field values of which those that may be counted are `number`."""
    values: dict[str, Any] = {"metrics": {}, "loop": "train", "name": "x", "data_time": 0.0, "error_type": "E", "message": ""}
    values |= {"handler": "", "optimizer": "", "skipped": False, "resuming": False, "epoch": 0, "iter": 0, "batch_idx": 0}
    if event_type.counted is not None:
        values[event_type.counted[0]] = number
    return {field: values[field] for field in event_type.__struct_fields__}


@pytest.mark.parametrize("event_type", MOUNT_POINTS.values())
def test_every_counts_what_the_event_class_names(event_type: type[MountPoint]) -> None:
    """A field and an offset, or the publishes."""
    bus, seen = EventBus(), list[int]()
    bus.subscribe(event_type, lambda: seen.append(number), every=3)
    for number in range(7):
        bus.emit(event_type(**fields(event_type, number)), dict.fromkeys(event_type.live))

    if event_type.counted is None or event_type.counted[1] == 1:
        assert seen == [2, 5]
    else:
        assert seen == [0, 3, 6]


def test_every_counts_as_in_the_design() -> None:
    """`iter + 1` in training, `batch_idx + 1` in validation and test, `epoch + 1` for epochs of training."""
    assert AfterTrainIter.counted == AfterOptimizerStep.counted == ("iter", 1)
    assert AfterValIter.counted == AfterTestIter.counted == ("batch_idx", 1)
    assert AfterTrainEpoch.counted == ("epoch", 1)
    assert AfterValEpoch.counted == AfterTestEpoch.counted == ("epoch", 0)  # the epoch is complete by then
    assert AfterVal.counted is BeforeTrain.counted is Tick.counted is None


def test_every_counts_publishes_from_the_first_one_also_for_late_subscribers() -> None:
    """The number belongs to the bus, not to the subscription."""
    bus, seen = EventBus(), list[int]()
    for n in range(1, 5):
        bus.emit(Tick(n=n))
    bus.subscribe(Tick, lambda n: seen.append(n), every=3)
    for n in range(5, 10):
        bus.emit(Tick(n=n))

    assert seen == [6, 9]


def test_once_is_spent_before_the_handler_runs() -> None:
    """A handler that causes its own event is not called again."""
    bus, seen = EventBus(), list[int]()

    def again(n: int) -> None:
        seen.append(n)
        bus.emit(Tick(n=n + 1))

    bus.subscribe(Tick, again, once=True)
    bus.emit(Tick())
    assert seen == [0]


async def test_once_is_spent_for_publishes_side_by_side() -> None:
    """Only one of them calls the handler."""
    bus, seen = EventBus(), list[int]()

    async def slow(n: int) -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(n)

    async def publish(n: int) -> None:
        await bus.publish(Tick(n=n))

    bus.subscribe(Tick, slow, once=True)
    async with bus, anyio.create_task_group() as tasks:
        for n in range(5):
            tasks.start_soon(publish, n)
    assert len(seen) == 1


# --- base classes, changes during a publish ---------------------------------------------------------------------------


def test_a_subscription_to_a_base_class_hears_every_subclass() -> None:
    """In the one order, once each, and counted over all of them."""
    bus, seen = EventBus(), list[str]()
    bus.subscribe(Event, make(seen, "any"), name="any")
    bus.subscribe(MountPoint, make(seen, "mount"), name="mount")
    bus.subscribe(IterEvent, make(seen, "iter"), priority="HIGH", name="iter")
    bus.subscribe(Tick, make(seen, "tick"), name="tick")
    for event in (Tick(), LoudTick(), Tock(), train_iter()):
        seen.append("|")
        bus.emit(event, step())

    assert " ".join(seen) == "| any tick | any tick | any | iter any mount"
    assert {name: count for name, (count, _) in calls(bus).items()} == {"any": 4, "mount": 1, "iter": 1, "tick": 2}


@pytest.mark.parametrize("lane", ["inline", "awaited"])
def test_changes_during_a_publish_take_effect_from_the_next(lane: str) -> None:
    """A handler that takes off itself, one before and one behind it, and adds two; nobody is skipped or called twice."""
    bus, seen = EventBus(), list[str]()
    changed: list[bool] = []

    def change() -> None:
        seen.append("change")
        if not changed:
            changed.append(True)
            for subscription in (before, changing, behind):
                subscription.cancel()
            bus.subscribe(Tick, make(seen, "first"), priority="HIGHEST", name="first")
            bus.subscribe(Tick, make(seen, "last"), priority="LOWEST", name="last")

    async def change_later() -> None:
        change()

    before = bus.subscribe(Tick, make(seen, "before"), name="before")
    changing = bus.subscribe(Tick, change_later if lane == "awaited" else change, name="change")
    behind = bus.subscribe(Tick, make(seen, "behind", lane), name="behind")
    bus.subscribe(Tick, make(seen, "neighbour", lane), name="neighbour")
    with bus:
        bus.emit(Tick())
        assert seen == ["before", "change", "behind", "neighbour"]
        assert [subscription.stats().calls for subscription in (before, changing, behind)] == [1, 1, 1]
        seen.clear()
        bus.emit(Tick())

    assert seen == ["first", "neighbour", "last"]
    assert {name: count for name, (count, _) in calls(bus).items()} == {"first": 1, "neighbour": 2, "last": 1}


def test_a_nested_publish_sees_the_change_and_the_outer_one_does_not() -> None:
    """Each publish has the handlers of the moment it began, and the counts say so."""
    bus, seen = EventBus(), list[str]()

    def outer(n: int) -> None:
        seen.append(f"outer {n}")
        if n == 0:
            behind.cancel()
            bus.subscribe(Tick, lambda n: seen.append(f"new {n}"), name="new")
            bus.emit(Tick(n=1))

    bus.subscribe(Tick, outer, name="outer")
    behind = bus.subscribe(Tick, lambda n: seen.append(f"behind {n}"))
    bus.emit(Tick(n=0))

    assert seen == ["outer 0", "outer 1", "new 1", "behind 0"]
    assert calls(bus) == {"outer": (2, 0), "new": (1, 0)}
    assert behind.stats().calls == 1


async def test_a_publish_that_was_asked_for_before_a_change_counts_for_the_handlers_of_that_moment() -> None:
    """A coroutine may be made first and awaited after handlers came and went."""
    bus, seen = EventBus(), list[str]()
    kept = bus.subscribe(Tick, make(seen, "kept"))
    gone = bus.subscribe(Tick, make(seen, "gone"))
    async with bus:
        early = bus.publish(Tick())
        gone.cancel()
        new = bus.subscribe(Tick, make(seen, "new"))
        assert bus.has_subscribers(Tick)
        await early
        assert seen == ["kept", "gone"]
        assert [subscription.stats().calls for subscription in (kept, gone, new)] == [1, 1, 0]
        await bus.publish(Tick())

    assert seen == ["kept", "gone", "kept", "new"]
    assert [subscription.stats().calls for subscription in (kept, gone, new)] == [2, 1, 1]
    assert bus.state_dict() == {"published": {"tests.bus.ticks:Tick": 2}}


# --- generated code ---------------------------------------------------------------------------------------------------


def fail() -> None:
    """Be a handler that fails."""
    raise KeyError("mine")


def shown(error: BaseException) -> str:
    """Return the traceback as a person sees it."""
    return "".join(traceback.format_exception(error))


def test_a_traceback_shows_the_generated_call() -> None:
    """The line that calls the handler, with its arguments, in a file named after the event."""
    bus = EventBus()
    bus.subscribe(Tick, lambda event, n, hub: fail())
    with pytest.raises(KeyError) as caught:
        bus.emit(Tick())

    text = shown(caught.value)
    assert 'File "<hookbus plan of Tick' in text
    assert "handler_0(event, event.n, hub)" in text
    assert "while " in text


def test_a_traceback_shows_the_plan_that_ran_and_not_a_newer_one() -> None:
    """Although the handlers have changed, and although another bus has a plan for the same event."""
    bus, other = EventBus(), EventBus()

    def change_and_fail(n: int) -> None:
        for _ in range(3):
            bus.subscribe(Tick, lambda hub: None, priority="HIGHEST")
            other.subscribe(Tick, lambda event: None, every=2)
        bus.plan(Tick)
        other.plan(Tick)
        fail()

    bus.subscribe(Tick, change_and_fail, timeout=None)
    with pytest.raises(KeyError) as caught:
        bus.emit(Tick())
    assert "    handler_0(event.n)\n" in shown(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_traceback_through_a_crossing_shows_both_sides(backend: Backend) -> None:
    """The emitting code, the crossing, the awaited call and the handler."""
    bus = EventBus(backend=backend)

    async def failing(event: Tick) -> None:
        fail()

    bus.subscribe(Tick, failing)
    with bus, pytest.raises(KeyError) as caught:
        bus.emit(Tick())

    text = shown(caught.value)
    assert (
        text.index("bus.emit(Tick())")
        < text.index("cross(group_0")
        < text.index("await handler_0(event)")
        < text.index("in fail")
    )

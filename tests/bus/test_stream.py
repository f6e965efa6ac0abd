"""Events that a coroutine pulls: `bus.stream` and `bus.wait_for`, on the home loop and on others."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import anyio.to_thread
import pytest

from hookbus.bus import EventBus, EventStream
from hookbus.errors import EventDefinitionError, RunEnded, SubscriptionError
from hookbus.events import AfterTrainIter
from hookbus.types import Backend
from tests.bus.listeners import PATIENCE, balances, numbers
from tests.bus.ticks import LoudTick, Tick, step, train_iter

BACKENDS: list[Backend] = ["asyncio", "trio"]


class Broken(Exception):
    """What a failing filter raises."""


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is true."""
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110  it may come true on another thread
            await anyio.sleep(0.001)


async def emit_in_a_thread(bus: EventBus, *ticks: int) -> None:
    """Enter the bus on a thread, with a loop of its own, and publish there."""

    def work() -> None:
        with bus:
            for n in ticks:
                bus.emit(Tick(n=n))

    await anyio.to_thread.run_sync(work)


# --- on the home loop -------------------------------------------------------------------------------------------------


async def test_a_stream_gives_every_event_in_order_from_entering_to_leaving() -> None:
    """What was published before and after is none of its business."""
    bus = EventBus()
    async with bus:
        bus.emit(Tick(n=0))
        async with bus.stream(Tick) as events:
            for n in range(1, 11):
                bus.emit((Tick, LoudTick)[n % 2](n=n))
            assert [(await anext(events)).n for _ in range(10)] == list(range(1, 11))
        bus.emit(Tick(n=11))
        assert not bus.stats()
    with pytest.raises(StopAsyncIteration):
        await anext(events)


async def test_a_stream_ends_when_its_bus_is_left_and_gives_what_was_published_before() -> None:
    """So a reader may be slow to come."""
    bus, seen = EventBus(), list[Tick]()

    async def read(events: EventStream[Tick]) -> None:
        seen.extend([event async for event in events])

    async with anyio.create_task_group() as tasks, bus.stream(Tick) as events:
        async with bus:
            tasks.start_soon(read, events)
            for n in range(20):
                await bus.publish(Tick(n=n))
        await until(lambda: len(seen) == 20)
    assert numbers(seen) == list(range(20))


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_stream_may_be_read_on_another_loop_than_that_of_the_bus(backend: Backend) -> None:
    """Entered before the bus is; the events come from threads."""
    bus, seen = EventBus(backend=backend), list[Tick]()
    async with bus.stream(Tick) as events, anyio.create_task_group() as tasks:
        tasks.start_soon(emit_in_a_thread, bus, *range(500))
        async for event in events:
            seen.append(event)
    assert numbers(seen) == list(range(500))


async def test_many_readers_each_get_everything() -> None:
    """On one loop; one that leaves early does not disturb the others."""
    bus = EventBus()
    seen: list[list[int]] = [[] for _ in range(20)]

    async def read(events: EventStream[Tick], mine: list[int]) -> None:
        async with events:
            entered.append(True)
            async for event in events:
                mine.append(event.n)
                if len(mine) == 3 and mine is seen[0]:
                    return

    entered: list[bool] = []
    async with anyio.create_task_group() as tasks:
        for mine in seen:
            tasks.start_soon(read, bus.stream(Tick), mine)
        await until(lambda: len(entered) == 20)
        await emit_in_a_thread(bus, *range(100))
    assert seen == [[0, 1, 2], *[list(range(100))] * 19]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(every=3), [2, 5, 8]),
        (dict(when=lambda event: event.n % 4 == 1), [1, 5, 9]),
        (dict(once=True), [0]),
        (dict(maxsize=3), [7, 8, 9]),
        (dict(overflow="latest"), [9]),
    ],
)
async def test_a_stream_takes_filters_and_loses_the_oldest_events_when_its_reader_falls_behind(
    options: dict[str, Any], expected: list[int]
) -> None:
    """With `once` it ends after its event; what was lost is counted."""
    bus = EventBus()
    async with bus.stream(Tick, **options) as events:
        await emit_in_a_thread(bus, *range(10))
        assert numbers([event async for event in events]) == expected
        assert events.dropped == (10 - len(expected) if "maxsize" in options or "overflow" in options else 0)


async def test_a_stream_that_blocks_holds_up_the_publisher_and_loses_nothing() -> None:
    """Read on another loop, slowly."""
    bus, seen = EventBus(), list[Tick]()
    async with bus.stream(Tick, maxsize=2, overflow="block") as events, anyio.create_task_group() as tasks:
        tasks.start_soon(emit_in_a_thread, bus, *range(30))
        async for event in events:
            seen.append(event)
            await anyio.lowlevel.checkpoint()
        assert events.dropped == 0
    assert numbers(seen) == list(range(30))


async def test_a_slow_reader_does_not_hold_up_leaving() -> None:
    """The end of a run waits for handlers, not for readers."""
    bus = EventBus(drain_timeout=1000.0)
    with anyio.fail_after(PATIENCE):
        async with bus.stream(Tick) as events:
            await emit_in_a_thread(bus, 1, 2, 3)
            assert (await anext(events)).n == 1


# --- cancellation and errors ------------------------------------------------------------------------------------------


async def test_a_cancelled_reader_loses_nothing_that_was_delivered() -> None:
    """Cancelled again and again, while it waits and just as an event arrives."""
    bus, seen = EventBus(), list[int]()
    async with bus, bus.stream(Tick, maxsize=5000) as events:
        for n in range(200):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:

                    async def read(scope: anyio.CancelScope = scope) -> None:
                        async for event in events:
                            seen.append(event.n)

                    tasks.start_soon(read)
                    await anyio.lowlevel.checkpoint()
                    bus.emit(Tick(n=n))
                    bus.stats()  # hands it out, and so wakes the reader
                    scope.cancel()
        while len(seen) < 200:
            seen.append((await anext(events)).n)
        assert balances(_stats_of(bus))
    assert seen == list(range(200))


def _stats_of(bus: EventBus) -> Any:
    [stats] = bus.stats()
    return stats


async def test_what_a_reader_leaves_unread_is_cancelled_and_counted() -> None:
    """The counts of a stream balance like those of a handler."""
    bus = EventBus()
    stream = bus.stream(Tick)
    async with bus:
        async with stream as events:
            for n in range(5):
                bus.emit(Tick(n=n))
            bus.stats()
            await anext(events)
        subscription = stream._subscription
        assert subscription is not None
        stats = subscription.stats()
        assert (stats.published, stats.handled, stats.cancelled, stats.pending) == (5, 1, 4, 0)


async def test_the_error_of_a_filter_reaches_the_reader_behind_everything_before() -> None:
    """And nothing after; others go on, and the publisher hears nothing of it."""
    bus = EventBus()

    def small(event: Tick) -> bool:
        if event.n == 3:
            raise Broken(event.n)
        return True

    seen: list[int] = []
    async with bus.stream(Tick, when=small) as events, bus.stream(Tick) as others:
        await emit_in_a_thread(bus, *range(6))
        with pytest.raises(Broken, match="3"):
            async for event in events:
                seen.append(event.n)
        assert numbers([event async for event in others]) == list(range(6))
    assert seen == [0, 1, 2]


async def test_a_stream_is_entered_once_and_before_it_is_read() -> None:
    """Anything else is refused by name."""
    bus = EventBus()
    events = bus.stream(Tick)
    with pytest.raises(SubscriptionError, match="has to be entered before it is read"):
        await anext(events)
    async with events:
        with pytest.raises(SubscriptionError, match="entered once"):
            async with events:
                pass


async def test_a_second_reader_of_one_stream_is_refused() -> None:
    """One of the two would never hear of an event."""
    bus = EventBus()
    async with bus, bus.stream(Tick) as events, anyio.create_task_group() as tasks:
        tasks.start_soon(_read_one, events)
        await until(lambda: events._backlog.alarm is not None)
        with pytest.raises(SubscriptionError, match="one reader"):
            await anext(events)
        bus.emit(Tick())


async def _read_one(events: EventStream[Tick]) -> None:
    await anext(events)


@pytest.mark.parametrize(
    ("options", "text"),
    [(dict(maxsize=0), "maxsize"), (dict(overflow="drop"), "drop_oldest"), (dict(every=0), "every must be")],
)
async def test_options_of_a_stream_are_checked(options: dict[str, Any], text: str) -> None:
    """No later than when it is entered."""
    with pytest.raises(SubscriptionError, match=text):
        async with EventBus().stream(Tick, **options):
            pass


def test_only_events_can_be_streamed() -> None:
    """Said where the stream is made."""
    with pytest.raises(EventDefinitionError, match="subclass of Event"):
        EventBus().stream(int)  # type: ignore[type-var]


async def test_streams_that_come_and_go_leave_nothing_behind() -> None:
    """A service whose clients come and go while one run goes on does not grow."""
    bus, gone = EventBus(), list[weakref.ref[Any]]()
    async with bus:
        for n in range(50):
            async with bus.stream(Tick) as events:
                bus.emit(Tick(n=n))
                assert (await anext(events)).n == n
                gone.append(weakref.ref(events._subscription))
            with suppress(TimeoutError), anyio.fail_after(0):
                await bus.wait_for(Tick)
        del events
        gc.collect()
        assert not any(reference() for reference in gone)
        assert not bus.stats()


async def test_streams_of_two_buses_do_not_cross() -> None:
    """Read in one task."""
    one, two = EventBus("one"), EventBus("two")
    async with one, two, one.stream(Tick) as first, two.stream(Tick) as second:
        for n in range(10):
            one.emit(Tick(n=n))
            two.emit(Tick(n=-n))
        assert [(await anext(first)).n for _ in range(10)] == list(range(10))
        assert [(await anext(second)).n for _ in range(10)] == [-n for n in range(10)]


# --- waiting for one event --------------------------------------------------------------------------------------------


async def test_wait_for_gives_the_next_event_that_fits() -> None:
    """And leaves the bus as it was."""
    bus = EventBus()
    async with bus, anyio.create_task_group() as tasks:
        waiting, found = list[bool](), list[AfterTrainIter]()

        async def wait() -> None:
            waiting.append(True)
            found.append(await bus.wait_for(AfterTrainIter, when=lambda event: event.iter >= 5))

        tasks.start_soon(wait)
        await until(lambda: bus.stats())
        for iter in range(10):
            bus.emit(train_iter(iter), step())
        await until(lambda: found)
        assert found[0].iter == 5
        assert not bus.stats()


async def test_wait_for_says_that_the_bus_was_left_before() -> None:
    """Instead of waiting for ever."""
    bus = EventBus("short")
    async with anyio.create_task_group() as tasks:

        async def wait() -> None:
            with pytest.raises(RunEnded, match="'short' was left before there was the Tick waited for"):
                await bus.wait_for(Tick, when=lambda event: event.n > 100)
            ended.append(True)

        ended: list[bool] = []
        tasks.start_soon(wait)
        await until(lambda: bus.stats())
        await emit_in_a_thread(bus, 1, 2, 3)
    assert ended


async def test_the_error_of_a_condition_reaches_who_waits() -> None:
    """As itself."""
    bus = EventBus()

    def condition(event: Tick) -> bool:
        raise Broken

    async with anyio.create_task_group() as tasks:

        async def wait() -> None:
            with pytest.raises(Broken):
                await bus.wait_for(Tick, when=condition)

        tasks.start_soon(wait)
        await until(lambda: bus.stats())
        await emit_in_a_thread(bus, 1)


def test_streams_end_although_others_are_left_at_the_same_moment() -> None:
    """On forty loops at once, while the bus is left on another thread."""
    bus, ready, ended = EventBus(), threading.Barrier(41), list[int]()

    async def read(number: int) -> None:
        async with bus.stream(Tick) as events:
            await anyio.to_thread.run_sync(ready.wait)
            async for event in events:
                if event.n == number:
                    return
        ended.append(number)

    threads = [threading.Thread(target=anyio.run, args=(read, number)) for number in range(40)]
    for thread in threads:
        thread.start()
    ready.wait(PATIENCE)
    with bus:
        for n in range(20):
            bus.emit(Tick(n=n))
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)
    assert sorted(ended) == list(range(20, 40))

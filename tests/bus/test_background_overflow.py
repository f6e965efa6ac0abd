"""Background handlers that fall behind: what is dropped, who is held up and for how long, and that the counts balance."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import anyio.to_thread
import pytest

from hookbus.bus import Background, EventBus, SubscriptionStats
from hookbus.bus.outbox import LIMIT
from hookbus.errors import WrongThread
from hookbus.events import Event
from hookbus.types import Backend
from tests.bus.listeners import KINDS, PATIENCE, Gate, Kind, balances, handler, numbers
from tests.bus.ticks import Tick

BACKENDS: list[Backend] = ["asyncio", "trio"]


@contextmanager
def watched_by_another_thread(bus: EventBus) -> Iterator[list[SubscriptionStats]]:
    """Read the counts all the time; give those that did not balance."""
    wrong: list[SubscriptionStats] = []
    stop, looked = threading.Event(), threading.Event()

    def look() -> None:
        while not stop.is_set():
            wrong.extend(stats for stats in bus.stats() if not balances(stats))
            looked.set()

    thread = threading.Thread(target=look)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        assert looked.wait(PATIENCE)
        yield wrong
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


# --- dropping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (Background(maxsize=3), [0, 7, 8, 9]),
        (Background(maxsize=1), [0, 9]),
        (Background(maxsize=3, overflow="latest"), [0, 9]),
        (Background(maxsize=20), list(range(10))),
    ],
)
def test_who_falls_behind_gets_the_newest_events(kind: Kind, options: Background, expected: list[int]) -> None:
    """The first one is in its hands; of the others those are kept that there is room for."""
    bus, gate, seen = EventBus(), Gate(), list[Event]()
    subscription = bus.subscribe(Tick, handler(kind, seen.append, gate), background=options)
    with bus:
        bus.emit(Tick(n=0))
        gate.wait_until_reached()
        for n in range(1, 10):
            bus.emit(Tick(n=n))
        waiting = subscription.stats()
        bus.stats()
        gate.open()
    stats = subscription.stats()
    assert numbers(seen) == expected
    assert balances(waiting)
    assert (stats.published, stats.handled, stats.dropped, stats.pending) == (10, len(expected), 10 - len(expected), 0)


def test_each_subscriber_loses_only_its_own_events() -> None:
    """Room is counted for each of them."""
    bus, gate, seen = EventBus(), Gate(), list[Event]()
    slow = bus.subscribe(Tick, handler("function", lambda event: None, gate), background=Background(maxsize=2))
    quick = bus.subscribe(Tick, handler("function", seen.append), background=Background(maxsize=10_000))
    with bus:
        for n in range(2 * LIMIT + 100):
            bus.emit(Tick(n=n))
        bus.stats()
        gate.open()
    assert quick.stats().dropped == 0
    assert numbers(seen) == list(range(2 * LIMIT + 100))
    assert slow.stats().dropped >= 2 * LIMIT + 100 - 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loop_that_is_too_busy_to_look_does_not_let_the_outbox_grow(backend: Backend) -> None:
    """From its limit on the publisher hands out itself; nothing is lost, and the order stays."""
    bus, gate, seen = EventBus(backend=backend), Gate(), list[Event]()

    async def blocks_the_loop() -> None:
        gate.pass_through()

    bus.subscribe(Tick, blocks_the_loop, once=True, background=True)
    bus.subscribe(Tick, handler("function", seen.append), background=Background(maxsize=5 * LIMIT))
    with bus:
        bus.emit(Tick(n=0))
        gate.wait_until_reached()
        for n in range(1, 3 * LIMIT):
            bus.emit(Tick(n=n))
            assert len(bus._outbox._entries) <= LIMIT
        gate.open()
    assert numbers(seen) == list(range(3 * LIMIT))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("overflow", ["drop_oldest", "latest", "block"])
def test_the_counts_balance_whenever_they_are_read(kind: Kind, overflow: str) -> None:
    """While events come, are dropped, handled, failed and cancelled, another thread reads them all the time."""
    bus = EventBus()

    def act(event: Tick) -> None:
        if event.n % 7 == 3:
            raise KeyError(event.n)

    options = Background(maxsize=8, overflow=overflow, block_timeout=0.01)  # type: ignore[arg-type]
    subscription = bus.subscribe(Tick, handler(kind, act), background=options)
    passing = [bus.subscribe(Tick, handler(kind, act), background=options, name=f"passing {n}") for n in range(5)]
    with bus, watched_by_another_thread(bus) as wrong:
        for n in range(1000):
            bus.emit(Tick(n=n))
            if n % 200 == 199:
                passing.pop().cancel()
    assert not wrong
    stats = subscription.stats()
    assert balances(stats)
    assert stats.published == 1000
    assert stats.pending == 0


# --- holding up the publisher -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_block_loses_nothing_and_keeps_no_more_than_it_may(kind: Kind, backend: Backend) -> None:
    """The publisher waits for room instead."""
    bus, seen, waiting = EventBus(backend=backend), list[Event](), list[int]()
    subscription = bus.subscribe(Tick, handler(kind, seen.append), background=Background(maxsize=4, overflow="block"))
    with bus:
        for n in range(300):
            bus.emit(Tick(n=n))
            waiting.append(subscription.stats().pending)
    assert numbers(seen) == list(range(300))
    assert max(waiting) <= 5  # four that wait, one in hand
    assert subscription.stats().dropped == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_block_holds_up_a_publisher_on_the_callers_loop_without_blocking_it(kind: Kind) -> None:
    """`await publish` waits; `emit` could not, and is refused before anybody is called."""
    bus, seen = EventBus(), list[Event]()
    bus.subscribe(Tick, handler(kind, seen.append), background=Background(maxsize=2, overflow="block"))
    async with bus:
        with pytest.raises(WrongThread, match=r"await bus\.publish"):
            bus.emit(Tick(n=-1))
        with anyio.fail_after(PATIENCE):
            for n in range(50):
                await bus.publish(Tick(n=n))
    assert numbers(seen) == list(range(50))


def test_block_holds_up_the_publisher_for_its_own_timeout_and_then_drops_until_it_has_caught_up() -> None:
    """The publisher pays once, not for each event; afterwards all is as before."""
    bus, gate, seen = EventBus(), Gate(), list[Event]()
    options = Background(maxsize=2, overflow="block", block_timeout=0.3)
    subscription = bus.subscribe(Tick, handler("function", seen.append, gate), background=options)
    with bus:
        bus.emit(Tick(n=0))
        gate.wait_until_reached()
        bus.emit(Tick(n=1))
        started = time.monotonic()
        bus.emit(Tick(n=2))
        waited = time.monotonic() - started
        assert waited >= 0.3
        for n in range(3, 1000):
            bus.emit(Tick(n=n))
        waiting = subscription.stats()
        assert (waiting.published, waiting.pending, waiting.dropped) == (1000, 3, 997)
        gate.open()
        assert bus.drain()
        for n in range(1000, 1100):
            bus.emit(Tick(n=n))
    assert numbers(seen) == [0, 1, 2, *range(1000, 1100)]
    assert balances(subscription.stats())


def test_only_who_asked_for_it_holds_up_the_publisher() -> None:
    """A publisher that waited for the others would never come to the end here."""
    bus, gate = EventBus(), Gate()
    options = [Background(maxsize=1), Background(overflow="latest")]
    for option in options:
        bus.subscribe(Tick, handler("function", lambda event: None, gate), background=option)
    bus.subscribe(Tick, handler("function", lambda event: None), background=Background(maxsize=1, overflow="block"))
    with bus:
        for n in range(200):
            bus.emit(Tick(n=n))
        gate.open()


def test_a_blocked_publisher_goes_on_serving() -> None:
    """What is posted meanwhile is published, also by the very handler that is waited for."""
    bus, seen, answered = EventBus(), list[int](), list[bool]()

    class Answer(Event):
        n: int

    def asks(n: int) -> None:
        bus.post(Answer(n=n)).result(PATIENCE)
        answered.append(True)

    bus.subscribe(Answer, lambda n: seen.append(n))
    bus.subscribe(Tick, asks, background=Background(maxsize=1, overflow="block"))
    with bus:
        for n in range(20):
            bus.emit(Tick(n=n))
    assert seen == list(range(20))
    assert answered == [True] * 20


def test_a_subscription_that_is_cancelled_holds_up_nobody_any_more() -> None:
    """A publisher that waits for it goes on, although its handler never does."""
    bus, gate = EventBus(), Gate()
    options = Background(maxsize=1, overflow="block", block_timeout=PATIENCE)
    subscription = bus.subscribe(Tick, handler("function", lambda event: None, gate), background=options)
    with bus:
        bus.emit(Tick(n=0))
        gate.wait_until_reached()
        thread = threading.Thread(target=subscription.cancel)
        thread.start()
        started = time.monotonic()
        bus.emit(Tick(n=1))
        assert time.monotonic() - started < PATIENCE
        thread.join()
        gate.open()
    assert balances(subscription.stats())


async def test_a_cancelled_subscription_holds_up_nobody_on_the_callers_loop_either() -> None:
    """The publisher is told at once."""
    bus, gate = EventBus(), Gate()
    options = Background(maxsize=1, overflow="block", block_timeout=float("inf"))
    subscription = bus.subscribe(Tick, handler("coroutine", lambda event: None, gate), background=options)
    async with bus:
        await bus.publish(Tick(n=0))
        with anyio.fail_after(PATIENCE):
            await anyio.to_thread.run_sync(gate.wait_until_reached)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_publish, bus, Tick(n=1))
                while subscription.stats().published != 2:  # noqa: ASYNC110  the publisher has it handed out
                    await anyio.sleep(0.001)
                subscription.cancel()
        gate.open()
    assert balances(subscription.stats())


async def _publish(bus: EventBus, event: Event) -> None:
    await bus.publish(event)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overflow", ["drop_oldest", "latest"])
def test_a_handler_that_never_returns_keeps_no_more_events_than_it_may(overflow: str) -> None:
    """However many are published."""
    bus, gate = EventBus(), Gate()
    options = Background(maxsize=16, overflow=overflow)  # type: ignore[arg-type]
    subscription = bus.subscribe(Tick, handler("function", lambda event: None, gate), background=options)
    with bus:
        for n in range(20_000):
            bus.emit(Tick(n=n))
        bus.stats()
        assert subscription.backlog is not None
        assert len(subscription.backlog._events) <= 16
        assert len(bus._outbox._entries) <= LIMIT
        gate.open()
    assert balances(subscription.stats())
    assert subscription.stats().published == 20_000

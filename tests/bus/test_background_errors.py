"""Background handlers that raise, hang, are cancelled, or have not come to the end when the bus is left."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import pytest

import hookbus.bus.hosting
from hookbus.bus import Background, EventBus, Subscription
from hookbus.errors import WrongThread
from hookbus.events import Event
from hookbus.types import Backend
from tests.bus.listeners import KINDS, PATIENCE, Gate, Kind, balances, handler, numbers
from tests.bus.ticks import Tick, Tock

BACKENDS: list[Backend] = ["asyncio", "trio"]


class Broken(Exception):
    """What a failing handler raises."""


def fails_at(*which: int, seen: list[int] | None = None) -> Callable[[Tick], None]:
    """Return what raises at some ticks, and notes the others."""

    def act(event: Tick) -> None:
        if event.n in which:
            raise Broken(event.n)
        if seen is not None:
            seen.append(event.n)

    return act


def logged(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    """Return what was logged that contains a text."""
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


# --- raising ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_is_logged_once_and_counted_and_the_handler_goes_on(
    kind: Kind, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """Which is what an observer does by default: training is none of its business."""
    bus, seen = EventBus(backend=backend), list[int]()
    subscription = bus.subscribe(Tick, handler(kind, fails_at(2, 3, 5, seen=seen)), background=True, name="observer")
    with bus:
        for n in range(8):
            bus.emit(Tick(n=n))
    assert seen == [0, 1, 4, 6, 7]
    stats = subscription.stats()
    assert (stats.calls, stats.handled, stats.failures) == (8, 5, 3)
    [message] = logged(caplog, "observer failed on")
    assert "Tick(n=2)" in message
    assert "Broken: 2" in message


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_error_that_is_to_be_raised_comes_out_where_the_bus_is_left(kind: Kind, backend: Backend) -> None:
    """As itself, with a note and its traceback; a further one is noted on it."""
    bus = EventBus(backend=backend)
    bus.subscribe(Tick, handler(kind, fails_at(1, 2)), background=True, on_error="raise", name="strict")
    with pytest.raises(Broken) as caught, bus:
        for n in range(4):
            bus.emit(Tick(n=n))
    assert caught.value.args == (1,)
    assert caught.value.__notes__ == [
        "while strict handled Tick(n=1)",
        "and later: Broken: 2",
        "    while strict handled Tick(n=2)",
    ]
    assert caught.traceback[-1].name == "act"


@pytest.mark.parametrize("kind", KINDS)
async def test_an_error_comes_out_of_async_with_too(kind: Kind) -> None:
    """Not in a group."""
    bus = EventBus()
    bus.subscribe(Tick, handler(kind, fails_at(1)), background=True, on_error="raise")
    with pytest.raises(Broken):
        async with bus:
            bus.emit(Tick(n=1))


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_of_the_body_goes_before_that_of_a_handler(kind: Kind) -> None:
    """What is raised is what ended the block."""
    bus = EventBus()
    bus.subscribe(Tick, handler(kind, fails_at(1)), background=True, on_error="raise")
    with pytest.raises(ZeroDivisionError), bus:
        bus.emit(Tick(n=1))
        bus.drain()
        raise ZeroDivisionError


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_handler_ends_neither_its_thread_nor_the_loop(kind: Kind, error: type[BaseException]) -> None:
    """It goes to whoever owns the bus, also where errors are only logged; the next event is handled."""
    bus, seen = EventBus(), list[int]()

    def act(event: Tick) -> None:
        seen.append(event.n)
        if event.n == 0:
            raise error

    subscription = bus.subscribe(Tick, handler(kind, act), background=True)
    with pytest.raises(error), bus:
        bus.emit(Tick(n=0))
        bus.emit(Tick(n=1))
    assert seen == [0, 1]
    assert balances(subscription.stats())


@pytest.mark.parametrize("kind", KINDS)
def test_a_filter_that_raises_counts_as_a_failure_of_its_handler(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """And of nobody else; it is asked again next time."""
    bus, mine, others = EventBus(), list[Event](), list[Event]()

    def even(event: Tick) -> bool:
        if event.n == 3:
            raise Broken
        return event.n % 2 == 0

    subscription = bus.subscribe(Tick, handler(kind, mine.append), when=even, background=True, name="choosy")
    bus.subscribe(Tick, handler(kind, others.append), background=True)
    with bus:
        for n in range(7):
            bus.emit(Tick(n=n))
    assert numbers(mine) == [0, 2, 4, 6]
    assert numbers(others) == list(range(7))
    assert (subscription.stats().published, subscription.stats().failures) == (5, 1)
    assert logged(caplog, "choosy failed on Tick(n=3)")


@pytest.mark.parametrize("looks", ["stats", "emit"])
def test_a_filter_may_use_the_bus_that_asks_it(looks: str) -> None:
    """It runs while events are handed out; nothing waits for itself, and the order stays."""
    bus, seen = EventBus(), list[Event]()

    def when(event: Event) -> bool:
        bus.stats() if looks == "stats" else bus.post(Tock())
        return True

    bus.subscribe(Tick, handler("function", lambda event: None), when=when, background=True)
    bus.subscribe(Tick, handler("function", seen.append), background=True)
    with bus:
        for n in range(30):
            bus.emit(Tick(n=n))
    assert numbers(seen) == list(range(30))


# --- taking long ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_coroutine_function_may_be_limited(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """What takes longer is cancelled and counts as failed; the next event is handled."""
    bus, seen = EventBus(backend=backend), list[int]()

    async def slow(n: int) -> None:
        await anyio.sleep(0 if n else float("inf"))
        seen.append(n)

    subscription = bus.subscribe(Tick, slow, background=True, timeout=0.05)
    with bus:
        bus.emit(Tick(n=0))
        bus.emit(Tick(n=1))
    assert seen == [1]
    assert subscription.stats().failures == 1
    assert logged(caplog, "slow failed on Tick(n=0)")


@pytest.mark.parametrize("backend", BACKENDS)
def test_leaving_waits_for_so_long_and_no_longer(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """What has not been handled by then is cancelled, counted, and named in the log."""
    bus = EventBus(backend=backend, drain_timeout=0.1)
    stuck = bus.subscribe(Tick, _for_ever, background=True)
    with bus:
        for n in range(5):
            bus.emit(Tick(n=n))
    stats = stuck.stats()
    assert (stats.published, stats.handled, stats.cancelled, stats.pending) == (5, 0, 5, 0)
    assert logged(caplog, "_for_ever is late: 5 events of Tick still wait for it")
    assert logged(caplog, "4 events of Tick were not handled by _for_ever: the bus was left")


async def test_leaving_a_loop_waits_for_so_long_too(caplog: pytest.LogCaptureFixture) -> None:
    """And cancels what is not done."""
    bus = EventBus(drain_timeout=0.1)
    stuck = bus.subscribe(Tick, _for_ever, background=True)
    async with bus:
        for n in range(5):
            bus.emit(Tick(n=n))
    assert (stuck.stats().cancelled, stuck.stats().pending) == (5, 0)
    assert logged(caplog, "_for_ever is late")


async def _for_ever() -> None:
    await anyio.sleep_forever()


def test_a_thread_that_does_not_return_is_left_behind_and_spoils_nothing_later(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named; when the bus is entered again, its event is not pending for ever, and it takes no event any more."""
    monkeypatch.setattr(hookbus.bus.hosting, "JOIN_TIMEOUT", 0.05)
    bus, gate = EventBus(drain_timeout=0.05), Gate()
    seen: list[tuple[int, str]] = []

    def stuck(n: int) -> None:
        if n == 0:
            gate.pass_through()
        seen.append((n, threading.current_thread().name))

    subscription = bus.subscribe(Tick, stuck, background=True)
    with bus:
        bus.emit(Tick(n=0))
        gate.wait_until_reached()
        [left_behind] = [thread for thread in threading.enumerate() if thread.name == "hookbus-background-stuck"]
    assert logged(caplog, "stuck does not return; its thread is left behind")
    with bus:
        bus.emit(Tick(n=1))
        assert bus.drain(PATIENCE)
        assert balances(subscription.stats())
        gate.open()
        left_behind.join(PATIENCE)
        assert not left_behind.is_alive()
        assert balances(subscription.stats())
        bus.emit(Tick(n=2))
    stats = subscription.stats()
    assert [n for n, _ in seen] == [1, 0, 2]
    assert (stats.published, stats.handled, stats.cancelled, stats.pending) == (3, 2, 1, 0)


# --- cancelling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_cancelled_subscription_gets_nothing_more(kind: Kind) -> None:
    """What it has in hand it may finish; what waits for it is cancelled and counted, here and still in the outbox."""
    bus, gate, seen = EventBus(), Gate(), list[Event]()
    subscription = bus.subscribe(Tick, handler(kind, seen.append, gate), background=True)
    with bus:
        for n in range(5):
            bus.emit(Tick(n=n))
        gate.wait_until_reached()
        bus.emit(Tick(n=5))
        subscription.cancel()
        bus.emit(Tick(n=6))
        gate.open()
    assert numbers(seen) == [0]
    stats = subscription.stats()
    bus.stats()
    assert (stats.published, stats.handled, stats.cancelled, stats.pending) == (6, 1, 5, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_may_cancel_itself(kind: Kind) -> None:
    """Its thread ends with it."""
    bus, seen = EventBus(), list[Event]()

    def act(event: Event) -> None:
        seen.append(event)
        subscription.cancel()

    subscription: Subscription[Tick] = bus.subscribe(Tick, handler(kind, act), background=True)
    with bus:
        for n in range(5):
            bus.emit(Tick(n=n))
    assert numbers(seen) == [0]
    assert balances(subscription.stats())


@pytest.mark.parametrize("kind", KINDS)
def test_those_who_come_and_go_during_a_run_leave_nothing_behind(kind: Kind) -> None:
    """A service that subscribes for each request does not grow."""
    bus = EventBus()
    gone: list[weakref.ref[Any]] = []
    with bus:
        for n in range(20):
            with bus.subscribe(Tick, handler(kind, lambda event: None), background=True) as subscription:
                bus.emit(Tick(n=n))
                assert bus.drain(PATIENCE)
            gone.append(weakref.ref(subscription))
            del subscription
        threading.Event().wait(0)
        bus.subscribe(Tick, handler(kind, lambda event: None), background=True)
        bus.emit(Tick())
        assert bus.drain(PATIENCE)
        gc.collect()
        assert sum(reference() is not None for reference in gone) <= 2
        assert sum(thread.name.startswith("hookbus-background") for thread in threading.enumerate()) <= 2


# --- draining ---------------------------------------------------------------------------------------------------------


def test_draining_is_for_the_thread_that_owns_the_bus() -> None:
    """Elsewhere it would serve a mailbox that is not its own; it says so."""
    bus, errors = EventBus(), list[Exception]()

    def drains() -> None:
        try:
            bus.drain()
        except WrongThread as error:
            errors.append(error)

    bus.subscribe(Tick, drains, background=True)
    with bus:
        bus.emit(Tick())
    assert len(errors) == 1


def test_what_comes_while_a_drain_waits_does_not_make_it_late(caplog: pytest.LogCaptureFixture) -> None:
    """It waits for what was published before."""
    bus, gate = EventBus(), Gate()

    def causes_more() -> None:
        bus.post(Tock())

    bus.subscribe(Tick, causes_more, background=True)
    bus.subscribe(Tock, handler("function", lambda event: None, gate), background=Background(maxsize=3))
    with bus, caplog.at_level(logging.WARNING):
        bus.emit(Tick())
        assert bus.drain(PATIENCE)
        assert not caplog.records
        gate.open()

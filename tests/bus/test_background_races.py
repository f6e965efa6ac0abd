"""The background lane where things meet: strangers' cancellations, a busy loop, a bus that is being left or entered again."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

from hookbus.bridge import Bridge, CrossingCancelled
from hookbus.bus import EventBus
from hookbus.bus.failures import FailureLog
from hookbus.bus.host import OwnThread
from hookbus.bus.outbox import Outbox
from hookbus.errors import BusError, BusNotEntered, HandlerCancelled
from hookbus.events import Event
from hookbus.loop_threads import LoopThread, run_in_thread
from hookbus.mailbox import Acknowledgement, Mailbox
from hookbus.types import Backend
from tests.bus.listeners import KINDS, PATIENCE, Gate, Kind, handler, numbers
from tests.bus.ticks import Tick, Tock

BACKENDS: list[Backend] = ["asyncio", "trio"]


def burn(seconds: float) -> None:
    """Be busy without letting anybody else on this event loop have a turn."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


# --- strangers' cancellations -----------------------------------------------------------------------------------------


def test_a_handler_that_was_cancelled_by_a_stranger_gets_the_next_event(caplog: pytest.LogCaptureFixture) -> None:
    """Its failure is logged like any other, and the others never hear of it."""
    bus, seen, others = EventBus(), list[int](), list[Event]()

    async def cancelled_at_first(n: int) -> None:
        if n == 0:
            raise asyncio.CancelledError
        seen.append(n)

    bus.subscribe(Tick, cancelled_at_first, background=True)
    bus.subscribe(Tick, handler("coroutine", others.append), background=True)
    with bus:
        for n in range(3):
            bus.emit(Tick(n=n))
            assert bus.drain()
    assert (seen, numbers(others)) == ([1, 2], [0, 1, 2])
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], HandlerCancelled)


def test_a_program_that_ends_waits_for_the_handlers_that_close_its_run() -> None:
    """asyncio then cancels all tasks at once, those that a run needs on its loop among them."""
    ended: list[str] = []

    async def main() -> None:
        bridge, begun = Bridge(Mailbox()), asyncio.Event()

        async def stand() -> None:
            begun.set()
            await anyio.sleep_forever()

        async def close() -> None:
            await anyio.lowlevel.checkpoint()
            ended.append("closed")

        def body() -> None:
            try:
                bridge.call(stand)
            except CrossingCancelled:
                ended.append("cancelled")
            bridge.call(close, closing=True)

        run = asyncio.create_task(run_in_thread(bridge, body, name="body", on_cancel=lambda: None))
        await begun.wait()
        assert not run.done()

    asyncio.run(main())
    assert ended == ["cancelled", "closed"]


def test_the_background_goes_on_until_its_run_has_ended_whoever_cancels_its_tasks() -> None:
    """What is published while the program ends still arrives."""
    seen: list[Event] = []

    async def main() -> None:
        bus = EventBus(drain_timeout=PATIENCE)
        bus.subscribe(Tick, handler("coroutine", seen.append), background=True)
        async with bus:
            bus.emit(Tick(n=0))
            while not seen:  # noqa: ASYNC110  the pump looks now and then
                await asyncio.sleep(0.001)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            for _ in range(3):
                await asyncio.sleep(0)
            bus.emit(Tick(n=1))

    asyncio.run(main())
    assert numbers(seen) == [0, 1]


# --- a busy loop ------------------------------------------------------------------------------------------------------


async def test_handlers_that_never_wait_leave_the_loop_to_others_now_and_then() -> None:
    """However many events wait for them."""
    bus, turns, turns_at = EventBus(), [0], list[int]()

    async def busy() -> None:
        burn(0.001)
        turns_at.append(turns[0])

    async def count_turns() -> None:
        while True:
            turns[0] += 1
            await anyio.lowlevel.checkpoint()

    bus.subscribe(Tick, busy, background=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count_turns)
        async with bus:
            for n in range(60):
                bus.emit(Tick(n=n))
        tasks.cancel_scope.cancel()
    assert len(turns_at) == 60
    assert len(set(turns_at)) > 3


async def test_readers_that_never_wait_leave_the_loop_to_others_now_and_then() -> None:
    """A stream with plenty to read is no reason to hold up everybody else."""
    bus, turns, turns_at = EventBus(), [0], list[int]()

    async def count_turns() -> None:
        while True:
            turns[0] += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count_turns)
        async with bus.stream(Tick) as events:
            async with bus:
                for n in range(60):
                    bus.emit(Tick(n=n))
            async for _ in events:
                burn(0.001)
                turns_at.append(turns[0])
        tasks.cancel_scope.cancel()
    assert len(turns_at) == 60
    assert len(set(turns_at)) > 3


# --- waking the pump --------------------------------------------------------------------------------------------------


def test_a_pump_does_not_rest_before_a_newcomer_has_its_consumer() -> None:
    """Somebody else may have handed out what the newcomer waits for, and so emptied the outbox."""
    outbox, woken = Outbox(FailureLog()), list[str]()
    outbox.open(lambda: woken.append("pump"), lambda: None)
    newcomer = EventBus().subscribe(Tick, lambda: None, background=True)
    outbox.put(Tick(), 1, (newcomer,))
    outbox.hand_out()
    assert not outbox.rest()
    assert outbox.next_newcomer() is newcomer
    assert outbox.rest()
    outbox.put(Tick(), 2, (newcomer,))
    assert woken == ["pump", "pump"]


# --- trouble of the lane itself ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_thread_that_cannot_be_started_fails_its_own_handler_only(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes out as itself; the event loop and the other handlers go on."""
    start = threading.Thread.start

    def start_or_refuse(thread: threading.Thread) -> None:
        if thread.name == "hookbus-background-unlucky":
            msg = "can't start new thread"
            raise RuntimeError(msg)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_refuse)
    bus, seen = EventBus(backend=backend), list[Event]()
    unlucky = bus.subscribe(Tick, lambda: None, background=True, name="unlucky")
    bus.subscribe(Tick, handler("function", seen.append), background=True)
    with pytest.raises(RuntimeError, match="can't start new thread") as caught, bus:
        for n in range(3):
            bus.emit(Tick(n=n))
            bus.drain()
    assert caught.value.__notes__ == ["when the thread of unlucky was to be started"]
    assert numbers(seen) == [0, 1, 2]
    assert (unlucky.stats().published, unlucky.stats().cancelled) == (3, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_log_that_fails_is_an_error_of_the_block_and_not_of_the_loop(kind: Kind) -> None:
    """The handler goes on with the next event."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            msg = "the disk is full"
            raise OSError(msg)

    logger = logging.getLogger("hookbus.broken")
    logger.propagate = False
    logger.addHandler(Broken())
    bus, seen = EventBus(), list[int]()
    bus.log_to(logger)

    def fail_at_first(event: Tick) -> None:
        seen.append(event.n)
        if event.n == 0:
            raise KeyError

    bus.subscribe(Tick, handler(kind, fail_at_first), background=True)
    with pytest.raises(OSError, match="the disk is full"), bus:
        for n in range(3):
            bus.emit(Tick(n=n))
            bus.drain()
    assert seen == [0, 1, 2]


# --- errors that come late --------------------------------------------------------------------------------------------


def test_what_the_background_raised_is_noted_on_what_the_block_raised() -> None:
    """It is not kept for the next one who enters the bus."""
    bus = EventBus()

    def fail() -> None:
        msg = "late"
        raise KeyError(msg)

    bus.subscribe(Tick, fail, background=True, on_error="raise", once=True)
    with pytest.raises(ValueError, match="early") as caught, bus:
        bus.emit(Tick())
        msg = "early"
        raise ValueError(msg)
    assert [note for note in caught.value.__notes__ if "in the background" in note] == ["and in the background: KeyError: 'late'"]
    with bus:
        bus.emit(Tick())


def test_an_error_after_the_end_is_logged_and_does_not_end_the_next_run(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody is there to be told when it happens."""
    outbox = Outbox(FailureLog())
    outbox.end_run_with(KeyError("late"))
    outbox.open(lambda: None, lambda: None)
    outbox.raise_errors()
    assert [record.getMessage() for record in caplog.records] == [
        "a background handler failed when the bus had been left: KeyError: 'late'"
    ]


# --- leaving and entering ---------------------------------------------------------------------------------------------


def test_a_bus_that_is_being_left_cannot_be_entered_yet() -> None:
    """Whoever leaves it would take its new host from it."""
    bus, refused = EventBus(drain_timeout=0.01), list[str]()

    def enter_meanwhile() -> None:
        while True:
            try:
                bus.post(Tock())
            except BusNotEntered:
                break
        try:
            with bus:
                pass
        except BusError as error:
            refused.append(str(error))

    bus.subscribe(Tick, enter_meanwhile, background=True)
    with bus:
        bus.emit(Tick())
    assert refused == ["the event bus 'hookbus' is in use: a run or a with block owns it until it ends"]
    with bus:
        bus.emit(Tock())


def test_a_handler_that_waits_for_the_thread_that_leaves_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise each would wait for the other."""
    bus, gate = EventBus(), Gate()
    host = OwnThread(bus.hub, "asyncio")
    asked: list[Acknowledgement[Any]] = []

    def ask() -> None:
        asked.append(bus.post(Tock()))
        gate.pass_through()
        asked[0].result(PATIENCE)

    bus.subscribe(Tick, ask, background=True)
    bus.enter(host)
    host.start()
    bus.emit(Tick())
    gate.wait_until_reached()
    gate.open()
    bus.leave()
    host.stop()
    assert asked[0].done()
    assert not caplog.records


def test_an_interrupt_while_the_loop_starts_leaves_no_thread() -> None:
    """Nobody is there any more to stop it."""
    interrupted = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    class Interrupting(Bridge):
        def open(self, tasks: anyio.abc.TaskGroup) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupted.wait(PATIENCE)
            super().open(tasks)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            LoopThread(Interrupting(Mailbox()), "asyncio").start()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not any(thread.name == "hookbus-loop" for thread in threading.enumerate())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bus_whose_loop_cannot_start_can_be_entered_later(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason comes out as itself."""

    def refuse(thread: threading.Thread) -> None:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    bus, seen = EventBus(backend=backend), list[Event]()
    bus.subscribe(Tick, handler("function", seen.append), background=True)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"), bus:
            pass
    with bus:
        bus.emit(Tick(n=1))
    assert numbers(seen) == [1]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_leaving_at_any_moment_accounts_for_everything(backend: Backend) -> None:
    """The pump may just be starting consumers, and these may not have begun."""
    unheard = logging.getLogger("hookbus.unheard")
    unheard.setLevel(logging.CRITICAL + 1)
    for _ in range(100):
        bus = EventBus(backend=backend, drain_timeout=0.0005)
        bus.log_to(unheard)
        subscriptions = [bus.subscribe(Tick, handler(kind, lambda event: None), background=True) for kind in KINDS * 4]
        with bus:
            bus.emit(Tick())
        for subscription in subscriptions:
            stats = subscription.stats()
            assert (stats.published, stats.pending) == (1, 0)
            assert stats.handled + stats.cancelled == 1

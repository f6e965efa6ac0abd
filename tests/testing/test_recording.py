"""What a recorder keeps: the events of the types asked for, each once, in order, and an answer for who waits for one."""

from __future__ import annotations

import threading

import anyio
import pytest

from hookbus.bus import EventBus
from hookbus.errors import EventDefinitionError
from hookbus.events import AfterRun, AfterTrain, BeforeTrain, Event
from hookbus.testing import make_runner, record
from tests.bus.ticks import LoudTick, Tick, Tock


def test_everything_is_recorded_by_default() -> None:
    """In the order in which the publishes began, also those that a handler causes."""
    bus = EventBus()
    seen = record(bus)
    bus.subscribe(Tick, lambda n: bus.emit(Tock(n=n)))
    bus.emit(Tick(n=1))
    bus.emit(LoudTick(n=2))
    assert seen.names == ["Tick", "Tock", "LoudTick", "Tock"]
    assert seen.events == [Tick(n=1), Tock(n=1), LoudTick(n=2), Tock(n=2)]


@pytest.mark.parametrize("types", [(Tick, LoudTick), (LoudTick, Tick), (Tick, Tick)], ids=str)
def test_an_event_of_several_types_is_recorded_once(types: tuple[type[Event], ...]) -> None:
    """And one that is published twice, twice."""
    bus = EventBus()
    seen = record(bus, *types)
    event = LoudTick(n=1)
    bus.emit(event)
    bus.emit(event)
    bus.emit(Tock())
    assert list(seen) == [event, event]


def test_a_recorder_gives_the_events_of_a_type() -> None:
    """Subclasses included; type checkers know which they are."""
    bus = EventBus()
    seen = record(bus)
    for event in (Tick(n=1), Tock(n=2), LoudTick(n=3)):
        bus.emit(event)
    assert [tick.n for tick in seen.of(Tick)] == [1, 3]


def test_recording_ends_with_the_block() -> None:
    """What was recorded stays."""
    bus = EventBus()
    with record(bus) as seen:
        bus.emit(Tick(n=1))
    bus.emit(Tick(n=2))
    assert seen.events == [Tick(n=1)]
    assert not bus.has_subscribers(Tick)


def test_forgetting_begins_anew() -> None:
    """For the second half of a test."""
    bus = EventBus()
    seen = record(bus)
    bus.emit(Tick(n=1))
    seen.clear()
    bus.emit(Tick(n=2))
    assert (len(seen), seen.events) == (1, [Tick(n=2)])


def test_a_thread_waits_for_an_event() -> None:
    """The first one that fits, whether it was published before or comes later."""
    bus = EventBus()
    seen = record(bus)
    bus.emit(Tick(n=1))
    assert seen.wait_for(Tick).result(0) == Tick(n=1)
    later = seen.wait_for(Tick, lambda event: event.n > 1)
    assert not later.done()
    thread = threading.Thread(target=lambda: [bus.emit(Tick(n=n)) for n in range(4)])
    thread.start()
    assert later.result(20) == Tick(n=2)
    thread.join()


def test_waiting_in_vain_ends_after_its_time() -> None:
    """Instead of hanging the test."""
    with pytest.raises(TimeoutError):
        record(EventBus()).wait_for(Tick).result(0.01)


def test_only_events_can_be_waited_for() -> None:
    """The error comes where the mistake is."""
    with pytest.raises(EventDefinitionError, match="int"):
        record(EventBus()).wait_for(int)  # type: ignore[type-var]


async def test_a_coroutine_waits_for_an_event_of_a_run() -> None:
    """Published by the training thread."""
    runner = make_runner()
    seen = record(runner.bus, BeforeTrain, AfterTrain, AfterRun)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(runner.train_async)
        with anyio.fail_after(20):
            assert (await seen.wait_for(AfterTrain)).iter == 6
    assert seen.names == ["BeforeTrain", "AfterTrain", "AfterRun"]

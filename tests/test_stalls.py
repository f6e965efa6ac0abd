"""A stall is an event loop that does not answer while training needs it; a handler that takes long is none."""

from __future__ import annotations

import threading
from pathlib import Path

import anyio
import pytest

from hookbus.bus import EventBus
from hookbus.errors import BusStalled, RunEnded
from hookbus.events import AfterRun, AfterTrainIter, RunFailed
from hookbus.types import Backend
from tests.bus.listeners import PATIENCE, Gate
from tests.bus.ticks import Tick
from tests.runner.builders import make_runner, record

BACKENDS: list[Backend] = ["asyncio", "trio"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_handler_that_blocks_the_loop_is_named_by_its_stack(backend: Backend) -> None:
    """The error shows what every thread does, the one of the loop among them."""
    bus, gate = EventBus(backend=backend, stall_timeout=0.2), Gate()

    async def blocks_the_loop() -> None:
        gate.pass_through()

    bus.subscribe(Tick, blocks_the_loop)
    with bus:
        with pytest.raises(BusStalled) as caught:
            bus.emit(Tick())
        gate.open()
    message = str(caught.value)
    assert "has not answered for 0.2 s while training needs it" in message
    assert "thread hookbus-loop:" in message
    assert "thread MainThread:" in message
    assert "in blocks_the_loop" in message
    assert Path(__file__).name in message


@pytest.mark.parametrize("backend", BACKENDS)
def test_something_else_that_blocks_the_loop_is_a_stall_of_the_next_handler(backend: Backend) -> None:
    """The handler that is waited for is not to blame, and the stacks say who is."""
    bus, gate, called = EventBus(backend=backend, stall_timeout=0.2), Gate(), list[bool]()

    async def blocks_in_the_background() -> None:
        gate.pass_through()

    async def innocent() -> None:
        called.append(True)

    bus.subscribe(Tick, blocks_in_the_background, background=True, once=True)
    bus.subscribe(Tick, innocent, every=2)
    with bus:
        bus.emit(Tick())
        gate.wait_until_reached()
        with pytest.raises(BusStalled, match="in blocks_in_the_background"):
            bus.emit(Tick())
        gate.open()
        bus.emit(Tick())
        bus.emit(Tick())
    assert called


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_handler_that_merely_takes_long_is_no_stall(backend: Backend) -> None:
    """The loop answers all the while."""
    bus, ended = EventBus(backend=backend, stall_timeout=0.3), list[bool]()

    async def slow() -> None:
        await anyio.sleep(1.0)
        ended.append(True)

    bus.subscribe(Tick, slow)
    with bus:
        bus.emit(Tick())
    assert ended


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bus_recovers_from_a_stall(backend: Backend) -> None:
    """Once the loop is free again, handlers are awaited as before."""
    bus, gate, seen = EventBus(backend=backend, stall_timeout=0.2), Gate(), list[int]()

    async def blocks_once(n: int) -> None:
        if n == 0:
            gate.pass_through()
        seen.append(n)

    bus.subscribe(Tick, blocks_once)
    with bus:
        with pytest.raises(BusStalled):
            bus.emit(Tick(n=0))
        gate.open()
        bus.emit(Tick(n=1))
        bus.emit(Tick(n=2))
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stall_ends_a_run_with_its_own_error(backend: Backend, tmp_path: Path) -> None:
    """`RunFailed` and `AfterRun` follow, and do not wait for the loop as long again."""
    runner, gate = make_runner(tmp_path, val_dataloader=None), Gate()
    runner.bus.stall_timeout = 0.2

    async def blocks_the_loop() -> None:
        gate.pass_through()

    runner.bus.subscribe(AfterTrainIter, blocks_the_loop)
    runner.bus.subscribe(AfterRun, gate.open, priority="HIGHEST")
    failed, ended = record(runner.bus, RunFailed), record(runner.bus, AfterRun)
    with pytest.raises(BusStalled):
        runner.train(backend=backend)
    assert len(failed) == len(ended) == 1


async def test_a_service_that_blocks_its_loop_hears_of_it(tmp_path: Path) -> None:
    """The run that it hosts ends with the stacks; the loop is the caller's own."""
    runner, gate = make_runner(tmp_path, val_dataloader=None), Gate()
    runner.bus.stall_timeout = 0.2

    async def awaited() -> None:
        gate.pass_through()  # as a service would that calls something slow on its loop

    runner.bus.subscribe(AfterTrainIter, awaited)
    runner.bus.subscribe(RunFailed, gate.open, priority="HIGHEST")
    with pytest.raises(BusStalled, match="in awaited"):
        await runner.train_async()
    with pytest.raises(RunEnded):
        await runner.stop()


def test_a_background_handler_that_blocks_the_loop_does_not_stall_a_run_that_needs_nothing_of_it() -> None:
    """Events are handed out by the publisher then, and other handlers go on; leaving waits for no longer than it may."""
    bus, gate, seen = EventBus(stall_timeout=0.05, drain_timeout=PATIENCE), Gate(), threading.Event()

    async def blocks_the_loop() -> None:
        gate.pass_through()

    def last(n: int) -> None:
        if n == 2999:
            seen.set()

    bus.subscribe(Tick, last, background=True)
    with bus:
        bus.emit(Tick(n=-1))
        assert bus.drain(PATIENCE)
        bus.subscribe(Tick, blocks_the_loop, once=True, background=True)
        bus.emit(Tick(n=0))
        gate.wait_until_reached()
        for n in range(1, 3000):
            bus.emit(Tick(n=n))
        bus.stats()
        assert seen.wait(PATIENCE)
        gate.open()

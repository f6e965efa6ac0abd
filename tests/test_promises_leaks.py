"""What stays behind after many visits, and after a million publishes: nothing; promises P9 and P10."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from hookbus.bus import EventBus
from hookbus.events import AfterTrainIter
from hookbus.loop_threads import LoopThread
from hookbus.runner.signals import SignalGuard
from hookbus.types import Backend
from tests.bus.ticks import Tick
from tests.runner.builders import make_runner

CYCLES = 200
RUNS = 40
"""How many of the cycles are whole runs."""
PUBLISHES = 1_000_000
WARM_UP = 100_000
GROWTH = 8 << 20
"""Bytes by which memory may grow after the warm-up."""
HANDLERS = 8

linux_only = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="only Linux lists the descriptors of a process")


class Broken(Exception):
    """What fails."""


# --- what there is ----------------------------------------------------------------------------------------------------


def inventory() -> dict[str, Any]:
    """Return the threads, descriptors and signal handlers of this process."""
    gc.collect()
    listed = Path("/proc/self/fd")
    targets = sorted(os.readlink(path) for path in listed.iterdir() if path.exists())
    return {
        "threads": {thread for thread in threading.enumerate() if not thread.name.startswith("Trio thread ")},
        "descriptors": [target for target in targets if not target.startswith(("/proc/", "/dev/pts"))],
        "signal handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
    }


def subscribe_all_kinds(bus: EventBus) -> None:
    """Have handlers on every lane."""

    async def wait() -> None:
        await checkpoint()

    bus.subscribe(Tick, lambda: None)
    bus.subscribe(Tick, wait)
    bus.subscribe(Tick, wait, background=True)
    bus.subscribe(Tick, lambda: None, background=True)


def fail() -> None:
    """Raise."""
    raise Broken


def visit_with_a_thread(is_failing: bool, backend: Backend) -> None:
    """Enter a bus whose loop has a thread of its own, and use every lane."""
    with EventBus(backend=backend) as bus:
        subscribe_all_kinds(bus)
        bus.emit(Tick())
        if is_failing:
            bus.subscribe(Tick, fail)
            bus.emit(Tick())


async def visit_on_the_loop(ending: str) -> None:
    """Enter a bus on this loop, use every lane, and leave it in one of three ways."""
    with anyio.CancelScope() as scope:
        async with EventBus() as bus:
            subscribe_all_kinds(bus)
            await bus.publish(Tick())
            if ending == "fails":
                raise Broken
            if ending == "is cancelled":
                scope.cancel()
                await anyio.sleep_forever()
    if is_asyncio():
        assert asyncio.all_tasks() == {asyncio.current_task()}


def is_asyncio() -> bool:
    """Return whether the running loop is one of asyncio."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def train(work_dir: Path, is_failing: bool, is_awaited: bool) -> None:
    """Train shortly, in one of the two ways, to the end or to a failure."""
    runner = make_runner(work_dir, train_cfg=dict(max_epochs=1), val_dataloader=None, log_level="CRITICAL")
    runner.bus.subscribe(AfterTrainIter, checkpoint, name="wait")
    if is_failing:
        runner.bus.subscribe(AfterTrainIter, fail)
    if is_awaited:
        anyio.run(runner.train_async)
    else:
        runner.train()


def cycle(number: int, directory: Path) -> None:
    """Open, use and close something; every second time that fails."""
    is_failing = number % 2 == 1
    backend: Backend = "trio" if number % 4 > 1 else "asyncio"
    try:
        if number < RUNS:
            train(directory / str(number), is_failing, is_awaited=number % 8 > 3)
        elif number % 8 > 3:
            anyio.run(
                visit_on_the_loop, "ends" if not is_failing else ("fails", "is cancelled")[number // 2 % 2], backend=backend
            )
        else:
            visit_with_a_thread(is_failing, backend)
    except Broken:
        assert is_failing


@linux_only
@pytest.mark.slow
def test_two_hundred_visits_half_of_which_fail_leave_nothing(tmp_path: Path) -> None:
    """The same threads, descriptors and signal handlers, whatever was open when it failed."""
    for number in range(8):
        cycle(number, tmp_path / "before")  # what a process has from then on, such as torch's own threads
        cycle(RUNS + number, tmp_path)
    before = inventory()
    for number in range(CYCLES):
        cycle(number, tmp_path)
    assert inventory() == before


@linux_only
def test_visits_that_forget_something_are_caught(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Twins: one does not give signals back, one does not end its event loop."""
    cycle(0, tmp_path)
    before = inventory()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(SignalGuard, "__exit__", lambda *_: None)
    cycle(2, tmp_path)
    after = inventory()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert after["signal handlers"] != before["signal handlers"]

    loops: list[LoopThread] = []
    stop = LoopThread.stop

    def forget(loop: LoopThread) -> None:
        loops.append(loop)

    monkeypatch.setattr(LoopThread, "stop", forget)
    visit_with_a_thread(is_failing=False, backend="asyncio")
    after = inventory()
    for loop in loops:
        stop(loop)
    assert after["threads"] != before["threads"]
    assert after["descriptors"] != before["descriptors"]


# --- a million publishes ----------------------------------------------------------------------------------------------


class Endurance:
    """A bus with eight handlers, of which one writes to the hub and one fails now and then, which is logged."""

    def __init__(self) -> None:
        self.bus = EventBus()
        self.failures = 0
        self.bus.log_to(None)
        for _ in range(HANDLERS - 2):
            self.bus.subscribe(Tick, lambda: None)
        self.bus.subscribe(Tick, self.write)
        self.bus.subscribe(Tick, self.fail, on_error="log", name="fails")

    def write(self, event: Tick, hub: Any) -> None:
        """Update the hub; a history, which grows by nature, only now and then."""
        hub.update_info("n", event.n)
        if event.n % 1000 == 0:
            hub.update_scalar("n", event.n)

    def fail(self, event: Tick) -> None:
        """Raise an error that holds something."""
        if event.n % 100 == 0:
            self.failures += 1
            payload = bytes(1000)
            msg = f"the same each time, {len(payload)}"
            raise Broken(msg)

    def publish(self, numbers: range) -> None:
        """Publish."""
        emit = self.bus.emit
        for n in numbers:
            emit(Tick(n=n))


class Hoarder(Endurance):
    """A twin that keeps each error, with its traceback and whatever hangs on that."""

    def __init__(self) -> None:
        self.kept: list[BaseException] = []
        super().__init__()

    def fail(self, event: Tick) -> None:
        """Raise, and keep what was raised."""
        try:
            super().fail(event)
        except Broken as error:
            self.kept.append(error)
            raise


def memory() -> int:
    """Return how many bytes of this process are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def grow(kind: Callable[[], Endurance], publishes: int, warm_up: int) -> tuple[int, float, int]:
    """Publish; return how many bytes and which share of the objects came after the warm-up, and how many tracebacks live."""
    endurance = kind()
    endurance.publish(range(warm_up))
    gc.collect()
    before, objects = memory(), len(gc.get_objects())
    endurance.publish(range(warm_up, publishes))
    gc.collect()
    tracebacks = sum(type(thing) is types.TracebackType for thing in gc.get_objects())
    assert endurance.failures == publishes / 100
    return memory() - before, len(gc.get_objects()) / objects - 1, tracebacks


@linux_only
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_memory_stays_as_it_is_over_a_million_publishes() -> None:
    """With eight handlers, updates of the hub, and ten thousand errors that are logged."""
    growth, objects, tracebacks = grow(Endurance, PUBLISHES, WARM_UP)
    assert growth < GROWTH
    assert objects < 0.01
    assert tracebacks < 50


@linux_only
def test_whoever_keeps_errors_is_caught() -> None:
    """The twin shows in the objects and in the tracebacks; so small a growth may hide in pages that were there already."""
    publishes = 50_000 if sys.gettrace() is None else 10_000
    _, objects, tracebacks = grow(Hoarder, publishes, publishes // 10)
    assert tracebacks >= publishes / 100
    assert objects > 0.001

"""Where work goes: inline and awaited handlers and functions handed over, all on the stream that was current at the start.

A recording stand-in takes the place of the accelerator's streams; `tests/gpu` has the same on a real device.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from anyio.lowlevel import checkpoint

from hookbus.device import MainStream
from hookbus.events import AfterTrainIter
from hookbus.runner import Runner
from tests.runner.builders import make_runner
from tests.streams import FakeAccelerator, FakeStream

MAIN = "chosen of 1"
"""The stream that a user made current before the run: not the default one, and not on the first device."""
LOOPS = "default of 0"
"""The stream of everybody else on the event loop's thread."""


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeAccelerator:
    """Give the machine two devices."""
    return FakeAccelerator().install(monkeypatch)


def chosen(device: FakeAccelerator) -> MainStream:
    """Return the main stream of a run that a user starts on a stream of their own; then turn away from it."""
    device.set_stream(FakeStream("chosen", 1))
    main_stream = MainStream()
    device.set_stream(FakeStream("default", 1))
    device.set_stream(FakeStream("default", 0))
    return main_stream


# --- steps of a coroutine ---------------------------------------------------------------------------------------------


async def waits(device: FakeAccelerator) -> None:
    """Work before and after two kinds of waits."""
    device.launch("work")
    await checkpoint()
    device.launch("work")
    await anyio.sleep(0.001)
    device.launch("work")


async def fails(device: FakeAccelerator) -> None:
    """Work, and raise after a wait."""
    try:
        await checkpoint()
        raise ArithmeticError
    except ArithmeticError:
        device.launch("work")
        await checkpoint()
        device.launch("work")
        raise
    finally:
        device.launch("work")


async def is_cancelled(device: FakeAccelerator) -> None:
    """Be cancelled by a scope of its own, and clean up, waiting again."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.sleep_forever()
        finally:
            device.launch("work")
            with anyio.CancelScope(shield=True):
                await checkpoint()
            device.launch("work")
    device.launch("work")


async def generates(device: FakeAccelerator) -> None:
    """Work inside an asynchronous generator, also while it is closed early."""

    async def batches() -> AsyncIterator[int]:
        try:
            for number in range(5):
                device.launch("work")
                await checkpoint()
                device.launch("work")
                yield number
        finally:
            await checkpoint()
            device.launch("work")

    async with aclosing(batches()) as numbers:  # type: ignore[type-var]  # a generator, whatever its annotation says
        async for number in numbers:
            device.launch("work")
            if number == 2:
                break
    device.launch("work")


async def nests(device: FakeAccelerator) -> None:
    """Wait for a coroutine, a task group's end and a context manager's."""
    await waits(device)
    async with anyio.create_task_group():
        device.launch("work")
    device.launch("work")


Work = Callable[[FakeAccelerator], Awaitable[None]]
WORK: list[Work] = [waits, fails, is_cancelled, generates, nests]


async def drive_among_others(main_stream: Any, work: Work, device: FakeAccelerator) -> None:
    """Drive work on the main stream while another task of the loop launches its own."""

    async def others() -> None:
        while True:
            device.launch("others")
            await checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(others)
        for _ in range(3):
            await checkpoint()
            try:
                await main_stream.drive(work, device)
            except ArithmeticError:
                assert work is fails
            device.launch("others")
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
async def test_every_step_of_a_coroutine_is_on_the_main_stream_and_nobody_else(work: Work, device: FakeAccelerator) -> None:
    """After waits, cancellations and errors, and inside asynchronous generators; device and streams are put back."""
    await drive_among_others(chosen(device), work, device)
    assert device.streams_of("work") == {MAIN}
    assert device.streams_of("others") == {LOOPS}
    assert device.current_stream(torch.device("cuda", 1)).name == "default"


class SetOnce(MainStream):
    """A broken twin: it sets the stream around the coroutine as a whole."""

    async def drive(self, function: Any, *arguments: Any) -> Any:
        with self.on_this_thread():
            return await function(*arguments)


class NeverSet(MainStream):
    """Another one: work goes wherever the loop's thread happens to be."""

    async def drive(self, function: Any, *arguments: Any) -> Any:
        return await function(*arguments)


@pytest.mark.parametrize("twin", [SetOnce, NeverSet])
async def test_a_stream_that_is_not_set_at_each_step_is_found_out(twin: type[MainStream], device: FakeAccelerator) -> None:
    """The check above can fail: others get onto the main stream, or work gets off it."""
    broken = chosen(device)
    broken.__class__ = twin
    await drive_among_others(broken, waits, device)
    assert device.streams_of("others") != {LOOPS} or device.streams_of("work") != {MAIN}


async def test_a_handler_that_waits_on_a_stream_of_its_own_comes_back_to_it(device: FakeAccelerator) -> None:
    """What stands inside its block goes there, also after a wait, and what follows the block to the main stream."""
    side = FakeStream("side", 1)

    async def copy_elsewhere(device: FakeAccelerator) -> None:
        before = device.current_stream()
        device.launch("main")
        device.set_stream(side)
        device.launch("side")
        await checkpoint()
        device.launch("side")
        device.set_stream(before)
        await checkpoint()
        device.launch("main")

    await drive_among_others(chosen(device), copy_elsewhere, device)
    assert device.streams_of("main") == {MAIN}
    assert device.streams_of("side") == {"side of 1"}
    assert device.streams_of("others") == {LOOPS}


async def test_two_handlers_of_two_runs_do_not_see_each_others_stream(device: FakeAccelerator) -> None:
    """They take turns on one event loop."""

    async def work(name: str) -> None:
        for _ in range(5):
            device.launch(name)
            await checkpoint()

    runs = {}
    for name in ("a", "b"):
        device.set_stream(FakeStream(name, 0))
        runs[name] = MainStream()
    device.set_stream(FakeStream("default", 0))
    async with anyio.create_task_group() as tasks:
        for name, main_stream in runs.items():
            tasks.start_soon(main_stream.drive, work, name)
    assert (device.streams_of("a"), device.streams_of("b")) == ({"a of 0"}, {"b of 0"})


async def test_a_default_device_that_a_handler_waits_in_stays_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """`with torch.device(...)` around a wait holds for the handler, and neither for other tasks nor for another handler."""
    kinds: dict[str, set[str]] = {"inside": set(), "outside": set(), "others": set()}

    def look(where: str) -> None:
        kinds[where].add(torch.zeros(()).device.type)

    async def handler() -> None:
        look("outside")
        with torch.device("meta"):
            look("inside")
            await checkpoint()
            look("inside")
            await checkpoint()
        look("outside")
        await checkpoint()
        look("outside")

    async def others() -> None:
        while True:
            look("others")
            await checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(others)
        async with anyio.create_task_group() as handlers:
            handlers.start_soon(MainStream().drive, handler)
            handlers.start_soon(MainStream().drive, handler)
        tasks.cancel_scope.cancel()
    assert kinds == {"inside": {"meta"}, "outside": {"cpu"}, "others": {"cpu"}}


# --- runs -------------------------------------------------------------------------------------------------------------


def subscribe_all(runner: Runner, device: FakeAccelerator) -> None:
    """Have every kind of handler, and of function that is handed over, launch work."""

    async def awaited(runner: Runner) -> None:
        await waits(device)
        await runner.run_on_main_stream(device.launch, "work")

    runner.bus.subscribe(AfterTrainIter, lambda: device.launch("work"))
    runner.bus.subscribe(AfterTrainIter, awaited)
    runner.bus.subscribe(AfterTrainIter, lambda runner: runner.run_on_main_stream(device.launch, "work"))


def make_short(tmp_path: Path) -> Runner:
    """Return a runner of three iterations that saves nothing."""
    hooks = dict(checkpoint=None, logger=None)
    return make_runner(tmp_path, train_cfg=dict(max_epochs=1), val_dataloader=None, default_hooks=hooks)


def test_a_script_trains_on_the_stream_it_chose(tmp_path: Path, device: FakeAccelerator) -> None:
    """The home loop has a thread of its own there, which comes to the stream of the script."""
    runner = make_short(tmp_path)
    subscribe_all(runner, device)
    device.set_stream(FakeStream("chosen", 1))
    runner.train()
    assert len(device.launches) == 3 * (1 + 4 + 1)
    assert device.streams_of("work") == {MAIN}
    assert len({launch.thread for launch in device.launches}) == 2
    assert device.current_stream() == FakeStream("chosen", 1)


async def test_a_service_trains_on_the_stream_it_was_on_when_it_began(tmp_path: Path, device: FakeAccelerator) -> None:
    """The training thread takes it over; other tasks are on whatever the loop's thread is on meanwhile."""
    runner = make_short(tmp_path)
    subscribe_all(runner, device)

    async def train() -> None:
        device.set_stream(FakeStream("chosen", 1))
        try:
            run = runner.train_async()
            task = run.__await__()
            first = next(task)
        finally:
            device.set_stream(FakeStream("default", 1))
            device.set_stream(FakeStream("default", 0))
        await go_on(task, first)
        tasks.cancel_scope.cancel()

    async def others() -> None:
        while True:
            device.launch("others")
            await anyio.sleep(0.0005)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(others)
        tasks.start_soon(train)
    assert device.streams_of("work") == {MAIN}
    assert device.streams_of("others") == {LOOPS}
    assert device.current_stream().name == "default"


class go_on:  # noqa: N801  it is awaited like a function
    """Await the rest of something that was begun by hand."""

    def __init__(self, task: Any, first: Any) -> None:
        self._task, self._first = task, first

    def __await__(self) -> Any:
        sent = yield self._first
        while True:
            try:
                waits_for = self._task.send(sent)
            except StopIteration as finished:
                return finished.value
            sent = yield waits_for

"""Hours pass in no time, in order, on both backends; a run in a service is waited for all the same."""

from __future__ import annotations

import threading
import time

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from hookbus.events import AfterTrainIter
from hookbus.testing import make_runner, run_with_virtual_clock, virtual_clock_backends
from hookbus.types import Backend

HOUR = 3600.0


@pytest.fixture(params=virtual_clock_backends(), ids=["asyncio", "trio"], scope="module")
def anyio_backend(request: pytest.FixtureRequest) -> object:
    """Run each test of this file on a virtual clock."""
    return request.param


async def test_a_long_sleep_takes_no_time() -> None:
    """The clock shows exactly what was slept."""
    real, virtual = time.monotonic(), anyio.current_time()
    await anyio.sleep(2 * HOUR)
    assert anyio.current_time() - virtual == pytest.approx(2 * HOUR)
    assert time.monotonic() - real < 10


async def test_a_deadline_is_kept() -> None:
    """A limit of one hour ends a sleep of two, and not one of half an hour."""
    with pytest.raises(TimeoutError):
        with anyio.fail_after(HOUR):
            await anyio.sleep(2 * HOUR)
    with anyio.fail_after(HOUR):
        await anyio.sleep(HOUR / 2)


async def test_sleepers_wake_in_the_order_of_their_times() -> None:
    """However they were started, and the clock shows each its own time."""
    start = anyio.current_time()
    woken: list[tuple[str, float]] = []

    async def sleep(name: str, seconds: float) -> None:
        await anyio.sleep(seconds)
        woken.append((name, round(anyio.current_time() - start, 6)))

    async with anyio.create_task_group() as tasks:
        for name, seconds in (("late", HOUR), ("early", 0.5), ("middle", 60.0)):
            tasks.start_soon(sleep, name, seconds)
    assert woken == [("early", 0.5), ("middle", 60.0), ("late", HOUR)]


async def test_the_clock_stands_still_while_there_is_work() -> None:
    """Only an idle loop jumps."""
    start = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep, HOUR)
        for _ in range(100):
            await checkpoint()
            assert anyio.current_time() == start
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_function_runs_on_a_virtual_clock(backend: Backend) -> None:
    """With arguments, from an ordinary test; what it returns or raises arrives."""

    async def double(number: int) -> int:
        await anyio.sleep(HOUR)
        return 2 * number

    async def fail() -> None:
        await anyio.sleep(HOUR)
        raise LookupError

    assert run_with_virtual_clock(double, 21, backend=backend) == 42
    with pytest.raises(LookupError):
        run_with_virtual_clock(fail, backend=backend)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_patience_waits_for_the_answer_of_a_thread(backend: Backend) -> None:
    """A limit does not strike while the thread that it is for is at work."""
    never = threading.Event()

    async def has_struck() -> bool:
        with anyio.move_on_after(1) as limit:
            await anyio.to_thread.run_sync(never.wait, 0.05)
        return limit.cancel_called

    assert not run_with_virtual_clock(has_struck, backend=backend, patience=20)
    assert run_with_virtual_clock(has_struck, backend=backend)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_run_in_a_service_trains_to_its_end(backend: Backend) -> None:
    """An awaited handler sleeps a second in each iteration, which is over at once."""
    runner = make_runner(default_hooks=dict(checkpoint=None))
    runner.bus.subscribe(AfterTrainIter, rest)

    async def main() -> float:
        start = anyio.current_time()
        await runner.train_async()
        return anyio.current_time() - start

    assert run_with_virtual_clock(main, backend=backend) >= 6
    assert runner.iter == 6


async def rest() -> None:
    """Sleep."""
    await anyio.sleep(1)

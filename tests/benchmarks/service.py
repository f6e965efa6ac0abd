"""A run inside a service: how late the event loop is beside training, how soon controls act, and what 200 runs leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import os
import statistics
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import torch

from hookbus import AfterTrainIter, Runner
from hookbus.types import Backend
from tests.benchmarks.measure import Row

BACKENDS: list[Backend] = ["asyncio", "trio"]
PROBES = 400
PROBE = 0.01
WIDTH, BATCH = 256, 64
CONTROLS = 20
RUNS = 200
GROUP = 10
"""Runs before the first look, when everything that is made once has been made."""


def rows() -> Iterator[Row]:
    """Measure loop lag, controls, and what cancelled runs leave."""
    torch.set_num_threads(1)
    for backend in BACKENDS:
        yield anyio.run(_lag, backend, backend=backend)
    for backend in BACKENDS:
        yield anyio.run(_controls, backend, backend=backend)
    yield anyio.run(_cancel_many, backend="asyncio")


class Endless:
    """A dataloader that never ends."""

    def __iter__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(0)
        batch = torch.randn(BATCH, WIDTH, generator=generator), torch.randint(0, 3, (BATCH,), generator=generator)
        while True:
            yield batch


@contextlib.contextmanager
def _run() -> Iterator[Runner]:
    """Give a runner that trains until it is stopped."""
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, 3))
    with tempfile.TemporaryDirectory() as work_dir, contextlib.redirect_stderr(io.StringIO()):
        yield Runner(
            model,
            loss_fn=torch.nn.functional.cross_entropy,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
            train_dataloader=Endless(),
            train_cfg=dict(by_epoch=False, max_iters=10_000_000),
            default_hooks=dict(logger=dict(interval=50), checkpoint=None),
            work_dir=work_dir,
            experiment_name="benchmark",
            device="cpu",
        )


async def _while_training(work: Callable[[Runner], Awaitable[Any]]) -> Any:
    """Return what comes of work on the loop while a run goes on; then cancel the run."""
    with _run() as runner:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runner.train_async)
            await runner.bus.wait_for(AfterTrainIter, when=lambda event: event.iter >= 20)
            try:
                return await work(runner)
            finally:
                tasks.cancel_scope.cancel()


# --- the loop of the service ------------------------------------------------------------------------------------------


async def _lag(backend: Backend) -> Row:
    idle = await _probe(None)
    lags = await _while_training(_probe)
    p99 = 1e3 * statistics.quantiles(lags, n=100)[98]
    alone = 1e3 * statistics.quantiles(idle, n=100)[98]
    median, worst = 1e3 * statistics.median(lags), 1e3 * max(lags)
    measured = f"{p99:.1f} ms (p50 {median:.1f} ms, worst {worst:.1f} ms; alone p99 {alone:.1f} ms)"
    return Row(f"loop lag beside CPU training, p99, {backend}", measured, "5 ms", p99 < 5)


async def _probe(_: Runner | None) -> list[float]:
    """Return how much longer than asked for each of some sleeps took."""
    lags = []
    for _number in range(PROBES):
        due = anyio.current_time() + PROBE
        await anyio.sleep(PROBE)
        lags.append(max(0.0, anyio.current_time() - due))
    return lags


# --- controls ---------------------------------------------------------------------------------------------------------


async def _controls(backend: Backend) -> Row:
    late = [await _while_training(_pause_and_go_on), *[await _stop() for _ in range(3)], *[await _cancel() for _ in range(3)]]
    measured = f"{max(late)} iteration(s) at most ({CONTROLS} pauses, 3 stops, 3 cancellations)"
    return Row(f"iterations completed after a pause, a stop or a cancellation, {backend}", measured, "1", max(late) <= 1)


async def _pause_and_go_on(runner: Runner) -> int:
    late, completed = 0, _Completed(runner)
    for _ in range(CONTROLS):
        answer = runner.pause()
        completed.mark()
        await answer
        late = max(late, completed.since())
        await runner.unpause()
        await runner.bus.wait_for(AfterTrainIter)
    return late


async def _stop() -> int:
    async def stop(runner: Runner) -> int:
        completed = _Completed(runner)
        answer = runner.stop()
        completed.mark()
        await answer
        return completed.since()

    late: int = await _while_training(stop)
    return late


async def _cancel() -> int:
    with _run() as runner:
        completed = _Completed(runner)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runner.train_async)
            await runner.bus.wait_for(AfterTrainIter, when=lambda event: event.iter >= 20)
            tasks.cancel_scope.cancel()
            completed.mark()
        return completed.since()


class _Completed:
    """Counts the iterations that are completed."""

    def __init__(self, runner: Runner) -> None:
        self._count = 0
        self._marked = 0
        runner.bus.subscribe(AfterTrainIter, self._add, priority="HIGHEST")

    def _add(self, event: AfterTrainIter) -> None:
        self._count += 1

    def mark(self) -> None:
        """Count from here."""
        self._marked = self._count

    def since(self) -> int:
        """Return how many were completed since; one was under way then."""
        return self._count - self._marked


# --- what is left behind ----------------------------------------------------------------------------------------------


async def _cancel_many() -> Row:
    for _ in range(GROUP):
        await _cancel_one()
    before = _census()
    for _ in range(RUNS):
        await _cancel_one()
    after = _census()
    measured = ", ".join(f"{name} {before[name]} -> {after[name]}" for name in before)
    return Row(f"left behind by {RUNS} cancelled runs", measured, "nothing", all(after[name] <= before[name] for name in before))


async def _cancel_one() -> None:
    with _run() as runner:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runner.train_async)
            await runner.bus.wait_for(AfterTrainIter)
            tasks.cancel_scope.cancel()


def _census() -> dict[str, int]:
    gc.collect()
    census = {"threads": threading.active_count(), "tasks": len(asyncio.all_tasks())}
    if sys.platform.startswith("linux"):
        census["descriptors"] = len(os.listdir("/proc/self/fd"))
    return census

"""What the background lane costs the publisher, what an awaited handler costs, and memory beside a consumer that sleeps.

A put is timed in bursts that fit into the outbox, with waits in between that are not timed: so what the event loop does with
them is not in it, but stands beside it. In a service both share the interpreter's lock.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import torch

from hookbus import AfterTrainEpoch, AfterTrainIter, BeforeTrainEpoch, EventBus, Runner
from hookbus.bus import Background
from hookbus.types import Backend
from tests.benchmarks.loop import Batches
from tests.benchmarks.measure import Row, compare, timed

BURST = 200
"""Events between two waits; fewer than the outbox holds."""
BURSTS = 5
ROUNDS = 15
MANY = 1_000
CROSSINGS = 400
NEIGHBOURS = 6
ITERATIONS = 3_000
EVENTS = 100_000
MEMORY_LIMIT = 4.0
"""MB; what the allocator gains and loses by itself."""


def rows() -> Iterator[Row]:
    """Measure puts, the loop with one observer, crossings, and memory."""
    torch.set_num_threads(1)
    yield from _puts()
    yield _in_the_loop()
    backends: list[Backend] = ["asyncio", "trio"]
    for backend in backends:
        yield from _crossings(backend)
    yield _memory()


# --- puts -------------------------------------------------------------------------------------------------------------


class _Publisher:
    """A bus with so many background subscribers, whose publisher is timed burst by burst."""

    def __init__(self, subscribers: int, bursts: int) -> None:
        self.bus = EventBus("benchmark", drain_timeout=600.0)
        self.spent_on_loop = 0.0
        """Seconds that handing out, and handling the newest, took."""
        self.bursts = bursts
        self.published = 0

        async def observe(event: AfterTrainIter) -> None: ...

        for number in range(subscribers):
            self.bus.subscribe(AfterTrainIter, observe, background=Background(overflow="latest"), name=str(number))

    def publish(self) -> float:
        """Publish some bursts; return the seconds without the waits."""
        seconds = 0.0
        for _ in range(self.bursts):
            seconds += timed(self._burst)
            started = time.thread_time()
            waited = time.perf_counter()
            self.bus.drain()
            self.spent_on_loop += time.perf_counter() - waited - (time.thread_time() - started)
            self.published += BURST
        return seconds

    def _burst(self) -> None:
        emit = self.bus.emit
        for i in range(BURST):
            emit(AfterTrainIter(epoch=0, iter=i, batch_idx=i))


def _puts() -> Iterator[Row]:
    gc.collect()
    gc.freeze()  # what is imported; each burst begins with a collection
    one, nobody = _Publisher(1, BURSTS), _Publisher(0, BURSTS)
    few, many = _Publisher(1, 1), _Publisher(MANY, 1)
    with one.bus, nobody.bus, few.bus, many.bus:
        put = compare(one.publish, nobody.publish, repetitions=BURST * BURSTS, rounds=ROUNDS)
        ratio = compare(many.publish, few.publish, repetitions=BURST, rounds=5)
    microseconds = put.difference * 1e6
    measured = f"{microseconds:.2f} us (a publish that nobody hears {put.other * 1e6:.2f} us)"
    yield Row("leaving an event for 1 background subscriber", measured, "1 us", microseconds <= 1)
    beside = many.spent_on_loop / (many.published * MANY) * 1e6
    measured = (
        f"{ratio.ratio:.2f}x ({ratio.ours * 1e6:.2f} us; beside it {beside:.2f} us an event and subscriber to hand them out)"
    )
    yield Row(f"leaving it for {MANY:,} subscribers, beside 1", measured, "1.2x", ratio.ratio <= 1.2)


def _in_the_loop() -> Row:
    pair = compare(lambda: _train(observe), lambda: _train(None), repetitions=ITERATIONS, rounds=11)
    added = pair.difference * 1e6
    measured = f"{added:+.2f} us (without {pair.other * 1e6:.1f} us, {pair.ratio:.3f}x)"
    return Row("an iteration with a background observer", measured, "+3 us", added <= 3)


def observe(event: AfterTrainIter) -> None:
    """Take an event, and do nothing with it."""


def _train(observer: Callable[[AfterTrainIter], None] | None) -> float:
    """Return the seconds that an epoch of a tiny model takes."""
    times: dict[str, float] = {}
    model = torch.nn.Linear(10, 3)
    with tempfile.TemporaryDirectory() as work_dir, contextlib.redirect_stderr(io.StringIO()):
        runner = Runner(
            model,
            loss_fn=torch.nn.functional.cross_entropy,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
            train_dataloader=Batches(ITERATIONS),
            train_cfg=dict(max_epochs=1),
            default_hooks=dict(logger=dict(interval=50), checkpoint=None),
            work_dir=work_dir,
            experiment_name="benchmark",
            device="cpu",
        )
        if observer is not None:
            runner.bus.subscribe(AfterTrainIter, observer, background=Background(maxsize=ITERATIONS))
        runner.bus.subscribe(BeforeTrainEpoch, lambda: times.update(began=time.perf_counter()), priority="LOWEST")
        runner.bus.subscribe(AfterTrainEpoch, lambda: times.update(ended=time.perf_counter()), priority="HIGHEST")
        runner.train()
    return times["ended"] - times["began"]


# --- crossings --------------------------------------------------------------------------------------------------------


def _crossings(backend: Backend) -> Iterator[Row]:
    one, six = _awaited(1, backend), _awaited(NEIGHBOURS, backend)
    with one, six:
        pair = compare(lambda: timed(_crossing(six)), lambda: timed(_crossing(one)), repetitions=CROSSINGS, rounds=ROUNDS)
    microseconds = pair.other * 1e6
    yield Row(f"awaiting a handler on an idle loop, {backend}", f"{microseconds:.0f} us", "50 us", microseconds <= 50)
    measured = f"{pair.ratio:.2f}x ({pair.ours * 1e6:.0f} us)"
    yield Row(f"{NEIGHBOURS} neighbouring awaited handlers, beside one, {backend}", measured, "1.2x", pair.ratio <= 1.2)


def _awaited(handlers: int, backend: Backend) -> EventBus:
    bus = EventBus("benchmark", backend=backend, cost_warning=float("inf"))

    def make() -> Callable[[AfterTrainIter], Awaitable[None]]:
        async def handler(event: AfterTrainIter) -> None: ...

        return handler

    for _ in range(handlers):
        bus.subscribe(AfterTrainIter, make())
    return bus


def _crossing(bus: EventBus) -> Callable[[], None]:
    def cross() -> None:
        for i in range(CROSSINGS):
            bus.emit(AfterTrainIter(epoch=0, iter=i, batch_idx=i))

    return cross


# --- memory -----------------------------------------------------------------------------------------------------------


def _memory() -> Row:
    what = f"memory beside a consumer that sleeps, {EVENTS:,} events"
    if not sys.platform.startswith("linux"):
        return Row(what, "only measured on Linux", "for information", True)
    bus, wake = EventBus("benchmark"), threading.Event()
    bus.subscribe(AfterTrainIter, lambda: wake.wait(), background=True)
    with bus:
        _publish(bus, EVENTS // 10)
        before = _resident()
        _publish(bus, EVENTS)
        grown = _resident() - before
        [stats] = bus.stats()
        wake.set()
    balanced = stats.published == stats.handled + stats.failures + stats.dropped + stats.cancelled + stats.pending
    measured = f"{grown:+.2f} MB ({stats.pending:,} wait, {stats.dropped:,} dropped)"
    return Row(what, measured, f"+{MEMORY_LIMIT:.0f} MB", grown <= MEMORY_LIMIT and balanced)


def _publish(bus: EventBus, events: int) -> None:
    for i in range(events):
        bus.emit(AfterTrainIter(epoch=0, iter=i, batch_idx=i))


def _resident() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

"""Publishing to six handlers, beside a loop that calls the same handlers and builds the same event."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio

from hookbus import AfterTrainIter, BeforeVal, EventBus
from tests.benchmarks.measure import Row, compare, timed

REPETITIONS = 20_000
ROUNDS = 25
HANDLERS = 6


def rows() -> Iterator[Row]:
    """Measure dispatch."""
    yield _emit_event()
    yield _emit_live()
    for backend in ("asyncio", "trio"):
        yield _publish(backend)
    yield _nobody()


def _emit_event() -> Row:
    def make() -> Callable[[AfterTrainIter], None]:
        def handler(event: AfterTrainIter) -> None: ...

        return handler

    handlers = [make() for _ in range(HANDLERS)]
    bus = EventBus("benchmark")
    for handler in handlers:
        bus.subscribe(AfterTrainIter, handler)

    def ours() -> None:
        emit = bus.emit
        for i in range(REPETITIONS):
            emit(AfterTrainIter(epoch=0, iter=i, batch_idx=i))

    def bare() -> None:
        for i in range(REPETITIONS):
            event = AfterTrainIter(epoch=0, iter=i, batch_idx=i)
            for handler in handlers:
                handler(event)

    return _row("`emit` to 6 handlers that take the event", ours, bare)


def _emit_live() -> Row:
    def make() -> Callable[[Any, Any], None]:
        def handler(runner: Any, outputs: Any) -> None: ...

        return handler

    handlers = [make() for _ in range(HANDLERS)]
    bus = EventBus("benchmark")
    for handler in handlers:
        bus.subscribe(AfterTrainIter, handler)
    runner, batch, outputs = object(), object(), {"loss": 1.0}

    def ours() -> None:
        emit = bus.emit
        for i in range(REPETITIONS):
            live = {"runner": runner, "data_batch": batch, "outputs": outputs}
            emit(AfterTrainIter(epoch=0, iter=i, batch_idx=i), live)

    def bare() -> None:
        for i in range(REPETITIONS):
            AfterTrainIter(epoch=0, iter=i, batch_idx=i)
            for handler in handlers:
                handler(runner, outputs)

    return _row("`emit` to 6 handlers that ask for `runner` and `outputs`", ours, bare)


def _row(what: str, ours: Callable[[], None], bare: Callable[[], None]) -> Row:
    pair = compare(lambda: timed(ours), lambda: timed(bare), repetitions=REPETITIONS, rounds=ROUNDS)
    measured = f"{pair.ratio:.2f}x ({pair.ours * 1e6:.2f} us, bare {pair.other * 1e6:.2f} us)"
    return Row(what, measured, "1.3x of a bare loop", pair.ratio <= 1.3)


def _publish(backend: str) -> Row:
    def make() -> Callable[[AfterTrainIter], Awaitable[None]]:
        async def handler(event: AfterTrainIter) -> None: ...

        return handler

    handlers = [make() for _ in range(HANDLERS)]
    bus = EventBus("benchmark")
    for handler in handlers:
        bus.subscribe(AfterTrainIter, handler)

    async def ours() -> None:
        async with bus:
            for i in range(REPETITIONS):
                await bus.publish(AfterTrainIter(epoch=0, iter=i, batch_idx=i))

    async def bare() -> None:
        for i in range(REPETITIONS):
            event = AfterTrainIter(epoch=0, iter=i, batch_idx=i)
            for handler in handlers:
                await handler(event)

    def run(function: Callable[[], Awaitable[None]]) -> float:
        async def main() -> float:
            started = time.perf_counter()
            await function()
            return time.perf_counter() - started

        return anyio.run(main, backend=backend)

    pair = compare(lambda: run(ours), lambda: run(bare), repetitions=REPETITIONS, rounds=ROUNDS)
    measured = f"{pair.ratio:.2f}x ({pair.ours * 1e6:.2f} us, direct {pair.other * 1e6:.2f} us)"
    return Row(f"`publish` to 6 coroutine functions, {backend}", measured, "1.5x of awaiting them in a loop", pair.ratio <= 1.5)


def _nobody() -> Row:
    bus = EventBus("benchmark")

    def ours() -> None:
        for _ in range(REPETITIONS):
            if bus.has_subscribers(BeforeVal):
                bus.emit(BeforeVal(epoch=0, iter=0))

    def bare() -> None:
        for _ in range(REPETITIONS):
            pass

    pair = compare(lambda: timed(ours), lambda: timed(bare), repetitions=REPETITIONS, rounds=ROUNDS)
    microseconds = pair.difference * 1e6
    return Row("an event without subscribers", f"{microseconds:.3f} us", "0.2 us", microseconds <= 0.2)

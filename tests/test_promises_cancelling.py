"""Cancelled at any tick of its event loop, a bus and a run leave nothing half done: promise P4."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
from anyio.lowlevel import checkpoint

from hookbus.bus import EventBus, consumers
from hookbus.bus.backlog import Outcome
from hookbus.bus.subscription import Subscription
from hookbus.errors import BusNotEntered
from hookbus.events import AfterTrainIter
from hookbus.hub import MessageHub
from hookbus.runner import Runner
from hookbus.types import Backend
from tests.bus.ticks import Tick
from tests.checkpoint.builders import make_store
from tests.runner.builders import make_runner, names, record

TICKS = 500
"""Up to which tick of the event loop the cancellations come, unless all is over before."""

Body = Callable[[], Awaitable[object]]


class SeededLoop(asyncio.SelectorEventLoop):
    """Runs what is ready in an order that a seed decides, and calls a function at one of its ticks."""

    _ready: deque[Any]

    def __init__(self, seed: int, at: int, action: Callable[[], object]) -> None:
        super().__init__()
        self._random, self._at, self._action = random.Random(seed), at, action
        self.ticks = 0

    def _run_once(self) -> None:
        self.ticks += 1
        if self.ticks == self._at:
            self.call_soon(self._action)
        ready = list(self._ready)
        self._random.shuffle(ready)
        self._ready.clear()
        self._ready.extend(ready)
        super()._run_once()  # type: ignore[misc]


class AtTick(trio.abc.Instrument):
    """Calls a function at one of the steps that tasks of trio take."""

    def __init__(self, at: int, action: Callable[[], object]) -> None:
        self._at, self._action = at, action
        self.ticks = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count, and act when it is time."""
        self.ticks += 1
        if self.ticks == self._at:
            trio.lowlevel.current_trio_token().run_sync_soon(self._action)


def cancel_at(tick: int, body: Body, backend: Backend) -> bool:
    """Run a coroutine function, cancel it at a tick, and return whether the cancellation reached it."""
    scopes: list[anyio.CancelScope] = []
    outcome: list[bool] = []

    def cancel() -> None:
        for scope in scopes:
            scope.cancel()

    async def main() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await body()
        outcome.append(scope.cancelled_caught)
        if backend == "asyncio":
            assert asyncio.all_tasks() == {asyncio.current_task()}

    if backend == "asyncio":
        anyio.run(main, backend_options={"loop_factory": lambda: SeededLoop(tick, tick, cancel)})
    else:
        anyio.run(main, backend="trio", backend_options={"instruments": [AtTick(tick, cancel)]})
    return outcome[0]


class Scene:
    """A bus on its caller's loop with every kind of subscriber, and what they have heard."""

    def __init__(self) -> None:
        self.hub = MessageHub("scene")
        self.bus = EventBus(hub=self.hub, drain_timeout=5)
        self.inline, self.first, self.second = list[int](), list[int](), list[int]()
        self.background, self.pulled = list[int](), list[int]()
        self.subscriptions: list[Subscription[Any]] = [
            self.bus.subscribe(Tick, lambda event: self.inline.append(event.n), priority=10),
            self.bus.subscribe(Tick, self._first, priority=20),
            self.bus.subscribe(Tick, self._second, priority=30),
            self.bus.subscribe(Tick, self._background, background=True),
        ]

    async def _first(self, event: Tick) -> None:
        await checkpoint()
        with self.hub.update():
            self.hub.update_info("a", event.n)
            self.hub.update_info("b", event.n)
        self.first.append(event.n)

    async def _second(self, event: Tick) -> None:
        await checkpoint()
        self.second.append(event.n)

    async def _background(self, event: Tick) -> None:
        await checkpoint()
        self.background.append(event.n)

    async def _read(self) -> None:
        async with self.bus.stream(Tick) as events:
            async for event in events:
                self.pulled.append(event.n)

    async def play(self) -> None:
        """Publish from two tasks, one of them by posts, while a third reads."""
        async with anyio.create_task_group() as tasks, self.bus:
            tasks.start_soon(self._read)
            tasks.start_soon(self._post)
            for n in range(12):
                await self.bus.publish(Tick(n=n))

    async def _post(self) -> None:
        with contextlib.suppress(BusNotEntered):  # the other one was faster, and has left
            for n in range(100, 103):
                await self.bus.post(Tick(n=n))

    def check(self) -> None:
        """Nothing is half done, and the bus can be used as before."""
        for heard in (self.inline, self.first, self.second, self.background, self.pulled):
            for kind in ([n for n in heard if n < 100], [n for n in heard if n >= 100]):
                assert kind == list(range(kind[0], kind[0] + len(kind))) if kind else True, heard
        assert len(self.inline) - 2 <= len(self.first) <= len(self.inline)  # two tasks publish, each may be cut in one
        assert len(self.first) - 2 <= len(self.second) <= len(self.first)
        snapshot = self.hub.snapshot()
        assert snapshot.get_info("a") == snapshot.get_info("b")
        for stats in self.bus.stats():
            if stats.lane == "background":
                assert stats.published == stats.handled + stats.failures + stats.dropped + stats.cancelled
                assert stats.pending == 0
        (lane,) = [stats for stats in self.bus.stats() if stats.lane == "background"]
        assert lane.handled == len(self.background)
        self._use_again()

    def _use_again(self) -> None:
        """No lock is held, and the bus is free: another thread may enter it."""
        before = [len(heard) for heard in (self.inline, self.first, self.second, self.background)]

        def use() -> None:
            with self.bus:
                self.bus.emit(Tick(n=1000))

        thread = threading.Thread(target=use, daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        heard = (self.inline, self.first, self.second, self.background)
        assert [len(each) for each in heard] == [number + 1 for number in before]


def cancel_everywhere(backend: Backend, step: int = 1) -> int:
    """Cancel a scene at each tick until one comes to its end before; return how many were cancelled."""
    cancelled = 0
    for tick in range(2, TICKS, step):
        scene = Scene()
        was_cancelled = cancel_at(tick, scene.play, backend)
        scene.check()
        if cancelled and not was_cancelled:  # at the very first ticks there is nothing to be cancelled yet
            break
        cancelled += was_cancelled
    return cancelled


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_bus_that_is_cancelled_at_any_tick_leaves_nothing_half_done(backend: Backend) -> None:
    """Whatever runs at that moment: a publish, a post, a background handler, a reader, entering or leaving."""
    assert cancel_everywhere(backend) > 20


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_bus_that_is_cancelled_at_some_ticks_leaves_nothing_half_done(backend: Backend) -> None:
    """Every seventh of them, for whoever has no time for all."""
    assert cancel_everywhere(backend, step=7) > 3


def test_a_lane_that_forgets_what_it_had_in_hand_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A twin whose consumer settles an event only where its handler returned."""

    async def handle(subscription: Any, backlog: Any, outbox: Any, event: Any, call: Any) -> None:
        await call()
        backlog.settle(Outcome.HANDLED)

    monkeypatch.setattr(consumers, "_handle", handle)
    with pytest.raises(AssertionError):
        cancel_everywhere("asyncio")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_run_that_is_cancelled_at_any_tick_closes_itself(backend: Backend, tmp_path: Path) -> None:
    """It hears its end once, its checkpoints are sound, no thread is left, and the same runner goes on to its end."""
    threads = set(threading.enumerate())
    cancelled = 0
    for tick in range(2, 150, 4):
        runner = make_watched(tmp_path / str(tick))
        seen = record(runner.bus)
        was_cancelled = cancel_at(tick, runner.train_async, backend)
        ends = names(seen).count("AfterRun")
        assert ends == names(seen).count("BeforeRun")
        assert "RunFailed" not in names(seen)
        assert not make_store(tmp_path / str(tick)).damaged()
        assert not {thread for thread in threading.enumerate() if not thread.name.startswith("Trio thread ")} - threads
        runner.train()
        assert runner.iter == 6
        if cancelled and not was_cancelled:
            break
        cancelled += was_cancelled
    assert cancelled > 3


def make_watched(work_dir: Path) -> Runner:
    """Return a runner with an awaited handler, so that its event loop has something to do."""
    runner = make_runner(work_dir, default_hooks=dict(checkpoint=dict(interval=1), logger=None))
    runner.bus.subscribe(AfterTrainIter, pause_shortly)
    return runner


async def pause_shortly() -> None:
    """Let others have their turn."""
    await checkpoint()
    await checkpoint()

"""The table "what may I touch from where" of `docs/async.md` says what the library does."""

from __future__ import annotations

import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

import anyio
import anyio.to_thread
import pytest

from hookbus import AfterTrainEpoch, AfterTrainIter, Event, Runner
from hookbus.errors import HandlerSignatureError
from hookbus.testing import make_runner

Found: TypeAlias = dict[str, dict[str, str]]

PATIENCE = 30.0


class Nudge(Event):
    """Something that is published from everywhere."""

    origin: str


ON_TRAINING_THREAD = {
    "emit": "ok",
    "post, waited for": "WouldDeadlock",
    "control": "ok",
    "control, waited for": "WouldDeadlock",
    "main stream, waited for": "WouldDeadlock",
}
AWAITED = {
    "emit": "WrongThread",
    "publish": "ok",
    "post, waited for": "ok",
    "control": "ok",
    "control, waited for": "WouldDeadlock",
    "main stream, waited for": "ok",
}
THREAD = {
    "emit": "WrongThread",
    "post, waited for": "ok",
    "control": "ok",
    "control, waited for": "ok",
    "main stream, waited for": "ok",
}
TASK = THREAD | {"publish": "ok"}
EXPECTED = {
    "inline": ON_TRAINING_THREAD,
    "awaited": AWAITED,
    "background function": THREAD,
    "background coroutine": TASK,
    "stream": TASK,
    "thread": THREAD,
    "request": TASK,
}


def from_thread(found: Found, place: str, runner: Runner) -> None:
    """Try everything that needs no event loop."""
    runner.message_hub.update_scalar(f"written/{place}", 1.0)
    bus, nudge = runner.bus, Nudge(origin=place)
    found[place] = {
        "emit": outcome(lambda: bus.emit(nudge)),
        "post, waited for": outcome(lambda: bus.post(nudge).result(PATIENCE)),
        "control": outcome(lambda: runner.set_lr(0.1).forgive()),
        "control, waited for": outcome(lambda: runner.set_lr(0.1).result(PATIENCE)),
        "main stream, waited for": outcome(lambda: runner.run_on_main_stream(int).result(PATIENCE)),
    }


async def from_task(found: Found, place: str, runner: Runner) -> None:
    """Try everything on an event loop."""
    runner.message_hub.update_scalar(f"written/{place}", 1.0)
    bus, nudge = runner.bus, Nudge(origin=place)
    found[place] = {
        "emit": outcome(lambda: bus.emit(nudge)),
        "publish": await awaited_outcome(lambda: bus.publish(nudge)),
        "post, waited for": await awaited_outcome(lambda: bus.post(nudge)),
        "control": outcome(lambda: runner.set_lr(0.1).forgive()),
        "control, waited for": await awaited_outcome(lambda: runner.set_lr(0.1)),
        "main stream, waited for": await awaited_outcome(lambda: runner.run_on_main_stream(int)),
    }


def outcome(ask: Callable[[], object]) -> str:
    """Return what came of a call, in a word."""
    try:
        ask()
    except Exception as error:  # noqa: BLE001  its kind is what is asked for
        return type(error).__name__
    return "ok"


async def awaited_outcome(ask: Callable[[], Awaitable[Any]]) -> str:
    """Return what came of awaiting, in a word."""
    try:
        with anyio.fail_after(PATIENCE):
            await ask()
    except Exception as error:  # noqa: BLE001  its kind is what is asked for
        return type(error).__name__
    return "ok"


def subscribe(found: Found, runner: Runner) -> None:
    """Have the four kinds of handlers try."""

    async def awaited() -> None:
        await from_task(found, "awaited", runner)

    async def background() -> None:
        await from_task(found, "background coroutine", runner)

    on = partial(runner.bus.subscribe, AfterTrainIter, once=True)
    on(lambda: from_thread(found, "inline", runner))
    on(awaited)
    on(lambda: from_thread(found, "background function", runner), background=True)
    on(background, background=True)


async def test_each_row_of_the_table_is_true(anyio_backend: object) -> None:
    """What is allowed works, and what is not raises by name; nothing hangs, and nothing that is written is lost."""
    found: Found = {}
    nudges: list[str] = []
    runner = make_runner(train_cfg=dict(max_epochs=1_000_000), default_hooks=dict(checkpoint=None, logger=None))
    runner.bus.subscribe(Nudge, lambda origin: nudges.append(origin))
    subscribe(found, runner)

    async def read() -> None:
        async with runner.bus.stream(AfterTrainIter) as events:
            async for _ in events:
                await from_task(found, "stream", runner)
                return

    async def request() -> None:
        await runner.bus.wait_for(AfterTrainEpoch)
        await from_task(found, "request", runner)
        await anyio.to_thread.run_sync(from_thread, found, "thread", runner)

    async def steer() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            tasks.start_soon(request)
        while len(found) < len(EXPECTED):
            await runner.bus.wait_for(AfterTrainEpoch)
        await runner.stop()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(steer)
        await runner.train_async()

    assert found == EXPECTED
    assert set(nudges) == set(EXPECTED)
    assert {f"written/{place}" for place in EXPECTED} <= set(runner.message_hub.log_scalars)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_a_signal_handler_may_ask_for_something(monkeypatch: pytest.MonkeyPatch) -> None:
    """A control, and a function for the main stream, of a run that it interrupts."""
    runner = make_runner(train_cfg=dict(max_epochs=1_000_000), default_hooks=dict(checkpoint=None, logger=None))
    ran: list[str] = []

    def handle(*_: object) -> None:
        runner.run_on_main_stream(ran.append, "on the training thread").forgive()
        runner.stop(requested_by="a signal").forgive()

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        runner.bus.subscribe(AfterTrainIter, lambda: signal.raise_signal(signal.SIGUSR1), when=lambda event: event.iter == 6)
        runner.train()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (runner.iter, ran) == (7, ["on the training thread"])


@pytest.mark.parametrize("name", ["runner", "outputs", "data_batch"])
def test_background_handlers_get_no_live_objects(name: str) -> None:
    """Training has gone on when they run, so they are refused when they are subscribed."""
    handlers = {"runner": lambda runner: None, "outputs": lambda outputs: None, "data_batch": lambda data_batch: None}

    with pytest.raises(HandlerSignatureError, match=f"asks for '{name}', a live object"):
        make_runner().bus.subscribe(AfterTrainIter, handlers[name], background=True)

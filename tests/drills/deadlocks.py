"""What must not hang: one function per mistake that a deadlock could come of, run in a process of its own.

Each returns how it ended: the name of the error that told of the mistake, or "went through" where none is due.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio

from hookbus.bus import Background, EventBus
from hookbus.errors import BusStalled
from hookbus.events import AfterTrainIter, Event
from hookbus.runner import Runner
from tests.drills.runs import make_run

STALL = 0.3
"""Seconds without an answer of the event loop that count as a stall here."""

FINE = "went through"

Mistake = Callable[[Path], str]
"""Makes the mistake, in a directory where it may train."""


class Ping(Event):
    """Something to publish."""


class Pong(Event):
    """What is published meanwhile."""


def outcome(action: Callable[[], object]) -> str:
    """Return how an action ended; of a stall it has to be told which handler stands where."""
    try:
        action()
    except BusStalled as error:
        return "BusStalled" if "in handler" in str(error) else f"BusStalled without the stack of the handler: {error}"
    except Exception as error:  # noqa: BLE001  its name is what is compared
        return type(error).__name__
    return FINE


def train(work_dir: Path, handler: Any, **options: Any) -> str:
    """Return how a run ends that has this handler."""
    runner = make_run(work_dir, 3, checkpoint=dict(interval=-1))
    runner.bus.stall_timeout, runner.bus.drain_timeout = STALL, STALL
    runner.bus.subscribe(AfterTrainIter, handler, **options)
    return outcome(runner.train)


def emit(*handlers: Any, **options: Any) -> str:
    """Return how the publish of a ping ends on a bus of its own, and leaving that bus."""

    def go() -> None:
        with EventBus(stall_timeout=STALL, drain_timeout=STALL) as bus:
            for handler in handlers:
                bus.subscribe(Ping, handler(bus), **options)
            bus.emit(Ping())

    return outcome(go)


# --- waiting for oneself ----------------------------------------------------------------------------------------------


def emit_on_the_loop(_: Path) -> str:
    """A coroutine emits on the bus whose thread waits for it."""

    def make(bus: EventBus) -> Any:
        async def handler() -> None:
            bus.emit(Pong())

        return handler

    return emit(make)


def wait_for_a_stop_inline(work_dir: Path) -> str:
    """An inline handler waits for a control of its own run."""
    return train(work_dir, lambda runner: runner.stop().result())


def wait_for_a_stop_awaited(work_dir: Path) -> str:
    """An awaited handler waits for a control of the run that waits for it."""

    async def handler(runner: Runner) -> None:
        await runner.stop()

    return train(work_dir, handler)


def block_for_a_post(_: Path) -> str:
    """A coroutine blocks its loop for a publish that this loop has to carry out."""

    async def main() -> None:
        async with EventBus() as bus:
            bus.post(Ping()).result()

    return outcome(lambda: anyio.run(main))


def post_to_oneself(_: Path) -> str:
    """The thread that owns a bus waits for what only it can publish."""

    def go() -> None:
        with EventBus() as bus:
            bus.post(Ping()).result()

    return outcome(go)


def publish_oneself(_: Path) -> str:
    """A handler publishes what it handles."""
    return emit(lambda bus: lambda: bus.emit(Ping()))


def join_a_thread_that_waits(work_dir: Path) -> str:
    """A hook joins a thread that waits for the run; with a limit, because nothing tells such a join from work."""
    outcomes: list[str] = []

    def handler(runner: Runner) -> None:
        thread = threading.Thread(target=lambda: outcomes.append(outcome(lambda: runner.save().result(STALL))))
        thread.start()
        thread.join()

    train(work_dir, handler)
    return outcomes[0]


# --- what never comes back --------------------------------------------------------------------------------------------


def block_the_loop(work_dir: Path) -> str:
    """An awaited handler blocks the event loop for ever."""

    async def handler() -> None:
        threading.Event().wait()

    return train(work_dir, handler)


def spin_on_the_loop(work_dir: Path) -> str:
    """An awaited handler never stops computing."""

    async def handler() -> None:
        while True:
            pass

    return train(work_dir, handler)


def block_the_loop_in_the_background(work_dir: Path) -> str:
    """Nobody waits for the handler that does it, until the run ends."""

    async def handler() -> None:
        threading.Event().wait()

    return train(work_dir, handler, background=True)


def sleep_for_ever(work_dir: Path) -> str:
    """An awaited handler sleeps, with a limit."""
    return train(work_dir, anyio.sleep_forever, timeout=STALL)


def never_return_in_the_background(work_dir: Path) -> str:
    """A background function waits for a lock that nobody releases."""
    return train(work_dir, lambda: threading.Event().wait(), background=True)


def never_take_what_blocks(work_dir: Path) -> str:
    """It has asked for the publisher to wait for it."""
    options = Background(maxsize=1, overflow="block", block_timeout=STALL)
    return train(work_dir, lambda: threading.Event().wait(), background=options)


# --- locks, loops and processes ---------------------------------------------------------------------------------------


def turn_locks_around(_: Path) -> str:
    """The publisher holds a lock that a handler on the loop wants."""
    lock = threading.Lock()

    async def handler() -> None:
        with lock:
            pass

    def go() -> None:
        with EventBus(stall_timeout=STALL) as bus:
            bus.subscribe(Ping, handler)
            with lock:
                bus.emit(Ping())

    return outcome(go)


def emit_after_leaving(_: Path) -> str:
    """The event loop is gone."""
    bus = EventBus()
    bus.subscribe(Ping, anyio.lowlevel.checkpoint)
    with bus:
        bus.emit(Ping())
    return outcome(lambda: bus.emit(Ping()))


def emit_in_a_fork(_: Path) -> str:
    """A hook forks, and the child publishes on the bus of its parent, whose event loop it does not have."""
    listening, telling = os.pipe()

    def make(bus: EventBus) -> Any:
        def handler() -> None:
            if os.fork() == 0:
                signal.alarm(round(STALL * 30))  # that of its parent is not its own
                os.write(telling, outcome(lambda: bus.emit(Pong())).encode())
                os._exit(0)
            os.wait()

        return handler

    with EventBus(stall_timeout=STALL) as bus:
        bus.subscribe(Pong, anyio.lowlevel.checkpoint)
        bus.subscribe(Ping, make(bus))
        bus.emit(Ping())
    return os.read(listening, 100).decode()


def wait_for_the_hub_inline(work_dir: Path) -> str:
    """An inline handler waits for what only its own thread can record."""
    return train(work_dir, lambda hub: hub.wait_until_blocking(lambda h: h.get_info("iter", 0) >= 3, timeout=STALL))


def ask_the_main_stream(work_dir: Path) -> str:
    """An awaited handler blocks the loop for a function that the training thread runs while it waits for this handler."""

    async def handler(runner: Runner) -> None:
        runner.run_on_main_stream(int).result(STALL * 10)

    return train(work_dir, handler)


MISTAKES: dict[Mistake, str] = {
    emit_on_the_loop: "WrongThread",
    wait_for_a_stop_inline: "WouldDeadlock",
    wait_for_a_stop_awaited: "WouldDeadlock",
    block_for_a_post: "WouldDeadlock",
    post_to_oneself: "WouldDeadlock",
    publish_oneself: "PublishDepthExceeded",
    join_a_thread_that_waits: "TimeoutError",
    block_the_loop: "BusStalled",
    spin_on_the_loop: "BusStalled",
    block_the_loop_in_the_background: FINE,
    sleep_for_ever: "TimeoutError",
    never_return_in_the_background: FINE,
    never_take_what_blocks: FINE,
    turn_locks_around: "BusStalled",
    emit_after_leaving: "BusNotEntered",
    emit_in_a_fork: "BusStalled",
    wait_for_the_hub_inline: "WouldDeadlock",
    ask_the_main_stream: FINE,
}
"""How each of them has to end."""

"""Drill 15: the event loop ends while a run is going on in it, in every way there is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from hookbus.events import AfterRun, AfterTrain, AfterTrainIter
from hookbus.mailbox import LoopHandle
from hookbus.runner import Runner
from tests.checkpoint.builders import make_store
from tests.drills.children import Child
from tests.drills.drill import Drill, Spec
from tests.drills.runs import iterations_in, make_run, warm_up
from tests.runner.builders import at_iter

CUT = 5
"""The iteration in which the loop ends."""
LIMIT = 25
"""Seconds after which a run that goes on for ever is gone."""
PATIENCE = 15.0
TWINS_LIMIT = 8
"""The same for the twin, which does go on for ever."""

Way = Callable[[Runner], None]
"""Trains in an event loop that ends in the iteration of the cut."""


def _await_it() -> Callable[[], Any]:
    async def handler() -> None:
        await checkpoint()

    return handler


def cancel_the_root(runner: Runner, backend: str) -> None:
    """Everything that runs on the loop is cancelled."""

    async def main() -> None:
        with anyio.CancelScope() as scope:
            loop = LoopHandle.current()
            runner.bus.subscribe(AfterTrainIter, at_iter(CUT, lambda: loop.call_soon(scope.cancel)))
            await runner.train_async()

    anyio.run(main, backend=backend)


def forget_the_task(runner: Runner) -> None:
    """The main coroutine returns, and leaves a run behind that nobody waits for."""

    async def main() -> None:
        reached = asyncio.Event()
        loop = asyncio.get_running_loop()
        runner.bus.subscribe(AfterTrainIter, at_iter(CUT, lambda: loop.call_soon_threadsafe(reached.set)))
        tasks.append(asyncio.create_task(runner.train_async()))
        await reached.wait()

    tasks: list[asyncio.Task[Any]] = []
    asyncio.run(main())


def close_the_loop(runner: Runner) -> None:
    """The loop stops and is closed, and its tasks never hear of it."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # it would complain about the task
    task = loop.create_task(runner.train_async())
    runner.bus.subscribe(AfterTrainIter, at_iter(CUT, lambda: loop.call_soon_threadsafe(loop.stop)))
    loop.run_forever()
    loop.close()
    _wait_for_the_run(runner)
    del task


def close_it_under_a_handler(runner: Runner) -> None:
    """While training waits for a coroutine, which never comes back."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)

    async def handler(iter: int) -> None:
        if iter == CUT:
            loop.stop()
            await anyio.sleep_forever()

    task = loop.create_task(runner.train_async())
    runner.bus.subscribe(AfterTrainIter, handler)
    loop.run_forever()
    loop.close()
    _wait_for_the_run(runner)
    del task


def stop_the_loop_of_a_script(runner: Runner) -> None:
    """A handler ends the loop that the script has for its awaited handlers."""

    async def handler(iter: int) -> None:
        if iter == CUT:
            asyncio.get_running_loop().stop()

    runner.bus.subscribe(AfterTrainIter, handler)
    runner.train()


def _wait_for_the_run(runner: Runner) -> None:
    for thread in threading.enumerate():
        if thread.name == f"hookbus-{runner.experiment_name}":
            thread.join(PATIENCE)


WAYS: dict[str, tuple[Way, bool, bool | None]] = {
    "root cancelled, asyncio": (lambda runner: cancel_the_root(runner, "asyncio"), False, True),
    "root cancelled, trio": (lambda runner: cancel_the_root(runner, "trio"), False, True),
    "task forgotten": (forget_the_task, False, True),
    "task forgotten, awaited handlers": (forget_the_task, True, None),
    "loop closed": (close_the_loop, False, True),
    "loop closed, awaited handlers": (close_the_loop, True, None),
    "loop closed under a handler": (close_it_under_a_handler, False, False),
    "loop of a script stopped": (stop_the_loop_of_a_script, False, False),
}
"""The ways, whether there is an awaited handler besides, and whether training comes to its end, `AfterTrain`; None for either.

Where it waits for a coroutine, it ends in the middle of an iteration, which is no state to be saved.
"""


def run(drill: Drill) -> None:
    """End each loop, two at a time, and go on from what is there."""
    warm_up()
    titles = drill.shuffled(WAYS)
    limit = TWINS_LIMIT if drill.is_broken else LIMIT
    for first in drill.within(range(0, len(titles), 2)):
        pair = [(title, drill.fresh()) for title in titles[first : first + 2]]
        children = [Child(lambda title=title, path=path: _train(drill, title, path), limit) for title, path in pair]  # type: ignore[misc]
        for (title, path), child in zip(pair, children, strict=True):
            _check(drill, title, path, child)


def _check(drill: Drill, title: str, path: Path, child: Child) -> None:
    ended = child.join()
    if not drill.check(ended.code == 0, f"{title}: {'hangs' if ended.code == -14 else ended}"):
        return
    found = ended.value
    drill.check(found["ended"] == 1, f"{title}: AfterRun came {found['ended']} times")
    drill.check(not found["left"], f"{title}: left {found['left']}")
    saved = max((iterations_in(info.path) for info in make_store(path).list()), default=0)
    came_to_end = WAYS[title][2]
    drill.check(came_to_end in (None, found["came to its end"]), f"{title}: AfterTrain came: {found['came to its end']}")
    expected = found["iterations"] if found["came to its end"] else 0
    drill.check(saved == expected, f"{title}: the last checkpoint is of {saved}, expected {expected}")
    if expected:
        after = Child(lambda: make_run(path, expected + 2).train() and None).join()
        drill.check(after.code == 0, f"{title}: cannot go on: {after}")


def _train(drill: Drill, title: str, path: Path) -> dict[str, Any]:
    if drill.is_broken:
        LoopHandle.call_soon = _ignore  # type: ignore[assignment, method-assign]
        LoopHandle.is_closed = property(lambda _: lambda: False, lambda *_: None)  # type: ignore[assignment]
    way, has_awaited, _ = WAYS[title]
    before = set(threading.enumerate())
    trained, ended = list[int](), list[int]()
    runner = make_run(path, 10**6, checkpoint=dict(interval=-1))
    runner.bus.subscribe(AfterRun, lambda: ended.append(1))
    runner.bus.subscribe(AfterTrain, lambda: trained.append(1))
    if has_awaited:
        runner.bus.subscribe(AfterTrainIter, _await_it())
    error = ""
    try:
        way(runner)
    except Exception as raised:  # noqa: BLE001  told to the drill
        error = type(raised).__name__
    left = [thread.name for thread in set(threading.enumerate()) - before if not thread.name.startswith("Trio thread ")]
    found = {"error": error, "ended": len(ended), "came to its end": bool(trained)}
    return found | {"left": left, "iterations": runner.iter}


def _ignore(handle: LoopHandle, function: Callable[[], object]) -> bool:
    try:
        handle._call_soon(function)
    except RuntimeError:
        pass
    return True


SPEC = Spec(
    number=15,
    name="loop closed under a run",
    promise="P8",
    expected="the run ends within a step, with its last checkpoint where it was not in the middle of one, and leaves no thread",
    twin="does not notice that its event loop is gone",
    run=run,
    weight=2,
)

"""The bridge between a thread and an event loop: crossings, their errors, their cancellation."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio

import hookbus.bridge
from hookbus.bridge import Bridge, CrossingCancelled
from hookbus.errors import BusError, HandlerCancelled
from hookbus.loop_threads import LoopThread, run_in_thread
from hookbus.mailbox import LoopHandle, Mailbox
from hookbus.types import Backend

BACKENDS: list[Backend] = ["asyncio", "trio"]


@contextmanager
def loop_thread(backend: Backend) -> Iterator[Bridge]:
    """Provide a bridge to a loop on a thread of its own."""
    bridge = Bridge(Mailbox())
    thread = LoopThread(bridge, backend)
    thread.start()
    try:
        yield bridge
    finally:
        thread.stop()


async def double(value: int) -> int:
    """Take a step on the loop, then answer."""
    await anyio.lowlevel.checkpoint()
    return 2 * value


async def on_thread(bridge: Bridge, body: Callable[[], Any], on_cancel: Callable[[], None] = lambda: None) -> Any:
    """Run a body on a thread that the calling loop serves."""
    return await run_in_thread(bridge, body, name="body", on_cancel=on_cancel)


# --- a loop on its own thread -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_crossing_returns_what_the_coroutine_returns(backend: Backend) -> None:
    """Again and again, on another thread than the caller's."""

    async def where() -> int:
        return threading.get_ident()

    with loop_thread(backend) as bridge:
        assert [bridge.call(double, n) for n in range(20)] == list(range(0, 40, 2))
        assert bridge.call(where) != threading.get_ident()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [KeyError, KeyboardInterrupt, SystemExit, ExceptionGroup])
def test_an_error_of_a_crossing_arrives_as_itself(backend: Backend, kind: type[BaseException]) -> None:
    """Whatever its kind, with the frames of the coroutine; the next crossing is not disturbed."""
    error = kind("group", [KeyError()]) if kind is ExceptionGroup else kind("mine")

    async def failing() -> None:
        await anyio.lowlevel.checkpoint()
        raise error

    with loop_thread(backend) as bridge:
        with pytest.raises(kind) as caught:
            bridge.call(failing)
        assert caught.value is error
        assert caught.traceback[-1].name == "failing"
        assert bridge.call(double, 4) == 8


@pytest.mark.parametrize("backend", BACKENDS)
def test_crossings_nest_through_the_mailbox(backend: Backend) -> None:
    """A coroutine asks the thread, which crosses again, many levels deep."""
    with loop_thread(backend) as bridge:
        here = threading.get_ident()

        async def ask(depth: int) -> int:
            if depth == 0:
                return 0
            answered, box = anyio.Event(), list[int]()
            loop = LoopHandle.current()

            def letter() -> None:
                assert threading.get_ident() == here
                box.append(1 + bridge.call(ask, depth - 1))
                loop.call_soon(answered.set)

            bridge.mailbox.put(letter)
            await answered.wait()
            return box[0]

        assert bridge.call(ask, 25) == 25
        assert bridge.call(ask, 3) == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_letter_may_cross_before_the_crossing_that_waits_has_begun(backend: Backend) -> None:
    """The loop has not even looked at the outer coroutine when the inner one is asked for."""
    seen: list[int] = []

    async def note(value: int) -> None:
        seen.append(value)

    with loop_thread(backend) as bridge:
        blocked, release = threading.Event(), threading.Event()

        def block() -> None:
            blocked.set()
            release.wait()

        def letter(depth: int) -> None:
            if depth == 3:
                release.set()
            else:
                bridge.mailbox.put(lambda: letter(depth + 1))
            bridge.call(note, depth)

        assert bridge._loop is not None
        bridge._loop.call_soon(block)
        blocked.wait()
        bridge.mailbox.put(lambda: letter(1))
        bridge.call(note, 0)

    assert sorted(seen) == [0, 1, 2, 3]


def test_a_stray_cancellation_is_told_from_that_of_the_run() -> None:
    """A coroutine that waits for a cancelled task fails with HandlerCancelled; the loop works on."""

    async def waits_for_a_cancelled_task() -> None:
        task = asyncio.create_task(asyncio.sleep(100))
        await asyncio.sleep(0)
        task.cancel()
        await task

    async def cancels_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(100)

    with loop_thread("asyncio") as bridge:
        for stray in (waits_for_a_cancelled_task, cancels_itself, waits_for_a_cancelled_task):
            with pytest.raises(HandlerCancelled, match="not by its run") as caught:
                bridge.call(stray)
            assert isinstance(caught.value.__cause__, asyncio.CancelledError)
            assert bridge.call(double, 2) == 4


def threads() -> set[threading.Thread]:
    """Return the threads there are, but for the idle workers that trio keeps for ten seconds."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("Trio thread ")}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hundred_visits_leave_the_same_threads(backend: Backend) -> None:
    """Each loop is ended and its thread joined; one bridge may open again and again."""
    before = threads()
    bridge = Bridge(Mailbox())
    for n in range(100):
        thread = LoopThread(bridge, backend)
        thread.start()
        assert bridge.call(double, n) == 2 * n
        thread.stop()

    assert threads() == before


def test_a_loop_thread_that_cannot_start_says_why_and_is_gone() -> None:
    """The error of the loop is raised by `start`."""
    before = threads()
    thread = LoopThread(Bridge(Mailbox()), "nonsense")  # type: ignore[arg-type]  # what is tested
    with pytest.raises(LookupError, match="nonsense"):
        thread.start()
    assert threads() == before


def test_a_crossing_to_a_loop_that_has_ended_is_refused() -> None:
    """Instead of waiting for ever."""
    with loop_thread("asyncio") as bridge:
        pass
    with pytest.raises(BusError, match="has ended"):
        bridge.call(double, 1)
    with pytest.raises(BusError, match="has ended"):
        Bridge(Mailbox()).call(double, 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("has_begun", [True, False])
def test_an_interrupt_of_the_waiting_thread_cancels_the_coroutine(backend: Backend, has_begun: bool) -> None:
    """Whether it has begun or not, it does not outlive the call, and the next crossing works."""
    seen: list[str] = []
    with loop_thread(backend) as bridge:
        blocked, release = threading.Event(), threading.Event()

        async def waits() -> None:
            if has_begun:
                bridge.mailbox.put(interrupt)
            try:
                await anyio.sleep_forever()
            finally:
                seen.append("cancelled")

        def interrupt() -> None:
            release.set()
            raise KeyboardInterrupt

        def block() -> None:
            blocked.set()
            release.wait()

        if not has_begun:
            assert bridge._loop is not None
            bridge._loop.call_soon(block)
            blocked.wait()
            bridge.mailbox.put(interrupt)
        with pytest.raises(KeyboardInterrupt):
            bridge.call(waits)
        assert seen == ["cancelled"]
        for n in range(3):
            assert bridge.call(double, n) == 2 * n


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_coroutine_that_ignores_an_interrupt_is_left_after_the_deadline(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interrupt arrives all the same, and what is asked for next is not lost."""
    monkeypatch.setattr(hookbus.bridge, "CLOSING_DEADLINE", 0.05)
    with loop_thread(backend) as bridge:
        release: list[anyio.Event] = []
        handles: list[LoopHandle] = []

        async def stubborn() -> None:
            release.append(anyio.Event())
            handles.append(LoopHandle.current())
            bridge.mailbox.put(interrupt)
            with anyio.CancelScope(shield=True):
                await release[0].wait()

        def interrupt() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            bridge.call(stubborn)
        bridge.mailbox.put(lambda: handles[0].call_soon(release[0].set))
        assert bridge.call(double, 3) == 6


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_closing_crossing_ends_at_the_deadline(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a TimeoutError that says what took too long."""
    monkeypatch.setattr(hookbus.bridge, "CLOSING_DEADLINE", 0.03)
    with loop_thread(backend) as bridge, pytest.raises(TimeoutError, match=r"longer than 0\.03 s"):
        bridge.call(anyio.sleep_forever, closing=True)


# --- a thread served by the caller's loop -----------------------------------------------------------------------------


async def test_the_body_of_a_thread_returns_its_value_and_crosses() -> None:
    """It runs on a thread of that name, with the caller's context variables."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("mine")
    bridge = Bridge(Mailbox())

    def body() -> tuple[str, str, int]:
        return threading.current_thread().name, variable.get(), bridge.call(double, 21)

    assert await on_thread(bridge, body) == ("body", "mine", 42)


@pytest.mark.parametrize("kind", [KeyError, KeyboardInterrupt, SystemExit, BaseExceptionGroup])
async def test_an_error_of_the_body_arrives_as_itself(kind: type[BaseException]) -> None:
    """Not in a group, although a task group serves the crossings."""
    error = kind("group", [KeyError()]) if kind is BaseExceptionGroup else kind("mine")

    def body() -> None:
        raise error

    with pytest.raises(kind) as caught:
        await on_thread(Bridge(Mailbox()), body)
    assert caught.value is error


async def test_an_error_of_a_coroutine_reaches_the_body_and_then_the_caller() -> None:
    """Across and back, the very object."""
    bridge, error = Bridge(Mailbox()), KeyError("mine")

    async def failing() -> None:
        raise error

    with pytest.raises(KeyError) as caught:
        await on_thread(bridge, lambda: bridge.call(failing))
    assert caught.value is error


async def test_cancelling_the_scope_cancels_what_is_in_flight_and_waits_for_the_body() -> None:
    """`on_cancel` is called once, the body sees CrossingCancelled and finishes, the scope catches the cancellation."""
    bridge, seen = Bridge(Mailbox()), list[str]()
    begun = anyio.Event()

    async def waits() -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            seen.append("coroutine cancelled")

    def body() -> None:
        for attempt in (1, 2):
            try:
                bridge.call(waits)
            except CrossingCancelled:
                seen.append(f"crossing {attempt} cancelled")
        seen.append(f"closing {bridge.call(double, 1, closing=True)}")

    async def cancel_soon(scope: anyio.CancelScope) -> None:
        await begun.wait()
        scope.cancel()

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            tasks.start_soon(cancel_soon, scope)
            await on_thread(bridge, body, lambda: seen.append("on_cancel"))
            seen.append("not reached")

    assert scope.cancelled_caught
    assert seen == [
        *("on_cancel", "coroutine cancelled", "crossing 1 cancelled"),
        *("coroutine cancelled", "crossing 2 cancelled", "closing 2"),
    ]


async def test_a_closing_crossing_in_flight_survives_the_cancellation() -> None:
    """It goes on to its end although the caller is cancelled."""
    bridge, seen = Bridge(Mailbox()), list[str]()
    begun, cancelled = anyio.Event(), anyio.Event()

    async def closes() -> None:
        begun.set()
        await cancelled.wait()
        await anyio.lowlevel.checkpoint()
        seen.append("closed")

    async def cancel_soon(scope: anyio.CancelScope) -> None:
        await begun.wait()
        scope.cancel()

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            tasks.start_soon(cancel_soon, scope)
            await on_thread(bridge, lambda: bridge.call(closes, closing=True), cancelled.set)

    assert seen == ["closed"]


async def test_an_error_of_the_body_is_not_lost_in_a_cancellation() -> None:
    """What the body raised while it was being cancelled is raised, as itself."""
    bridge, begun = Bridge(Mailbox()), anyio.Event()

    async def waits() -> None:
        begun.set()
        await anyio.sleep_forever()

    def body() -> None:
        try:
            bridge.call(waits)
        except CrossingCancelled:
            raise KeyError("cleaning up") from None

    async def cancel_soon(scope: anyio.CancelScope) -> None:
        await begun.wait()
        scope.cancel()

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope, pytest.raises(KeyError, match="cleaning up"):
            tasks.start_soon(cancel_soon, scope)
            await on_thread(bridge, body)


def test_cancelling_the_task_by_means_of_asyncio_waits_for_the_body() -> None:
    """The task ends as cancelled, after the body has finished, however often it is cancelled meanwhile."""
    bridge, seen = Bridge(Mailbox()), list[str]()

    async def main() -> None:
        begun = asyncio.Event()
        release = threading.Event()

        async def waits() -> None:
            begun.set()
            await asyncio.sleep(100)

        def body() -> None:
            try:
                bridge.call(waits)
            except CrossingCancelled:
                release.wait()
                seen.append("body finished")

        task = asyncio.create_task(on_thread(bridge, body, lambda: seen.append("on_cancel")))
        await begun.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not task.done()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    asyncio.run(main(), debug=True)
    assert seen[-1] == "body finished"
    assert "on_cancel" in seen


def test_a_handler_with_a_nursery_of_trio_is_cancelled_like_any_other() -> None:
    """The group in which trio wraps the cancellation is not taken for an error."""
    bridge, seen = Bridge(Mailbox()), list[str]()

    async def main() -> None:
        begun = trio.Event()

        async def nursing() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                begun.set()
                await trio.sleep_forever()

        def body() -> None:
            try:
                bridge.call(nursing)
            except CrossingCancelled:
                seen.append("cancelled")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(on_thread, bridge, body)
            await begun.wait()
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert seen == ["cancelled"]


async def test_a_thread_that_cannot_start_does_not_hang_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The residents leave and the error comes out."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with anyio.fail_after(10), pytest.raises(ExceptionGroup) as caught:
        await on_thread(Bridge(Mailbox()), lambda: None)
    assert caught.value.subgroup(RuntimeError) is not None


async def test_a_hundred_bodies_leave_the_same_threads() -> None:
    """Each thread is joined before `run_in_thread` returns."""
    before = threads()
    for n in range(100):
        bridge = Bridge(Mailbox())
        assert await on_thread(bridge, partial(bridge.call, double, n)) == 2 * n
        assert threads() <= before

"""Who runs the awaited handlers of a bus: what a bus asks of its host, and the two hosts of a stand-alone bus."""

from __future__ import annotations

__all__ = ("CallersLoop", "Host", "OwnThread", "Posts", "as_handler")

import threading
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import anyio
import anyio.abc

from hookbus._current import Writing, current_hub, current_writing
from hookbus.bridge import Bridge, outlast
from hookbus.bus.outbox import Outbox
from hookbus.bus.pump import Pump
from hookbus.errors import BusNotEntered, HandlerCancelled, WouldDeadlock, WrongThread
from hookbus.hub import MessageHub
from hookbus.loop_threads import LoopThread
from hookbus.mailbox import Acknowledgement, LoopHandle, Mailbox
from hookbus.types import Backend

T = TypeVar("T")


class Host(Protocol):
    """Runs a bus: owns the thread that emits, and reaches the loop that awaits."""

    thread_id: int
    on_own_loop: bool
    """Whether the emitting thread is itself the one of the event loop."""
    pump: Pump

    def bridge_to(self, outbox: Outbox, hub: MessageHub, stall_timeout: float) -> None:
        """Begin to serve the outbox of the bus."""
        ...

    def wait(self, done: Callable[[], bool], timeout: float) -> bool:
        """Have the emitting thread wait, serving its mailbox; return whether it is done."""
        ...

    def nudge(self) -> None:
        """Have it look again whether it is done; any thread may call this."""
        ...

    def cross(self, function: Callable[..., Awaitable[T]], *arguments: Any, closing: bool = False) -> T:
        """Run a coroutine function on the event loop and wait for it."""
        ...

    def post(self, emit: Callable[[], T], publish: Callable[[], Awaitable[T]], what: str) -> Acknowledgement[T]:
        """Have an event published at the next safe point, by whichever of the two ways fits."""
        ...


async def as_handler(hub: MessageHub, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Run awaited handlers with what they are entitled to: their run's hub, which they may write to."""
    writing = Writing(hub)
    current_hub.set(hub)
    current_writing.set(writing)
    try:
        return await function(*arguments)
    finally:
        writing.hub = None


class Posts:
    """Events that others have asked to be published: one after the other, in the order in which they were asked for.

    A handler waits for one at a time, so what comes meanwhile stays behind it. What the handlers of this very bus ask for is
    part of their own publish, which could not end otherwise, and goes at once.
    """

    def __init__(self, mailbox: Mailbox, hub: MessageHub) -> None:
        self._mailbox = mailbox
        self._hub = hub
        self._waiting: deque[Callable[[], object]] = deque()
        self._is_serving = False

    def put(self, publish: Callable[[], object]) -> None:
        """Have the owner of the mailbox publish; any thread may call this."""
        writing = current_writing.get()
        if writing is not None and writing.hub is self._hub:
            self._mailbox.put(publish)
        else:
            self._waiting.append(publish)
            self._mailbox.put(self._serve)

    def _serve(self) -> None:
        if self._is_serving:
            return
        self._is_serving = True
        try:
            while self._waiting:
                self._waiting.popleft()()
        finally:
            self._is_serving = False
            if self._waiting:  # an interrupt came through
                self._mailbox.put(self._serve)


class OwnThread:
    """`with bus:` - the entering thread emits, a joined thread with a loop of its own runs awaited handlers."""

    on_own_loop = False

    def __init__(self, hub: MessageHub, backend: Backend) -> None:
        self.thread_id = threading.get_ident()
        self.mailbox = Mailbox()
        self.pump = Pump()
        self._hub = hub
        self._bridge = Bridge(self.mailbox, services=(self.pump.run,))
        self._loop_thread = LoopThread(self._bridge, backend)
        self._posts = Posts(self.mailbox, hub)

    def start(self) -> None:
        """Start the event loop and wait until it is ready."""
        self._loop_thread.start()

    def bridge_to(self, outbox: Outbox, hub: MessageHub, stall_timeout: float) -> None:
        """Begin to serve the outbox of the bus."""
        self._bridge.stall_timeout = stall_timeout
        self.pump.attach(outbox, hub)
        outbox.open(lambda: self._bridge.call_soon(self.pump.call), on_error=_nothing)

    def serve(self) -> None:
        """Carry out what was asked for."""
        self.mailbox.serve()

    def wait(self, done: Callable[[], bool], timeout: float) -> bool:
        """Wait, serving the mailbox."""
        return self.mailbox.wait(done, timeout)

    def nudge(self) -> None:
        """Have the entering thread look again."""
        self.mailbox.put(_nothing)

    def stop(self) -> None:
        """End the loop and join its thread."""
        self._loop_thread.stop()
        self.mailbox.serve()

    def cross(self, function: Callable[..., Awaitable[T]], *arguments: Any, closing: bool = False) -> T:
        """Run a coroutine function on the event loop and wait for it."""
        value: T = self._bridge.call(as_handler, self._hub, function, *arguments, closing=closing)
        return value

    def post(self, emit: Callable[[], T], publish: Callable[[], Awaitable[T]], what: str) -> Acknowledgement[T]:
        """Have the entering thread emit while it waits for a handler, or when it serves."""
        answer: Acknowledgement[T] = Acknowledgement(what, check_wait=self._refuse_own_thread)
        self._posts.put(lambda: answer.carry_out(emit))
        return answer

    def _refuse_own_thread(self) -> None:
        if threading.get_ident() == self.thread_id:
            msg = "the thread that entered the bus waits for something that only it can do, at its next publish"
            raise WouldDeadlock(msg)


class CallersLoop:
    """`async with bus:` - everything runs on the loop of the task that entered."""

    on_own_loop = True

    def __init__(self, tasks: anyio.abc.TaskGroup, pump: Pump) -> None:
        self.thread_id = threading.get_ident()
        self.pump = pump
        self._loop = LoopHandle.current()
        self._tasks = tasks
        self._posted: deque[tuple[Callable[[], Awaitable[None]], Acknowledgement[Any]]] = deque()
        self._arrived = anyio.Event()
        self._waiting: list[anyio.Event] = []
        self._server: int | None = None
        self._stopped = False
        self._tasks.start_soon(self._serve_posted)
        self._tasks.start_soon(pump.run)

    def bridge_to(self, outbox: Outbox, hub: MessageHub, stall_timeout: float) -> None:
        """Begin to serve the outbox of the bus."""
        self.pump.attach(outbox, hub)
        outbox.open(lambda: self._loop.call_soon(self.pump.call), on_error=_nothing)

    def wait(self, done: Callable[[], bool], timeout: float) -> bool:
        """Refuse: the loop cannot wait for itself."""
        msg = "this would block the event loop that has to do what is waited for"
        raise WouldDeadlock(msg)

    async def wait_here(self, done: Callable[[], bool], timeout: float) -> bool:
        """Wait on the loop until it is done; return whether it is."""
        with anyio.move_on_after(timeout):
            while not done():
                nudged = anyio.Event()
                self._waiting.append(nudged)
                if not done():  # else nobody tells any more
                    await nudged.wait()
        return done()

    def nudge(self) -> None:
        """Have who waits look again."""
        self._loop.call_soon(self._wake_waiting)

    def _wake_waiting(self) -> None:
        while self._waiting:
            self._waiting.pop().set()

    async def finish(self) -> None:
        """Carry out what was posted so far."""

        async def nothing() -> None:
            pass

        await self.post(lambda: None, nothing, "leaving the event bus")

    def stop(self) -> None:
        """Take nothing more, and say so to those who wait."""
        self._stopped = True
        self._tasks.cancel_scope.cancel()
        self._refuse_posted()

    def cross(self, function: Callable[..., Awaitable[T]], *_: Any, closing: bool = False) -> T:
        """Refuse: the loop cannot wait for itself."""
        msg = "emit cannot run awaited handlers on the event loop it would have to wait for; use: await bus.publish(event)"
        raise WrongThread(msg)

    def post(self, emit: Callable[[], T], publish: Callable[[], Awaitable[T]], what: str) -> Acknowledgement[T]:
        """Have the loop publish, after what was posted before."""
        answer: Acknowledgement[T] = _Awaitable(what, check_wait=self._refuse_server, thread_id=self.thread_id)

        async def carry_out() -> None:
            try:
                answer.set_result(await publish())
            except Exception as error:  # noqa: BLE001  it belongs to the one who asked
                answer.set_error(error)
            except BaseException as error:
                if isinstance(error, anyio.get_cancelled_exc_class()) and not _is_cancelled():
                    answer.set_error(HandlerCancelled("a handler was cancelled, but not by its run"))
                    return  # the posts after it are not to suffer
                answer.set_error(_left(what))
                raise

        self._posted.append((carry_out, answer))
        if self._stopped:
            self._refuse_posted()
        self._loop.call_soon(lambda: self._arrived.set())
        return answer

    async def _serve_posted(self) -> None:
        self._server = anyio.get_current_task().id
        while True:
            await outlast(self._arrived.wait)
            self._arrived = anyio.Event()  # before looking: what arrives from here on wakes us again
            while self._posted:
                carry_out, _ = self._posted.popleft()
                await carry_out()

    def _refuse_posted(self) -> None:
        while self._posted:
            _, answer = self._posted.popleft()
            answer.set_error(_left(answer.what))

    def _refuse_server(self) -> None:
        if threading.get_ident() == self.thread_id and anyio.get_current_task().id == self._server:
            msg = "a handler of a posted event waits for another post, which comes after it; use: await bus.publish(event)"
            raise WouldDeadlock(msg)


class _Awaitable(Acknowledgement[T]):
    """The answer of an event loop, which a coroutine of that loop may await, but not block the loop for."""

    def __init__(self, what: str, *, check_wait: Callable[[], None], thread_id: int) -> None:
        super().__init__(what, check_wait=check_wait)
        self._thread_id = thread_id

    def result(self, timeout: float | None = None) -> T:
        if not self.done() and threading.get_ident() == self._thread_id:
            msg = f"waiting here would block the event loop that has to answer {self.what}; await it instead"
            raise WouldDeadlock(msg)
        return super().result(timeout)


def _nothing() -> None:
    """Be put into a mailbox to make its owner look again, or be told what needs no telling."""


def _is_cancelled() -> bool:
    return anyio.current_effective_deadline() == float("-inf")


def _left(what: str) -> BusNotEntered:
    return BusNotEntered(f"{what} could not take place: the event bus was left before")

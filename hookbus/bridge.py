"""A thread <-> an event loop: runs coroutines on the loop while the thread waits and serves its mailbox.

The loop holds one resident task per depth of nesting, because neither backend can start a task from a callback:
depth 1 runs what depth 0 caused while the thread served its mailbox. A coroutine's error arrives on the thread as
itself. When the run is cancelled, coroutines in flight are cancelled where they wait, later ones at their first
wait, and only those that close the run are shielded, up to a deadline.

Nothing above this file tells asyncio from trio.
"""

from __future__ import annotations

__all__ = (
    "CLOSING_DEADLINE",
    "LOOP_ENDED",
    "Bridge",
    "CrossingCancelled",
    "Outcome",
    "describe_stall",
    "forget_stray_cancellation",
    "outlast",
)

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar, cast

import anyio
import anyio.abc
from anyio.lowlevel import cancel_shielded_checkpoint, current_token

from hookbus.errors import BusError, BusStalled, HandlerCancelled
from hookbus.mailbox import LoopHandle, Mailbox

T = TypeVar("T")

CLOSING_DEADLINE = 30.0
"""Seconds that coroutines which close a run may take together."""


AFTER_STALL = 1.0
"""Seconds that a loop gets which has not answered before."""
ASK_AGAIN = 1.0
"""Seconds after which a loop is asked again whether it is still there; so one that was closed is found out soon."""
LOOP_ENDED = "the event loop that runs the awaited handlers has ended before the run did"

_logger = logging.getLogger("hookbus")


async def outlast(wait: Callable[[], Awaitable[object]]) -> None:
    """Wait, but end where a cancellation comes that is not that of a cancel scope.

    asyncio cancels every task there is when a program ends. What a run needs on its loop goes on until the run has ended,
    which the same cancellation brings about.
    """
    try:
        await wait()
    except anyio.get_cancelled_exc_class():
        if anyio.current_effective_deadline() == float("-inf"):
            raise
        forget_stray_cancellation()


def forget_stray_cancellation() -> None:
    """Have the running task go on after a cancellation that it has caught, and that came from no cancel scope."""
    if isinstance(cast("Any", current_token()).native_token, asyncio.AbstractEventLoop):  # trio knows no others
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            task.uncancel()


class CrossingCancelled(BaseException):
    """Raised on the thread when its run was cancelled while, or before, a coroutine ran for it."""


class Outcome(Generic[T]):
    """What came of a call on another thread."""

    value: T
    error: BaseException | None = None

    def take(self) -> T:
        """Return the value or raise the error, as itself."""
        if self.error is None:
            return self.value
        error, self.error = self.error, None
        try:
            raise error
        finally:
            del error  # the traceback holds this frame: do not close a cycle


class _Crossing(Outcome[T]):
    """One coroutine on its way: what to run, and what came of it."""

    def __init__(self, function: Callable[..., Awaitable[T]], arguments: tuple[Any, ...], *, closing: bool) -> None:
        self.function = function
        self.arguments = arguments
        self.closing = closing
        self.scope: anyio.CancelScope | None = None
        self.unwanted = False
        """Whether the thread does not want it any more."""
        self.done = False

    def is_done(self) -> bool:
        return self.done

    def finish(self) -> None:
        self.done = True

    def cancel(self) -> None:
        """Have the coroutine cancelled, also when it has not begun; called on the loop."""
        self.unwanted = True
        if self.scope is not None:
            self.scope.cancel()

    async def run(self, *, cancelled: bool) -> None:
        """Run the coroutine on the loop; keep its outcome."""
        try:
            await self._run_in_scope(cancelled=cancelled)
        except anyio.get_cancelled_exc_class():
            if anyio.current_effective_deadline() == float("-inf"):
                raise
            forget_stray_cancellation()  # it came together with the one of the run
            self.error = CrossingCancelled()

    async def _run_in_scope(self, *, cancelled: bool) -> None:
        deadline = anyio.current_time() + CLOSING_DEADLINE if self.closing else float("inf")
        with anyio.CancelScope(deadline=deadline) as self.scope:
            if self.unwanted or (cancelled and not self.closing):
                self.scope.cancel()
            try:
                self.value = await self.function(*self.arguments)
            except anyio.get_cancelled_exc_class() as error:
                if self.scope.cancel_called:
                    raise
                forget_stray_cancellation()
                await cancel_shielded_checkpoint()  # where all tasks are cancelled at once, the run hears of it in this turn
                if anyio.current_effective_deadline() == float("-inf"):
                    self.error = CrossingCancelled()
                    return
                self.error = HandlerCancelled("a handler was cancelled, but not by its run")
                self.error.__cause__ = error
                for note in getattr(error, "__notes__", ()):
                    self.error.add_note(note)
            except BaseException as error:
                if self.scope.cancel_called and _is_cancellation(error):
                    raise
                self.error = error  # it goes to the thread that waits
        if self.scope.cancelled_caught:
            late = f"the handlers that close the run took longer than {CLOSING_DEADLINE:g} s and were cancelled"
            self.error = TimeoutError(late) if self.closing else CrossingCancelled()


def _is_cancellation(error: BaseException) -> bool:
    """Return whether it is one that came through a task group of the backend's own."""
    return isinstance(error, BaseExceptionGroup) and error.split(anyio.get_cancelled_exc_class())[1] is None


class _Resident:
    """A task that waits on the loop for coroutines of one depth."""

    def __init__(self) -> None:
        self.crossing: _Crossing[Any] | None = None
        self.called = anyio.Event()
        self.scope = anyio.CancelScope(shield=True)


class Bridge:
    """Runs coroutines on an event loop for one thread, which waits for each of them."""

    def __init__(self, mailbox: Mailbox, services: Sequence[Callable[[], Awaitable[object]]] = ()) -> None:
        self.mailbox = mailbox
        self.stall_timeout = 60.0
        """Seconds without an answer of the event loop, while the thread needs it, after which it counts as stalled."""
        self._services = services
        """What else lives on the loop for as long as the bridge does."""
        self._scopes: list[anyio.CancelScope] = []
        self._is_stalled = False
        self.cancelled = False
        """Whether the run was cancelled from the loop's side."""
        self._loop: LoopHandle | None = None
        self._tasks: anyio.abc.TaskGroup | None = None
        self._residents: list[_Resident] = []
        self._asked: dict[int, _Crossing[Any]] = {}
        """What the residents are to run next, by their depth; one may be asked before it is there."""
        self._depth = 0

    # --- on the loop --------------------------------------------------------------------------------------------------

    def open(self, tasks: anyio.abc.TaskGroup) -> None:
        """Take up residence on the running loop."""
        self._loop = LoopHandle.current()
        self._tasks = tasks
        self._residents = []  # those of an earlier visit have left
        self._scopes = [anyio.CancelScope(shield=True) for _ in self._services]
        self._add_resident()
        for service, scope in zip(self._services, self._scopes, strict=True):
            tasks.start_soon(_serve, service, scope)

    def close(self) -> None:
        """Leave the loop; nothing may be in flight."""
        self._loop = None
        for scope in (*self._scopes, *(resident.scope for resident in self._residents)):
            scope.cancel()

    def cancel(self) -> None:
        """Cancel what is in flight and what comes later, except for what closes the run."""
        self.cancelled = True
        for resident in self._residents:
            crossing = resident.crossing
            if crossing is not None and crossing.scope is not None and not crossing.closing:
                crossing.scope.cancel()

    def _add_resident(self) -> None:
        assert self._tasks is not None
        resident, depth = _Resident(), len(self._residents)
        self._residents.append(resident)
        self._tasks.start_soon(self._reside, resident, depth)
        self._wake(depth)  # it may have been asked already

    def _wake(self, depth: int) -> None:
        if depth < len(self._residents):
            self._residents[depth].called.set()

    async def _reside(self, resident: _Resident, depth: int) -> None:
        with resident.scope:
            while True:
                await outlast(resident.called.wait)
                resident.called = anyio.Event()  # before looking: whoever asks from here on wakes it again
                crossing = resident.crossing = self._asked.pop(depth, None)
                if crossing is None:
                    continue
                if len(self._residents) == depth + 1:  # what runs now may cause a crossing one level deeper
                    self._add_resident()
                try:
                    await crossing.run(cancelled=self.cancelled)
                finally:  # whatever happens, the thread must hear of it
                    resident.crossing = None
                    self.mailbox.put(crossing.finish)

    # --- on any thread ------------------------------------------------------------------------------------------------

    def call_soon(self, function: Callable[[], object]) -> bool:
        """Have the loop call `function` soon; return False where there is none any more."""
        return self._loop is not None and self._loop.call_soon(function)

    # --- on the thread ------------------------------------------------------------------------------------------------

    def call(self, function: Callable[..., Awaitable[T]], *arguments: Any, closing: bool = False) -> T:
        """Run a coroutine function on the loop, wait for it, and return or raise what came of it.

        Raises:
            CrossingCancelled: the run was cancelled.
            BusStalled: the event loop does not answer.
            BusError: the event loop has ended.
        """
        crossing: _Crossing[T] = _Crossing(function, arguments, closing=closing)
        depth = self._depth
        self._asked[depth] = crossing
        if not self.call_soon(lambda: self._wake(depth)):
            del self._asked[depth]
            raise BusError(LOOP_ENDED)
        self._depth += 1
        try:
            self._wait(crossing)
        finally:
            self._depth -= 1
        return crossing.take()

    def _wait(self, crossing: _Crossing[Any]) -> None:
        try:
            self._wait_or_stall(crossing)
        except BaseException as error:  # a signal, for instance: the coroutine must not outlive its publish
            if self.call_soon(crossing.cancel) and not isinstance(error, BusStalled):
                self.mailbox.wait(crossing.is_done, timeout=CLOSING_DEADLINE)
            raise

    @property
    def answer_timeout(self) -> float:
        """Seconds that the event loop has for an answer."""
        return min(AFTER_STALL, self.stall_timeout) if self._is_stalled else self.stall_timeout

    @property
    def has_lost_its_loop(self) -> bool:
        """Whether the event loop was closed under the bridge."""
        return self._loop is not None and self._loop.is_closed()

    def _wait_or_stall(self, crossing: _Crossing[Any]) -> None:
        """Wait, and ask the loop now and then whether it is still there; a coroutine that merely takes long is no stall."""
        timeout = self.answer_timeout
        answered_at = time.monotonic()
        answers: list[float] = []
        while True:
            if not self.call_soon(lambda: answers.append(time.monotonic())) and not crossing.done:
                raise BusError(LOOP_ENDED)
            if self.mailbox.wait(crossing.is_done, timeout=min(timeout / 4, ASK_AGAIN)):
                self._is_stalled = False
                return
            answered_at = max([answered_at, *answers])
            answers.clear()
            self._is_stalled = time.monotonic() - answered_at >= timeout
            if self._is_stalled:
                raise BusStalled(describe_stall(timeout))


async def _serve(service: Callable[[], Awaitable[object]], scope: anyio.CancelScope) -> None:
    with scope:
        await outlast(service)


def describe_stall(seconds: float) -> str:
    """Say what every thread does, the one of the event loop among them."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    stacks = [
        f"thread {names.get(ident, 'unknown')}:\n{''.join(traceback.format_stack(frame)).rstrip()}"
        for ident, frame in sys._current_frames().items()
    ]
    what = f"the event loop has not answered for {seconds:g} s while training needs it; something blocks it"
    return "\n\n".join([f"{what}. The stacks of all threads:", *stacks])

"""How other threads ask a thread to do something: a mailbox it serves, and an answer they can wait for.

A letter is a function without arguments. It runs on the thread that owns the mailbox, in the order of arrival,
whenever that thread serves: at its safe points and for as long as it waits. `Mailbox.wait` is the only way in
which that thread ever waits, so nothing that was sent can be stuck behind something it waits for.
"""

from __future__ import annotations

__all__ = ("Acknowledgement", "LoopHandle", "Mailbox")

import logging
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar, cast

import anyio
from anyio.lowlevel import current_token

from hookbus.errors import describe_error

T = TypeVar("T")

LOOK_AGAIN = 0.1
"""Seconds after which a waiting thread looks up: a signal that arrives just as a wait begins does not end that wait."""

_logger = logging.getLogger("hookbus")


class LoopHandle:
    """The running event loop, to be woken from any thread."""

    def __init__(self, native: Any) -> None:
        # The loop objects of both backends offer the same thing under different names.
        self._call_soon = getattr(native, "call_soon_threadsafe", None) or native.run_sync_soon
        self.is_closed: Callable[[], bool] = getattr(native, "is_closed", None) or _never
        """Whether the loop was closed under its tasks; one of trio cannot be."""

    @classmethod
    def current(cls) -> LoopHandle:
        """Return the handle of the loop that runs the calling task."""
        return cls(cast("Any", current_token()).native_token)

    def call_soon(self, function: Callable[[], object]) -> bool:
        """Have the loop call `function` soon; return False where the loop is gone."""
        try:
            self._call_soon(function)
        except RuntimeError:  # both backends say so when their loop has ended
            return False
        return True


def _never() -> bool:
    return False


class Acknowledgement(Generic[T]):
    """The answer to a request that another thread carries out: awaitable on any loop, or `result(timeout)`.

    An error of the request arrives where the answer is waited for; if nobody ever waits, it is logged.
    """

    def __init__(self, what: str, *, check_wait: Callable[[], None] | None = None) -> None:
        self.what = what
        self._future: Future[T] = Future()
        self._check_wait = check_wait
        self._looked_at = False
        self._follows = False

    def __repr__(self) -> str:
        return f"<Acknowledgement of {self.what}: {'done' if self.done() else 'pending'}>"

    def done(self) -> bool:
        """Return whether the request was carried out or refused."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> T:
        """Wait for the answer on a thread; `timeout` is in seconds.

        Raises:
            TimeoutError: no answer came in time.
            WouldDeadlock: the waiting thread is the one that would have to answer.
        """
        if not self._future.done() and self._check_wait is not None:
            self._check_wait()
        try:
            return self._future.result(timeout)
        finally:
            self._looked_at = self._looked_at or self._future.done()  # who gave up has not seen what comes later

    def __await__(self) -> Generator[Any, None, T]:
        return self._wait().__await__()

    async def _wait(self) -> T:
        if not self._future.done():
            if self._check_wait is not None:
                self._check_wait()
            answered = anyio.Event()
            loop = LoopHandle.current()
            self._future.add_done_callback(lambda _: loop.call_soon(answered.set))
            await answered.wait()
        self._looked_at = True
        return self._future.result()

    def set_result(self, value: T) -> None:
        """Answer the request."""
        self._future.set_result(value)

    def set_error(self, error: BaseException) -> None:
        """Answer the request with an error."""
        self._future.set_exception(error)

    def forgive(self) -> None:
        """Do not log an error that nobody waits for."""
        self._looked_at = True

    def carry_out(self, function: Callable[[], T | Acknowledgement[T]]) -> None:
        """Call `function` and answer with what it returns or raises; where that is an acknowledgement, with its answer."""
        try:
            value = function()
        except Exception as error:  # noqa: BLE001  it belongs to the one who asked
            self.set_error(error)
        except BaseException as error:
            self.set_error(error)
            self.forgive()  # it also goes its way on this thread
            raise
        else:
            if isinstance(value, Acknowledgement):
                self._follow(value)
            else:
                self.set_result(value)

    def carry_out_or_raise(self, function: Callable[[], T | Acknowledgement[T]]) -> None:
        """Call `function` and answer with what it returns; an error goes both ways, that of an acknowledgement only here."""
        self.carry_out(function)
        if self._follows:
            return
        error = self._future.exception()
        if error is not None:
            self.forgive()
            raise error

    def _follow(self, other: Acknowledgement[T]) -> None:
        """Pass on the answer to another request once it comes; whoever carries that one out reports its errors."""
        self._follows = True
        self.forgive()
        other.forgive()
        other._future.add_done_callback(self._pass_on)

    def _pass_on(self, answered: Future[T]) -> None:
        error = answered.exception()
        if error is None:
            self.set_result(answered.result())
        else:
            self.set_error(error)

    def __del__(self) -> None:
        if not self._looked_at and self._future.done():
            error = self._future.exception()
            if error is not None:
                _logger.error("%s failed and nobody waited for it: %s", self.what, describe_error(error))


class Mailbox:
    """The inbox of one thread, and the one way in which that thread waits."""

    def __init__(self) -> None:
        self._letters: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self.empty = self._letters.empty
        """Whether nothing lies there; cheap enough for every iteration."""

    def put(self, letter: Callable[[], object]) -> None:
        """Leave a function for the owning thread; may be called from any thread and from a signal handler."""
        self._letters.put(letter)

    def serve(self) -> None:
        """Run everything that has arrived."""
        while True:
            try:
                letter = self._letters.get_nowait()
            except Empty:
                return
            letter()

    def wait(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        """Serve until `done()`, which some letter makes true; return False when `timeout` seconds ran out first."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not done():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            try:
                letter = self._letters.get(timeout=LOOK_AGAIN if left is None else min(left, LOOK_AGAIN))
            except Empty:
                continue
            letter()
        return True

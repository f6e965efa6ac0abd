"""A thread and an event loop side by side: a loop on a thread of its own, or a thread beside the running loop."""

from __future__ import annotations

__all__ = ("LoopThread", "run_in_thread")

import contextvars
import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import anyio
import anyio.abc

from hookbus.bridge import Bridge, CrossingCancelled, Outcome, describe_stall
from hookbus.mailbox import LoopHandle
from hookbus.types import Backend

T = TypeVar("T")

_logger = logging.getLogger("hookbus")


class LoopThread:
    """A joined thread with an event loop of its own, for threads that have none at hand."""

    def __init__(self, bridge: Bridge, backend: Backend) -> None:
        self._bridge = bridge
        self._backend = backend
        self._ready = threading.Event()
        self._leave: anyio.Event | None = None
        self._loop: LoopHandle | None = None
        self._error: BaseException | None = None
        self._is_running = False
        # A daemon, because a handler that blocks the loop for ever must not keep a program from ending.
        self._thread = threading.Thread(target=self._run, name="hookbus-loop", daemon=True)

    def start(self) -> None:
        """Start the loop and wait until it is ready."""
        try:
            self._is_running = True
            self._thread.start()
            self._ready.wait()
        except RuntimeError:  # the system gives no more threads
            self._is_running = False
            raise
        except BaseException:  # an interrupt: nobody else will stop it
            self.stop()
            raise
        if self._error is not None:
            self._thread.join()
            raise self._error

    def stop(self) -> None:
        """End the loop and join the thread; one that does not answer any more is left behind, and the log says so."""
        if not self._is_running:
            return
        self._ready.wait()
        if self._loop is None or self._leave is None:
            self._thread.join()
            return  # it has ended before it began, and start said why
        self._loop.call_soon(self._leave.set)
        while not self._join(self._loop):
            pass
        if self._error is not None:
            raise self._error

    def _join(self, loop: LoopHandle) -> bool:
        """Return whether there is nothing to wait for any more: the thread has ended, or its loop does not answer."""
        answers: list[None] = []
        loop.call_soon(partial(answers.append, None))
        timeout = self._bridge.answer_timeout
        self._thread.join(timeout)
        if self._thread.is_alive() and not answers:
            _logger.error("%s\nIts thread is left behind.", describe_stall(timeout))
            return True
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            anyio.run(self._serve, backend=self._backend)
        except BaseException as error:  # noqa: BLE001  raised by start or stop
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = LoopHandle.current()
        self._leave = anyio.Event()
        async with anyio.create_task_group() as tasks:
            self._bridge.open(tasks)
            self._ready.set()
            try:
                await self._leave.wait()
            finally:  # also where somebody stopped the loop, or cancelled all its tasks
                self._bridge.close()


async def run_in_thread(bridge: Bridge, body: Callable[[], T], *, name: str, on_cancel: Callable[[], None]) -> T:
    """Run `body` on a new thread, serve its crossings on the running loop, and join it.

    When the caller is cancelled, `on_cancel` is called on the loop, the crossings are cancelled, and the thread is
    waited for all the same; then the cancellation goes on. An error of `body` is raised as itself.
    """
    outcome: Outcome[T] = Outcome()
    finished = anyio.Event()
    loop = LoopHandle.current()

    def main() -> None:
        try:
            outcome.value = body()
        except BaseException as error:  # noqa: BLE001  raised on the loop
            outcome.error = error
        finally:
            loop.call_soon(finished.set)

    cancellation: BaseException | None = None
    thread = threading.Thread(target=contextvars.copy_context().run, args=(main,), name=name)
    try:
        async with anyio.create_task_group() as tasks:
            bridge.open(tasks)
            try:
                thread.start()
                cancellation = await _wait_out(finished, [on_cancel, bridge.cancel])
                thread.join()
            finally:
                bridge.close()
    except anyio.get_cancelled_exc_class() as error:
        cancellation = error
    if cancellation is not None and isinstance(outcome.error, CrossingCancelled | None):
        raise cancellation
    return outcome.take()


async def _wait_out(finished: anyio.Event, on_cancel: list[Callable[[], None]]) -> BaseException | None:
    """Wait for `finished` whatever happens; return the cancellation that came meanwhile."""
    cancellation: BaseException | None = None
    while not finished.is_set():
        try:
            with anyio.CancelScope(shield=cancellation is not None):
                await finished.wait()
        except anyio.get_cancelled_exc_class() as error:
            cancellation = error
            for call in on_cancel:
                call()
    return cancellation

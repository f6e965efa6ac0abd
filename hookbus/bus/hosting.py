"""Who hosts a bus: entering and leaving it, and the background handlers, which live as long as the host does."""

from __future__ import annotations

__all__ = ("Hosting",)

import time
from _thread import get_ident
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.abc

from hookbus.bus.backlog import Backlog
from hookbus.bus.consumers import WorkerThread
from hookbus.bus.failures import FailureLog
from hookbus.bus.host import CallersLoop, Host, OwnThread
from hookbus.bus.looking import Looking
from hookbus.bus.outbox import Marks, Outbox, all_past, watched
from hookbus.bus.pump import Pump
from hookbus.bus.subscription import Subscription
from hookbus.errors import BusError, WrongThread, describe_error
from hookbus.hub import MessageHub
from hookbus.types import Backend

JOIN_TIMEOUT = 5.0
"""Seconds that a background handler's thread gets to come to its end, once nothing waits for it any more."""

AT_ONCE = 0.05
"""Seconds in which a thread ends that is not at work."""

Those = Callable[[Subscription[Any]], bool]
"""Tells which subscriptions are meant."""


def _all(_: Subscription[Any]) -> bool:
    return True


class Hosting(Looking):
    """The side of an event bus that lives on threads and event loops."""

    stall_timeout: float
    drain_timeout: float
    _hub: MessageHub

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self._backend: Backend = backend
        self._failure_log = FailureLog()
        self._outbox = Outbox(self._failure_log)
        self._hand_out = self._outbox.hand_out
        self._host: Host | None = None
        self._thread_id: int | None = None
        self._tasks: anyio.abc.TaskGroup | None = None
        self._is_leaving = False

    @abstractmethod
    def _restart_costs(self) -> None:
        """Begin to watch anew what awaited handlers cost."""

    # --- background handlers ------------------------------------------------------------------------------------------

    def drain(self, timeout: float | None = None, *, of: Those = _all) -> bool:
        """Wait until background handlers have handled what was published so far; return False when time ran out.

        For the thread that owns the bus. `of` tells for which of them to wait; who is late is named in the log.

        Raises:
            WrongThread: another thread asks, whose wait would serve a mailbox that is not its own.
        """
        host = self._host
        if host is None:
            return True
        if get_ident() != self._thread_id:
            msg = f"drain was called on a thread that does not own the event bus {self.name!r}"
            raise WrongThread(msg)
        marks = self._marks(of)
        if not marks:
            return True
        with watched([backlog for backlog, _ in marks], host.nudge):
            host.wait(lambda: all_past(marks), self.drain_timeout if timeout is None else timeout)
        return self._report_late(marks)

    def _marks(self, of: Those = _all) -> Marks:
        self._outbox.hand_out()
        return self._outbox.mark(filter(of, self._outbox.served()))

    def _report_late(self, marks: Marks) -> bool:
        late = {backlog for backlog, number in marks if not backlog.is_past(number)}
        for stats in [subscription.stats() for subscription in self._outbox.served() if subscription.backlog in late]:
            message = "%s is late: %d events of %s still wait for it, and it is not waited for any longer"
            self._failure_log.logger.warning(message, stats.name, stats.pending, stats.event)
        return not late

    def raise_background_errors(self) -> None:
        """Raise what a background handler with `on_error="raise"` raised, if one did."""
        self._outbox.raise_errors()

    def _full(self, blockers: Sequence[Subscription[Any]]) -> list[Backlog]:
        self._outbox.hand_out()
        return [s.backlog for s in blockers if s.backlog is not None and s.backlog.is_full and not s.backlog.is_dropping]

    def _wait_for_room(self, blockers: Sequence[Subscription[Any]]) -> None:
        """Wait until nobody who may hold up a publisher has a full backlog; who takes too long loses events from now on."""
        host = self._host
        for backlog in self._full(blockers):
            if host is not None:
                with watched([backlog], host.nudge):
                    host.wait(partial(_has_room, backlog), backlog.options.block_timeout)
            _give_up(backlog)

    async def _await_room(self, blockers: Sequence[Subscription[Any]]) -> None:
        """Wait likewise, on the event loop."""
        host = self._host
        for backlog in self._full(blockers):
            if isinstance(host, CallersLoop):
                with watched([backlog], host.nudge):
                    await host.wait_here(partial(_has_room, backlog), backlog.options.block_timeout)
            _give_up(backlog)

    # --- entering -----------------------------------------------------------------------------------------------------

    def enter(self, host: Host) -> None:
        """Give the bus to a host, which from now on owns it.

        Raises:
            BusError: it has one already.
        """
        with self._lock:
            if self._host is not None or self._is_leaving:
                msg = f"the event bus {self.name!r} is in use: a run or a with block owns it until it ends"
                raise BusError(msg)
            self._host, self._thread_id = host, host.thread_id
            self._forget_plans()  # whether emit can wait for awaited handlers depends on the host
            self._restart_costs()
            self._forget_costs()
            for subscription in self._subscriptions:
                if subscription.backlog is not None and subscription.backlog.is_closed:
                    subscription.backlog = subscription.backlog.successor()
            host.bridge_to(self._outbox, self._hub, self.stall_timeout)

    def leave(self) -> None:
        """Take the bus back from its host; what background handlers have not handled by now is cancelled and counted."""
        with self._lock:
            host, self._host, self._thread_id = self._host, None, None
            self._is_leaving = True
            self._forget_plans()
        try:
            self._end_services(host)
        finally:
            self._is_leaving = False

    def _end_services(self, host: Host | None) -> None:
        for subscription in self._outbox.close():
            self._end_service(subscription)
        with self._lock:  # another one may be leaving its block, and none must be passed over
            streams = [subscription for subscription in self._subscriptions if subscription.is_pulled]
        for subscription in streams:
            subscription.cancel()
        if host is not None:
            self._join(host, host.pump.detach())

    def _join(self, host: Host, workers: Sequence[WorkerThread]) -> None:
        """Wait for the threads of background handlers, and do meanwhile what these may wait for."""
        deadline = time.monotonic() + JOIN_TIMEOUT
        for worker in workers:
            ended = worker.join(AT_ONCE)
            left = max(0.0, deadline - time.monotonic())
            if not ended and host.on_own_loop:
                ended = worker.join(left)
            elif not ended:
                host.wait(partial(worker.join, 0.0), left)
            if worker.is_alive:
                message = "%s does not return; its thread is left behind"
                self._failure_log.logger.error(message, worker.subscription.name)

    def _end_service(self, subscription: Subscription[Any]) -> None:
        assert subscription.backlog is not None
        before = subscription.backlog.counts().cancelled
        subscription.backlog.close(keep=subscription.is_pulled)
        cancelled = subscription.backlog.counts().cancelled - before
        if cancelled:
            message = "%d events of %s were not handled by %s: the bus was left"
            self._failure_log.logger.warning(message, cancelled, subscription.event_type.__name__, subscription.name)

    def __enter__(self) -> Self:
        host = OwnThread(self._hub, self._backend)
        self.enter(host)
        try:
            host.start()
        except BaseException:
            self.leave()
            host.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        host = self._host
        assert isinstance(host, OwnThread)
        try:
            host.serve()
            self.drain()
            host.serve()
        finally:
            try:
                self.leave()
            finally:
                host.stop()
        self._tell_background_errors(error)

    async def __aenter__(self) -> Self:
        tasks = anyio.create_task_group()
        await tasks.__aenter__()
        try:
            self.enter(CallersLoop(tasks, Pump()))
        except BaseException:
            tasks.cancel_scope.cancel()
            await tasks.__aexit__(None, None, None)
            raise
        self._tasks = tasks
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._tasks is not None
        assert isinstance(self._host, CallersLoop)
        host, tasks, self._tasks = self._host, self._tasks, None
        try:
            if error is None:
                await host.finish()
                await self._drain_here(host)
        finally:
            self.leave()
            host.stop()
            await tasks.__aexit__(None, None, None)  # the body's own error goes on as itself, not in a group
        self._tell_background_errors(error)

    def _tell_background_errors(self, error: BaseException | None) -> None:
        """Raise what background handlers raised, or note it on what the block itself has raised."""
        try:
            self.raise_background_errors()
        except BaseException as failure:
            if error is None:
                raise
            error.add_note(f"and in the background: {describe_error(failure)}")

    async def _drain_here(self, host: CallersLoop) -> None:
        marks = self._marks()
        with watched([backlog for backlog, _ in marks], host.nudge):
            await host.wait_here(lambda: all_past(marks), self.drain_timeout)
        self._report_late(marks)


def _has_room(backlog: Backlog) -> bool:
    return not backlog.is_full or backlog.is_closed


def _give_up(backlog: Backlog) -> None:
    if not _has_room(backlog):
        backlog.begin_dropping()

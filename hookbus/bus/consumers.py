"""Who handles what waits for background subscribers: a task of the home loop for coroutine functions, a thread for functions."""

from __future__ import annotations

__all__ = ("WorkerThread", "consume", "rest")

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel

from hookbus._current import current_hub
from hookbus.bridge import forget_stray_cancellation, outlast
from hookbus.bus.backlog import Backlog, Outcome
from hookbus.bus.outbox import Outbox
from hookbus.bus.subscription import Subscription
from hookbus.errors import HandlerCancelled
from hookbus.events import Event
from hookbus.hub import MessageHub
from hookbus.mailbox import LoopHandle

TURN = 0.005
"""Seconds that one consumer keeps the event loop, where its handler never waits; then the others have their turn."""


async def consume(subscription: Subscription[Any], outbox: Outbox, hub: MessageHub) -> None:
    """Handle the events for a coroutine function, one after the other, until its backlog is closed."""
    backlog = subscription.backlog
    assert backlog is not None
    current_hub.set(hub)
    handle = subscription.call.compiled(subscription.handler)
    turn_ends = time.perf_counter() + TURN
    while True:
        if time.perf_counter() > turn_ends:  # a publisher may hand out faster than this handles, and for ever
            await outlast(anyio.lowlevel.checkpoint)
            turn_ends = time.perf_counter() + TURN
        event = backlog.take()
        if event is not None:
            await _handle(subscription, backlog, outbox, event, partial(handle, event, hub))
        elif backlog.is_closed:
            outbox.forget(subscription)
            return
        else:
            await outlast(partial(rest, backlog))


async def rest(backlog: Backlog) -> None:
    """Wait until something arrives, or the backlog is closed."""
    arrived = anyio.Event()
    loop, thread_id = LoopHandle.current(), threading.get_ident()

    def ring() -> None:
        if threading.get_ident() == thread_id:
            arrived.set()
        else:
            loop.call_soon(arrived.set)

    backlog.alarm = ring
    try:
        if backlog.is_empty and not backlog.is_closed:
            await arrived.wait()
    finally:
        backlog.alarm = None


async def _handle(
    subscription: Subscription[Any], backlog: Backlog, outbox: Outbox, event: Event, call: Callable[[], Any]
) -> None:
    started = time.perf_counter()
    outcome = Outcome.FAILED
    try:
        with anyio.fail_after(subscription.timeout):
            await call()
        outcome = Outcome.HANDLED
    except Exception as error:  # noqa: BLE001  its error policy decides
        outbox.fail(subscription, error, event)
    except BaseException as error:
        if isinstance(error, GeneratorExit):  # the loop was torn down under it
            outcome = Outcome.CANCELLED
            raise
        if not isinstance(error, anyio.get_cancelled_exc_class()):
            outbox.fail(subscription, error, event)  # an interrupt must not end the loop instead of the run
        elif anyio.current_effective_deadline() == float("-inf"):
            outcome = Outcome.CANCELLED
            raise
        else:
            stray = HandlerCancelled(f"{subscription.name} was cancelled, but not by its run").with_traceback(error.__traceback__)
            stray.__cause__ = error
            forget_stray_cancellation()
            outbox.fail(subscription, stray, event)
    finally:
        subscription.note_time(time.perf_counter() - started)
        backlog.settle(outcome)


class WorkerThread:
    """The thread of a background subscriber that is a plain function; joined when the bus is left."""

    def __init__(self, subscription: Subscription[Any], outbox: Outbox, hub: MessageHub) -> None:
        assert subscription.backlog is not None
        self.subscription = subscription
        self._backlog = subscription.backlog
        self._outbox = outbox
        self._hub = hub
        self._alarm = threading.Event()
        # A daemon, because a function that never returns must not keep a program from ending.
        self._thread = threading.Thread(target=self._run, name=f"hookbus-background-{subscription.name}", daemon=True)

    def start(self) -> None:
        """Begin to handle what waits."""
        self._thread.start()

    def give_up(self, error: Exception) -> None:
        """End the run with the error for which the thread could not be started; what waits is cancelled."""
        error.add_note(f"when the thread of {self.subscription.name} was to be started")
        self._backlog.close()
        self._outbox.end_run_with(error)

    @property
    def is_alive(self) -> bool:
        """Whether it has not come to its end."""
        return self._thread.is_alive()

    def join(self, timeout: float) -> bool:
        """Wait for the end of a thread whose backlog is closed; return whether it has come."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        current_hub.set(self._hub)
        handle = self.subscription.call.compiled(self.subscription.handler)
        while True:
            event = self._backlog.take()
            if event is not None:
                self._handle(event, handle)
            elif self._backlog.is_closed:
                self._outbox.forget(self.subscription)
                return
            else:
                self._rest()

    def _rest(self) -> None:
        self._alarm.clear()
        self._backlog.alarm = self._alarm.set
        if self._backlog.is_empty and not self._backlog.is_closed:
            self._alarm.wait()
        self._backlog.alarm = None

    def _handle(self, event: Event, handle: Callable[..., Any]) -> None:
        started = time.perf_counter()
        outcome = Outcome.FAILED
        try:
            handle(event, self._hub)
            outcome = Outcome.HANDLED
        except BaseException as error:  # noqa: BLE001  its error policy decides; nothing else can end a thread of ours
            self._outbox.fail(self.subscription, error, event)
        finally:
            self.subscription.note_time(time.perf_counter() - started)
            self._backlog.settle(outcome)

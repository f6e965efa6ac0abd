"""The pump: lives on the home event loop, hands out what lies in the outbox, and starts consumers for who needs one."""

from __future__ import annotations

__all__ = ("POLL", "Pump")

import threading
from functools import partial

import anyio
import anyio.abc

from hookbus.bridge import outlast
from hookbus.bus.arguments import is_async
from hookbus.bus.consumers import WorkerThread, consume
from hookbus.bus.outbox import Outbox
from hookbus.hub import MessageHub

POLL = 0.01
"""Seconds between two looks while events come."""


class Pump:
    """Serves the outbox of whatever bus its host is given."""

    def __init__(self) -> None:
        self._outbox: Outbox | None = None
        self.hub: MessageHub | None = None
        """What handlers get as `hub`."""
        self._called: anyio.Event | None = None
        self._workers: list[WorkerThread] = []
        self._lock = threading.Lock()

    def attach(self, outbox: Outbox, hub: MessageHub) -> None:
        """Begin to serve an outbox, whose handlers get that hub."""
        self._outbox, self.hub = outbox, hub

    def detach(self) -> list[WorkerThread]:
        """End serving; return the threads that were started, to be joined."""
        with self._lock:  # a thread that is just being started is among them
            self._outbox = self.hub = None
            workers, self._workers = self._workers, []
        return workers

    def call(self) -> None:
        """Wake the pump; on its loop."""
        if self._called is not None:
            self._called.set()

    async def run(self) -> None:
        """Pump until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                self._called = anyio.Event()  # before looking: who puts something from here on wakes us again
                outbox = self._outbox
                if outbox is None:
                    await outlast(self._called.wait)
                elif self._serve(outbox, tasks):
                    await outlast(partial(anyio.sleep, POLL))
                elif outbox.rest():
                    await outlast(self._called.wait)

    def _serve(self, outbox: Outbox, tasks: anyio.abc.TaskGroup) -> bool:
        found = outbox.hand_out()
        while True:
            with self._lock:
                if self._outbox is not outbox or self.hub is None:
                    return False  # the bus was left meanwhile; whoever comes now is the next pump's
                subscription = outbox.next_newcomer()
                if subscription is None:
                    return found
                found = True  # a publisher may have handed out itself
                if is_async(subscription.handler):
                    tasks.start_soon(consume, subscription, outbox, self.hub)
                else:
                    self._start_worker(WorkerThread(subscription, outbox, self.hub))

    def _start_worker(self, worker: WorkerThread) -> None:
        self._workers = [earlier for earlier in self._workers if earlier.is_alive]  # some were cancelled, and have ended
        try:
            worker.start()
        except RuntimeError as error:  # the system gives no more threads; this must not end the loop instead of the run
            worker.give_up(error)
        else:
            self._workers.append(worker)

"""Readers that wait for the next version of a message hub, on any event loop and on threads.

A waiter is woken only while it has asked to be. After each wake-up it looks every 10 ms until a look finds nothing
new, and only then asks again: a busy hub causes no wake-ups, a quiet one a single one.
"""

from __future__ import annotations

__all__ = ("Versions", "Waiters", "wait_blocking", "wait_until")

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar
from weakref import ref

import anyio

from hookbus._snapshot import MISSING, Snapshot
from hookbus.errors import RunEnded
from hookbus.mailbox import LoopHandle

T = TypeVar("T")

POLL = 0.01
"""Seconds between two looks of a reader while versions keep coming."""


class Source(Protocol):
    """What is read: the newest version, and whether it is the last one."""

    name: str
    waiters: Waiters

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        ...

    def snapshot(self) -> Snapshot:
        """Return the newest version."""
        ...


class Waiter:
    """Someone who can be woken, and is only while `armed`."""

    def __init__(self, wake: Callable[[], object]) -> None:
        self.armed = False
        self._wake = wake

    def notify(self) -> None:
        """Wake up, once, if armed."""
        if self.armed:
            self.armed = False
            self._wake()


class Waiters:
    """Everybody who waits; the writer goes through them without a lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: tuple[ref[Waiter], ...] = ()

    def __bool__(self) -> bool:
        return bool(self._known)

    def add(self, waiter: Waiter) -> None:
        """Add one; it goes when nobody holds it any more."""
        with self._lock:
            self._known = (*(known for known in self._known if known() is not None), ref(waiter))

    def notify(self) -> None:
        """Wake everybody who has asked for it."""
        for known in self._known:
            waiter = known()
            if waiter is not None:
                waiter.notify()


class Versions:
    """The versions of a hub, the newest each time, up to the last one of its run; an async iterator.

    With `keys`, only versions in which one of them was written.
    """

    def __init__(self, source: Source, keys: tuple[str, ...] = ()) -> None:
        self._source = source
        self._keys = keys
        self._seen: Snapshot | None = None
        self._shown: list[tuple[int, Any]] | None = None
        self._loop: LoopHandle | None = None
        self._arrived = anyio.Event()
        self._waiter = Waiter(self._wake)

    def __aiter__(self) -> Versions:
        return self

    async def __anext__(self) -> Snapshot:
        if self._loop is None:
            self._loop = LoopHandle.current()
            self._source.waiters.add(self._waiter)
        while True:
            snapshot = await self._next()
            if self._is_news(snapshot):
                return snapshot

    async def _next(self) -> Snapshot:
        if self._seen is not None:
            await anyio.sleep(POLL)
        while True:
            ended, snapshot = self._source.ended, self._source.snapshot()
            if snapshot is not self._seen:
                self._seen = snapshot
                return snapshot
            if ended:
                raise StopAsyncIteration
            self._arrived = anyio.Event()
            self._waiter.armed = True
            if self._source.snapshot() is snapshot and not self._source.ended:  # nothing came before we were armed
                await self._arrived.wait()

    def _wake(self) -> None:
        assert self._loop is not None
        self._loop.call_soon(lambda: self._arrived.set())

    def _is_news(self, snapshot: Snapshot) -> bool:
        if not self._keys:
            return True
        before, self._shown = self._shown, _written(snapshot, self._keys)
        return before is None or any(
            old[0] != new[0] or old[1] is not new[1] for old, new in zip(before, self._shown, strict=True)
        )


def _written(snapshot: Snapshot, keys: tuple[str, ...]) -> list[tuple[int, Any]]:
    """Return for each key how often it was recorded, and its information."""
    buffers = snapshot.log_scalars
    return [(buffers[key].num_updates if key in buffers else 0, snapshot.get_info(key, MISSING)) for key in keys]


async def wait_until(source: Source, predicate: Callable[[Snapshot], T]) -> T:
    """Return the first true value of `predicate(snapshot)`."""
    async for snapshot in Versions(source):
        value = predicate(snapshot)
        if value:
            return value
    raise _ended(source)


def wait_blocking(source: Source, predicate: Callable[[Snapshot], T], timeout: float | None) -> T:
    """Return the first true value of `predicate(snapshot)`; blocks the calling thread."""
    deadline = None if timeout is None else time.monotonic() + timeout
    arrived = threading.Event()
    waiter = Waiter(arrived.set)
    source.waiters.add(waiter)
    while True:
        ended, snapshot = source.ended, source.snapshot()
        value = predicate(snapshot)
        if value:
            return value
        if ended:
            raise _ended(source)
        arrived.clear()
        waiter.armed = True
        if source.snapshot() is not snapshot or source.ended:
            continue
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not arrived.wait(left):
            msg = f"the condition did not come true in the message hub {source.name!r} within {timeout:g} s"
            raise TimeoutError(msg)
        time.sleep(POLL if left is None else min(POLL, left))


def _ended(source: Source) -> RunEnded:
    return RunEnded(f"the run {source.name!r} ended before the condition waited for came true")

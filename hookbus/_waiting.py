"""Readers that wait for the next version of a message hub, on any event loop and on threads.

A reader is woken once, when it has asked to be. After each version it looks again 10 ms later, and only a look that
finds nothing new makes it ask: a busy hub causes no wake-ups, a quiet one a single one.
"""

from __future__ import annotations

__all__ = ("Versions", "Waiters", "wait_blocking", "wait_until")

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

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


class Waiters:
    """Everybody who has asked to be woken by the next version; neither side takes a lock."""

    def __init__(self) -> None:
        self.asking: set[Callable[[], object]] = set()
        """What wakes them."""

    @contextmanager
    def asked(self, wake: Callable[[], object]) -> Iterator[None]:
        """Have the next version call `wake`, unless the block ends before.

        A version may have come just before: look once more inside the block.
        """
        self.asking.add(wake)
        try:
            yield
        finally:
            self.asking.discard(wake)

    def notify(self) -> None:
        """Wake everybody who has asked for it."""
        for _ in range(len(self.asking)):
            try:
                wake = self.asking.pop()
            except KeyError:  # somebody no longer asks
                return
            wake()


class Versions:
    """The versions of a hub, the newest each time, up to the last one of its run; an async iterator.

    With `keys`, only versions in which one of them was written.
    """

    def __init__(self, source: Source, keys: tuple[str, ...] = ()) -> None:
        self._source = source
        self._keys = keys
        self._seen: Snapshot | None = None
        self._shown: list[tuple[int, Any]] = [(0, MISSING)] * len(keys)

    def __aiter__(self) -> Versions:
        return self

    async def __anext__(self) -> Snapshot:
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
            loop, arrived = LoopHandle.current(), anyio.Event()
            with self._source.waiters.asked(partial(loop.call_soon, arrived.set)):
                if self._source.snapshot() is snapshot and not self._source.ended:
                    await arrived.wait()

    def _is_news(self, snapshot: Snapshot) -> bool:
        if not self._keys:
            return True
        before, self._shown = self._shown, _written(snapshot, self._keys)
        return any(old[0] != new[0] or old[1] is not new[1] for old, new in zip(before, self._shown, strict=True))


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
    seen: Snapshot | None = None
    while True:
        ended, snapshot = source.ended, source.snapshot()
        value = predicate(snapshot)
        if value:
            return value
        if ended:
            raise _ended(source)
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            msg = f"the condition did not come true in the message hub {source.name!r} within {timeout:g} s"
            raise TimeoutError(msg)
        if snapshot is not seen:
            seen = snapshot
            time.sleep(POLL if left is None else min(POLL, left))
            continue
        arrived = threading.Event()
        with source.waiters.asked(arrived.set):
            if source.snapshot() is seen and not source.ended:
                arrived.wait(left)


def _ended(source: Source) -> RunEnded:
    return RunEnded(f"the run {source.name!r} ended before the condition waited for came true")

"""One writer and seven readers at once: no reader ever sees half an update, an older version, or a stalled hub.

A hub that is naive about it has to fail in the same harness, or the harness proves nothing.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import anyio
import anyio.lowlevel
import pytest

from hookbus.bus import EventBus
from hookbus.errors import MetricNotFound, RunEnded
from hookbus.hub import MessageHub
from hookbus.types import Backend
from tests.bus.ticks import Tick

SECONDS = 3.0
THREADS = 4
TASKS = 3
PATIENCE = 2.0
"""Seconds within which a read comes back, on a machine where eight busy threads share a core."""

Look = Callable[[], tuple[int, Mapping[str, Any], Mapping[str, float]]]
"""Returns a version number, and the information and the newest scalars that belong to it."""


class Hub(Protocol):
    """What is written to."""

    def update_scalars(self, values: Mapping[str, float]) -> None:
        """Append one value to each of several histories."""
        ...

    def update_info_dict(self, values: Mapping[str, Any]) -> None:
        """Set several pieces of information."""
        ...


@pytest.fixture(autouse=True)
def hasty_threads() -> Iterator[None]:
    """Have threads take turns after each microsecond instead of each five milliseconds."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


class Readers:
    """Threads and tasks that look again and again, and keep the first thing that must not be."""

    def __init__(self, look: Look) -> None:
        self.looks = 0
        self.slowest = 0.0
        self.found: str | None = None
        self._look = look
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._read_on_thread) for _ in range(THREADS)]
        self._threads.append(threading.Thread(target=anyio.run, args=(self._read_in_tasks,)))

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _read_on_thread(self) -> None:
        seen = -1
        while not self._over.is_set():
            seen = self._check(seen)

    async def _read_in_tasks(self) -> None:
        async def read() -> None:
            seen = -1
            while not self._over.is_set():
                seen = self._check(seen)
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            for _ in range(TASKS):
                tasks.start_soon(read)

    def _check(self, seen: int) -> int:
        began = time.monotonic()
        version, info, scalars = self._look()
        self.slowest = max(self.slowest, time.monotonic() - began)
        self.looks += 1
        if len({info.get("a"), info.get("b"), info.get("c")}) > 1:
            self.found = f"half an update of information: {info}"
        elif len({scalars.get("a"), scalars.get("b"), scalars.get("c")}) > 1:
            self.found = f"half an update of scalars: {scalars}"
        elif version < seen:
            self.found = f"version {version} after {seen}"
        if self.found is not None:
            self._over.set()
        return version


def write_round(hub: Hub, n: int) -> None:
    """Write values that always belong together."""
    hub.update_info_dict({"a": n, "b": n, "c": n})
    hub.update_scalars({"a": float(n), "b": float(n), "c": float(n)})


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_readers_never_see_half_an_update(backend: Backend) -> None:
    """The writer is now the training thread, now an awaited handler; each publish is one version."""
    hub = MessageHub("hammered")
    rounds = 0

    def look() -> tuple[int, Mapping[str, Any], Mapping[str, float]]:
        snapshot = hub.snapshot()
        version, scalars = snapshot.version, snapshot.scalars
        info = {key: snapshot.get_info(key) for key in "abc"}
        with contextlib.suppress(MetricNotFound):
            assert [snapshot.get_scalar(key).current() for key in "abc"] == [scalars["a"]] * 3
            assert snapshot.runtime_info == info
            assert info["a"] == scalars["a"]
        return version, info, scalars

    async def awaited(event: Tick, hub: MessageHub) -> None:
        with hub.update():
            write_round(hub, event.n)

    bus = EventBus(hub=hub, backend=backend, cost_warning=1e9)
    bus.subscribe(Tick, lambda event, hub: write_round(hub, event.n), when=lambda event: event.n % 8)
    bus.subscribe(Tick, awaited, when=lambda event: not event.n % 8)
    hub.begin_run(threading.get_ident())
    with bus, Readers(look) as readers:
        deadline = time.monotonic() + SECONDS / 2
        while time.monotonic() < deadline and readers.found is None:
            rounds += 1
            bus.emit(Tick(n=rounds))
    hub.end_run()
    assert readers.found is None
    assert readers.slowest < PATIENCE
    assert readers.looks > 20
    assert rounds > 20
    assert hub.snapshot().get_scalar("a").data[0] == list(range(1, rounds + 1))


def test_readers_see_whole_groups_of_other_threads() -> None:
    """Written as two updates in one block, on a thread that is not the one that commits."""
    hub = MessageHub()
    over = threading.Event()

    def look() -> tuple[int, Mapping[str, Any], Mapping[str, float]]:
        snapshot = hub.snapshot()
        return snapshot.version, snapshot.runtime_info, {}

    def write() -> None:
        n = 0
        while not over.is_set():
            n += 1
            with hub.update():
                hub.update_info("a", n)
                hub.update_info("b", n)
                hub.update_info("c", n)

    writer = threading.Thread(target=write)
    hub.begin_run(threading.get_ident())
    writer.start()
    with Readers(look) as readers:
        deadline = time.monotonic() + 0.7
        while time.monotonic() < deadline and readers.found is None:
            hub.update_info("mine", 1)
            hub.commit()
    over.set()
    writer.join()
    hub.end_run()
    assert readers.found is None
    assert hub.get_info("a") == hub.get_info("c") > 1


class NaiveHub:
    """What one writes first: two dicts, and a version that is counted up after each update."""

    def __init__(self) -> None:
        self.version = 0
        self.info: dict[str, Any] = {}
        self.scalars: dict[str, float] = {}

    def update_info_dict(self, values: Mapping[str, Any]) -> None:
        """Set several pieces of information, one after the other."""
        for key, value in values.items():
            self._set(self.info, key, value)

    def update_scalars(self, values: Mapping[str, float]) -> None:
        """Set several scalars, one after the other."""
        for key, value in values.items():
            self._set(self.scalars, key, value)

    def _set(self, where: dict[str, Any], key: str, value: Any) -> None:
        where[key] = value
        self.version += 1


def test_a_naive_hub_is_found_out_within_a_second() -> None:
    """The same harness sees half an update there, so it would see one here."""
    hub = NaiveHub()
    with Readers(lambda: (hub.version, dict(hub.info), dict(hub.scalars))) as readers:
        deadline = time.monotonic() + 1.0
        rounds = 0
        while time.monotonic() < deadline and readers.found is None:
            rounds += 1
            write_round(hub, rounds)
    assert readers.found is not None
    assert "half an update" in readers.found


def test_a_writer_is_not_slowed_down_by_those_who_wait() -> None:
    """Seven wait for a version that never comes, with predicates that take their time; all hear of the end."""
    hub = MessageHub()
    ended: list[int] = []

    def predicate(_: object) -> bool:
        time.sleep(0.002)
        return False

    def wait(number: int) -> None:
        try:
            hub.wait_until_blocking(predicate)
        except RunEnded:
            ended.append(number)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(7)]
    for thread in threads:
        thread.start()
    hub.begin_run(threading.get_ident())
    slowest = 0.0
    for n in range(2000):
        began = time.monotonic()
        write_round(hub, n)
        hub.commit()
        slowest = max(slowest, time.monotonic() - began)
    hub.end_run()
    for thread in threads:
        thread.join()
    assert sorted(ended) == list(range(7))
    assert slowest < PATIENCE

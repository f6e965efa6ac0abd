"""Drill 17: subscribers that never take anything, and 100,000 events."""

from __future__ import annotations

import gc
import itertools
import resource
import threading
import time
from array import array
from pathlib import Path
from typing import Any

import anyio

from hookbus.bus import Background, EventBus
from hookbus.bus.backlog import Backlog
from hookbus.events import AfterTrainIter, Event
from tests.drills.children import in_child
from tests.drills.drill import Drill, Spec
from tests.drills.runs import make_run, warm_up
from tests.runner.builders import same, weights

EVENTS = 100_000
SIZE = 1024
GROWTH = 5 << 20
"""How many bytes more may be in use in the end."""
LATENCY = 1e-3
"""Seconds within which 99 of 100 publishes have returned."""
PATIENCE = 0.5
"""Seconds that a publisher waits for who has asked for it."""


class Grain(Event):
    """One of many."""

    n: int
    text: str = ""


class Endless(Backlog):
    """A twin: keeps whatever comes."""

    def _make_room(self) -> bool:
        return True


COUNTS = ("published", "handled", "failures", "dropped", "cancelled", "pending")

KINDS = ("function", "coroutine function", "stream")
LANES = {
    "drop_oldest": Background(maxsize=SIZE),
    "latest": Background(overflow="latest"),
    "block": Background(maxsize=SIZE, overflow="block", block_timeout=PATIENCE),
}


def run(drill: Drill) -> None:
    """Fill each lane for a function, for a coroutine function, and for a stream that nobody reads; then do it in a run."""
    warm_up()
    for lane, kind in drill.within(drill.shuffled(itertools.product(LANES, KINDS)), 0.9):
        title = f"{lane}, {kind}"
        ended = in_child(lambda: _fill(drill, lane, kind))  # noqa: B023  it runs at once
        if drill.check(ended.code == 0, f"{title}: {ended}"):
            _check(drill, title, lane, ended.value)
    ended = in_child(lambda: _train(drill.fresh(), drill.fresh()))
    drill.check(ended.value is True, f"a run with consumers that sleep: {ended}")


def _check(drill: Drill, title: str, lane: str, found: dict[str, Any]) -> None:
    published, pending = found["published"], found["pending"]
    drill.check(published == EVENTS, f"{title}: {published} were published")
    drill.check(sum(found[name] for name in COUNTS[1:]) == published, f"{title}: the counts do not balance: {found}")
    most = 2 if lane == "latest" else SIZE + 1  # one is in its hands
    drill.check(pending <= most, f"{title}: {pending} are kept, expected {most} at most")
    drill.check(found["growth"] <= GROWTH, f"{title}: {found['growth'] >> 20} MiB more in use")
    drill.check(found["latency"] <= LATENCY, f"{title}: 1 of 100 publishes took {found['latency'] * 1000:.2f} ms or more")
    most_seconds = 20 * PATIENCE if lane == "block" else PATIENCE
    drill.check(found["slowest"] <= most_seconds, f"{title}: a publish took {found['slowest']:.2f} s")
    drill.facts["growth in KiB"] = max(drill.facts.get("growth in KiB", 0), found["growth"] >> 10)
    drill.facts["p99 in us"] = max(drill.facts.get("p99 in us", 0.0), round(found["latency"] * 1e6, 1))


def _fill(drill: Drill, lane: str, kind: str) -> dict[str, Any]:
    """Publish to one who never takes anything, and return what came of it."""
    if drill.is_broken:
        Backlog._make_room = Endless._make_room  # type: ignore[assignment, method-assign]
    release = threading.Event()
    with EventBus(drain_timeout=0.01) as bus:
        _subscribe(bus, lane, kind, release)
        times = array("d", [0.0]) * EVENTS
        _publish(bus, times, range(3 * SIZE))  # so that all is there that a full lane needs
        gc.collect()
        before = _memory()
        _publish(bus, times, range(3 * SIZE, EVENTS))
        gc.collect()
        growth = _memory() - before
        (stats,) = bus.stats()
        release.set()
    slowest = sorted(times)[-EVENTS // 100 :]
    counts = {name: getattr(stats, name) for name in COUNTS}
    return counts | {"growth": growth, "latency": slowest[0], "slowest": slowest[-1]}


def _subscribe(bus: EventBus, lane: str, kind: str, release: threading.Event) -> None:
    options = LANES[lane]
    if kind == "stream":
        stream = bus.stream(Grain, maxsize=options.maxsize, overflow=options.overflow, block_timeout=options.block_timeout)
        anyio.run(stream.__aenter__)  # and nobody ever reads it
    else:
        bus.subscribe(Grain, release.wait if kind == "function" else anyio.sleep_forever, background=options)


def _publish(bus: EventBus, times: array[float], numbers: range) -> None:
    for n in numbers:
        began = time.perf_counter()
        bus.emit(Grain(n=n, text="x" * 100))
        times[n] = time.perf_counter() - began


def _memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _train(straight: Path, watched: Path) -> bool:
    """Return whether a run that is watched by consumers which sleep ends with the same weights, bit for bit."""
    release = threading.Event()
    runners = [make_run(path, 50, checkpoint=dict(interval=-1)) for path in (straight, watched)]
    bus = runners[1].bus
    bus.drain_timeout = 0.01
    for options in LANES.values():
        bus.subscribe(AfterTrainIter, anyio.sleep_forever, background=options)
    slow = bus.subscribe(AfterTrainIter, release.wait, background=Background(maxsize=2))
    for runner in runners:
        runner.train()
        release.set()
    return same(weights(runners[0].model), weights(runners[1].model)) and slow.stats().published == 50


SPEC = Spec(
    number=17,
    name="slow consumers",
    promise="P7",
    expected="memory stays as it is, the counts balance, nobody waits for who did not ask for it",
    twin="keeps whatever comes",
    run=run,
    weight=2,
)

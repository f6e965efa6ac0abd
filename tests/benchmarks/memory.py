"""Whether memory stays flat over 1,000,000 iterations, once the histories are as long as they get.

A watcher follows the run and a snapshot is read now and then, because what readers hold must go, too. Memory is what
Linux says the process has resident.
"""

from __future__ import annotations

import gc
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio

from hookbus import AfterTrainIter, EventBus
from hookbus.hub import MessageHub
from tests.benchmarks.measure import Row

ITERATIONS = 1_000_000
WARM_UP = 50_000
"""Iterations before the first look: the allocator has its arenas by then."""
LOOK_EVERY = 50_000
CROSS_EVERY = 1_000
"""Iterations between two calls of an awaited handler, which cost more than all the rest."""
HISTORY = 1_000_000
KEYS = ("train/loss", "train/lr", "train/time", "train/data_time")
LIMIT = 4.0
"""MB; what the allocator gains and loses by itself."""


def rows() -> Iterator[Row]:
    """Measure the memory of a hub, and of a bus that publishes to a hook and to an awaited handler."""
    if not sys.platform.startswith("linux"):
        yield Row("memory over 1,000,000 iterations", "only measured on Linux", "for information", True)
        return
    yield _row("a hub", _iterate_hub)
    yield _row("a bus and its hub", _iterate_bus)


def _row(what: str, iterate: Callable[[MessageHub, int], None]) -> Row:
    hub = _full_hub(what.replace(" ", "_"))
    with _watched(hub) as seen:
        iterate(hub, WARM_UP)
        looks = [_resident()]
        for _ in range(ITERATIONS // LOOK_EVERY):
            iterate(hub, LOOK_EVERY)
            assert hub.snapshot().scalars.keys() == set(KEYS)
            looks.append(_resident())
    grown = max(looks) - looks[0]
    end = looks[-1] - looks[0]
    measured = f"+{grown:.1f} MB at most, {end:+.1f} MB at the end (of {looks[0]:.0f} MB; {seen[0]:,} versions watched)"
    return Row(f"memory of {what} over {ITERATIONS:,} iterations, 4 full histories", measured, f"+{LIMIT:.0f} MB", grown <= LIMIT)


def _resident() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _iterate_hub(hub: MessageHub, iterations: int) -> None:
    for _ in range(iterations):
        _record(hub)
        hub.commit()


def _iterate_bus(hub: MessageHub, iterations: int) -> None:
    async def awaited(event: AfterTrainIter) -> None: ...

    bus = EventBus(hub=hub, cost_warning=math.inf)
    bus.subscribe(AfterTrainIter, lambda: _record(hub))
    bus.subscribe(AfterTrainIter, awaited, every=CROSS_EVERY)
    with bus:
        for i in range(iterations):
            bus.emit(AfterTrainIter(epoch=0, iter=i, batch_idx=i))


def _record(hub: MessageHub) -> None:
    hub.step += 1
    hub.update_info("iter", hub.step)
    hub.update_scalar("train/loss", 1 / hub.step)
    hub.update_scalar("train/lr", 0.1)
    hub.update_scalars({"train/time": 0.2, "train/data_time": 0.1})


def _full_hub(name: str) -> MessageHub:
    """Return the hub of a live run of this thread, with histories that cannot get longer."""
    hub = MessageHub(name)
    hub.begin_run(threading.get_ident())
    columns = ([0.5] * HISTORY, [1] * HISTORY, range(HISTORY))
    hub.load_state_dict({"log_scalars": dict.fromkeys(KEYS, columns), "runtime_info": {}})
    del columns
    hub.step = HISTORY
    return hub


@contextmanager
def _watched(hub: MessageHub) -> Iterator[list[int]]:
    """Follow the hub on a thread until the run ends; count the versions seen."""
    seen = [0]

    async def watch() -> None:
        async for snapshot in hub.watch("train/loss"):
            assert len(snapshot.get_scalar("train/loss")) == HISTORY
            seen[0] += 1

    thread = threading.Thread(target=anyio.run, args=(watch,))
    thread.start()
    try:
        yield seen
    finally:
        hub.end_run()
        thread.join()

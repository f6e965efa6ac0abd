"""Drill 2: `kill -9` at a random moment, 300 times, of a process that saves as fast as it can, and of whole training runs."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hookbus.checkpoint import Files
from hookbus.checkpoint.retention import Retention
from tests.checkpoint.builders import make_store
from tests.drills.children import LIMIT, Child, wait_for_byte
from tests.drills.drill import Drill, Spec
from tests.drills.faults import CopyingFiles
from tests.drills.runs import Acknowledging, iterations_in, make_run, warm_up
from tests.drills.states import save, step_of

KILLS = 300
RUNS = 30
PARTS = 2
"""Processes that kill at the same time, each in a directory of its own: forking and dying take most of the time."""
DELAY = 0.03
"""Seconds after its first checkpoint within which a process is killed."""


def run(drill: Drill) -> None:
    """Have each part kill its share, and put together what they found."""
    warm_up()
    started = time.monotonic()
    limit = 3600 if drill.is_long or drill.is_broken else int(drill.seconds) + 2 * LIMIT
    parts = [Child(lambda: _part(drill, number), limit) for number in range(PARTS)]  # noqa: B023  it runs at once
    drill.facts["kills"] = 0
    for number, ended in enumerate(part.join() for part in parts):
        found = ended.value or {"checked": 0, "wrong": [], "facts": {"kills": 0}}
        drill.check(ended.code == 0, f"part {number} ended with {ended.code}: {ended.error}")
        drill.checked += found["checked"]
        drill.wrong += found["wrong"]
        drill.facts["kills"] += found["facts"].pop("kills")
        drill.facts |= found["facts"]
    drill.facts["kills per second"] = round(drill.facts["kills"] / (time.monotonic() - started), 1)


def _part(whole: Drill, number: int) -> dict[str, Any]:
    """Kill both kinds of process again and again, each going on where the last one ended."""
    directory = whole.directory / f"part_{number}"
    directory.mkdir()
    seed = whole.random.randrange(1 << 32) + number
    drill = Drill(directory, seed, whole.seconds, whole.is_long, whole.is_broken, facts={"kills": 0})
    files: type[Files] = CopyingFiles if drill.is_broken else Files
    work_dir = drill.fresh()
    _kill(drill, work_dir, drill.times(KILLS // PARTS), 0.8, lambda told: _keep_saving(work_dir, files, told))
    if not drill.is_broken:
        training = drill.fresh()
        _kill(drill, training, drill.times(RUNS // PARTS), 1.0, lambda told: _train(training, told))
    return {"checked": drill.checked, "wrong": drill.wrong, "facts": drill.facts}


def _kill(drill: Drill, work_dir: Path, trials: range, share: float, task: Callable[[int], object]) -> None:
    acknowledged = 0
    for trial in drill.within(trials, share):
        listening, told = os.pipe()
        child = Child(lambda: task(told))  # noqa: B023  it runs at once
        os.close(told)
        has_begun = wait_for_byte(listening)
        delay = drill.random.uniform(0, DELAY)
        time.sleep(delay)
        child.kill()
        acknowledged += has_begun + _count(listening)
        ended = child.join()
        drill.check(has_begun and ended.code == -9, f"trial {trial}: ended by itself with {ended.code}: {ended.error}")
        found = _newest(drill, work_dir, trial)
        situation = f"trial {trial}, killed after {delay * 1000:.1f} ms"
        drill.check(found >= acknowledged, f"{situation}: {acknowledged} was acknowledged, the newest is {found}")
        acknowledged = found
        drill.facts["kills"] += 1
    drill.facts[f"steps in {work_dir.parent.name}/{work_dir.name}"] = acknowledged


def _count(listening: int) -> int:
    """Return how many more steps were acknowledged before the end."""
    count = 0
    os.set_blocking(listening, True)
    while chunk := os.read(listening, 4096):
        count += len(chunk)
    os.close(listening)
    return count


def _newest(drill: Drill, work_dir: Path, trial: int) -> int:
    """Check every checkpoint that is listed, and return the newest step."""
    store = make_store(work_dir)
    drill.check(not store.damaged(), f"trial {trial}: {store.damaged()}")
    for info in store.list():
        drill.check(iterations_in(info.path) == info.iter, f"trial {trial}: {info.name} does not hold what it says")
    latest = store.latest()
    return latest.iter if latest is not None else 0


def _keep_saving(work_dir: Path, files: type[Files], told: int) -> None:
    """Save one step after the other, from the newest one on, and keep two."""
    store = make_store(work_dir, files())
    store.clean()
    latest = store.latest()
    for step in itertools.count(1 if latest is None else step_of(latest.path) + 1):
        path = save(store, step)
        os.write(told, b".")
        for name in Retention(2).superseded(store.list(), protected={path.name}):
            store.remove(name)


def _train(work_dir: Path, told: int) -> None:
    """Train for ever, with a checkpoint after each iteration."""
    make_run(work_dir, iterations=10**6, hooks=[Acknowledging(told)]).train()


SPEC = Spec(
    number=2,
    name="random kills",
    promise="P14",
    expected="every checkpoint that is listed loads, and the newest is never older than what was acknowledged",
    twin="renames by copying",
    run=run,
    weight=4,
)

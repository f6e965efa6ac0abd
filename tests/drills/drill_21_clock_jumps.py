"""Drill 21: the clock goes back an hour, forward a day, trembles or stands still; the times of files say nothing."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hookbus.checkpoint import CheckpointInfo, CheckpointStore
from tests.checkpoint.builders import make_store
from tests.drills.children import in_child
from tests.drills.drill import Drill, Spec
from tests.drills.runs import iterations_in, make_run, warm_up

HOUR, DAY = 3600.0, 86400.0

_real_time, _real_strftime = time.time, time.strftime


class NewestByTime(CheckpointStore):
    """A twin: the newest checkpoint is the one that was written last."""

    def list(self) -> Sequence[CheckpointInfo]:
        """Return them by the time of their files."""
        return sorted(super().list(), key=lambda info: info.path.stat().st_mtime)


Clock = Callable[[], float]


def _clocks(seed: int) -> dict[str, Clock]:
    """Return what a clock may say, each time it is asked."""
    start, dice = _real_time(), random.Random(seed)
    return {
        "back an hour each time": _steps(start, -HOUR),
        "forward a day each time": _steps(start, DAY),
        "trembling": lambda: start + dice.choice((-HOUR, -1.0, 0.0, 0.001, 1.0, DAY)),
        "standing still": lambda: start,
        "at the beginning of time": lambda: 0.0,
    }


def _steps(start: float, step: float) -> Clock:
    asked = iter(range(10**9))
    return lambda: start + step * next(asked)


def run(drill: Drill) -> None:
    """Train, resume and start afresh under each clock, and shuffle the times of all files in between."""
    warm_up()
    store_class = NewestByTime if drill.is_broken else CheckpointStore
    for title in drill.within(drill.shuffled(_clocks(drill.seed))):
        _check(drill, title, store_class)


def _check(drill: Drill, title: str, store_class: type[CheckpointStore]) -> None:
    work_dir = drill.fresh()
    for iterations, resume in ((4, "auto"), (5, True), (3, False), (2, False)):
        _shuffle_times(drill, work_dir)
        ended = in_child(lambda: _train(work_dir, iterations, resume, title, drill.seed))  # noqa: B023  it runs at once
        drill.check(ended.value == iterations, f"{title}, up to {iterations}: {ended}")
        _shuffle_times(drill, work_dir)
        found = [info.name for info in store_class(work_dir / "checkpoints").list()]
        expected = [f"iter_{iterations - 1}", f"iter_{iterations}"]
        drill.check(found == expected, f"{title}, up to {iterations}: the newest are {found}, expected {expected}")
    aside = [path for path in work_dir.glob("checkpoints_before_*/iter_*") if iterations_in(path) > 0]
    drill.check(len(aside) == 4, f"{title}: of two earlier runs with two checkpoints each, {len(aside)} were kept")
    logs = list(work_dir.glob("*/run.json"))
    drill.check(len(logs) == 4, f"{title}: four starts left {len(logs)} records")
    drill.check(not make_store(work_dir).damaged(), f"{title}: damaged")
    drill.drop(work_dir)


def _train(work_dir: Path, iterations: int, resume: bool | str, title: str, seed: int) -> int:
    clock = _clocks(seed)[title]
    time.time = clock
    time.time_ns = lambda: int(clock() * 1e9)
    time.strftime = lambda form, *given: _real_strftime(form, *(given or (time.localtime(clock()),)))
    runner = make_run(work_dir, iterations, resume=resume)
    runner.train()
    return runner.iter


def _shuffle_times(drill: Drill, work_dir: Path) -> None:
    """Give every file and directory a time that has nothing to do with when it was made, some of them the same."""
    times = [0, 1, int(_real_time()), int(_real_time() + DAY)]
    for path in work_dir.rglob("*"):
        moment = drill.random.choice(times)
        os.utime(path, (moment, moment))


SPEC = Spec(
    number=21,
    name="clock jumps",
    promise="P14",
    expected="the newest checkpoint is the one of the highest step, and nothing is lost, whatever the clock says",
    twin="takes the file written last for the newest",
    run=run,
)

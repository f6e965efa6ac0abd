"""Drill 4: files may not grow beyond a limit, and the system takes only a part of each write."""

from __future__ import annotations

import errno
import resource
from pathlib import Path
from typing import Any

import torch

from hookbus.checkpoint import save_checkpoint
from hookbus.errors import CheckpointWriteError
from tests.checkpoint.builders import make_store
from tests.drills.children import in_child
from tests.drills.drill import Drill, Spec
from tests.drills.faults import ShortWrites, ShortWritesUnnoticed
from tests.drills.states import check_disk, save

LIMITS = (100_000, 299_999, 8192, 1024, 511, 64, 1, 0)
LARGE = 75_000
"""How many numbers a checkpoint holds that is larger than every limit."""


def run(drill: Drill) -> None:
    """Try each limit, then short writes."""
    for limit in drill.within(LIMITS):
        _check_limit(drill, limit)
    _check_short_writes(drill)


def _check_limit(drill: Drill, limit: int) -> None:
    work_dir = drill.fresh()
    save(make_store(work_dir), 1)
    ended = in_child(lambda: _save_under(work_dir, limit))
    found = ended.value or {}
    situation = f"files of at most {limit} bytes"
    drill.check(found.get("errno") == errno.EFBIG, f"{situation}: {ended}")
    drill.check(found.get("left") == [], f"{situation}: left at once: {ended}")
    drill.check(found.get("saved_later"), f"{situation}: it does not save once the limit is gone: {ended}")
    check_disk(drill, work_dir, {"iter_1": {1}, "iter_3": {3}}, situation)


def _save_under(work_dir: Path, limit: int) -> dict[str, Any]:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    found: dict[str, Any] = {}
    checkpoint = {"state_dict": {"weight": torch.ones(LARGE)}}
    try:
        save_checkpoint(make_store(work_dir), "iter_2", checkpoint, epoch=2, iter=2)
    except CheckpointWriteError as error:
        found["errno"] = error.errno
    found["left"] = [str(path) for path in work_dir.rglob(".*")]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    found["saved_later"] = save(make_store(work_dir), 3).exists()
    return found


def _check_short_writes(drill: Drill) -> None:
    work_dir = drill.fresh()
    save(make_store(work_dir, ShortWritesUnnoticed() if drill.is_broken else ShortWrites()), 1)
    check_disk(drill, work_dir, {"iter_1": {1}}, "the system takes half of each write")


SPEC = Spec(
    number=4,
    name="file size limit and short writes",
    promise="P16",
    expected="CheckpointWriteError with EFBIG, the earlier checkpoint intact, nothing left; short writes are completed",
    twin="does not look at how much of a write the system took",
    run=run,
    weight=0.5,
)

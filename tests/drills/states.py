"""Checkpoints whose content says which step they are from, and what has to hold for all that are on disk."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from hookbus.checkpoint import CheckpointStore, load_checkpoint, save_checkpoint
from hookbus.errors import CheckpointError
from tests.checkpoint.builders import assert_same, make_store
from tests.drills.drill import Drill


@functools.lru_cache(maxsize=4096)
def content(step: int) -> dict[str, Any]:
    """Return the whole content of the checkpoint of a step: of each kind a little, so that few operations write it."""
    return {
        "meta": {"epoch": step, "iter": step},
        "state_dict": {"weight": torch.full((4, 4), step / 7)},
        "optimizer": {"state": {0: {"step": torch.tensor(float(step)), "momentum": None}}},
        "rng": {"torch": torch.tensor([step, step + 1])},
        "progress": {"best": float("nan"), "seen": (step, -step)},
    }


def save(store: CheckpointStore, step: int, name: str = "", **options: Any) -> Path:
    """Commit the checkpoint of a step, which may take the place of one of the same name."""
    options = {"epoch": step, "iter": step, "replace": True} | options
    return save_checkpoint(store, name or f"iter_{step}", content(step), **options)


def step_of(path: Path) -> int:
    """Read a checkpoint, compare the whole of it with what its step has to hold, and return the step.

    Raises:
        CheckpointError: it is damaged.
        AssertionError: it passed as sound and is not what was saved.
    """
    loaded = load_checkpoint(path)
    step = int(loaded["meta"]["epoch"])
    assert_same(loaded, content(step))
    return step


def check_disk(drill: Drill, work_dir: Path, acknowledged: Mapping[str, Collection[int]], situation: str) -> None:
    """Check what a crash or an error leaves.

    All that is listed is sound and is what was saved, nothing that was acknowledged is lost, the next start cleans up, and saving
    goes on.

    Args:
        drill: counts the checks.
        work_dir: the directory of the run.
        acknowledged: the steps that each of these checkpoints may be from.
        situation: how it came about, for the report.
    """
    store = make_store(work_dir)
    for info in store.list():
        drill.check(_is_sound(info.path, info.iter), f"{situation}: {info.name} is listed and is not what was saved")
    drill.check(not store.damaged(), f"{situation}: {store.damaged()}")
    store.clean()
    for name, steps in acknowledged.items():
        drill.check(_step_or_none(store.directory / name) in steps, f"{situation}: {name} was acknowledged and is lost")
    left = [str(path.relative_to(work_dir)) for path in work_dir.rglob(".*")]
    drill.check(not left, f"{situation}: left over: {left}")
    after = save(store, 9, "afterwards")
    drill.check(_is_sound(after, 9), f"{situation}: saving does not work afterwards")


def _is_sound(path: Path, step: int) -> bool:
    return _step_or_none(path) == step


def _step_or_none(path: Path) -> int | None:
    try:
        return step_of(path)
    except (CheckpointError, AssertionError):
        return None

"""Drill 3: the disk is full or refuses: really, on a file system of 256 KiB, and with each error number at each operation."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hookbus.checkpoint import CheckpointStore, Files, save_checkpoint
from hookbus.errors import CheckpointWriteError
from tests.checkpoint.builders import FaultyFiles, make_store
from tests.drills.children import in_child, mount_memory
from tests.drills.drill import Drill, Spec
from tests.drills.faults import ERRORS, ErrorsUnnoticed, FaultsUnnoticed
from tests.drills.states import check_disk, save

SIZE = 256 * 1024
LEFTOVER = f".iter_1.tmp-{'0' * 16}"

Act = Callable[[CheckpointStore], object]
ACTS: Mapping[str, tuple[Act, Mapping[str, Collection[int]]]] = {
    "a save": (lambda store: save(store, 2), {"iter_1": {1}}),
    "a replacement": (lambda store: save(store, 5, "iter_1", iter=5), {"iter_1": {1, 5}}),
    "a removal": (lambda store: store.remove("iter_1"), {}),
    "a clean-up": (lambda store: store.clean(), {"iter_1": {1}}),
}


def run(drill: Drill) -> None:
    """Fill a small disk, then refuse each operation with each error number, once and from there on."""
    _check_full_disk(drill)
    operations = [(title, number) for title in ACTS for number in range(1, _count(drill, title) + 1)]
    for (title, number), code, for_ever in drill.within(drill.shuffled(itertools.product(operations, ERRORS, (False, True)))):
        _refuse(drill, title, number, code, for_ever=for_ever)
    drill.facts["operations"] = len(operations)
    drill.facts["errors"] = [errno.errorcode[code] for code in ERRORS]


def _refuse(drill: Drill, title: str, number: int, code: int, *, for_ever: bool) -> None:
    """Let one operation fail, or that one and all that need room after it."""
    work_dir = _prepared(drill)
    faulty = (FaultsUnnoticed if drill.is_broken else FaultyFiles)(number, code, for_ever=for_ever)
    error: CheckpointWriteError | None = None
    try:
        ACTS[title][0](make_store(work_dir, faulty))
    except CheckpointWriteError as refused:
        error = refused
    since = "from" if for_ever else "at"
    situation = f"{title}, {errno.errorcode[code]} {since} operation {number} {faulty.log[number - 1 :][:1]}"
    drill.check(error is not None and error.errno == code, f"{situation}: the error is {error!r}")
    drill.check(str(work_dir) in str(error), f"{situation}: no path in {error}")
    left = [path for path in work_dir.rglob(".*") if path.name != LEFTOVER] if title == "a save" and not for_ever else []
    drill.check(not left, f"{situation}: left at once: {left}")
    check_disk(drill, work_dir, ACTS[title][1], situation)
    drill.drop(work_dir)


def _count(drill: Drill, title: str) -> int:
    """Return how many operations there are to fail."""
    counting = FaultyFiles()
    ACTS[title][0](make_store(_prepared(drill), counting))
    return len(counting.log)


def _prepared(drill: Drill) -> Path:
    """Return the directory of a run with one checkpoint, and with what a crash left."""
    work_dir = drill.fresh()
    save(make_store(work_dir), 1)
    (work_dir / "checkpoints" / LEFTOVER).mkdir()
    return work_dir


# --- a disk that is really full ---------------------------------------------------------------------------------------


def _check_full_disk(drill: Drill) -> None:
    place = drill.fresh()
    ended = in_child(lambda: _fill(place, ErrorsUnnoticed() if drill.is_broken else Files()))
    value = ended.value or {"unmountable": "", "problems": [f"ended with {ended.code}: {ended.error}"]}
    if value["unmountable"]:
        drill.leave_out("a file system of 256 KiB", value["unmountable"])
        return
    drill.check(not value["problems"], f"a full disk: {value['problems']}")
    drill.facts["saved before it was full"] = value.get("saved")


def _fill(place: Path, files: Files) -> dict[str, Any]:
    try:
        mount_memory(place, SIZE)
    except OSError as error:
        return {"unmountable": str(error), "problems": []}
    store = make_store(place, files)
    saved, refused = _save_until_full(store)
    problems = []
    if refused is None or refused.errno != errno.ENOSPC:
        problems.append(f"the error is {refused!r}")
    problems += [f"{name} is lost" for step, name in enumerate(saved, 1) if not _holds(store.directory / name, step)]
    problems += [f"left: {path}" for path in place.rglob(".*")]
    store.remove(saved[0])
    _save_large(make_store(place), 99)
    if not _holds(store.directory / "iter_99", 99):
        problems.append("there is room again, and saving does not work")
    return {"unmountable": "", "problems": problems, "saved": len(saved)}


def _save_until_full(store: CheckpointStore) -> tuple[list[str], CheckpointWriteError | None]:
    saved: list[str] = []
    for step in range(1, 20):
        try:
            saved.append(_save_large(store, step))
        except CheckpointWriteError as error:
            return saved, error
    return saved, None


def _save_large(store: CheckpointStore, step: int) -> str:
    """Save about 40 KiB."""
    checkpoint = {"meta": {"epoch": step}, "state_dict": {"weight": torch.full((10_000,), float(step))}}
    return save_checkpoint(store, f"iter_{step}", checkpoint, epoch=0, iter=step).name


def _holds(path: Path, step: int) -> bool:
    try:
        CheckpointStore(path.parent).verify(path.name)
        return bool((load_file(path / "model.safetensors")["weight"] == step).all())
    except Exception:  # noqa: BLE001  whatever is wrong with it, it is not what was saved
        return False


SPEC = Spec(
    number=3,
    name="disk full, and every error at every operation",
    promise="P16",
    expected="CheckpointWriteError with path and number, the earlier checkpoint intact, nothing left, saving works afterwards",
    twin="takes no notice of an error while writing",
    run=run,
    weight=2,
)

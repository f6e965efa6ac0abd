"""Drill 5: the directory may not be written, as a user without rights finds it: said before training begins."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hookbus.errors import CheckpointWriteError
from hookbus.events import AfterTrainIter
from tests.checkpoint.builders import make_store
from tests.drills.children import NOBODY, become_nobody, in_child, mount_memory, remount_read_only
from tests.drills.drill import Drill, Skipped, Spec
from tests.drills.runs import make_run, warm_up
from tests.drills.states import check_disk, save


def run(drill: Drill) -> None:
    """Try to save, and to train, where it is not allowed."""
    if not hasattr(os, "geteuid"):
        msg = "this system has no modes of files"
        raise Skipped(msg)
    drill.directory.chmod(0o755)
    _check_save(drill, "a directory without the right to write", _without_rights, errno.EACCES)
    _check_save(drill, "a file system that is read-only", _mounted_read_only, errno.EROFS)
    warm_up()
    for title, closed in {"checkpoints/": "checkpoints", "out_dir": "elsewhere", "work_dir": "."}.items():
        _check_run(drill, title, closed)


def _check_save(drill: Drill, title: str, close: Callable[[Path], str], code: int) -> None:
    work_dir = _prepared(drill)
    ended = in_child(lambda: _save(work_dir, close, is_broken=drill.is_broken))
    found = ended.value or {}
    if found.get("impossible"):
        drill.leave_out(title, found["impossible"])
        return
    drill.check(found.get("errno") == code, f"{title}: {ended}")
    (work_dir / "checkpoints").chmod(0o755)
    check_disk(drill, work_dir, {"iter_1": {1}}, title)


def _save(work_dir: Path, close: Callable[[Path], str], *, is_broken: bool) -> dict[str, Any]:
    impossible = close(work_dir / "checkpoints")
    if impossible:
        return {"impossible": impossible}
    if is_broken:
        return {"errno": None}
    try:
        make_store(work_dir).probe()
    except CheckpointWriteError as error:
        return {"errno": error.errno, "message": str(error)}
    return {"errno": None}


def _without_rights(directory: Path) -> str:
    directory.chmod(0o555)
    become_nobody()
    return ""


def _mounted_read_only(directory: Path) -> str:
    try:
        mount_memory(directory, 1 << 20)
        remount_read_only(directory)
    except OSError as error:
        return str(error)
    return ""


def _prepared(drill: Drill) -> Path:
    """Return the directory of a run with one checkpoint, which belongs to the user without rights."""
    work_dir = drill.fresh()
    save(make_store(work_dir), 1)
    _give_away(work_dir)
    return work_dir


def _give_away(path: Path) -> None:
    if os.geteuid() == 0:
        for each in [path, *path.rglob("*")]:
            os.chown(each, NOBODY, NOBODY)


def _check_run(drill: Drill, title: str, closed: str) -> None:
    """A run fails before its first iteration, and names the directory."""
    work_dir = drill.fresh()
    for name in ("checkpoints", f"elsewhere/{work_dir.name}"):
        (work_dir / name).mkdir(parents=True)
    _give_away(work_dir)
    path = work_dir / closed
    if closed == "elsewhere":
        path = path / work_dir.name
    path.chmod(0o555)
    ended = in_child(lambda: _train(work_dir, work_dir / "elsewhere" if closed == "elsewhere" else None))
    path.chmod(0o755)
    found = ended.value or {}
    drill.check(found.get("error") in ("CheckpointWriteError", "PermissionError"), f"{title}: {ended}")
    drill.check(str(path) in found.get("message", ""), f"{title}: the message does not name {path}: {ended}")
    drill.check(found.get("iterations") == 0, f"{title}: found out only after training had begun: {ended}")


def _train(work_dir: Path, out_dir: Path | None) -> dict[str, Any]:
    become_nobody()
    seen: list[int] = []
    try:
        runner = make_run(work_dir, 2, resume=False, checkpoint=dict(out_dir=out_dir))
        runner.bus.subscribe(AfterTrainIter, lambda iter: seen.append(iter))
        runner.train()
    except OSError as error:
        return {"error": type(error).__name__, "message": str(error), "iterations": len(seen)}
    return {"error": None, "iterations": len(seen)}


SPEC = Spec(
    number=5,
    name="a directory that may not be written",
    promise="P16",
    expected="a typed error that names the directory, before training begins",
    twin="does not try the directory before it begins",
    run=run,
    weight=0.7,
)

"""Drill 25: no more descriptors, memory or threads."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from hookbus.checkpoint import Files, load_checkpoint, save_checkpoint
from tests.checkpoint.builders import make_store
from tests.drills.children import become_nobody, in_child
from tests.drills.drill import Drill, Spec
from tests.drills.runs import iterations_in, make_run, warm_up
from tests.drills.states import check_disk, save

MEMORY = 300 << 20
LARGE = 150 << 20
"""How many numbers of four bytes do not fit into that memory."""

ROOM = 8
"""Descriptors left to the process: from none to so many."""


class KeepsLeftovers(Files):
    """A twin: does not clean up behind itself."""

    def remove_file(self, path: Path) -> None:
        """Do nothing."""

    def remove_directory(self, path: Path) -> None:
        """Do nothing."""


def run(drill: Drill) -> None:
    """Take each of them away while something is saved, then while a run goes on."""
    files = KeepsLeftovers() if drill.is_broken else Files()
    for room in drill.within(range(ROOM), 0.3):
        _check_save(drill, f"{room} descriptors left", lambda path, room=room: _with_descriptors(path, room, files))  # type: ignore[misc]
    _check_save(drill, "no memory", lambda path: _without_memory(path, files))
    _check_save(drill, "no threads", lambda path: _without_threads(path, files))
    if drill.is_broken:
        return
    warm_up()
    for room in drill.within(drill.shuffled((0, 1, 2, 3, 5, 8, 12))):
        _check_run(drill, room)


def _check_save(drill: Drill, title: str, task: Callable[[Path], dict[str, Any]]) -> None:
    work_dir = drill.fresh()
    work_dir.chmod(0o777)
    save(make_store(work_dir), 1)
    for path in (work_dir / "checkpoints", drill.directory):
        path.chmod(0o777)
    ended = in_child(lambda: task(work_dir))
    found = ended.value or {}
    if found.get("impossible"):
        drill.leave_out(title, found["impossible"])
        return
    drill.check(found.get("saved") or found.get("error"), f"{title}: {ended}")
    drill.check(found.get("left") == [], f"{title}: left at once: {ended}")
    drill.facts[title] = found.get("error") or "saved"
    is_there = found.get("saved") and title != "no threads"
    check_disk(drill, work_dir, {"iter_1": {1}} | ({"iter_2": {2}} if is_there else {}), title)
    drill.drop(work_dir)


def _outcome(work_dir: Path, act: Callable[[], object], lift: Callable[[], object]) -> dict[str, Any]:
    """Return how it went, and what was left then; only what is said in so many words counts as an error."""
    found: dict[str, Any] = {}
    try:
        act()
        found["saved"] = True
    except (OSError, MemoryError, RuntimeError) as error:
        found["error"] = f"{type(error).__name__}: {str(error)[:80]}"
    lift()
    found["left"] = [str(path) for path in work_dir.rglob(".*/*")]  # looking into a directory takes a descriptor: it may stay
    return found


# --- one save ---------------------------------------------------------------------------------------------------------


def _limit(kind: int, value: int) -> Callable[[], None]:
    """Set a limit, and return what lifts it again."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
    return lambda: resource.setrlimit(kind, (soft, hard))


def _leave_descriptors(room: int) -> Callable[[], None]:
    """Allow only so many more descriptors than are open, from the lowest free number on."""
    filling = [os.open(os.devnull, os.O_RDONLY) for _ in range(64)]  # so that no low number is free
    return _limit(resource.RLIMIT_NOFILE, filling[-1] + 1 + room)


def _with_descriptors(work_dir: Path, room: int, files: Files) -> dict[str, Any]:
    return _outcome(work_dir, lambda: save(make_store(work_dir, files), 2), _leave_descriptors(room))


def _without_memory(work_dir: Path, files: Files) -> dict[str, Any]:
    checkpoint = {"meta": {}, "state_dict": {"small": torch.ones(4), "large": torch.ones(1).expand(LARGE)}}
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    lift = _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + MEMORY)
    return _outcome(work_dir, lambda: save_checkpoint(make_store(work_dir, files), "iter_2", checkpoint, epoch=2, iter=2), lift)


def _without_threads(work_dir: Path, files: Files) -> dict[str, Any]:
    if os.geteuid() != 0:
        return {"impossible": "only root can become another user, to whom alone the limit applies"}
    os.chown(work_dir, 65534, 65534)
    become_nobody()
    lift = _limit(resource.RLIMIT_NPROC, 0)
    try:
        Thread(target=int).start()
    except RuntimeError:
        return _outcome(work_dir, lambda: _save_large(work_dir, files), lift)
    return {"impossible": "the limit of processes does not count here"}


def _save_large(work_dir: Path, files: Files) -> None:
    """Save so much that some of the work is worth a thread."""
    checkpoint = {"meta": {}, "state_dict": {"weight": torch.ones(1 << 22)}}
    save_checkpoint(make_store(work_dir, files), "large", checkpoint, epoch=2, iter=2)
    load_checkpoint(work_dir / "checkpoints" / "large")
    make_store(work_dir).remove("large")


# --- a whole run ------------------------------------------------------------------------------------------------------


def _check_run(drill: Drill, room: int) -> None:
    """A run that cannot open its files ends with an error, and the next one goes on where the checkpoints are."""
    title = f"a run with {room} descriptors left"
    work_dir = drill.fresh()
    drill.check(in_child(lambda: make_run(work_dir, 2).train() and None).code == 0, f"{title}: the run before failed")
    ended = in_child(lambda: _train(work_dir, room))
    drill.check(ended.code == 0, f"{title}: {ended}")
    newest = max((iterations_in(info.path) for info in make_store(work_dir).list()), default=0)
    least = 4 if ended.value == "went through" else 2
    drill.check(newest >= least, f"{title}: the newest checkpoint is of {newest}, expected {least} or more: {ended.value}")
    after = in_child(lambda: make_run(work_dir, 5).train() and None)
    drill.check(after.code == 0 and iterations_in(work_dir / "checkpoints" / "iter_5") == 5, f"{title}: afterwards: {after}")
    drill.facts[title] = ended.value
    drill.drop(work_dir)


def _train(work_dir: Path, room: int) -> str:
    runner = make_run(work_dir, 4)
    _leave_descriptors(room)
    try:
        runner.train()
    except (OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {str(error)[:100]}"
    return "went through"


SPEC = Spec(
    number=25,
    name="no descriptors, memory or threads",
    promise="P16",
    expected="one clear error, no half-written state, and it goes on afterwards",
    twin="does not clean up behind itself",
    run=run,
)

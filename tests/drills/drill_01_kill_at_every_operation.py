"""Drill 1: `kill -9` at every file operation of a first save, a later one, one that replaces, a removal and a clean-up.

Once more at every system call, where the machine can: `tests.drills.preload`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hookbus.checkpoint import CheckpointStore
from hookbus.checkpoint.publishing import publish_weights
from tests.checkpoint.builders import FaultyFiles, make_store
from tests.drills.children import in_child
from tests.drills.drill import Drill, Spec
from tests.drills.faults import KILLED, DeadlyCopyingFiles, DeadlyFiles
from tests.drills.preload import cross_check
from tests.drills.states import check_disk, save

SHIM_SHARE = 0.4
"""The share of the time in which the process dies at system calls instead."""


class Situation(NamedTuple):
    """What a run does when it dies."""

    before: tuple[int, ...]
    """The steps whose checkpoints are there already."""
    act: Callable[[CheckpointStore], object]
    surviving: Mapping[str, Collection[int]]
    """The steps that each of these may be from, whenever it dies."""


def _crash_while_replacing(work_dir: Path) -> None:
    """Leave what a crash between the two renames of a replacement leaves, and a temporary directory."""
    directory = work_dir / "checkpoints"
    (directory / "iter_1").rename(directory / f".iter_1.old-{'0' * 16}")
    (directory / "iter_2").rename(directory / f".iter_3.tmp-{'1' * 16}")


SITUATIONS: Mapping[str, Situation] = {
    "a later save": Situation((1,), lambda store: save(store, 2), {"iter_1": {1}}),
    "a replacement": Situation((1, 2), lambda store: save(store, 5, "iter_2", iter=5), {"iter_1": {1}, "iter_2": {2, 5}}),
    "a removal": Situation((1, 2), lambda store: store.remove("iter_1"), {"iter_2": {2}}),
    "a best one, linked": Situation((1,), lambda store: _save_linked(store), {"iter_1": {1}}),
    "publishing": Situation((1,), lambda store: _publish(store), {"iter_1": {1}}),
    "the first save": Situation((), lambda store: save(store, 1), {}),
}


def _save_linked(store: CheckpointStore) -> None:
    save(store, 1, "best", role="best", link_from=store.directory / "iter_1")


def _publish(store: CheckpointStore) -> None:
    publish_weights(store.directory / "iter_1", files=store.files)


def run(drill: Drill) -> None:
    """Die once at each operation of each situation, and look at the disk."""
    killing = DeadlyCopyingFiles if drill.is_broken else DeadlyFiles
    for title, situation in drill.within(SITUATIONS.items(), 1 - SHIM_SHARE):
        number = 0
        while _dies(drill, title, situation, killing, number := number + 1):
            pass
        drill.facts[title] = number - 1
    _check_clean_up(drill, killing)
    if not drill.is_broken:
        _check_that_nothing_else_writes(drill)
    if not (drill.is_broken and drill.wrong):
        cross_check(drill, drill.seconds * SHIM_SHARE)


def _dies(drill: Drill, title: str, situation: Situation, killing: type[DeadlyFiles], number: int) -> bool:
    """Say whether there was an operation with the number to die at."""
    work_dir = prepared(drill, situation.before)
    ended = in_child(lambda: situation.act(make_store(work_dir, killing(number))) and None)
    drill.check(ended.code in (0, KILLED), f"{title}, operation {number}: ended with {ended.code}: {ended.error}")
    check_disk(drill, work_dir, situation.surviving, f"{title}, dead at operation {number}")
    drill.drop(work_dir)
    return ended.code == KILLED


def _check_clean_up(drill: Drill, killing: type[DeadlyFiles]) -> None:
    """The clean-up after a crash may be killed as well, again and again."""
    work_dir = prepared(drill, (1, 2))
    _crash_while_replacing(work_dir)
    for number in drill.within(range(1, 100)):
        ended = in_child(lambda: make_store(work_dir, killing(number)).clean() and None)  # noqa: B023  it runs at once
        drill.check(ended.code in (0, KILLED), f"clean-up, operation {number}: ended with {ended.code}: {ended.error}")
        if ended.code == 0:
            break
    check_disk(drill, work_dir, {"iter_1": {1}}, "dead at each operation of a clean-up")


def prepared(drill: Drill, steps: tuple[int, ...]) -> Path:
    """Return the directory of a run that has taken the checkpoints of these steps."""
    work_dir = drill.fresh()
    for step in steps:
        save(make_store(work_dir), step)
    return work_dir


def _check_that_nothing_else_writes(drill: Drill) -> None:
    """Every change of the disk goes through the counted operations; else dying at each of them would show nothing."""
    for title, situation in SITUATIONS.items():
        work_dir = prepared(drill, situation.before)
        counting = FaultyFiles()
        with _changes_below(work_dir) as seen:
            situation.act(make_store(work_dir, counting))
        counted = [operation for operation, _ in counting.log if operation not in ("write", "sync", "sync_directory")]
        drill.check(len(seen) == len(counted), f"{title}: {len(counted)} operations changed the disk, expected {seen}")
        drill.drop(work_dir)


_watched: list[tuple[Path, list[str]]] = []


@contextlib.contextmanager
def _changes_below(path: Path) -> Iterator[list[str]]:
    """Yield a list that fills with what the interpreter is asked to change there."""
    if not _watched:
        sys.addaudithook(_watch)  # stays for good, and does nothing while nobody looks
        _watched.append((Path(), []))
    seen: list[str] = []
    _watched.append((path, seen))
    yield seen
    _watched.pop()


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if len(_watched) < 2 or event not in _CHANGES or not isinstance(arguments[0], str | os.PathLike):
        return
    path, seen = _watched[-1]
    if str(arguments[0]).startswith(str(path)) and (event != "open" or _CHANGES[event](arguments)):
        seen.append(f"{event} {arguments[0]}")


def _writes(arguments: tuple[Any, ...]) -> bool:
    return bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


_CHANGES: Mapping[str, Callable[[tuple[Any, ...]], bool]] = {
    "open": _writes,
    **{f"os.{name}": lambda arguments: True for name in ("mkdir", "rename", "remove", "rmdir", "link", "symlink", "truncate")},
}


SPEC = Spec(
    number=1,
    name="kill at every operation",
    promise="P14",
    expected="what was acknowledged loads, nothing damaged is listed, the next start leaves no trace of the crash",
    twin="renames by copying",
    run=run,
    weight=2.5,
)

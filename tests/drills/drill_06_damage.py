"""Drill 6: bits that flip, files cut short, swapped, missing, empty, added, or replaced by links."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors.torch import load_file

from hookbus.checkpoint import load_checkpoint, verify_checkpoint
from hookbus.checkpoint.manifest import MANIFEST_FILE
from hookbus.errors import CheckpointCorrupt
from tests.checkpoint.builders import make_store
from tests.drills.children import in_child
from tests.drills.drill import Drill, Spec
from tests.drills.runs import make_run, warm_up
from tests.drills.states import save, step_of

FLIPS = 400
CUT = 512

OLD, NEW = 10, 20


def run(drill: Drill) -> None:
    """Damage the newest of two checkpoints in each way; then let a run resume."""
    work_dir = drill.fresh()
    store = make_store(work_dir)
    sound = {step: save(store, step) for step in (OLD, NEW)}
    damages = itertools.chain([] if drill.is_broken else _damages(sound[NEW], sound[OLD]), _flips(drill, sound[NEW]))
    for title, damage in drill.within(damages, 0.7):
        _check(drill, work_dir, title, damage)
    if not drill.is_broken:
        _check_that_a_run_falls_back(drill)


def _check(drill: Drill, work_dir: Path, title: str, damage: Callable[[Path], str]) -> None:
    """Damage a copy, and look whether it is found, by name, and whether the older one is still good."""
    damaged = drill.fresh()
    shutil.copytree(work_dir, damaged, dirs_exist_ok=True)
    newest = damaged / "checkpoints" / f"iter_{NEW}"
    file = damage(newest)
    kind = title.split(":")[0]
    drill.facts[kind] = drill.facts.get(kind, 0) + 1
    if drill.is_broken:
        drill.check(_twin_refuses(newest), f"{title}: not found")
    else:
        for use in (load_checkpoint, verify_checkpoint):
            drill.check(file in _refusal(use, newest), f"{title}: {file} is not named: {_refusal(use, newest)!r}")
    drill.check(step_of(damaged / "checkpoints" / f"iter_{OLD}") == OLD, f"{title}: the older one is gone")
    drill.drop(damaged)


def _refusal(use: Callable[[Path], object], path: Path) -> str:
    """Return what is said about a damaged checkpoint; nothing if it counts as sound."""
    try:
        use(path)
    except CheckpointCorrupt as error:
        return str(error)
    return ""


def _twin_refuses(path: Path) -> bool:
    try:
        load_file(path / "model.safetensors")
    except Exception:  # noqa: BLE001  any error counts as found
        return True
    return False


# --- ways to damage a checkpoint --------------------------------------------------------------------------------------

Damage = tuple[str, Callable[[Path], str]]
"""What is done, and the function that does it and returns the name that the error has to give."""


def _damages(newest: Path, older: Path) -> Iterator[Damage]:
    names = sorted(path.name for path in newest.iterdir())
    for name in names:
        yield f"missing: {name}", lambda path, name=name: _named(name, (path / name).unlink())  # type: ignore[misc]
        yield f"empty: {name}", lambda path, name=name: _named(name, (path / name).write_bytes(b""))  # type: ignore[misc]
        yield f"swapped: {name}", lambda path, name=name: _swapped(path / name, older / name)  # type: ignore[misc]
        yield f"link: {name}", lambda path, name=name: _linked(path / name)  # type: ignore[misc]
        yield f"longer: {name}", lambda path, name=name: _lengthened(path / name)  # type: ignore[misc]
        for size in range(0, (newest / name).stat().st_size, CUT):
            yield f"cut: {name} at {size}", lambda path, name=name, size=size: _cut(path / name, size)  # type: ignore[misc]
    for name in ("extra.json", "more.safetensors", "notes.txt"):
        yield f"extra: {name}", lambda path, name=name: _named(name, (path / name).write_bytes(b"{}"))  # type: ignore[misc]
    yield "emptied: all", lambda path: _emptied(path)


def _flips(drill: Drill, newest: Path) -> Iterator[Damage]:
    names = sorted(path.name for path in newest.iterdir())
    for number in drill.times(FLIPS):
        name = drill.random.choice(names)
        bit = drill.random.randrange((newest / name).stat().st_size * 8)
        yield f"flipped: bit {bit} of {name} ({number})", lambda path, name=name, bit=bit: _flipped(path / name, bit)  # type: ignore[misc]


def _named(name: str, _: object) -> str:
    return name


def _swapped(file: Path, other: Path) -> str:
    """Put the file of the other step there; with a manifest, the files themselves are then wrong."""
    shutil.copyfile(other, file)
    return f"{file.parent.name}/" if file.name == MANIFEST_FILE else file.name


def _linked(file: Path) -> str:
    """Put the same content there, but by a link to somewhere else."""
    elsewhere = file.parent.parent.parent / f"elsewhere-{file.name}"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    return file.name


def _lengthened(file: Path) -> str:
    file.write_bytes(file.read_bytes() + b"\n")
    return file.name


def _cut(file: Path, size: int) -> str:
    os.truncate(file, size)
    return file.name


def _emptied(path: Path) -> str:
    for file in path.iterdir():
        file.unlink()
    return MANIFEST_FILE


def _flipped(file: Path, bit: int) -> str:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    return file.name


# --- what a run does about it -----------------------------------------------------------------------------------------


def _check_that_a_run_falls_back(drill: Drill) -> None:
    """The newest is damaged: the older one is used. Both are: the run refuses to start over."""
    warm_up()
    work_dir = drill.fresh()
    drill.check(in_child(lambda: make_run(work_dir, iterations=3).train() and None).code == 0, "the run to damage failed")
    checkpoints = work_dir / "checkpoints"
    _flipped(checkpoints / "iter_3" / "model.safetensors", 1000)
    ended = in_child(lambda: _resume(work_dir))
    drill.check(ended.value == [2, "iter_2"], f"the newest is damaged: {ended}")
    kept = [path for path in work_dir.rglob("iter_3") if path.is_dir()]
    drill.check(len(kept) == 1 and kept[0].parent != checkpoints, f"the damaged one was not set aside: {kept}")
    _flipped(checkpoints / "iter_2" / "manifest.json", 1000)
    ended = in_child(lambda: _resume(work_dir))
    drill.check("CheckpointCorrupt" in ended.error, f"every one is damaged: {ended}")


def _resume(work_dir: Path) -> list[object]:
    """Resume without another iteration, and return where the run is."""
    runner = make_run(work_dir, iterations=2)
    runner.train()
    return [runner.iter, [info.name for info in make_store(work_dir).list()][-1]]


SPEC = Spec(
    number=6,
    name="bit flips, cuts, swaps, missing and added files",
    promise="P17",
    expected="CheckpointCorrupt names the file, every time; the older checkpoint is used; no silent fresh start",
    twin="loads what safetensors accepts, without a checksum",
    run=run,
    weight=2,
)

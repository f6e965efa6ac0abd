"""Drill 26: the power fails after each operation, and any part of what was not synced is lost, in any order."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from hookbus.checkpoint import CheckpointStore
from hookbus.errors import CheckpointError
from tests.checkpoint.builders import make_store
from tests.drills.disk import Disk, PowerFailure, crash_states
from tests.drills.drill import Drill, Spec

WORK_DIR = Path("/run")
MOST = 12
"""Changes of names of which each may be lost or kept, at one moment."""


class ForgetsToSync(Disk):
    """A twin: what it calls synced may be lost as well."""

    def sync(self, file: object) -> None:
        """Do nothing."""

    def sync_directory(self, path: Path) -> None:
        """Do nothing."""


def run(drill: Drill) -> None:
    """Save, replace and remove; at each operation look at all that a power failure may leave."""
    seen = set[Any]()
    moments = list(_moments(ForgetsToSync if drill.is_broken else Disk))
    drill.facts |= {"moments": len(moments), "states": 0, "different": 0}
    for number, (surviving, situation, disk) in enumerate(moments):
        for state in drill.within(crash_states(disk, MOST), 1 / (len(moments) - number)):
            drill.facts["states"] += 1
            if (key := (str(surviving), state.tree())) not in seen:
                seen.add(key)
                _check(drill, state, surviving, situation)
    drill.facts["different"] = len(seen)


Steps = Mapping[str, Collection[int]]
"""Of each name the steps that its checkpoint may be from; no step at all where it may be gone."""

_ACTS: tuple[tuple[Callable[[CheckpointStore], object], Steps, Steps], ...] = (
    (lambda store: _save(store, "iter_1", 1), {}, {"iter_1": {1}}),
    (lambda store: _save(store, "iter_2", 2), {"iter_1": {1}}, {"iter_1": {1}, "iter_2": {2}}),
    (lambda store: _save(store, "iter_2", 3), {"iter_1": {1}, "iter_2": {2, 3}}, {"iter_1": {1}, "iter_2": {3}}),
    (lambda store: store.remove("iter_1"), {"iter_2": {3}}, {"iter_2": {3}}),
    (lambda store: _save(store, "iter_1", 4), {"iter_2": {3}}, {"iter_1": {4}, "iter_2": {3}}),
)
"""What a run does, which checkpoints survive a power failure meanwhile, and which once it has returned."""


def _moments(kind: type[Disk]) -> Iterator[tuple[Steps, str, Disk]]:
    """Yield what has to survive, and the disk, after each operation of each act."""
    for length, (_, before, after) in enumerate(_ACTS):
        total = len(_play(kind, length).log)
        for number in range(1, total + 1):
            disk = _play(kind, length, number)
            yield (before if number < total else after), f"act {length + 1}, after {number} of {total}: {disk.log[-1]}", disk


def _play(kind: type[Disk], length: int, operations: int | None = None) -> Disk:
    """Play the acts before, then so many operations of the next one, or all of it."""
    disk = kind()
    disk.make_directory(WORK_DIR)
    Disk.sync_directory(disk, WORK_DIR.parent)
    store = make_store(WORK_DIR, disk)
    for act, _, _ in _ACTS[:length]:
        act(store)
    disk.log.clear()
    disk.power_for = operations
    with contextlib.suppress(PowerFailure):
        _ACTS[length][0](store)
    return disk


def _save(store: CheckpointStore, name: str, step: int) -> None:
    contents = {"state.json": [json.dumps({"step": step}).encode()], "tensors.safetensors": [bytes([step] * 8)]}
    store.save(name, contents, epoch=step, iter=step, replace=True)


def _check(drill: Drill, disk: Disk, surviving: Steps, situation: str) -> None:
    store = make_store(WORK_DIR, disk)
    for info in store.list():
        step = _step(store, disk, info.name)
        drill.check(step in (None, info.iter), f"{situation}: {info.name} counts as sound and holds step {step}")
    store.clean()
    for name, steps in surviving.items():
        drill.check(_step(store, disk, name) in steps, f"{situation}: {name} is {_step(store, disk, name)}, expected {steps}")
    last = b"".join(disk.read(store.last_checkpoint_path)) if disk.exists(store.last_checkpoint_path) else b"iter_1"
    drill.check(last in (b"iter_1", b"iter_2"), f"{situation}: last_checkpoint says {last!r}")
    for name in ("iter_1", "iter_2"):
        _check_that_saving_goes_on(drill, store, disk, name, situation)


def _check_that_saving_goes_on(drill: Drill, store: CheckpointStore, disk: Disk, name: str, situation: str) -> None:
    try:
        _save(store, name, 9)
        drill.check(_step(store, disk, name) == 9, f"{situation}: {name} was saved afterwards and is not there")
    except CheckpointError as error:
        drill.check(False, f"{situation}: {name} cannot be saved afterwards: {error}")


def _step(store: CheckpointStore, disk: Disk, name: str) -> int | None:
    """Return the step that a checkpoint holds, None if it is not there or found to be damaged."""
    try:
        info = store.verify(name)
    except CheckpointError:
        return None
    content = json.loads(b"".join(disk.read(info.path / "state.json")))
    tensors = b"".join(disk.read(info.path / "tensors.safetensors"))
    return int(content["step"]) if tensors == bytes([content["step"]] * 8) else -1


SPEC = Spec(
    number=26,
    name="power loss",
    promise="P15",
    expected="whatever part of the unsynced changes is lost, a returned save survives and nothing wrong counts as sound",
    twin="never syncs",
    run=run,
    weight=2,
)

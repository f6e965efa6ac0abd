"""Drill 7: files that would run code; each would create a marker."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hookbus.errors import CheckpointError, UnsafeCheckpoint
from tests.checkpoint import hostile
from tests.drills.children import forget_peak_memory, in_child, peak_memory
from tests.drills.drill import Drill, Spec
from tests.drills.payloads import attacks

MEMORY = 50 << 20
"""What reading a hostile file may take."""

HARMLESS = ("a pickle in a tensor", "a pickle behind a tensor", "a way out of the archive", "a second data.pkl")
"""What may be read, because the code is where nobody runs it."""


def run(drill: Drill) -> None:
    """Have the tests' own files read, watched, then each of the drill's in a process of its own."""
    if not drill.is_broken:
        _check_watched(drill)
    marker = drill.fresh() / "marker"
    outcomes: Counter[str] = Counter()
    for title, read, path in drill.within(attacks(drill.directory / "files", marker)):
        ended = in_child(lambda: _read(_twin if drill.is_broken else read, path))  # noqa: B023  it runs at once
        drill.check(not marker.exists(), f"{title}: it ran")
        if marker.exists():
            marker.rmdir() if marker.is_dir() else marker.unlink()
        found = ended.value or {"error": f"ended with {ended.code}: {ended.error}", "is_typed": False, "memory": 0}
        drill.check(found["is_typed"] or (not found["error"] and title in HARMLESS), f"{title}: {found['error'] or 'was read'}")
        drill.check(found["memory"] < MEMORY, f"{title}: took {found['memory'] >> 20} MiB")
        outcomes[found["error"].partition(":")[0] or "read"] += 1
    drill.check(not list(drill.directory.rglob("escaped")), "a file was written outside")
    drill.facts["outcomes"] = outcomes


def _check_watched(drill: Drill) -> None:
    directory = drill.fresh()
    ended = in_child(lambda: _read_watched(directory))
    drill.check(ended.value, f"the program of the tests failed: {ended}")
    for line in ended.value or ():
        drill.check(line["error"] and not line["seen"] and not line["marker"], f"{line['name']}: {line}")
        drill.check(line["grown"] * (1 << 20) < MEMORY, f"{line['name']}: took {line['grown']} MiB")


def _read_watched(directory: Path) -> list[dict[str, Any]]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings(action="ignore"):  # showing one opens a file
        hostile.main(directory)
    return [json.loads(line) for line in printed.getvalue().splitlines()]


def _read(read: Callable[[Path], object], path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"error": "", "is_typed": False}
    forget_peak_memory()
    before = peak_memory()
    try:
        read(path)
    except CheckpointError as error:
        found |= {"error": f"{type(error).__name__}: {error}", "is_typed": True, "unsafe": isinstance(error, UnsafeCheckpoint)}
    return found | {"memory": peak_memory() - before}


def _twin(path: Path) -> object:
    try:
        return torch.load(path, weights_only=False)
    except Exception:  # noqa: BLE001  as careless programs do
        return pickle.loads(path.read_bytes())


SPEC = Spec(
    number=7,
    name="hostile files",
    promise="P29",
    expected="no marker, a typed error, little memory",
    twin="unpickles what it is given",
    run=run,
    weight=1.5,
)

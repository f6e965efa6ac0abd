"""What saving and loading a state of 300 MB costs beside torch's own, on the disk where temporary files go.

What is read has been written a while ago and is not in memory any more, as when a run resumes; a second row has it in memory,
where torch does nothing but copy while every byte of ours is hashed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from hookbus.checkpoint import CheckpointStore, load_checkpoint, save_checkpoint
from tests.benchmarks.measure import Pair, Row, compare, timed

ROUNDS = 9
LAYERS = 24
BYTES = LAYERS * 3 * (1 << 22)


def rows() -> Iterator[Row]:
    """Measure saving, linking, loading and the memory that saving takes."""
    torch.set_num_threads(1)
    state = make_state()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        saving = functools.partial(compare, lambda: _save(state, place), lambda: _save_torch(state, place))
        yield _row("saving 300 MB, synced and hashed, beside `torch.save` synced", saving(repetitions=1, rounds=ROUNDS), 1.2)
        took = _link(state, place)
        yield Row("a second checkpoint of the same step, linked", f"{took * 1e3:.0f} ms", "none, for information", met=True)
        for where, prepare in (("not in memory", _forget), ("in memory", _keep)):
            pair = compare(
                lambda: _load(place, prepare),  # noqa: B023
                lambda: _load_torch(place, prepare),  # noqa: B023
                repetitions=1,
                rounds=ROUNDS,
            )
            yield _row(f"loading 300 MB, verified, beside `torch.load`; the files are {where}", pair, 1.3)
    yield _memory_row()


def make_state() -> dict[str, Any]:
    """Return weights and the state of an Adam, a third and two thirds of it."""
    square = functools.partial(torch.full, (1024, 1024))
    moments = {i: {"exp_avg": square(i + 0.5), "exp_avg_sq": square(i + 0.25), "step": torch.ones(())} for i in range(LAYERS)}
    return {
        "meta": {"epoch": 1},
        "state_dict": {f"{i}.weight": square(float(i)) for i in range(LAYERS)},
        "optimizer": {"state": moments, "param_groups": [{"lr": 0.1, "params": list(range(LAYERS))}]},
    }


def _row(what: str, pair: Pair, limit: float) -> Row:
    return Row(what, f"{pair.ratio:.2f}x ({pair.ours:.2f} s, {pair.other:.2f} s)", f"{limit}x", pair.ratio <= limit)


def _save(state: dict[str, Any], place: Path) -> float:
    shutil.rmtree(place / "checkpoints", ignore_errors=True)
    os.sync()
    return timed(lambda: save_checkpoint(CheckpointStore(place / "checkpoints"), "epoch_1", state, epoch=1, iter=1))


def _save_torch(state: dict[str, Any], place: Path) -> float:
    (place / "state.pt").unlink(missing_ok=True)
    os.sync()

    def save() -> None:
        with (place / "state.pt").open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())

    return timed(save)


def _link(state: dict[str, Any], place: Path) -> float:
    store = CheckpointStore(place / "checkpoints")
    source = store.get("epoch_1").path
    options: dict[str, Any] = {"epoch": 1, "iter": 1, "role": "best", "link_from": source, "is_unchanged": True}
    return timed(lambda: save_checkpoint(store, "best", state, **options))


def _load(place: Path, prepare: Callable[[Path], None]) -> float:
    for file in (place / "checkpoints" / "epoch_1").iterdir():
        prepare(file)
    return timed(lambda: load_checkpoint(place / "checkpoints" / "epoch_1"))


def _load_torch(place: Path, prepare: Callable[[Path], None]) -> float:
    prepare(place / "state.pt")
    return timed(lambda: torch.load(place / "state.pt", weights_only=True, mmap=False))


def _keep(file: Path) -> None:
    """Leave the file in memory, where writing or reading has put it."""


def _forget(file: Path) -> None:
    """Have the operating system drop what it holds of the file, where it can be asked to."""
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(file, os.O_RDONLY)
        with contextlib.closing(os.fdopen(descriptor)):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _memory_row() -> Row:
    what, limit = "the most memory while 300 MB are saved", 1.1
    if not sys.platform.startswith("linux"):
        return Row(what, "only measured on Linux", "for information", met=True)
    done = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True, check=True)
    factor = 1 + float(done.stdout)
    return Row(what, f"{factor:.3f}x of the state", f"{limit}x", factor <= limit)


def _print_growth() -> None:
    """Save once in a process of its own, and print by how much of the state its memory grew meanwhile."""
    state = make_state()
    with tempfile.TemporaryDirectory() as directory:
        small = {"state_dict": {"w": torch.ones(1)}}
        save_checkpoint(CheckpointStore(Path(directory) / "first"), "epoch_1", small, epoch=1, iter=1)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _most_resident()
        save_checkpoint(CheckpointStore(Path(directory) / "checkpoints"), "epoch_1", state, epoch=1, iter=1)
        print((_most_resident() - before) / BYTES)


def _most_resident() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    _print_growth()

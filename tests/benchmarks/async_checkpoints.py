"""What an asynchronous save costs: how long training stands still for it, and how much memory it takes.

The state is that of a model with AdamW, 300 MB. The buffers are there already, as from the second save on; nothing else is
being written. Memory is measured in a process of its own, as the most that Linux says it had resident, beyond what it has
without any state.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from hookbus import AfterTrainIter, CheckpointStaged, Runner
from hookbus.checkpoint import CheckpointStore, save_checkpoint
from hookbus.checkpoint.staging import StagingArea
from tests.benchmarks.measure import Row, timed

LAYERS, WIDTH = 25, 1000
"""Weights of 100 MB; AdamW keeps two numbers for each."""
ROUNDS = 8
"""Saves; the first one makes the buffers and does not count."""
COPY_LIMIT, SAVE_LIMIT, MEMORY_LIMIT = 1.3, 0.5, 2.1


def rows() -> Iterator[Row]:
    """Measure the stall and the memory."""
    with tempfile.TemporaryDirectory() as directory:
        yield from _stall_rows(Path(directory))
        if sys.platform.startswith("linux"):
            yield _memory_row(Path(directory))
        else:
            yield Row("memory peak of an asynchronous save", "only measured on Linux", "for information", True)


def _stall_rows(directory: Path) -> Iterator[Row]:
    """Time in a real run, between two iterations: a save as the run reports it, a copy, and torch's own save."""
    stalls, copies, saves = list[float](), list[float](), list[float]()
    model = _make_model()
    runner = Runner(
        model,
        work_dir=directory / "run",
        optimizer=torch.optim.AdamW(model.parameters()),
        train_step=lambda model, batch: model(batch[0]).square().mean(),
        train_dataloader=[(torch.ones(1, WIDTH),)] * ROUNDS,
        train_cfg=dict(max_epochs=1),
        default_hooks=dict(checkpoint=None, logger=None),
        device="cpu",
        log_level="ERROR",
    )
    buffers: list[torch.Tensor] = []

    def measure() -> None:
        assembled = runner._saver.assemble()
        state = {key: assembled[key] for key in ("state_dict", "optimizer")}
        tensors = list(_tensors(state))
        runner._saver.wait("a measurement")
        buffers.extend(torch.empty_like(tensor) for tensor in tensors[len(buffers) :])
        copies.append(timed(lambda: [place.copy_(tensor) for place, tensor in zip(buffers, tensors, strict=True)]))
        saves.append(timed(lambda: torch.save(state, directory / "state.pt")))
        runner.request_save("newest", asynchronous=True)

    runner.bus.subscribe(AfterTrainIter, measure)
    runner.bus.subscribe(CheckpointStaged, lambda seconds: stalls.append(seconds))
    runner.train()
    size = sum(buffer.nbytes for buffer in buffers) / 1e6
    what = f"stall of an asynchronous save of {size:.0f} MB"
    yield _ratio(f"{what}, against one copy into buffers", stalls, copies, COPY_LIMIT)
    yield _ratio(f"{what}, against torch.save", stalls, saves, SAVE_LIMIT)


def _ratio(what: str, ours: list[float], other: list[float], limit: float) -> Row:
    pairs = list(zip(ours, other, strict=True))[1:]
    ratio = statistics.median(one / another for one, another in pairs)
    seconds, others = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Row(what, f"{ratio:.2f}x ({seconds * 1e3:.0f} ms, {others * 1e3:.0f} ms)", f"{limit}x", ratio <= limit)


def _make_model() -> torch.nn.Module:
    return torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _memory_row(directory: Path) -> Row:
    command = [sys.executable, "-m", "tests.benchmarks.async_checkpoints", str(directory / "memory")]
    measured = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout.split()
    size, peak = (float(number) for number in measured)
    ratio = peak / size
    return Row(
        f"memory peak of an asynchronous save of {size:.0f} MB, the state included",
        f"{ratio:.2f}x (+{peak:.0f} MB)",
        f"{MEMORY_LIMIT}x",
        ratio <= MEMORY_LIMIT,
    )


def _peak(directory: Path) -> tuple[float, float]:
    """Return the size of a state in MB, and how much more is resident at most while it is copied and written."""
    store, area = CheckpointStore(directory / "checkpoints"), StagingArea()
    _save(store, area, {"state_dict": torch.nn.Linear(2, 2).state_dict()})  # what is loaded on first use
    before = _status("VmRSS")
    model = _make_model()
    moments = {name: [torch.zeros_like(tensor) + 1 for _ in range(2)] for name, tensor in model.state_dict().items()}
    state = {"state_dict": model.state_dict(), "optimizer": moments}
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is that from here on
    for _ in range(2):
        _save(store, area, state)
    return sum(tensor.nbytes for tensor in _tensors(state)) / 1e6, _status("VmHWM") - before


def _save(store: CheckpointStore, area: StagingArea, state: Mapping[str, Any]) -> None:
    staged = area.stage(state)
    writing = threading.Thread(
        target=lambda: save_checkpoint(store, "newest", staged.wait(), epoch=0, iter=0, hookbus_version="", replace=True)
    )
    writing.start()
    writing.join()


def _status(field: str) -> float:
    (line,) = (line for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    print(*_peak(Path(sys.argv[1])))

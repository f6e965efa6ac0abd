"""SyncBuffersHook: buffers are the same everywhere when they are used, with two real processes; and alone it does nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hookbus.events import AfterTrain, AfterTrainIter, BeforeValEpoch
from hookbus.hooks import SyncBuffersHook
from tests.runner.builders import make_runner, same, weights

ROOT = Path(__file__).parents[2]

LOOPS: dict[str, dict[str, Any]] = {
    "by epoch": dict(max_epochs=2),
    "by epoch, validated once": dict(max_epochs=3, val_interval=3),
    "by iteration": dict(by_epoch=False, max_iters=7, val_interval=3),
    "stopped in mid-epoch": dict(max_epochs=5),
}

RUNS = [*((loop, "SyncBuffersHook") for loop in LOOPS), ("by iteration", "")]
"""What is trained, one after the other, in the same two processes; the last one without the hook."""

TWO_PROCESSES = """
import sys
import torch
from tests.hooks.test_sync_buffers import RUNS, observed

torch.set_num_threads(1)
store, rank = sys.argv[1], int(sys.argv[2])
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.save({run: observed(store, rank, *run) for run in RUNS}, f"{store}.{rank}")
torch.distributed.destroy_process_group()
"""


def observed(store: str, rank: int, loop: str, hook: str) -> dict[str, list[Any]]:
    """Train in this process, and return what became of the buffers on the way."""
    runner = make_runner(
        Path(f"{store}.runs"),
        model=BatchNormed(),
        train_dataloader=make_batches(rank),
        train_cfg=LOOPS[loop],
        default_hooks=dict(logger=None, checkpoint=None),
        custom_hooks=[dict(type=hook)] if hook else [],
    )
    seen: dict[str, list[Any]] = {"raw": [], "validation": [], "end": []}

    def buffers() -> dict[str, torch.Tensor]:
        return {name: buffer.clone() for name, buffer in runner.model.named_buffers()}

    runner.bus.subscribe(AfterTrainIter, lambda: seen["raw"].append(buffers()))
    runner.bus.subscribe(BeforeValEpoch, lambda iter: seen["validation"].append((iter, buffers())), priority="HIGHEST")
    runner.bus.subscribe(AfterTrain, lambda: seen["end"].append(buffers()), priority="LOWEST")
    if loop == "stopped in mid-epoch":
        runner.bus.subscribe(AfterTrainIter, runner.stop, when=lambda event: event.iter == 4)
    runner.train()
    return seen


class BatchNormed(torch.nn.Module):
    """A model with buffers of several types, some of which follow from the data."""

    seen: torch.Tensor
    spectrum: torch.Tensor
    is_great: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.linear = torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(2, dtype=torch.bfloat16))
        self.register_buffer("spectrum", torch.zeros(3, dtype=torch.complex64))
        self.register_buffer("is_great", torch.tensor(True))
        self.register_buffer("empty", torch.zeros(0))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Keep something of the inputs in each buffer."""
        if self.training:
            self.seen += inputs[0, 0].to(torch.bfloat16)
            self.spectrum += torch.fft.rfft(inputs[0].detach())
            self.is_great.copy_(inputs.mean() > 0.5)
        output: torch.Tensor = self.linear(self.norm(inputs))
        return output


def make_batches(rank: int) -> list[Any]:
    """Return three batches, others for each process."""
    generator = torch.Generator().manual_seed(rank)
    return [(torch.randn(4, 4, generator=generator) + rank, torch.randint(3, (4,), generator=generator)) for _ in range(3)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Return what each of two processes saw of its buffers, by run."""
    store = tmp_path_factory.mktemp("two") / "store"
    command = [sys.executable, "-W", "error", "-c", TWO_PROCESSES, str(store)]
    processes = [subprocess.Popen([*command, str(rank)], cwd=ROOT) for rank in (0, 1)]
    assert [process.wait(timeout=150) for process in processes] == [0, 0]
    return torch.load(f"{store}.0"), torch.load(f"{store}.1")


def agreed(mine: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what two processes have to agree on: the mean, and of whole numbers and truth values those of the first."""

    def one(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if not (left.is_floating_point() or left.is_complex()):
            return left
        exact = torch.complex128 if left.is_complex() else torch.float64
        return ((left.to(exact) + right.to(exact)) / 2).to(left.dtype)

    return {name: one(tensor, other[name]) for name, tensor in mine.items()}


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("loop", LOOPS)
def test_two_processes_validate_and_end_with_the_same_buffers(loop: str, two: Any) -> None:
    """Every validation and the end of training find both alike, and at the end it is the mean of what each had."""
    first, second = (seen[loop, "SyncBuffersHook"] for seen in two)
    for (_, mine), (_, other) in zip(first["validation"], second["validation"], strict=True):
        assert same(mine, other)
    validated_at = {"by epoch": [3, 6], "by epoch, validated once": [9], "by iteration": [3, 6, 7]}.get(loop, [3])
    assert [iteration for iteration, _ in first["validation"]] == validated_at
    (mine,), (other,) = first["end"], second["end"]
    assert same(mine, other)
    torch.testing.assert_close(mine, agreed(first["raw"][-1], second["raw"][-1]))
    torch.testing.assert_close(first["validation"][0][1], agreed(*(each["raw"][validated_at[0] - 1] for each in (first, second))))


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_without_the_hook_the_processes_validate_with_different_buffers(two: Any) -> None:
    """So the test above could fail."""
    (_, mine), (_, other) = (seen["by iteration", ""]["validation"][0] for seen in two)
    alike = {name for name, tensor in mine.items() if torch.equal(tensor, other[name])}
    assert alike == {"norm.num_batches_tracked", "empty"}


@pytest.mark.parametrize("loop", LOOPS)
def test_a_single_process_keeps_its_buffers(loop: str, tmp_path: Path) -> None:
    """Bit for bit, in training, validation and test."""
    ends = []
    for hooks in ([], [dict(type="SyncBuffersHook")]):
        runner = make_runner(
            tmp_path / str(len(hooks)),
            model=BatchNormed(),
            train_dataloader=make_batches(0),
            train_cfg=LOOPS[loop],
            default_hooks=dict(logger=None, checkpoint=None),
            custom_hooks=hooks,
        )
        runner.train()
        runner.val()
        runner.test()
        ends.append(weights(runner.model))
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name])


def test_the_only_process_of_a_group_has_nothing_to_do(tmp_path: Path) -> None:
    """No collective call is made."""
    store = tmp_path / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    try:
        hooks = [SyncBuffersHook()]
        runner = make_runner(tmp_path, model=BatchNormed(), default_hooks=dict(logger=None, checkpoint=None), custom_hooks=hooks)
        calls: list[Any] = []
        runner.bus.subscribe(BeforeValEpoch, lambda: calls.append(None))
        runner.bus.subscribe(AfterTrain, lambda: calls.append(None))
        runner.train()
    finally:
        torch.distributed.destroy_process_group()
    assert len(calls) == 3

"""Small makers for the tests of training: a model, data, a runner, and records of what it published."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from hookbus.bus import EventBus
from hookbus.events import Event, MountPoint
from hookbus.runner import Runner

TRAIN_BATCHES, VAL_BATCHES, TEST_BATCHES = 3, 2, 1
ITER = ("BeforeTrainIter", "AfterBackward", "BeforeOptimizerStep", "AfterOptimizerStep", "AfterTrainIter")
VALIDATION = (
    "BeforeVal",
    "BeforeValEpoch",
    *(("BeforeValIter", "AfterValIter") * VAL_BATCHES),
    "AfterValEpoch",
    "AfterVal",
)

_numbers = itertools.count()


def unique_name() -> str:
    """Return a name that no other run of this process has."""
    return f"run-{next(_numbers)}"


def make_data(size: int) -> TensorDataset:
    """Return samples whose class a linear model can learn."""
    generator = torch.Generator().manual_seed(size)
    inputs = torch.randn(size, 4, generator=generator)
    return TensorDataset(inputs, inputs[:, :3].argmax(dim=1))


def make_loader(size: int, **options: Any) -> DataLoader[Any]:
    """Return a dataloader with batches of four."""
    return DataLoader(make_data(size), **{"batch_size": 4} | options)


def make_model(seed: int = 0) -> torch.nn.Linear:
    """Return a linear model, the same for the same seed."""
    torch.manual_seed(seed)
    return torch.nn.Linear(4, 3)


def make_parts(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """Return arguments for a runner of two epochs with three training batches, two for validation and one for the test."""
    model = changes.pop("model", None)
    model = make_model() if model is None else model
    parts: dict[str, Any] = {
        "model": model,
        "loss_fn": torch.nn.functional.cross_entropy,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if isinstance(model, torch.nn.Module) and list(model.parameters())
        else None,
        "train_dataloader": make_loader(4 * TRAIN_BATCHES),
        "val_dataloader": make_loader(4 * VAL_BATCHES),
        "test_dataloader": make_loader(4 * TEST_BATCHES),
        "train_cfg": dict(max_epochs=2),
        "randomness": dict(seed=0),
        "device": "cpu",
        "work_dir": tmp_path,
        "experiment_name": unique_name(),
    }
    return parts | changes


def make_runner(tmp_path: Path, **changes: Any) -> Runner:
    """Return a runner of the parts above, some of them changed."""
    return Runner(**make_parts(tmp_path, **changes))


def record(bus: EventBus, event_type: type[Event] = MountPoint) -> list[Event]:
    """Return a list that fills with the events published from now on."""
    seen: list[Event] = []
    bus.subscribe(event_type, lambda event: seen.append(event), priority="HIGHEST", name="record")
    return seen


def names(events: Sequence[Event]) -> list[str]:
    """Return the names of events."""
    return [type(event).__name__ for event in events]


def at_iter(number: int, action: Callable[[], object]) -> Callable[..., None]:
    """Return a handler that acts in one iteration, counted over the whole run."""

    def handler(iter: int) -> None:
        if iter == number:
            action()

    return handler


def checkpoints(work_dir: Path) -> list[str]:
    """Return the names of the committed checkpoints."""
    directory = work_dir / "checkpoints"
    return sorted(path.name for path in directory.iterdir() if path.name != ".lock") if directory.exists() else []


def read_records(runner: Runner) -> list[dict[str, Any]]:
    """Return what the runner wrote to `metrics.jsonl`."""
    return [json.loads(line) for line in (runner.log_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of the weights."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Return whether weights are the same bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)

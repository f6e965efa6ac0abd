"""Small makers for the tests of training: a model, data, a runner, and records of what it published."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import hookbus.testing
from hookbus.bus import EventBus
from hookbus.events import Event, MountPoint
from hookbus.runner import Runner
from hookbus.testing import make_loader as make_loader
from hookbus.testing import make_parts as make_parts
from hookbus.testing.runs import TEST_BATCHES as TEST_BATCHES
from hookbus.testing.runs import TRAIN_BATCHES as TRAIN_BATCHES
from hookbus.testing.runs import VAL_BATCHES as VAL_BATCHES
from hookbus.testing.runs import make_data as make_data

ITER = ("BeforeTrainIter", "AfterBackward", "BeforeOptimizerStep", "AfterOptimizerStep", "AfterTrainIter")
VALIDATION = (
    "BeforeVal",
    "BeforeValEpoch",
    *(("BeforeValIter", "AfterValIter") * VAL_BATCHES),
    "AfterValEpoch",
    "AfterVal",
)

_numbers = itertools.count()


def make_runner(work_dir: str | Path | None = None, **changes: Any) -> Runner:
    """Return a runner like that of `hookbus.testing`, but one that logs no metrics unless its `default_hooks` have a logger."""
    hooks = changes.get("default_hooks", {})
    if isinstance(hooks, dict):
        changes["default_hooks"] = {"logger": None} | hooks
    return hookbus.testing.make_runner(work_dir, **changes)


def unique_name() -> str:
    """Return a name that no other run of this process has."""
    return f"named-run-{next(_numbers)}"


def make_model(seed: int = 0) -> torch.nn.Linear:
    """Return a linear model, the same for the same seed, which the global generator has from then on, too."""
    torch.manual_seed(seed)
    return hookbus.testing.make_model(seed)


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

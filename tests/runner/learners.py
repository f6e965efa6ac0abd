"""Runs that draw on everything a checkpoint has to keep, for comparing a resumed run with one that was never interrupted."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from hookbus.checkpoint import load_checkpoint
from hookbus.events import AfterTrainIter
from hookbus.hooks import Hook
from hookbus.runner import Runner
from tests.runner.builders import make_data, make_loader, make_runner

ITERATIONS = 12
"""Three epochs of four batches."""


class Augmented(Dataset[Any]):
    """Samples that are disturbed by all three random generators whenever they are read."""

    def __init__(self, size: int) -> None:
        self._inputs, self._targets = make_data(size).tensors

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, index: int) -> Any:
        noise = torch.rand(4) + random.random() + float(np.random.random())
        return self._inputs[index] + 0.1 * noise, self._targets[index]


class Fickle(Hook):
    """Draws at every point a hook can, and keeps what it drew."""

    def __init__(self) -> None:
        self.drawn: list[float] = []

    def after_train_iter(self) -> None:
        """Draw."""
        self.drawn.append(random.random() + float(np.random.random()) + torch.rand(()).item())

    def after_val_epoch(self) -> None:
        """Draw."""
        self.drawn.append(torch.rand(()).item())

    def state_dict(self) -> dict[str, Any]:
        """Return what was drawn."""
        return {"drawn": self.drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was drawn."""
        self.drawn = state_dict["drawn"]


def make_learner(work_dir: Path, *, by_epoch: bool = True, workers: int = 0, persistent: bool = False, **changes: Any) -> Runner:
    """Return a runner with shuffling, augmentation, dropout, accumulation, schedules and a hook with a state."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 3))
    loop = dict(max_epochs=3) if by_epoch else dict(by_epoch=False, max_iters=ITERATIONS, val_interval=5)
    loading: dict[str, Any] = dict(batch_size=4, shuffle=True, num_workers=workers, persistent_workers=persistent)
    options: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=0.05),
        "optim_wrapper": dict(accumulative_counts=3, clip_grad=dict(max_norm=1.0)),
        "param_scheduler": [
            dict(type="CosineAnnealingLR", T_max=4, by_epoch=by_epoch),
            dict(type="LinearLR", by_epoch=False, total_iters=3),
        ],
        "train_dataloader": DataLoader(Augmented(16), **loading),
        "val_dataloader": make_loader(8, shuffle=True),
        "train_cfg": loop,
        "default_hooks": dict(checkpoint=dict(save_best="loss", by_epoch=by_epoch, interval=1 if by_epoch else 4), logger=None),
        "custom_hooks": [Fickle()],
        "log_level": "WARNING",
    }
    return make_runner(work_dir, **options | changes)


def train_until(runner: Runner, iterations: int | None) -> Runner:
    """Train, and stop behind an iteration."""
    if iterations is not None:
        runner.bus.subscribe(AfterTrainIter, lambda runner: runner.stop(), when=lambda event: event.iter + 1 == iterations)
    runner.train()
    return runner


def final_state(work_dir: Path, name: str) -> dict[str, Any]:
    """Return everything the last checkpoint holds, but for what tells two starts from each other and for times."""
    checkpoint = load_checkpoint(work_dir / "checkpoints" / name)
    for fact in ("time", "experiment_name"):
        del checkpoint["meta"][fact]
    hub = checkpoint["message_hub"]
    hub["log_scalars"] = {key: columns for key, columns in hub["log_scalars"].items() if "time" not in key}
    for key in ("eta", "experiment_name", "last_ckpt"):
        hub["runtime_info"].pop(key, None)
    hub["runtime_info"] = dict(sorted(hub["runtime_info"].items()))  # a new start mentions them in another order
    return checkpoint

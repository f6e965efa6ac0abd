"""Small real runs: a linear model, random data that it can learn, the CPU, and milliseconds."""

from __future__ import annotations

__all__ = ("make_data", "make_loader", "make_model", "make_parts", "make_runner")

import itertools
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from hookbus.runner import Runner

INPUTS, CLASSES, BATCH_SIZE = 4, 3, 4
TRAIN_BATCHES, VAL_BATCHES, TEST_BATCHES, EPOCHS = 3, 2, 1, 2

_numbers = itertools.count()


def make_data(size: int) -> TensorDataset:
    """Return samples whose class a linear model can learn; the same for the same size."""
    generator = torch.Generator().manual_seed(size)
    inputs = torch.randn(size, INPUTS, generator=generator)
    return TensorDataset(inputs, inputs[:, :CLASSES].argmax(dim=1))


def make_loader(size: int, **options: Any) -> DataLoader[Any]:
    """Return a dataloader over so many samples, in batches of four unless its options say otherwise."""
    return DataLoader(make_data(size), **{"batch_size": BATCH_SIZE} | options)


def make_model(seed: int = 0) -> torch.nn.Linear:
    """Return a linear model, the same for the same seed; the global random generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Linear(INPUTS, CLASSES)


def make_parts(work_dir: str | Path, **changes: Any) -> dict[str, Any]:
    """Return the arguments of a runner: two epochs of three training batches, two for validation and one for the test.

    Args:
        work_dir: where the run keeps its files.
        changes: arguments of `Runner`, in the place of those that stand here or beside them.
    """
    model = changes.pop("model", None)
    model = make_model() if model is None else model
    is_trainable = isinstance(model, torch.nn.Module) and any(True for _ in model.parameters())
    parts: dict[str, Any] = {
        "model": model,
        "loss_fn": torch.nn.functional.cross_entropy,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) if is_trainable else None,
        "train_dataloader": make_loader(BATCH_SIZE * TRAIN_BATCHES),
        "val_dataloader": make_loader(BATCH_SIZE * VAL_BATCHES),
        "test_dataloader": make_loader(BATCH_SIZE * TEST_BATCHES),
        "train_cfg": dict(max_epochs=EPOCHS),
        "randomness": dict(seed=0),
        "device": "cpu",
        "work_dir": work_dir,
        "experiment_name": f"run-{next(_numbers)}",  # two live runs of one process cannot share a name
    }
    return parts | changes


def make_runner(work_dir: str | Path | None = None, **changes: Any) -> Runner:
    """Return a runner of those parts, some of them changed; two of them that are made alike train alike, bit for bit.

    Args:
        work_dir: where the run keeps its files; a directory that goes with the runner where left out.
        changes: arguments of `Runner`.
    """
    if work_dir is not None:
        return Runner(**make_parts(work_dir, **changes))
    temporary = tempfile.mkdtemp(prefix="hookbus-")
    try:
        runner = Runner(**make_parts(temporary, **changes))
    except BaseException:
        shutil.rmtree(temporary)
        raise
    weakref.finalize(runner, shutil.rmtree, temporary, ignore_errors=True)
    return runner

"""Train by iterations instead of epochs, on a stream of data that never ends.

    python examples/iterations.py                 a few seconds
    python examples/iterations.py --iters 250     shorter

The data are made while training goes on, so there is no length and no epoch. Iterations say how long training is, when it
is validated - every 100 at first, every 50 from iteration 200 on - and how the learning rate warms up and comes down again.
The log goes to TensorBoard, too: `tensorboard --logdir runs/iterations` shows it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from hookbus import Runner

WARM_UP = 50
Batch = tuple[torch.Tensor, torch.Tensor]


class Waves(IterableDataset[Batch]):
    """Batches of points on a damped wave, without an end."""

    def __iter__(self) -> Iterator[Batch]:
        while True:
            points = 6 * torch.rand(64, 1)
            yield points, wave(points)


def wave(points: torch.Tensor) -> torch.Tensor:
    """Return the height of the wave."""
    return torch.exp(-points / 3) * torch.sin(2 * points)


def make_runner(iters: int, work_dir: Path) -> Runner:
    """Put the parts together."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(1, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1)
    )
    points = torch.linspace(0, 6, 256).unsqueeze(1)
    return Runner(
        model=model,
        loss_fn=torch.nn.functional.mse_loss,
        optimizer=dict(type="Adam", lr=5e-3),
        param_scheduler=[
            dict(type="LinearLR", start_factor=0.1, total_iters=WARM_UP, end=WARM_UP),
            dict(type="CosineAnnealingLR", T_max=iters - WARM_UP, begin=WARM_UP, end=iters),
        ],
        train_dataloader=DataLoader(Waves(), batch_size=None),
        val_dataloader=DataLoader(TensorDataset(points, wave(points)), batch_size=64),
        train_cfg=dict(by_epoch=False, max_iters=iters, val_interval=100, dynamic_intervals=[(200, 50)]),
        default_hooks=dict(
            logger=dict(interval=50, writers=["terminal", "jsonl", "tensorboard"]),
            checkpoint=dict(by_epoch=False, interval=100, max_keep_ckpts=1, save_best="loss"),
        ),
        randomness=dict(seed=0),
        work_dir=work_dir,
    )


def main() -> None:
    """Train, and read back what was logged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iters", type=int, default=500)
    parser.add_argument("--work-dir", type=Path, default=Path("runs/iterations"))
    arguments = parser.parse_args()

    runner = make_runner(arguments.iters, arguments.work_dir)
    metrics = runner.train()

    records = [json.loads(line) for line in (runner.log_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rates = ", ".join(f"{record['iter']}: {record['lr']:.5f}" for record in records if record["mode"] == "train")
    print(f"learning rate at iteration {rates}")
    print(f"validated after {', '.join(str(record['iter']) for record in records if record['mode'] == 'val')} iterations")
    print(f"validation loss at the end: {metrics['loss']:.5f}")
    print(f"checkpoints: {', '.join(sorted(path.name for path in (arguments.work_dir / 'checkpoints').iterdir()))}")
    print(f"for TensorBoard: {next((runner.log_dir / 'tensorboard').iterdir()).name.partition('.tfevents.')[0]}.tfevents...")


if __name__ == "__main__":
    main()

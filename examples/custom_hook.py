"""Write a hook of your own: state, helpers, a coroutine, filters, and a place in the order.

    python examples/custom_hook.py               a few seconds
    python examples/custom_hook.py --epochs 2    shorter still

A small network learns to tell two spirals apart. The hook below follows the loss, reports every second epoch from a
coroutine, signs each checkpoint, and has what it remembers saved in them. You see in which order the hooks of an
iteration run, and at the end what the last checkpoint kept of this one.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import anyio
import torch
from torch.utils.data import DataLoader, TensorDataset

from hookbus import HOOKS, AfterTrainIter, BeforeSaveCheckpoint, Hook, Runner, every, on


@HOOKS.register_module()
class LossTrendHook(Hook):
    """Remembers the lowest loss it has seen, and reports it."""

    priority = "LOW"  # its place in the order, unless the config names another one

    def __init__(self, interval: int = 10, report_to: str = "the team") -> None:
        self.interval = interval
        self.report_to = report_to
        self.lowest = math.inf
        self.reports = 0

    def after_train_iter(self, runner: Runner, outputs: dict[str, Any]) -> None:
        """Look at the loss every `interval` iterations; a plain method runs on the training thread."""
        if self.every_n_train_iters(runner, self.interval):
            self.lowest = min(self.lowest, outputs["loss"].item())

    @every(2)
    async def after_train_epoch(self, epoch: int) -> None:
        """Report every second epoch; training waits for a coroutine, so what stands behind it in the order sees its work."""
        await anyio.sleep(0.01)  # stands for a request to a chat or a tracking server
        self.reports += 1
        print(f"report {self.reports} to {self.report_to}: the lowest loss after epoch {epoch + 1} is {self.lowest:.4f}")

    @on(BeforeSaveCheckpoint, priority="HIGHEST")
    def sign(self, checkpoint: dict[str, Any], name: str) -> None:
        """Add a line to a checkpoint before it is written; `on` subscribes a method of any name to any event."""
        checkpoint["meta"]["signed"] = f"{name}, seen by {type(self).__name__}"

    def state_dict(self) -> dict[str, Any]:
        """Return what checkpoints keep of this hook."""
        return {"lowest": self.lowest, "reports": self.reports}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.lowest, self.reports = state_dict["lowest"], state_dict["reports"]


def make_spirals(points: int = 1024) -> TensorDataset:
    """Return two spirals, wound into each other, with a little noise."""
    labels = torch.arange(points) % 2
    radius = torch.linspace(0.2, 1.0, points)
    angle = 6 * radius + math.pi * labels
    spirals = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return TensorDataset(spirals + 0.02 * torch.randn_like(spirals), labels)


def main() -> None:
    """Train with the hook, and show what it did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--work-dir", type=Path, default=Path("runs/custom_hook"))
    arguments = parser.parse_args()

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
    runner = Runner(
        model=network,
        loss_fn=torch.nn.functional.cross_entropy,
        optimizer=torch.optim.Adam(network.parameters(), lr=1e-2),
        train_dataloader=DataLoader(make_spirals(), batch_size=32, shuffle=True),
        train_cfg=dict(max_epochs=arguments.epochs),
        default_hooks=dict(checkpoint=dict(max_keep_ckpts=1), logger=None),
        custom_hooks=[dict(type="LossTrendHook", interval=5, report_to="the lab", priority="ABOVE_NORMAL")],
        randomness=dict(seed=0),
        work_dir=arguments.work_dir,
    )

    print("who hears AfterTrainIter, in order:")
    for entry in runner.bus.plan(AfterTrainIter):
        print(f"    {entry}")
    runner.train()

    last = arguments.work_dir / "checkpoints" / f"epoch_{arguments.epochs}"
    checkpoint = runner.load_checkpoint(last)
    print(f"signed: {checkpoint['meta']['signed']}")
    print(f"kept in {last}: {checkpoint['hooks']['LossTrendHook']}")


if __name__ == "__main__":
    main()

"""Publish an event of your own, and add a stage of your own to the hooks of a run.

    python examples/custom_event.py               a few seconds
    python examples/custom_event.py --epochs 3    shorter

A hook watches the loss and publishes `LossRecord` each time it is lower than ever by a fifth or more. It does not know
who listens: here a function that hears every second record, a coroutine that hears only the large ones, and a function
that hears the first and no other. After training, `runner.call_hook("add_to_report", ...)` calls the method of that name
of every hook that has one: a mount point that this program has made up.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import anyio
import torch
from torch.utils.data import DataLoader, TensorDataset

from hookbus import AfterTrain, Event, Hook, MessageHub, Runner, encode_event


class LossRecord(Event):
    """The mean loss is lower than ever, by a fifth at least. Facts only, so it can be kept, compared, queued and sent."""

    iter: int
    loss: float
    fell_by: float
    """The share of the former record; 1 for the first one."""


class LossRecordHook(Hook):
    """Publishes `LossRecord`."""

    def __init__(self, window: int = 8) -> None:
        self.window = window
        self.lowest = math.inf

    def after_train_iter(self, runner: Runner, iter: int, hub: MessageHub) -> None:
        """Compare the newest mean with the record."""
        loss = hub.get_scalar("train/loss").mean(self.window)
        if loss <= 0.8 * self.lowest:
            fell_by = 1 - loss / self.lowest  # 1 where the record was infinite
            self.lowest = loss
            runner.bus.emit(LossRecord(iter=iter, loss=loss, fell_by=fell_by))  # its handlers run now, in their order

    def add_to_report(self, runner: Runner, report: list[str]) -> None:
        """Say what was reached: not a mount point of hookbus, but a stage of this program."""
        report.append(f"the lowest mean loss was {self.lowest:.4f}, {runner.iter} iterations are done")


class ArchiveHook(Hook):
    """Has the stage of this program as a coroutine."""

    priority = "LOW"

    async def add_to_report(self, runner: Runner, report: list[str]) -> None:
        """Come after those of higher priority; whoever called the stage waits."""
        await anyio.sleep(0.01)  # stands for a request to an archive
        report.append(f"archived as {runner.experiment_name}, behind {len(report)} line(s)")


def subscribe(runner: Runner) -> None:
    """Subscribe to the event; filters belong to the subscription, so no handler begins with a test."""

    @runner.bus.on(LossRecord, once=True)
    def show_wire_form(event: LossRecord) -> None:
        print(f"the first one as JSON: {encode_event(event).decode()}")

    @runner.bus.on(LossRecord, every=2)  # an event of one's own is counted by its publishes
    def note(iter: int, loss: float) -> None:  # the facts, by name
        print(f"iteration {iter + 1:>3}: record {loss:.4f}")

    @runner.bus.on(LossRecord, when=lambda event: 0.25 < event.fell_by < 1, priority="HIGH")
    async def cheer(event: LossRecord, hub: MessageHub) -> None:
        await anyio.sleep(0.001)  # stands for a message to a chat; the handlers behind this one wait
        print(f"iteration {event.iter + 1:>3}: down by {event.fell_by:.0%} in epoch {hub.get_info('epoch') + 1}")

    @runner.bus.on(AfterTrain)
    def ask_for_report(runner: Runner) -> None:
        report: list[str] = []
        runner.call_hook("add_to_report", report=report)
        print("report: " + "; ".join(report))


def make_runner(epochs: int, work_dir: Path) -> Runner:
    """Return a run that fits a noisy plane."""
    torch.manual_seed(0)
    inputs = torch.randn(1024, 8)
    targets = inputs @ torch.randn(8, 1) + 0.1 * torch.randn(1024, 1)
    model = torch.nn.Linear(8, 1)
    return Runner(
        model=model,
        loss_fn=torch.nn.functional.mse_loss,
        optimizer=dict(type="SGD", lr=0.01),
        train_dataloader=DataLoader(TensorDataset(inputs, targets), batch_size=32, shuffle=True),
        train_cfg=dict(max_epochs=epochs),
        default_hooks=dict(logger=None, checkpoint=None),
        custom_hooks=[LossRecordHook(), ArchiveHook()],
        randomness=dict(seed=0),
        work_dir=work_dir,
    )


def main() -> None:
    """Train, and listen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--work-dir", type=Path, default=Path("runs/custom_event"))
    arguments = parser.parse_args()

    runner = make_runner(arguments.epochs, arguments.work_dir)
    subscribe(runner)
    runner.train()


if __name__ == "__main__":
    main()

"""Train a small convolutional network on handwritten digits, and watch it from four sides.

    python examples/digits.py                 about a minute on two cores
    python examples/digits.py --epochs 2      a short look

The data are the 1,797 real 8x8 images that ship inside scikit-learn, split into 70 % training, 15 % validation and
15 % test. The checkpoint with the best validation accuracy is chosen, and the test part is read once, with it. Two
caveats: the same writers appear in all three parts, so this says nothing about new handwriting; and one image of the
test part is 0.37 %, so differences below one per cent mean little.
"""

from __future__ import annotations

import argparse
import threading
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from hookbus import HOOKS, AfterTrainIter, Hook, MessageHub, RunEnded, Runner

SPLIT_SEED = 0  # the split stays the same whatever the training seed


@HOOKS.register_module()
class CheckInvalidLossHook(Hook):
    """Ends the run as soon as the loss is no longer finite."""

    priority = "ABOVE_NORMAL"

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval

    def after_train_iter(self, runner: Runner, outputs: dict[str, Any]) -> None:
        """Look at the loss every `interval` iterations."""
        if self.every_n_train_iters(runner, self.interval) and not torch.isfinite(outputs["loss"]):
            raise FloatingPointError(f"the loss is not finite at iteration {runner.iter}")


def load_parts() -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """Return the images and labels for training, validation and test."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    rest, test = split(torch.arange(len(labels)), labels, share=0.15)
    train, val = split(rest, labels, share=0.15 / 0.85)
    return tuple(TensorDataset(images[part], labels[part]) for part in (train, val, test))  # type: ignore[return-value]


def split(indices: torch.Tensor, labels: torch.Tensor, share: float) -> list[torch.Tensor]:
    """Split indices in two, each digit in the same proportion."""
    return train_test_split(  # type: ignore[no-any-return]
        indices, test_size=share, stratify=labels[indices], random_state=SPLIT_SEED
    )


def make_network() -> torch.nn.Module:
    """Return a convolutional network for 8x8 images."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 32, 3, padding=1),
        torch.nn.BatchNorm2d(32),
        torch.nn.ReLU(),
        torch.nn.Conv2d(32, 64, 3, padding=1),
        torch.nn.BatchNorm2d(64),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(64, 64, 3, padding=1),
        torch.nn.BatchNorm2d(64),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Dropout(0.3),
        torch.nn.Linear(64 * 4 * 4, 10),
    )


def make_runner(seed: int, epochs: int, work_dir: Path) -> Runner:
    """Put the parts together."""
    torch.manual_seed(seed)
    train, val, test = load_parts()
    network = make_network()
    train_loader = DataLoader(train, batch_size=64, shuffle=True)
    return Runner(
        model=network,
        loss_fn=torch.nn.functional.cross_entropy,
        optimizer=torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2),
        param_scheduler=dict(type="OneCycleLR", max_lr=3e-3, total_steps=epochs * len(train_loader), by_epoch=False),
        train_dataloader=train_loader,
        val_dataloader=DataLoader(val, batch_size=135),
        test_dataloader=DataLoader(test, batch_size=135),
        val_evaluator=MulticlassAccuracy(10, average="micro"),
        test_evaluator=MulticlassAccuracy(10, average="micro"),
        train_cfg=dict(max_epochs=epochs, val_interval=1),
        default_hooks=dict(checkpoint=dict(interval=5, max_keep_ckpts=2, save_best="accuracy")),
        custom_hooks=[dict(type="CheckInvalidLossHook", interval=50)],
        randomness=dict(seed=seed),
        work_dir=work_dir,
        experiment_name="digits",
    )


def watch_from_outside(every: int = 5) -> None:
    """Read the hub of the run from a thread that knows no runner, until the run ends."""
    hub = MessageHub.get_instance("digits")
    epoch = 0
    while True:
        epoch += every
        try:
            hub.wait_until_blocking(lambda seen: seen.get_info("epoch", 0) >= epoch)  # noqa: B023  called before epoch moves
        except RunEnded:
            return
        print(f"[outside] epoch {epoch}: the newest 20 losses average {hub.get_scalar('train/loss').mean(20):.4f}")


def main() -> None:
    """Train, choose, test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work-dir", type=Path, default=Path("runs/digits"))
    arguments = parser.parse_args()

    runner = make_runner(arguments.seed, arguments.epochs, arguments.work_dir)

    @runner.bus.on(AfterTrainIter, every=100)
    async def report(event: AfterTrainIter, hub: MessageHub) -> None:
        print(f"[awaited] iteration {event.iter + 1}: loss {hub.get_scalar('train/loss').current():.4f}")

    outside = threading.Thread(target=watch_from_outside)
    outside.start()
    runner.train()
    outside.join()

    best = runner.work_dir / "checkpoints" / runner.message_hub.get_info("best_ckpt")
    runner.load_checkpoint(best)
    metrics = runner.test()
    print(f"best checkpoint: {best}")
    print(f"test/accuracy: {metrics['accuracy']:.4f}")


if __name__ == "__main__":
    main()

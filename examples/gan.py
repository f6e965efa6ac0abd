"""Train two networks against each other: several optimizers in one run, driven by the model's own `train_step`.

    python examples/gan.py                about ten seconds
    python examples/gan.py --epochs 10    shorter; the digits are still rough

A generator learns to draw the 8x8 digits that ship inside scikit-learn; a discriminator learns to tell its drawings from
the real ones. Each has an optimizer of its own, by the name of its submodule, and a schedule of its own. The validation
says how it stands: a discriminator that is right half of the time cannot tell any more, and the mean and the spread of the
drawn pixels come close to those of the data.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, TensorDataset

from hookbus import AfterValEpoch, OptimWrapperDict, Runner

NOISE = 16
SHADES = " .:-=+*#%@"


class Gan(torch.nn.Module):
    """A generator and a discriminator of 8x8 images, pixels from 0 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.nn.Sequential(
            torch.nn.Linear(NOISE, 128),
            torch.nn.BatchNorm1d(128),
            torch.nn.ReLU(),
            torch.nn.Linear(128, 128),
            torch.nn.BatchNorm1d(128),
            torch.nn.ReLU(),
            torch.nn.Linear(128, 64),
            torch.nn.Sigmoid(),
        )
        self.discriminator = torch.nn.Sequential(
            torch.nn.Linear(64, 128),
            torch.nn.LeakyReLU(0.2),
            torch.nn.Dropout(0.3),
            torch.nn.Linear(128, 128),
            torch.nn.LeakyReLU(0.2),
            torch.nn.Dropout(0.3),
            torch.nn.Linear(128, 1),
        )

    def draw(self, number: int) -> torch.Tensor:
        """Return images made of noise."""
        noise = torch.randn(number, NOISE, device=next(self.parameters()).device)
        images: torch.Tensor = self.generator(noise)
        return images

    def train_step(self, batch: list[torch.Tensor], optim_wrapper: OptimWrapperDict) -> dict[str, torch.Tensor]:
        """Train the discriminator, then the generator; what is returned is recorded."""
        (real,) = batch
        drawn = self.draw(len(real))
        on_real, on_drawn = self.discriminator(real), self.discriminator(drawn.detach())
        discriminator_loss = loss_of(on_real, is_real=0.9) + loss_of(on_drawn, is_real=0.0)
        optim_wrapper["discriminator"].update_params(discriminator_loss)

        generator_loss = loss_of(self.discriminator(drawn), is_real=1.0)
        optim_wrapper["generator"].update_params(generator_loss)
        self.discriminator.zero_grad()  # that loss left gradients here, too, and the update has cleared the generator's only
        return {"loss": generator_loss, "discriminator_loss": discriminator_loss}

    def val_step(self, batch: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Say how often the discriminator is right, and how drawings and data differ in mean and spread."""
        (real,) = batch
        drawn = self.draw(len(real))
        right = torch.cat([self.discriminator(real) > 0, self.discriminator(drawn) <= 0])
        return {
            "discriminator_accuracy": right.float().mean(),
            "mean_real": real.mean(),
            "mean_drawn": drawn.mean(),
            "spread_real": real.std(dim=0).mean(),  # over the images: near 0 if all drawings were the same
            "spread_drawn": drawn.std(dim=0).mean(),
        }


def loss_of(logits: torch.Tensor, is_real: float) -> torch.Tensor:
    """Return how far the discriminator is from saying `is_real`."""
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, is_real))


def make_runner(model: Gan, epochs: int, work_dir: Path) -> Runner:
    """Put the parts together."""
    images = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    train, val = images[:1500], images[1500:]
    return Runner(
        model=model,
        optimizer=dict(
            generator=dict(type="Adam", lr=1e-3, betas=(0.5, 0.999)),
            discriminator=dict(type="Adam", lr=5e-4, betas=(0.5, 0.999)),
        ),
        param_scheduler=dict(
            generator=dict(type="LinearLR", start_factor=1.0, end_factor=0.1, total_iters=epochs),
            discriminator=dict(type="StepLR", step_size=max(1, epochs // 2), gamma=0.5),
        ),
        train_dataloader=DataLoader(TensorDataset(train), batch_size=60, shuffle=True),
        val_dataloader=DataLoader(TensorDataset(val), batch_size=297),
        train_cfg=dict(max_epochs=epochs, val_interval=max(1, epochs // 5)),
        default_hooks=dict(logger=dict(interval=25, writers=["jsonl"]), checkpoint=dict(interval=-1)),
        randomness=dict(seed=0),
        work_dir=work_dir,
    )


def show(image: torch.Tensor) -> list[str]:
    """Return an image in characters."""
    rows = (image.reshape(8, 8) * (len(SHADES) - 1)).round().int().tolist()
    return ["".join(SHADES[pixel] * 2 for pixel in row) for row in rows]


def report(epoch: int, metrics: dict[str, Any]) -> None:
    """Print one line after each validation."""
    print(
        f"epoch {epoch:>3}: the discriminator is right in {metrics['discriminator_accuracy']:.2f}, "
        f"mean {metrics['mean_drawn']:.3f} (data {metrics['mean_real']:.3f}), "
        f"spread {metrics['spread_drawn']:.3f} (data {metrics['spread_real']:.3f})"
    )


def main() -> None:
    """Train, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--work-dir", type=Path, default=Path("runs/gan"))
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = Gan()
    runner = make_runner(model, arguments.epochs, arguments.work_dir)
    runner.bus.subscribe(AfterValEpoch, report)
    runner.train()
    for schedule in runner.param_schedulers:
        rate = schedule.optimizer.param_groups[0]["lr"]
        print(f"{schedule.name}: {schedule.completed} epochs, learning rate now {rate:.6f}")

    model.eval()
    with torch.no_grad():
        drawings = [show(image) for image in model.draw(4)]
    print("\n".join("    ".join(lines) for lines in zip(*drawings, strict=True)))


if __name__ == "__main__":
    main()

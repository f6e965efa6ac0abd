"""Interrupt a run and go on from its newest checkpoint, to the same weights, bit for bit.

    python examples/resume.py               a few seconds
    python examples/resume.py --epochs 4    shorter

The same training runs twice: once straight through, once stopped half-way and taken up by another runner, as another
process would. Then the newest checkpoint is damaged on purpose: a third runner notices, leaves it out, and goes on from
the one before it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from hookbus import AfterTrainEpoch, Runner


def make_runner(work_dir: Path, epochs: int, **options: Any) -> Runner:
    """Return a run with everything that a checkpoint has to keep: shuffled data, dropout, momentum, a schedule."""
    generator = torch.Generator().manual_seed(0)  # the data are the same in every run, whatever its seed
    inputs = torch.randn(1024, 8, generator=generator)
    targets = inputs.square().sum(1, keepdim=True)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(64, 1))
    return Runner(
        model=model,
        loss_fn=torch.nn.functional.mse_loss,
        optimizer=dict(type="SGD", lr=0.01, momentum=0.9),
        param_scheduler=dict(type="CosineAnnealingLR", T_max=epochs),
        train_dataloader=DataLoader(TensorDataset(inputs, targets), batch_size=32, shuffle=True),
        train_cfg=dict(max_epochs=epochs),
        default_hooks=dict(logger=None, checkpoint=dict(interval=1, max_keep_ckpts=2)),
        randomness=dict(seed=7),
        log_level="WARNING",
        work_dir=work_dir,
        **options,
    )


def weights_of(runner: Runner) -> torch.Tensor:
    """Return all weights of the model in one row."""
    return torch.nn.utils.parameters_to_vector(runner.model.parameters()).detach().clone()


def train_straight(work_dir: Path, epochs: int) -> torch.Tensor:
    """Train without a break."""
    runner = make_runner(work_dir / "straight", epochs)
    runner.train()
    print(f"straight: {runner.epoch} epochs, {runner.iter} iterations")
    return weights_of(runner)


def train_in_two_parts(work_dir: Path, epochs: int) -> torch.Tensor:
    """Stop half-way, forget the runner, and let another one go on."""
    first = make_runner(work_dir / "parts", epochs)

    @first.bus.on(AfterTrainEpoch, when=lambda event: event.epoch + 1 == epochs // 2)
    def interrupt() -> None:
        first.stop()  # takes effect at the next step boundary, after this epoch was saved

    first.train()
    print(f"part 1: stopped after {first.epoch} epochs")

    second = make_runner(work_dir / "parts", epochs, resume="auto")  # "auto" starts fresh where there is nothing to resume
    second.train()
    print(f"part 2: went on to {second.epoch} epochs, {second.iter} iterations")
    return weights_of(second)


def resume_past_damage(work_dir: Path, epochs: int) -> None:
    """Flip one bit in the newest checkpoint, and resume."""
    checkpoints = work_dir / "parts" / "checkpoints"
    file = checkpoints / f"epoch_{epochs}" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)

    runner = make_runner(work_dir / "parts", epochs, resume=True)  # True insists on a checkpoint

    @runner.bus.on(AfterTrainEpoch, once=True)
    def tell(epoch: int) -> None:
        print(f"damaged epoch_{epochs}: went on from epoch_{epoch} instead")

    runner.train()
    aside = next((work_dir / "parts").glob("checkpoints_before_*"))
    print(f"checkpoints: {', '.join(sorted(path.name for path in checkpoints.glob('epoch_*')))}")
    print(f"set aside: {', '.join(sorted(path.name for path in aside.iterdir()))}")


def main() -> None:
    """Train straight, train in two parts, compare; then resume past a damaged checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--work-dir", type=Path, default=Path("runs/resume"))
    arguments = parser.parse_args()

    straight = train_straight(arguments.work_dir, arguments.epochs)
    in_parts = train_in_two_parts(arguments.work_dir, arguments.epochs)
    print(f"the weights are equal, bit for bit: {torch.equal(straight, in_parts)}")
    resume_past_damage(arguments.work_dir, arguments.epochs)


if __name__ == "__main__":
    main()

"""Read a run from outside: a thread and an async task that know nothing but its name.

    python examples/detached_reader.py               a few seconds
    python examples/detached_reader.py --epochs 3    shorter

The thread waits for every second epoch. The async task lives on an event loop of its own, as a web server would, and
follows the loss: it gets the newest version each time and skips those that it was too slow for. Neither makes the
training thread wait, and neither ever sees half an update.
"""

from __future__ import annotations

import argparse
import threading
from pathlib import Path

import anyio
import torch
from torch.utils.data import DataLoader, TensorDataset

from hookbus import MessageHub, RunEnded, Runner

NAME = "sine"  # all that the readers know


def report_epochs(every: int = 2) -> None:
    """Wait on a thread for every second epoch, until the run ends; then look at the last version."""
    hub = MessageHub.get_instance(NAME)
    epoch = 0
    while True:
        epoch += every
        try:
            hub.wait_until_blocking(lambda seen: seen.get_info("epoch", 0) >= epoch)  # noqa: B023  called before epoch moves
        except RunEnded:
            break
        print(f"[thread] {epoch} epochs are done, the newest 64 losses average {hub.get_scalar('train/loss').mean(64):.4f}")
    last = hub.snapshot()  # frozen: whatever is recorded later, this one stays as it is
    scalars = ", ".join(f"{key} {value:.2g}" for key, value in last.scalars.items())
    print(f"[thread] the run ended with version {last.version}: iteration {last.get_info('iter')}, {scalars}")


async def follow_loss(pause: float = 0.2) -> None:
    """Follow the loss from an event loop, slowly; versions that come meanwhile are skipped."""
    hub = MessageHub.get_instance(NAME)
    await hub.wait_until(lambda seen: seen.get_info("iter", 0) >= 1)
    print("[task] training has begun")
    seen = 0
    async for snapshot in hub.watch("train/loss"):
        seen += 1
        print(f"[task] version {snapshot.version}: loss {snapshot.get_scalar('train/loss').current():.4f}")
        await anyio.sleep(pause)
    print(f"[task] saw {seen} versions of {hub.snapshot().version}")


def make_runner(epochs: int, work_dir: Path) -> Runner:
    """Return a run that fits a sine."""
    torch.manual_seed(0)
    inputs = torch.linspace(-3, 3, 2048).unsqueeze(1)
    model = torch.nn.Sequential(torch.nn.Linear(1, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
    return Runner(
        model=model,
        loss_fn=torch.nn.functional.mse_loss,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-2),
        train_dataloader=DataLoader(TensorDataset(inputs, inputs.sin()), batch_size=32, shuffle=True),
        train_cfg=dict(max_epochs=epochs),
        default_hooks=dict(logger=None, checkpoint=None),
        work_dir=work_dir,
        experiment_name=NAME,
    )


def main() -> None:
    """Train on this thread, read on two others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--work-dir", type=Path, default=Path("runs/detached_reader"))
    arguments = parser.parse_args()

    runner = make_runner(arguments.epochs, arguments.work_dir)
    readers = [threading.Thread(target=report_epochs), threading.Thread(target=anyio.run, args=(follow_loss,))]
    for reader in readers:
        reader.start()
    runner.train()
    for reader in readers:
        reader.join()


if __name__ == "__main__":
    main()

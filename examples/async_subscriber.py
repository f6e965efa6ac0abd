"""Train inside an async program, with coroutine functions and plain functions subscribed in one order.

    python examples/async_subscriber.py                    inside an asyncio program
    python examples/async_subscriber.py --backend trio     inside a trio program
    python examples/async_subscriber.py --epochs 1         shorter

`await runner.train_async()` trains on a thread of its own, so the event loop stays free: a heartbeat runs beside it.
Three subscribers hear every 20th iteration. They are subscribed in the wrong order on purpose; their priorities put
them right, and each sees what the one before it did, because training waits for the coroutine.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import anyio
import torch
from torch.utils.data import DataLoader, TensorDataset

from hookbus import AfterTrainIter, MessageHub, Runner


def make_runner(epochs: int, work_dir: Path) -> Runner:
    """Return a run that fits a noisy plane."""
    torch.manual_seed(0)
    inputs = torch.randn(2048, 8)
    targets = inputs @ torch.randn(8, 1) + 0.1 * torch.randn(2048, 1)
    model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
    return Runner(
        model=model,
        loss_fn=torch.nn.functional.mse_loss,
        optimizer=torch.optim.Adam(model.parameters(), lr=3e-3),
        train_dataloader=DataLoader(TensorDataset(inputs, targets), batch_size=32, shuffle=True),
        train_cfg=dict(max_epochs=epochs),
        default_hooks=dict(logger=None, checkpoint=None),
        work_dir=work_dir,
    )


def subscribe(runner: Runner) -> None:
    """Subscribe three handlers to one event; lower priorities run later."""

    @runner.bus.on(AfterTrainIter, priority="LOW", every=20)
    def conclude(event: AfterTrainIter, hub: MessageHub) -> None:
        print(f"  3. low, inline:     iteration {event.iter + 1} was sent as message {hub.get_info('message')}")

    @runner.bus.on(AfterTrainIter, every=20, timeout=5)
    async def send(event: AfterTrainIter, hub: MessageHub) -> None:
        loss = hub.get_scalar("train/smooth_loss").current()
        await anyio.sleep(0.005)  # stands for a request; training waits, the event loop does not
        hub.update_info("message", f"m{event.iter + 1:04}")
        print(f"  2. normal, awaited: loss {loss:.4f} sent")

    @runner.bus.on(AfterTrainIter, priority="HIGH", every=20)
    def smooth(event: AfterTrainIter, hub: MessageHub) -> None:
        hub.update_scalar("train/smooth_loss", hub.get_scalar("train/loss").mean(20))
        print(f"iteration {event.iter + 1}:\n  1. high, inline:    the newest 20 losses averaged")


class Heartbeat:
    """Another task of the same program; it would stop beating if training held up the event loop."""

    def __init__(self) -> None:
        self.beats = 0
        self.longest_pause = 0.0

    async def run(self) -> None:
        """Beat every 10 ms, and keep the longest time between two beats."""
        last = time.perf_counter()
        while True:
            await anyio.sleep(0.01)
            now = time.perf_counter()
            self.beats += 1
            self.longest_pause = max(self.longest_pause, now - last)
            last = now


async def serve(epochs: int, work_dir: Path) -> None:
    """Train and beat side by side."""
    runner = make_runner(epochs, work_dir)
    subscribe(runner)
    heartbeat = Heartbeat()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(heartbeat.run)
        await runner.train_async()
        tasks.cancel_scope.cancel()
    print(f"trained for {runner.iter} iterations, while the heartbeat beat {heartbeat.beats} times")
    print(f"its longest pause was {1000 * heartbeat.longest_pause:.0f} ms")


def main() -> None:
    """Run the program on the event loop that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--work-dir", type=Path, default=Path("runs/async_subscriber"))
    arguments = parser.parse_args()
    anyio.run(serve, arguments.epochs, arguments.work_dir, backend=arguments.backend)


if __name__ == "__main__":
    main()

"""Keep your own training loop, and only publish on a bus.

    python examples/bare_loop.py                a few seconds
    python examples/bare_loop.py --iters 100    shorter

No runner: the loop below is plain PyTorch and publishes two kinds of events. `AfterTrainIter` is built in and carries
live objects beside its facts; `LossHalved` is declared here. Who listens is of no concern to the loop: a function that
records the loss, one that notices when it has halved, and a coroutine, for which `with bus:` runs an event loop.
"""

from __future__ import annotations

import argparse
from typing import Any

import anyio
import torch

from hookbus import AfterTrainIter, Event, EventBus, MessageHub


class LossHalved(Event):
    """The loss is half of what it was when this was published last; facts only, so it may be queued and sent."""

    iter: int
    loss: float


def subscribe(bus: EventBus) -> None:
    """Subscribe everything that this program wants to happen."""

    @bus.on(AfterTrainIter, priority="VERY_HIGH")
    def record(outputs: dict[str, Any], hub: MessageHub) -> None:  # asks by name for a live object and for the hub
        hub.update_scalar("train/loss", outputs["loss"])

    milestone = float("inf")

    @bus.on(AfterTrainIter)
    def notice(event: AfterTrainIter, hub: MessageHub) -> None:
        nonlocal milestone
        loss = hub.get_scalar("train/loss").current()
        if loss <= milestone / 2:
            milestone = loss
            bus.emit(LossHalved(iter=event.iter, loss=loss))  # an event inside an event runs to its end first

    @bus.on(LossHalved)
    async def announce(iter: int, loss: float) -> None:  # the fields of the event, by name
        await anyio.sleep(0.001)  # stands for a request; the loop waits for it
        print(f"iteration {iter + 1:>4}: the loss has halved to {loss:.5f}")


def train(bus: EventBus, iters: int) -> None:
    """Fit a noisy plane; the same loop as ever, with one line more."""
    torch.manual_seed(0)
    truth = torch.randn(16, 1)
    model = torch.nn.Linear(16, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for iteration in range(iters):
        inputs = torch.randn(64, 16)
        loss = torch.nn.functional.mse_loss(model(inputs), inputs @ truth + 0.1 * torch.randn(64, 1))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        bus.emit(AfterTrainIter(epoch=0, iter=iteration, batch_idx=iteration), {"outputs": {"loss": loss.detach()}})


def main() -> None:
    """Train with a bus that lives alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iters", type=int, default=300)
    arguments = parser.parse_args()

    bus = EventBus("bare_loop")
    subscribe(bus)
    bus.explain()
    with bus:
        train(bus, arguments.iters)
    for stats in bus.stats():
        print(f"{stats.name} ({stats.lane}) was called {stats.calls} times, failed {stats.failures} times")


if __name__ == "__main__":
    main()

"""The six default hooks on a tiny model, beside the same loop written by hand.

Linear(10, 3), batches of 4, SGD with momentum, StepLR per iteration, one thread, a log line every 50 iterations. The
bare loop calls `scheduler.step()` and `loss.item()`. Timed is the epoch, from `BeforeTrainEpoch` to `AfterTrainEpoch`,
so the checkpoint that follows it is not in it.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from hookbus import AfterTrainEpoch, BeforeTrainEpoch, Runner
from tests.benchmarks.measure import Row, compare

ROUNDS = {5_000: 11, 100_000: 2}


class Batches:
    """A dataloader that costs next to nothing."""

    def __init__(self, length: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._length = length
        self._batches = [
            (torch.randn(4, 10, generator=generator), torch.randint(0, 3, (4,), generator=generator)) for _ in range(100)
        ]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        for i in range(self._length):
            yield self._batches[i % 100]


def rows() -> Iterator[Row]:
    """Measure the default hooks on short and on long runs."""
    torch.set_num_threads(1)
    for iterations, rounds in ROUNDS.items():
        pair = compare(lambda: hooked_loop(iterations), lambda: bare_loop(iterations), repetitions=iterations, rounds=rounds)  # noqa: B023
        added = pair.difference * 1e6
        measured = f"+{added:.1f} us (bare {pair.other * 1e6:.1f} us, {pair.ratio:.2f}x)"
        yield Row(f"six default hooks, {iterations:,} iterations", measured, "aim +12 us, limit +15 us", added <= 15)


def _parts() -> tuple[torch.nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    torch.manual_seed(0)
    model = torch.nn.Linear(10, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1000)


def bare_loop(iterations: int) -> float:
    """Return the seconds of a loop written by hand."""
    model, optimizer, scheduler = _parts()
    loss_fn = torch.nn.functional.cross_entropy
    batches = Batches(iterations)
    losses = []
    started = time.perf_counter()
    for inputs, targets in batches:
        loss = loss_fn(model(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        losses.append(loss.item())
    return time.perf_counter() - started


def hooked_loop(iterations: int, writers: Sequence[Any] = ("terminal", "jsonl")) -> float:
    """Return the seconds of an epoch with the six default hooks."""
    model, optimizer, scheduler = _parts()
    times: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as work_dir, contextlib.redirect_stderr(io.StringIO()):
        runner = Runner(
            model,
            loss_fn=torch.nn.functional.cross_entropy,
            optimizer=optimizer,
            param_scheduler=dict(scheduler=scheduler, by_epoch=False),
            train_dataloader=Batches(iterations),
            train_cfg=dict(max_epochs=1),
            default_hooks=dict(logger=dict(interval=50, writers=writers)),
            work_dir=work_dir,
            experiment_name="benchmark",
            device="cpu",
        )
        runner.bus.subscribe(BeforeTrainEpoch, lambda: times.update(began=time.perf_counter()), priority="LOWEST")
        runner.bus.subscribe(AfterTrainEpoch, lambda: times.update(ended=time.perf_counter()), priority="HIGHEST")
        runner.train()
    return times["ended"] - times["began"]

"""Small makers for the tests of optimizers: a model in double precision, and a wrapper in a training without a runner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hookbus.bus import EventBus
from hookbus.events import StepEvent
from hookbus.hub import MessageHub
from hookbus.optim import OptimWrapper
from hookbus.progress import Progress


def make_model(seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.nn.Linear:
    """Return a linear model, the same for the same seed."""
    torch.manual_seed(seed)
    return torch.nn.Linear(4, 3, dtype=dtype)


def make_batches(count: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Return batches of two samples."""
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(2, 4, generator=generator, dtype=dtype) for _ in range(count)]


def loss_of(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Return the mean of something that is not linear in the weights."""
    outputs: torch.Tensor = model(batch)
    return outputs.float().square().mean() if outputs.dtype.itemsize == 2 else outputs.square().mean()


def gradients_of(model: torch.nn.Module, batches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the gradients of one big batch."""
    return list(torch.autograd.grad(loss_of(model, torch.cat(list(batches))), list(model.parameters())))


class Training:
    """A model, its wrapped optimizer, and the loop around them by hand."""

    def __init__(self, *, max_iters: int | None = None, kept_in: torch.dtype = torch.float64, **options: Any) -> None:
        self.model = make_model(dtype=kept_in)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.wrapper = OptimWrapper(self.optimizer, **options)
        self.bus, self.hub, self.progress = EventBus(), MessageHub("training"), Progress()
        self.max_iters = max_iters
        self.wrapper.attach(self.bus, self.hub, self.progress, {"runner": None}, lambda: self.max_iters)

    def iterate(self, *batches: torch.Tensor) -> None:
        """Do one iteration, with an update for each of the batches."""
        for batch in batches:
            with self.wrapper.optim_context(self.model):
                loss = loss_of(self.model, batch)
            self.wrapper.update_params(loss)
        self.progress.iter += 1

    def record(self) -> list[StepEvent]:
        """Return a list that fills with the inner mount points from now on."""
        seen: list[StepEvent] = []
        self.bus.subscribe(StepEvent, lambda event: seen.append(event))
        return seen

    def gradients(self) -> list[torch.Tensor | None]:
        """Return copies of the gradients as they are."""
        return [None if p.grad is None else p.grad.clone() for p in self.model.parameters()]

    def weights(self) -> list[torch.Tensor]:
        """Return copies of the weights as they are."""
        return [parameter.detach().clone() for parameter in self.model.parameters()]


def same(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> bool:
    """Return whether tensors are the same bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def close(left: Sequence[torch.Tensor | None], right: Sequence[torch.Tensor]) -> bool:
    """Return whether tensors are the same but for rounding."""
    return all(a is not None and torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(left, right, strict=True))

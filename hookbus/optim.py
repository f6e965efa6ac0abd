"""One optimizer in a training loop: backward, the points around its step, and clean gradients afterwards."""

from __future__ import annotations

__all__ = ("OptimWrapper",)

from typing import Any

import torch

from hookbus.bus import EventBus
from hookbus.events import AfterBackward, AfterOptimizerStep, BeforeOptimizerStep
from hookbus.progress import Progress
from hookbus.types import Live


class OptimWrapper:
    """Updates the parameters of one optimizer and publishes the inner mount points, free when nobody subscribes."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.skipped = False
        """Whether a hook left out the newest update."""
        self._bus: EventBus | None = None
        self._progress = Progress()
        self._live: Live = {}

    def __repr__(self) -> str:
        return f"<OptimWrapper of {type(self.optimizer).__name__}>"

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of the optimizer."""
        return self.optimizer.param_groups

    def attach(self, bus: EventBus, progress: Progress, live: Live) -> None:
        """Publish on this bus from now on."""
        self._bus, self._progress, self._live = bus, progress, live

    def update_params(self, loss: torch.Tensor) -> None:
        """Minimise `loss`: backward, optimizer step unless a hook skips it, gradients cleared."""
        loss.backward()  # type: ignore[no-untyped-call]
        bus, skipped = self._bus, False
        if bus is not None:
            if bus.has_subscribers(AfterBackward):
                bus.emit(AfterBackward(**self._facts()), self._live)
            if bus.has_subscribers(BeforeOptimizerStep):
                skipped = bus.emit(BeforeOptimizerStep(**self._facts()), self._live) is not None
        if not skipped:
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.skipped = skipped
        if bus is not None and bus.has_subscribers(AfterOptimizerStep):
            bus.emit(AfterOptimizerStep(skipped=skipped, **self._facts()), self._live)

    def _facts(self) -> dict[str, int]:
        progress = self._progress
        return {"epoch": progress.epoch, "iter": progress.iter, "batch_idx": progress.batch_idx}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of an optimizer."""
        self.optimizer.load_state_dict(state_dict)

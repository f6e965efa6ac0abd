"""Traces a model once, so that TensorBoard can draw it."""

from __future__ import annotations

__all__ = ("GraphTracer",)

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hookbus.bus import on
from hookbus.events import BeforeTrainIter


class GraphTracer:
    """A hook that writes the graph of the model, traced with the inputs of the first batch, in an event file of its own.

    Args:
        directory: gives the directory of the event files, once it is known.
    """

    def __init__(self, directory: Callable[[], Path | None]) -> None:
        self._directory = directory

    @on(BeforeTrainIter, once=True, on_error="log")
    def trace(self, runner: Any, data_batch: Any) -> None:
        """Trace in evaluation mode, so that neither running statistics nor the random generators move."""
        from torch.utils.tensorboard import SummaryWriter  # needs the extra `tensorboard`

        model = runner.model
        inputs = data_batch[0] if isinstance(data_batch, list | tuple) else data_batch
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng(), SummaryWriter(str(self._directory())) as writer:
                writer.add_graph(model, inputs)
        finally:
            for module, mode in modes.items():
                module.training = mode

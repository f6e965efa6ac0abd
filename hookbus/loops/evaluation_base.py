"""One pass over validation or test data, without gradients and in evaluation mode."""

from __future__ import annotations

__all__ = ("EvaluationLoop",)

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch

from hookbus.evaluation import Evaluation
from hookbus.events import EpochEvent, Event, IterEvent, PhaseEvent
from hookbus.loops.base import BaseLoop, LoopContext
from hookbus.steps import EvaluationStep


class EvaluationLoop(BaseLoop):
    """One pass over validation or test data; subclasses name the events.

    Args:
        context: the parts of the run.
        dataloader: yields the batches.
        step: evaluates one batch.
        evaluation: collects what the steps give.
        dtype: the type that autocast computes in; the weights' own where left out.
    """

    name: str
    before: type[PhaseEvent]
    before_epoch: type[EpochEvent]
    before_iter: type[IterEvent]
    after_iter: type[IterEvent]
    after_epoch: type[EpochEvent]
    after: type[PhaseEvent]

    def __init__(
        self,
        context: LoopContext,
        dataloader: Any,
        *,
        step: EvaluationStep,
        evaluation: Evaluation,
        dtype: Literal["bfloat16", "float16"] | None = None,
    ) -> None:
        super().__init__(context, dataloader)
        self._step = step
        self._evaluation = evaluation
        self._dtype: torch.dtype | None = getattr(torch, dtype) if dtype else None

    def run(self) -> dict[str, Any]:
        """Go through the data once and return the metrics; an empty dict if a hook skipped it or somebody stopped it."""
        if self.emit(self.before) is not None:
            return {}
        self.emit(self.before_epoch)
        with _in_evaluation_mode(self.context.model):
            metrics = self._run_epoch()
        if metrics is not None:
            self.emit(self.after_epoch, metrics=metrics)
        self.emit(self.after)
        return metrics or {}

    def _run_epoch(self) -> dict[str, Any] | None:
        """Return the metrics; None where somebody stopped before all data was seen."""
        thread = self.context.live_thread
        self._evaluation.reset()
        self.position.finish()  # one that was stopped begins anew
        for batch_idx, batch, data_time in self.batches(self.name, self.context.progress.iter):
            self._run_iter(batch_idx, batch, data_time)
            thread.control_point()
            if thread.stop_requested:
                return self._evaluation.compute() if batch_idx + 1 == self.num_batches else None
        return None if thread.stop_requested else self._evaluation.compute()

    def _run_iter(self, batch_idx: int, batch: Any, data_time: float) -> None:
        facts = {"batch_idx": batch_idx, "data_time": data_time}
        self._emit_iter(self.before_iter, facts, {"data_batch": batch})
        with torch.no_grad():
            with self._precision():
                output = self._step(batch)
            self._evaluation.update(output, batch)
        outputs = output.predictions if output.has_predictions else output.scalars
        self._emit_iter(self.after_iter, facts, {"data_batch": batch, "outputs": outputs})

    def _precision(self) -> AbstractContextManager[object]:
        return nullcontext() if self._dtype is None else torch.autocast(self.context.device.type, self._dtype)

    def _emit_iter(self, event_type: type[IterEvent], facts: Mapping[str, Any], live: dict[str, Any]) -> None:
        bus, progress = self.context.bus, self.context.progress
        if bus.has_subscribers(event_type):
            event: Event = event_type(epoch=progress.epoch, iter=progress.iter, **facts)
            bus.emit(event, {"runner": self.context.runner} | live)


@contextmanager
def _in_evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and each part of it back as it was: some may be frozen."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(modes[0][1])
        for module, was_training in modes:
            module.training = was_training

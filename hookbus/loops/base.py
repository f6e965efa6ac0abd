"""What all loops share: the parts of a run that a loop works with, and the ways it publishes."""

from __future__ import annotations

__all__ = ("BaseLoop", "EvaluationLoop", "LoopContext")

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch

from hookbus.bus import EventBus
from hookbus.errors import EmptyDataLoader, Skip
from hookbus.evaluation import Evaluation
from hookbus.events import EpochEvent, Event, IterEvent, PhaseEvent
from hookbus.hub import MessageHub
from hookbus.progress import Progress
from hookbus.steps import EvaluationStep
from hookbus.training_thread import TrainingThread


@dataclass
class LoopContext:
    """The parts of a run that its loops work with."""

    runner: Any
    model: torch.nn.Module
    progress: Progress
    device: torch.device
    move: Callable[[Any], Any]
    """Brings a batch to the device of the model."""
    bus: EventBus = field(init=False)
    hub: MessageHub = field(init=False)
    thread: TrainingThread | None = None
    """The training thread, while the run is live."""

    @property
    def live_thread(self) -> TrainingThread:
        """The training thread of the live run."""
        assert self.thread is not None
        return self.thread


class BaseLoop(ABC):
    """Goes through a dataloader and publishes what happens; subclasses implement `run`."""

    def __init__(self, context: LoopContext, dataloader: Any) -> None:
        self.context = context
        self.dataloader = dataloader

    @abstractmethod
    def run(self) -> dict[str, Any]:
        """Run to the end and return the newest metrics."""

    @property
    def num_batches(self) -> int | None:
        """The batches of one pass, or None where the dataloader has no length."""
        try:
            return len(self.dataloader)
        except TypeError:  # also torch's own, where its dataset is a stream
            return None

    @property
    def runner(self) -> Any:
        """The runner that this loop belongs to."""
        return self.context.runner

    def emit(self, event_type: type[PhaseEvent | EpochEvent], **facts: Any) -> Skip | None:
        """Publish an event that needs no live object besides the runner."""
        bus, progress = self.context.bus, self.context.progress
        if not bus.has_subscribers(event_type):
            return None
        return bus.emit(event_type(epoch=progress.epoch, iter=progress.iter, **facts), {"runner": self.context.runner})

    def batches(self, where: str) -> Iterator[tuple[int, Any, float]]:
        """Yield number, batch on its device, and the seconds it was waited for.

        Raises:
            EmptyDataLoader: there was not a single batch.
        """
        move = self.context.move
        iterator = iter(self.dataloader)
        batch_idx = 0
        while True:
            asked = perf_counter()
            try:
                batch = move(next(iterator))
            except StopIteration:
                break
            yield batch_idx, batch, perf_counter() - asked
            batch_idx += 1
        if batch_idx == 0:
            size = len(self.dataloader.dataset) if hasattr(getattr(self.dataloader, "dataset", None), "__len__") else "unknown"
            msg = f"the {where} dataloader yielded no batch (size of its dataset: {size}); is drop_last set, or a sampler empty?"
            raise EmptyDataLoader(msg)


class EvaluationLoop(BaseLoop):
    """One pass over validation or test data; subclasses name the events."""

    name: str
    before: type[PhaseEvent]
    before_epoch: type[EpochEvent]
    before_iter: type[IterEvent]
    after_iter: type[IterEvent]
    after_epoch: type[EpochEvent]
    after: type[PhaseEvent]

    def __init__(self, context: LoopContext, dataloader: Any, *, step: EvaluationStep, evaluation: Evaluation) -> None:
        super().__init__(context, dataloader)
        self._step = step
        self._evaluation = evaluation

    def run(self) -> dict[str, Any]:
        """Go through the data once and return the metrics; an empty dict if a hook skipped it."""
        if self.emit(self.before) is not None:
            return {}
        self.emit(self.before_epoch)
        model = self.context.model
        was_training = model.training
        model.eval()
        try:
            metrics = self._run_epoch()
        finally:
            model.train(was_training)
        self.emit(self.after_epoch, metrics=metrics)
        self.emit(self.after)
        return metrics

    def _run_epoch(self) -> dict[str, Any]:
        self._evaluation.reset()
        for batch_idx, batch, data_time in self.batches(self.name):
            self._run_iter(batch_idx, batch, data_time)
        return self._evaluation.compute()

    def _run_iter(self, batch_idx: int, batch: Any, data_time: float) -> None:
        facts = {"batch_idx": batch_idx, "data_time": data_time}
        self._emit_iter(self.before_iter, facts, {"data_batch": batch})
        with torch.no_grad():
            output = self._step(batch)
            self._evaluation.update(output, batch)
        outputs = output.predictions if output.has_predictions else output.scalars
        self._emit_iter(self.after_iter, facts, {"data_batch": batch, "outputs": outputs})
        self.context.live_thread.between_evaluations()

    def _emit_iter(self, event_type: type[IterEvent], facts: dict[str, Any], live: dict[str, Any]) -> None:
        bus, progress = self.context.bus, self.context.progress
        if bus.has_subscribers(event_type):
            event: Event = event_type(epoch=progress.epoch, iter=progress.iter, **facts)
            bus.emit(event, {"runner": self.context.runner} | live)

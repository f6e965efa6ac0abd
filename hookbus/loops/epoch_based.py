"""Training by epochs, with validation in between.

```text
while epochs are left and nobody has asked to stop:
    one pass over the training data
    a validation, where one is due
```
"""

from __future__ import annotations

__all__ = ("EpochBasedTrainLoop",)

from typing import Any

from hookbus.errors import ConfigError
from hookbus.events import AfterTrain, AfterTrainEpoch, AfterTrainIter, BeforeTrain, BeforeTrainEpoch, BeforeTrainIter
from hookbus.loops.base import BaseLoop, LoopContext
from hookbus.steps import TrainStep
from hookbus.training_thread import TrainingThread


class EpochBasedTrainLoop(BaseLoop):
    """Trains for a number of epochs and validates after some of them; the last one always.

    Args:
        context: the parts of the run.
        dataloader: yields the training batches of one epoch.
        step: trains on one batch.
        val_loop: runs the validations, or None.
        max_epochs: how many epochs to complete in all.
        val_begin: the first epoch, counted from 1, that may be validated.
        val_interval: validate every so many epochs.

    Raises:
        ConfigError: a number is not at least 1.
    """

    by_epoch = True

    def __init__(
        self,
        context: LoopContext,
        dataloader: Any,
        *,
        step: TrainStep,
        val_loop: BaseLoop | None = None,
        max_epochs: int,
        val_begin: int = 1,
        val_interval: int = 1,
    ) -> None:
        super().__init__(context, dataloader)
        for name, value in {"max_epochs": max_epochs, "val_begin": val_begin, "val_interval": val_interval}.items():
            if value < 1:
                msg = f"train_cfg.{name} must be at least 1, got {value}"
                raise ConfigError(msg)
        self.max_epochs = max_epochs
        self.val_begin = val_begin
        self.val_interval = val_interval
        self.stop_training = False
        """Hooks may set it; training then ends after the running epoch."""
        self._step = step
        self._val_loop = val_loop
        self._metrics: dict[str, Any] = {}

    @property
    def max_iters(self) -> int | None:
        """The iterations of all epochs, or None where the dataloader has no length."""
        return None if self.num_batches is None else self.max_epochs * self.num_batches

    @property
    def epoch(self) -> int:
        """Completed epochs."""
        return self.context.progress.epoch

    @property
    def iter(self) -> int:
        """Completed iterations."""
        return self.context.progress.iter

    def run(self) -> dict[str, Any]:
        """Train to the end or until somebody stops it; return the metrics of the last validation."""
        self.stop_training = False
        if self.epoch >= self.max_epochs:
            return self._metrics
        thread = self.context.live_thread
        self.emit(BeforeTrain)
        while self.epoch < self.max_epochs and not self.stop_training and not thread.stop_requested:
            if self._run_epoch(thread) and self._validation_is_due() and not thread.stop_requested:
                self._validate()
        self.emit(AfterTrain)
        return self._metrics

    def _run_epoch(self, thread: TrainingThread) -> bool:
        """Train one epoch and return whether it was completed."""
        context = self.context
        context.progress.batch_idx = 0
        self.emit(BeforeTrainEpoch)
        context.model.train()
        for batch_idx, batch, data_time in self.batches("training"):
            self._run_iter(batch_idx, batch, data_time)
            thread.step_boundary()
            if thread.stop_requested and batch_idx + 1 != self.num_batches:
                return False
        self.emit(AfterTrainEpoch)
        context.progress.epoch += 1
        context.progress.batch_idx = 0
        thread.step_boundary()
        return True

    def _run_iter(self, batch_idx: int, batch: Any, data_time: float) -> None:
        context = self.context
        bus, runner, progress = context.bus, context.runner, context.progress
        epoch, iteration = progress.epoch, progress.iter
        context.hub.step = iteration + 1
        if bus.has_subscribers(BeforeTrainIter):
            bus.emit(
                BeforeTrainIter(epoch=epoch, iter=iteration, batch_idx=batch_idx, data_time=data_time),
                {"runner": runner, "data_batch": batch},
            )
        outputs = self._step(batch)
        if bus.has_subscribers(AfterTrainIter):
            bus.emit(
                AfterTrainIter(epoch=epoch, iter=iteration, batch_idx=batch_idx, data_time=data_time),
                {"runner": runner, "data_batch": batch, "outputs": outputs},
            )
        progress.iter = iteration + 1
        progress.batch_idx = batch_idx + 1

    def _validation_is_due(self) -> bool:
        if self._val_loop is None or self.epoch < self.val_begin:
            return False
        return self.epoch % self.val_interval == 0 or self.epoch == self.max_epochs

    def _validate(self) -> None:
        assert self._val_loop is not None
        self._metrics = self._val_loop.run() or self._metrics
        self.context.live_thread.step_boundary()

"""Training by epochs, with validation in between.

```text
while epochs are left and nobody has asked to stop:
    one pass over the training data
    a validation, where one is due
```
"""

from __future__ import annotations

__all__ = ("EpochBasedTrainLoop",)

from collections.abc import Sequence
from typing import Any, ClassVar

from hookbus.events import AfterTrainEpoch, BeforeTrainEpoch
from hookbus.loops.base import BaseLoop, LoopContext
from hookbus.loops.train_base import TrainLoop, check_count
from hookbus.steps import TrainStep


class EpochBasedTrainLoop(TrainLoop):
    """Trains for a number of epochs and validates after some of them; the last one always.

    Args:
        context: the parts of the run.
        dataloader: yields the training batches of one epoch.
        step: trains on one batch.
        val_loop: runs the validations, or None.
        max_epochs: how many epochs to complete in all.
        val_begin: the first epoch, counted from 1, that may be validated.
        val_interval: validate every so many epochs.
        dynamic_intervals: pairs of a milestone and the interval that takes over from that epoch on.

    Raises:
        ConfigError: a number is not at least 1, or the milestones do not rise.
    """

    by_epoch: ClassVar[bool] = True

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
        dynamic_intervals: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        super().__init__(
            context,
            dataloader,
            step=step,
            val_loop=val_loop,
            maximum=max_epochs,
            val_begin=val_begin,
            val_interval=val_interval,
            dynamic_intervals=dynamic_intervals,
        )

    @property
    def max_epochs(self) -> int:
        """Epochs to complete in all; may be raised to train on."""
        return self.maximum

    @max_epochs.setter
    def max_epochs(self, number: int) -> None:
        self.maximum = check_count("max_epochs", number)

    @property
    def max_iters(self) -> int | None:
        """The iterations of all epochs, or None where the dataloader has no length."""
        return None if self.num_batches is None else self.maximum * self.num_batches

    def _train(self) -> None:
        while self._goes_on():
            if self._run_epoch() and self.context.progress.validation_due and not self.context.live_thread.stop_requested:
                self._validate()

    def _run_epoch(self) -> bool:
        """Train one epoch and return whether it was completed."""
        context = self.context
        progress, thread = context.progress, context.live_thread
        progress.batch_idx = self.position.done  # training may go on in the middle of an epoch
        self.emit(BeforeTrainEpoch)
        context.model.train()
        for batch_idx, batch, data_time in self.batches("training", self.epoch):
            self._run_iter(batch_idx, batch, data_time)
            thread.step_boundary()
            if thread.stop_requested and progress.batch_idx != self.num_batches:
                break
        if thread.stop_requested and progress.batch_idx != self.num_batches:
            return False
        self.position.finish()
        if self.epoch + 1 >= self.maximum:
            self._finish_updates()
        self.emit(AfterTrainEpoch)
        progress.epoch += 1
        progress.batch_idx = 0
        self._mark_validation()
        thread.step_boundary()
        return True

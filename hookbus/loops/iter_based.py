"""Training by iterations: one long epoch, over data that may have no end.

```text
while iterations are left and nobody has asked to stop:
    one iteration, on the next batch; after the last one the data begins anew
    a validation, where one is due
```
"""

from __future__ import annotations

__all__ = ("IterBasedTrainLoop",)

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from hookbus.events import AfterTrainEpoch, BeforeTrainEpoch
from hookbus.loops.base import BaseLoop, LoopContext
from hookbus.loops.train_base import TrainLoop, check_count
from hookbus.samplers import set_epoch
from hookbus.steps import TrainStep


class IterBasedTrainLoop(TrainLoop):
    """Trains for a number of iterations and validates after some of them; the last one always.

    The run is one epoch: `epoch` stays 0, and `batch_idx` counts the iterations of the whole run. The dataloader may lack
    a length; where it ends, it is begun anew.

    Args:
        context: the parts of the run.
        dataloader: yields the training batches of one pass.
        step: trains on one batch.
        val_loop: runs the validations, or None.
        max_iters: how many iterations to complete in all.
        val_begin: the first iteration, counted from 1, that may be validated.
        val_interval: validate every so many iterations.
        dynamic_intervals: pairs of a milestone and the interval that takes over from that iteration on.

    Raises:
        ConfigError: a number is not at least 1, or the milestones do not rise.
    """

    by_epoch: ClassVar[bool] = False
    max_epochs = 1

    def __init__(
        self,
        context: LoopContext,
        dataloader: Any,
        *,
        step: TrainStep,
        val_loop: BaseLoop | None = None,
        max_iters: int,
        val_begin: int = 1,
        val_interval: int = 1000,
        dynamic_intervals: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        super().__init__(
            context,
            dataloader,
            step=step,
            val_loop=val_loop,
            maximum=max_iters,
            val_begin=val_begin,
            val_interval=val_interval,
            dynamic_intervals=dynamic_intervals,
        )

    @property
    def max_iters(self) -> int:
        """Iterations to complete in all; may be raised to train on."""
        return self.maximum

    @max_iters.setter
    def max_iters(self, number: int) -> None:
        self.maximum = check_count("max_iters", number)

    @property
    def epoch_length(self) -> int | None:
        """All iterations: the run is one epoch."""
        return self.maximum

    def _train(self) -> None:
        if not self._goes_on():
            return
        thread = self.context.live_thread
        self.emit(BeforeTrainEpoch)
        self.context.model.train()
        for batch, data_time in self._endless_batches():
            self._run_iter(self.iter, batch, data_time)
            if self.iter >= self.maximum:
                self._finish_updates()
            self._mark_validation()
            thread.step_boundary()
            if self.context.progress.validation_due and not thread.stop_requested:
                self._validate()
            if not self._goes_on():
                break
        if not thread.stop_requested or self.completed >= self.maximum:
            self.emit(AfterTrainEpoch)
            thread.step_boundary()

    def _endless_batches(self) -> Iterator[tuple[Any, float]]:
        """Yield batches of one pass after the other; each pass shuffles anew, distributed samplers are told so."""
        thread = self.context.live_thread
        while True:
            if self.position.passes > 0:
                set_epoch(self.dataloader, self.position.passes)
            for _, batch, data_time in self.batches("training", self.position.passes):
                yield batch, data_time
            if thread.stop_requested:
                return
            self.position.finish()

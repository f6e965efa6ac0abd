"""What both ways of training share: one iteration, and when to validate in between."""

from __future__ import annotations

__all__ = ("TrainLoop", "check_count")

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, ClassVar

from hookbus.errors import ConfigError
from hookbus.events import AfterTrain, AfterTrainIter, BeforeTrain, BeforeTrainIter, ScalarsLanded
from hookbus.loops.base import BaseLoop, LoopContext
from hookbus.random_state import restore_rng_state, rng_state
from hookbus.steps import TrainStep


class TrainLoop(BaseLoop):
    """Trains, and validates after some epochs or iterations; after the last one always.

    Args:
        context: the parts of the run.
        dataloader: yields the training batches of one pass.
        step: trains on one batch.
        val_loop: runs the validations, or None.
        maximum: how many epochs or iterations to complete in all.
        val_begin: the first of them, counted from 1, that may be validated.
        val_interval: validate every so many of them.
        dynamic_intervals: pairs of a milestone and the interval that takes over there.

    Raises:
        ConfigError: a number is not at least 1, or the milestones do not rise.
    """

    by_epoch: ClassVar[bool]
    """Whether epochs count, or iterations."""

    def __init__(
        self,
        context: LoopContext,
        dataloader: Any,
        *,
        step: TrainStep,
        val_loop: BaseLoop | None,
        maximum: int,
        val_begin: int,
        val_interval: int,
        dynamic_intervals: Sequence[tuple[int, int]] | None,
    ) -> None:
        super().__init__(context, dataloader)
        counted = "max_epochs" if self.by_epoch else "max_iters"
        self.maximum = check_count(counted, maximum)
        self.val_begin = check_count("val_begin", val_begin)
        pairs = [(0, check_count("val_interval", val_interval)), *_checked_intervals(dynamic_intervals or ())]
        self._milestones, self._intervals = zip(*pairs, strict=True)
        self.stop_training = False
        """Hooks may set it; training then ends after the running epoch, or iteration where iterations count."""
        self._step = step
        self._val_loop = val_loop
        self._metrics: dict[str, Any] = {}

    @property
    def epoch(self) -> int:
        """Completed epochs."""
        return self.context.progress.epoch

    @property
    def iter(self) -> int:
        """Completed iterations."""
        return self.context.progress.iter

    @property
    def completed(self) -> int:
        """Completed epochs or iterations, whichever count."""
        return self.epoch if self.by_epoch else self.iter

    @property
    def val_interval(self) -> int:
        """The interval between validations that is in force."""
        interval: int = self._intervals[bisect_right(self._milestones, self.completed + 1) - 1]
        return interval

    def run(self) -> dict[str, Any]:
        """Train to the end or until somebody stops it; return the metrics of the last validation."""
        self.stop_training = False
        progress = self.context.progress
        if self.completed >= self.maximum and not progress.validation_due:
            return self._metrics
        self.context.hub.step = progress.iter
        self.context.hub.take_landed()  # what an earlier run recorded is not news
        self.emit(BeforeTrain)
        self.runner.restore_randomness()
        if progress.validation_due:  # a checkpoint was taken, or a stop came, before it ran
            self._validate()
        iterations_before = progress.iter
        self._train()
        self._warn_of_no_update(progress.iter - iterations_before)
        self._tell_rest()
        self.emit(AfterTrain)
        self.context.live_thread.step_boundary()
        return self._metrics

    def _tell_rest(self) -> None:
        """Publish what is still on its way to the host, too."""
        if self.context.bus.has_subscribers(ScalarsLanded):
            self.context.hub.flush()
            self.tell_landed()

    @abstractmethod
    def _train(self) -> None:
        """Train until everything is completed, or somebody stops it."""

    def _goes_on(self) -> bool:
        return self.completed < self.maximum and not self.stop_training and not self.context.live_thread.stop_requested

    def _warn_of_no_update(self, iterations: int) -> None:
        """Say it where a model's own `train_step` never calls its optimizer; nothing would be learned, silently."""
        wrappers = self.runner.optim_wrapper.wrappers()
        idle = [name for name, wrapper in wrappers.items() if not (wrapper.updates or wrapper.skipped)]
        if idle and iterations > 2 * max(wrapper.accumulative_counts for wrapper in wrappers.values()):
            which = f" {', '.join(idle)}" if any(idle) else ""
            self.runner.logger.warning("the optimizer%s took no step at all; does train_step call update_params?", which)

    def _finish_updates(self) -> None:
        """Use the gradients that an incomplete group of iterations left; behind the very last one."""
        self.runner.optim_wrapper.finish()

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
        if bus.has_subscribers(ScalarsLanded):
            self.tell_landed()
        progress.iter = iteration + 1
        progress.batch_idx = batch_idx + 1
        self.position.done += 1

    def _mark_validation(self) -> None:
        """Note whether a validation is due, so that a checkpoint of this moment knows it."""
        count = self.completed
        if self._val_loop is not None and count >= self.val_begin:
            self.context.progress.validation_due = count == self.maximum or count % self.val_interval == 0

    def _validate(self) -> None:
        """Validate, unless there is no validation loop any more; a stop in the middle leaves the validation due.

        It will begin anew then, and draw what it drew now, so that the run stays the one that was never stopped.
        """
        thread, loop = self.context.live_thread, self._val_loop
        generators, place = rng_state(), {} if loop is None else loop.state_dict()
        metrics = {} if loop is None else loop.run()
        if metrics or not thread.stop_requested:  # a stop behind the last batch comes too late to leave it due
            self.context.progress.validation_due = False
            self._metrics = metrics or self._metrics
            self.tell_landed()
        elif loop is not None:
            restore_rng_state(generators)
            loop.load_state_dict(place)
        thread.step_boundary()


def check_count(name: str, value: int) -> int:
    """Return a number of epochs or iterations.

    Raises:
        ConfigError: it is no whole number of at least 1.
    """
    if type(value) is not int or value < 1:
        msg = f"train_cfg.{name} must be at least 1, got {value!r}"
        raise ConfigError(msg)
    return value


def _checked_intervals(intervals: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    milestones = [milestone for milestone, _ in intervals]
    if any(number < 1 for pair in intervals for number in pair) or milestones != sorted(set(milestones)):
        msg = f"train_cfg.dynamic_intervals = {list(intervals)}: expected (milestone, interval) pairs of at least 1, rising"
        raise ConfigError(msg)
    return list(intervals)

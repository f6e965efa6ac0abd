"""Steps the schedulers of a run."""

from __future__ import annotations

__all__ = ("ParamSchedulerHook",)

from collections.abc import Mapping
from typing import Any, ClassVar

from hookbus.errors import ConfigError, MetricNotFound, choices
from hookbus.hooks.base import Hook


class ParamSchedulerHook(Hook):
    """Steps schedulers by iteration after each iteration, those by epoch after each epoch, plateaus after validation."""

    priority: ClassVar[int | str] = "LOW"

    def __init__(self) -> None:
        self._by_iter: list[Any] = []

    def before_train(self, runner: Any) -> None:
        """Sort out once what the hot path steps; refuse to wait for a metric that no validation will give."""
        waiting = [scheduler for scheduler in runner.param_schedulers if scheduler.needs_metric]
        if waiting and runner.val_loop is None:
            msg = f"{waiting[0]!r} follows a metric and needs a validation; give the runner a val_dataloader"
            raise ConfigError(msg)
        self._by_iter = [s for s in runner.param_schedulers if not (s.by_epoch or s.needs_metric)]

    def after_train_iter(self, runner: Any) -> None:
        """Step the schedulers that follow iterations, unless a hook left out the update."""
        if not runner.optim_wrapper.skipped:
            for scheduler in self._by_iter:
                scheduler.step()

    def after_train_epoch(self, runner: Any) -> None:
        """Step the schedulers that follow epochs and need no metric."""
        for scheduler in runner.param_schedulers:
            if scheduler.by_epoch and not scheduler.needs_metric:
                scheduler.step()

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, Any]) -> None:
        """Step the schedulers that follow a metric; a validation outside training is not one of theirs."""
        if not runner.is_training:
            return
        for scheduler in runner.param_schedulers:
            if scheduler.needs_metric:
                scheduler.step(_monitored(scheduler.monitor, metrics))


def _monitored(monitor: str | None, metrics: Mapping[str, Any]) -> float:
    """Return the metric that a scheduler follows: the one it names, else the loss."""
    key = monitor or "loss"
    if key not in metrics:
        msg = f"a scheduler follows the metric {key!r}, which the validation did not compute; {choices(key, metrics)}"
        raise MetricNotFound(msg)
    return float(metrics[key])

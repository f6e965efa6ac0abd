"""Steps the schedulers of a run."""

from __future__ import annotations

__all__ = ("ParamSchedulerHook",)

from collections.abc import Mapping
from typing import Any, ClassVar

from hookbus.errors import ConfigError, MetricNotFound, choices
from hookbus.hooks.base import Hook


class ParamSchedulerHook(Hook):
    """Steps schedulers by iteration after each update, those by epoch after each epoch, plateaus after validation."""

    priority: ClassVar[int | str] = "LOW"

    def __init__(self) -> None:
        self._by_metric: list[Any] = []
        self._by_epoch: list[Any] = []
        self._by_update: list[_Follower] = []

    def before_train(self, runner: Any) -> None:
        """Sort out once who follows what; refuse to wait for a metric or an end of epoch that will never come.

        Raises:
            ConfigError: there is no validation, or the loop has no epochs.
        """
        self._by_metric = [schedule for schedule in runner.param_schedulers if schedule.needs_metric]
        others = [schedule for schedule in runner.param_schedulers if not schedule.needs_metric]
        self._by_epoch = [schedule for schedule in others if schedule.by_epoch]
        if self._by_metric and runner.val_loop is None:
            msg = f"{self._by_metric[0]!r} follows a metric and needs a validation; give the runner a val_dataloader"
            raise ConfigError(msg)
        if self._by_epoch and not runner.train_loop.by_epoch:
            msg = f"{self._by_epoch[0]!r} counts epochs, which never end in a training by iterations; give it by_epoch=False"
            raise ConfigError(msg)
        self._by_update = _followers([schedule for schedule in others if not schedule.by_epoch], runner.optim_wrapper)

    def after_train_iter(self) -> None:
        """Step the schedulers that follow updates, as often as their optimizer was stepped; it may have been left out."""
        for follower in self._by_update:
            follower.catch_up()

    def after_train_epoch(self) -> None:
        """Step the schedulers that follow epochs and need no metric."""
        for schedule in self._by_epoch:
            schedule.step()

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, Any]) -> None:
        """Step the schedulers that follow a metric; a validation outside training is not one of theirs."""
        if not runner.is_training:
            return
        for schedule in self._by_metric:
            schedule.step(_monitored(schedule.monitor, metrics))

    def after_train(self) -> None:
        """Count the update with which the loop finishes gradients that are still accumulated."""
        self.after_train_iter()


class _Follower:
    """The schedules that count the updates of one optimizer."""

    def __init__(self, wrapper: Any, schedules: list[Any]) -> None:
        self._wrapper = wrapper
        self._schedules = schedules
        self._seen = wrapper.updates

    def catch_up(self) -> None:
        """Step once for each update since the last time."""
        while self._seen < self._wrapper.updates:
            self._seen += 1
            for schedule in self._schedules:
                schedule.step()


def _followers(schedules: list[Any], optim_wrapper: Any) -> list[_Follower]:
    """Return one follower for each optimizer that some of the schedules drive."""
    by_wrapper: dict[int, tuple[Any, list[Any]]] = {}
    for schedule in schedules:
        wrapper = optim_wrapper.wrapper_of(schedule.optimizer)
        by_wrapper.setdefault(id(wrapper), (wrapper, []))[1].append(schedule)
    return [_Follower(wrapper, followed) for wrapper, followed in by_wrapper.values()]


def _monitored(monitor: str | None, metrics: Mapping[str, Any]) -> float:
    """Return the metric that a scheduler follows: the one it names, else the loss."""
    key = monitor or "loss"
    if key not in metrics:
        msg = f"a scheduler follows the metric {key!r}, which the validation did not compute; {choices(key, metrics)}"
        raise MetricNotFound(msg)
    return float(metrics[key])

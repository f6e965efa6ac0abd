"""Asks for checkpoints: at intervals, at the end, and whenever a metric is better than ever."""

from __future__ import annotations

__all__ = ("CheckpointHook", "rule_of")

import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from hookbus.errors import ConfigError, MetricNotFound, choices
from hookbus.hooks.base import Hook
from hookbus.hub import MessageHub

Rule = Literal["greater", "less"]

GREATER_KEYS = ("acc", "top", "AR@", "auc", "precision", "mAP", "mDice", "mIoU", "mAcc", "aAcc", "f1", "recall")
LESS_KEYS = ("loss", "error")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]")


class CheckpointHook(Hook):
    """Has the runner save at the step boundary; the hook only asks.

    Args:
        interval: epochs or iterations between two saves; -1 for none but the last.
        by_epoch: whether `interval` counts epochs.
        max_keep_ckpts: how many periodic checkpoints stay, the newest; -1 for all. Best ones are not counted.
        save_last: save at the end of training whatever the interval.
        save_best: the metric that decides which checkpoint is kept as the best one; `"auto"` takes the first.
        rule: whether greater or less is better; told from the name of the metric where left out.

    Raises:
        ConfigError: an interval or a number makes no sense, or `rule` comes without `save_best`.
    """

    priority: ClassVar[int | str] = "VERY_LOW"

    def __init__(
        self,
        interval: int = -1,
        by_epoch: bool = True,
        max_keep_ckpts: int = -1,
        save_last: bool = True,
        save_best: str | None = None,
        rule: Rule | None = None,
    ) -> None:
        for name, value in {"interval": interval, "max_keep_ckpts": max_keep_ckpts}.items():
            if value < 1 and value != -1:
                msg = f"CheckpointHook.{name} must be at least 1, or -1, got {value}"
                raise ConfigError(msg)
        if rule is not None and save_best is None:
            msg = f"CheckpointHook.rule={rule!r} says how to compare a metric; name the metric with save_best"
            raise ConfigError(msg)
        self.interval = interval
        self.by_epoch = by_epoch
        self.max_keep_ckpts = max_keep_ckpts
        self.save_last = save_last
        self.save_best = save_best
        self.rule = rule if rule is not None or save_best in (None, "auto") else rule_of(str(save_best))
        self.best_score: float | None = None
        self.best_checkpoint: str | None = None

    def uses(self, mount_point: str) -> bool:
        """Leave alone what this instance has no use for."""
        unused = {"after_train_iter": self.by_epoch, "after_train_epoch": not self.by_epoch}
        return not unused.get(mount_point, mount_point in ("before_train", "after_val_epoch") and self.save_best is None)

    def before_train(self, runner: Any) -> None:
        """Refuse to wait for a metric that no validation will give."""
        if runner.val_loop is None:
            msg = f"CheckpointHook.save_best={self.save_best!r} needs a validation; give the runner a val_dataloader"
            raise ConfigError(msg)

    def after_train_epoch(self, runner: Any, epoch: int) -> None:
        """Ask for a save where one is due."""
        if self.every_n_epochs(runner, self.interval) or (self.save_last and self.is_last_train_epoch(runner)):
            self._ask(runner, f"epoch_{epoch + 1}")

    def after_train_iter(self, runner: Any, iter: int) -> None:
        """Ask for a save where one is due."""
        if self.every_n_train_iters(runner, self.interval) or (self.save_last and self.is_last_train_iter(runner)):
            self._ask(runner, f"iter_{iter + 1}")

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, Any], epoch: int, hub: MessageHub) -> None:
        """Ask for a save if the model was never better.

        Raises:
            MetricNotFound: the metric to compare is not among those computed.
            ConfigError: it is not a number.
        """
        if not runner.is_training:
            return
        key = self._metric(metrics)
        if metrics[key] is None:
            return
        if not isinstance(metrics[key], int | float):
            msg = f"CheckpointHook.save_best={key!r} cannot compare {metrics[key]!r:.80}; expected one number"
            raise ConfigError(msg)
        score = float(metrics[key])
        if not self._is_better(score):
            return
        previous, self.best_checkpoint = self.best_checkpoint, f"best_{_NOT_IN_NAMES.sub('_', key)}_epoch_{epoch}"
        self.best_score = score
        hub.update_info_dict({"best_score": score, "best_ckpt": self.best_checkpoint})
        replaces = (previous,) if previous is not None else ()
        runner.request_save(self.best_checkpoint, role="best", facts={"metric": key, "score": score}, supersedes=replaces)

    def _metric(self, metrics: Mapping[str, Any]) -> str:
        if self.save_best == "auto" and metrics:
            self.save_best = next(iter(metrics))
            self.rule = self.rule or rule_of(self.save_best)
        key = str(self.save_best)
        if key not in metrics:
            computed = choices(key, metrics)
            msg = f"CheckpointHook.save_best={key!r} is not among the metrics of the validation; {computed}"
            raise MetricNotFound(msg)
        return key

    def _is_better(self, score: float) -> bool:
        if math.isnan(score):
            return False
        if self.best_score is None:
            return True
        return score > self.best_score if self.rule == "greater" else score < self.best_score

    def _ask(self, runner: Any, name: str) -> None:
        runner.request_save(name, max_keep=self.max_keep_ckpts)

    def state_dict(self) -> dict[str, Any]:
        """Return what was best so far."""
        return {"best_score": self.best_score, "best_checkpoint": self.best_checkpoint, "save_best": self.save_best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on comparing with what was best."""
        self.best_score, self.best_checkpoint = state_dict["best_score"], state_dict["best_checkpoint"]


def rule_of(metric: str) -> Rule:
    """Return whether greater or less is better for a metric, told from its name.

    Raises:
        ConfigError: the name does not tell.
    """
    folded = metric.casefold()
    rules: tuple[tuple[Rule, tuple[str, ...]], ...] = (("greater", GREATER_KEYS), ("less", LESS_KEYS))
    for rule, keys in rules:
        if folded in (key.casefold() for key in keys):
            return rule
    for rule, keys in rules:
        if any(key.casefold() in folded for key in keys):
            return rule
    msg = f"whether a greater {metric!r} is better cannot be told from its name; give rule='greater' or rule='less'"
    raise ConfigError(msg)

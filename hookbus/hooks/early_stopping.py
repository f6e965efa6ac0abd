"""Ends training when a metric has stopped getting better."""

from __future__ import annotations

__all__ = ("EarlyStoppingHook",)

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from hookbus._config import refuse, shown
from hookbus.best_metric import Rule, is_better, metric_problems, rule_of, score_of
from hookbus.distributed import agree
from hookbus.errors import ConfigError, MetricNotFound
from hookbus.hooks.base import Hook


class EarlyStoppingHook(Hook):
    """Ends training after `patience` validations in a row that were no better than the best one before them.

    Training ends as it does at its maximum, and the reason is logged. What was best and how many validations were no better
    are part of every checkpoint; a run that was stopped early stays so when it is resumed, unless `patience` was raised.
    Only validations during training count. In several processes the metric of the main process decides for all.

    Args:
        monitor: the metric to watch, by its name among those of the validation.
        rule: whether greater or less is better, `"greater"` or `"less"`; left out, the name tells.
        min_delta: by how much more than this a metric has to beat the best one to count as better.
        strict: whether it is an error if there is no such metric, or no validation; else it is logged.
        check_finite: whether a metric that is NaN or infinite ends training at once.
        patience: validations in a row without improvement after which training ends.
        stopping_threshold: a value beyond which there is nothing left to gain; a metric better than it ends training at once.

    Raises:
        ConfigError: an option makes no sense, or the name of the metric does not tell which rule it follows; names each.
    """

    priority: ClassVar[int | str] = "LOWEST"

    def __init__(
        self,
        monitor: str,
        rule: Rule | None = None,
        min_delta: float = 0.0,
        strict: bool = False,
        check_finite: bool = True,
        patience: int = 5,
        stopping_threshold: float | None = None,
    ) -> None:
        refuse(list(_problems({name: value for name, value in locals().items() if name != "self"})))
        self.monitor = monitor
        self.rule: Rule = rule if rule is not None else rule_of(monitor)
        self.min_delta = min_delta
        self.strict = strict
        self.check_finite = check_finite
        self.patience = patience
        self.stopping_threshold = stopping_threshold
        self.best_score: float | None = None
        self.validations_without_improvement = 0
        self._judged_at: int | None = None
        """Completed iterations at the last validation that counted; the same one, run again after a resume, does not."""
        self._has_warned = False

    def before_train(self, runner: Any) -> None:
        """Let a run that was stopped early stay so, and say it where the metric can never come.

        Raises:
            ConfigError: `strict`, and there is no validation.
        """
        if runner.val_loop is None:
            self._complain(runner, ConfigError(f"{self._option()} needs a validation; give the runner a val_dataloader"))
        reason = self._reason()
        if reason is not None:
            self._stop(runner, f"{reason}, as it was before; raise patience or stopping_threshold to train on")

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, Any], iter: int) -> None:
        """Judge the metric, and stop where it is time.

        Raises:
            MetricNotFound: `strict`, and there is no such metric.
            ConfigError: it is not one number.
        """
        if not runner.is_training:
            return
        score = agree(self._score(runner, metrics), runner.device)
        if score is None:
            return
        if self.check_finite and not math.isfinite(score):
            self._stop(runner, f"{self.monitor} is {score}")
            return
        if self._judged_at != iter:
            self._judge(score)
            self._judged_at = iter
        reason = self._reason()
        if reason is not None:
            self._stop(runner, reason)

    def _score(self, runner: Any, metrics: Mapping[str, Any]) -> float | None:
        try:
            return score_of(metrics, self.monitor, "EarlyStoppingHook.monitor")
        except MetricNotFound as error:
            self._complain(runner, error)
            return None

    def _judge(self, score: float) -> None:
        if is_better(score, self.best_score, self.rule, self.min_delta):
            self.best_score, self.validations_without_improvement = score, 0
        else:
            self.validations_without_improvement += 1

    def _reason(self) -> str | None:
        """Return why there is no point in training on, or None where there may be one."""
        best, threshold = self.best_score, self.stopping_threshold
        if best is not None and threshold is not None and is_better(best, threshold, self.rule):
            return f"{self.monitor} = {best:g} is better than stopping_threshold = {threshold:g}"
        if self.validations_without_improvement < self.patience:
            return None
        beaten = "a number" if best is None else f"better than {best:g}"
        by = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return f"{self.monitor} has not been {beaten}{by} in the last {self.validations_without_improvement} validations"

    def _stop(self, runner: Any, reason: str) -> None:
        runner.train_loop.stop_training = True
        runner.logger.info("training ends early after epoch %d, iteration %d: %s", runner.epoch, runner.iter, reason)

    def _complain(self, runner: Any, error: Exception) -> None:
        """Raise an error where it is to be one; else log it, once."""
        if self.strict:
            raise error
        if not self._has_warned:
            self._has_warned = True
            runner.logger.warning("training will not end early: %s", error)

    def _option(self) -> str:
        return f"EarlyStoppingHook.monitor={self.monitor!r}"

    def state_dict(self) -> dict[str, Any]:
        """Return what was best so far, for which metric, and how long ago."""
        return {
            "monitor": self.monitor,
            "rule": self.rule,
            "best_score": self.best_score,
            "validations_without_improvement": self.validations_without_improvement,
            "judged_at": self._judged_at,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting, if it is still the same metric that is compared in the same way."""
        if (state_dict["monitor"], state_dict["rule"]) == (self.monitor, self.rule):
            self.best_score = state_dict["best_score"]
            self.validations_without_improvement = state_dict["validations_without_improvement"]
            self._judged_at = state_dict["judged_at"]


def _problems(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the options; the rule of the metric only where its name is one."""
    monitor, rule, min_delta, patience = (options[name] for name in ("monitor", "rule", "min_delta", "patience"))
    if not isinstance(monitor, str) or not monitor:
        yield _problem("monitor", monitor, "the name of a metric of the validation")
    elif not isinstance(rule, str | None):
        yield _problem("rule", rule, "'greater', 'less' or None")
    else:
        yield from metric_problems("EarlyStoppingHook", "monitor", [monitor], rule)
    if not _is_finite(min_delta) or min_delta < 0:
        yield _problem("min_delta", min_delta, "a number of at least 0")
    for name in ("strict", "check_finite"):
        if not isinstance(options[name], bool):
            yield _problem(name, options[name], "True or False")
    if type(patience) is not int or patience < 1:
        yield _problem("patience", patience, "a whole number of at least 1")
    if options["stopping_threshold"] is not None and not _is_finite(options["stopping_threshold"]):
        yield _problem("stopping_threshold", options["stopping_threshold"], "a number, or None")


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _problem(name: str, value: object, expectation: str) -> str:
    return f"EarlyStoppingHook.{name} = {shown(value)}: expected {expectation}"

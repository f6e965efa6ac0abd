"""When a metric is better than ever: its rule, told from its name where it is not given, and what was best so far."""

from __future__ import annotations

__all__ = (
    "AUTO",
    "GREATER_KEYS",
    "LESS_KEYS",
    "BestScores",
    "Rule",
    "is_better",
    "listed",
    "metric_problems",
    "rule_of",
    "score_of",
)

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from hookbus._config import shown
from hookbus.errors import ConfigError, MetricNotFound, choices

Rule = Literal["greater", "less"]
"""Which of two scores is the better one."""

AUTO = "auto"
"""Stands for the first metric of the first validation that gives one."""

GREATER_KEYS = ("acc", "top", "AR@", "auc", "precision", "mAP", "mDice", "mIoU", "mAcc", "aAcc", "f1", "recall")
LESS_KEYS = ("loss", "error")


def rule_of(metric: str, greater_keys: Sequence[str] | None = None, less_keys: Sequence[str] | None = None) -> Rule:
    """Return whether greater or less is better for a metric, told from its name.

    The whole name counts first, then any part of it; case does not.

    Args:
        metric: its name.
        greater_keys: names and parts of names of which greater is better, in place of `GREATER_KEYS`.
        less_keys: likewise, in place of `LESS_KEYS`; where both fit, greater is better.

    Raises:
        ConfigError: the name does not tell.
    """
    folded = metric.casefold()
    greater = [key.casefold() for key in (GREATER_KEYS if greater_keys is None else greater_keys)]
    less = [key.casefold() for key in (LESS_KEYS if less_keys is None else less_keys)]
    rules: tuple[tuple[Rule, list[str]], ...] = (("greater", greater), ("less", less))
    for rule, keys in rules:
        if folded in keys:
            return rule
    for rule, keys in rules:
        if any(key in folded for key in keys):
            return rule
    msg = f"whether a greater {metric!r} is better cannot be told from its name; give rule='greater' or rule='less'"
    raise ConfigError(msg)


def score_of(metrics: Mapping[str, Any], key: str, option: str) -> float | None:
    """Return the value of a metric as a number to compare; None where the validation gave none.

    Raises:
        MetricNotFound: it is not among those computed; names the `option` that asks for it.
        ConfigError: it is not one number.
    """
    if key not in metrics:
        msg = f"{option}={key!r} is not among the metrics of the validation; {choices(key, metrics)}"
        raise MetricNotFound(msg)
    value = metrics[key]
    if value is None:
        return None
    if not isinstance(value, int | float):
        msg = f"{option}={key!r} cannot compare {shown(value)}; expected one number"
        raise ConfigError(msg)
    return float(value)


def is_better(score: float, best: float | None, rule: Rule, min_delta: float = 0.0) -> bool:
    """Return whether a score beats the best one by more than `min_delta`; NaN never does, any other beats None."""
    if math.isnan(score):
        return False
    if best is None:
        return True
    return score > best + min_delta if rule == "greater" else score < best - min_delta


def listed(value: str | Sequence[str] | None) -> list[str]:
    """Return one text or several as a list, None as an empty one."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


class BestScores:
    """The best score so far of one metric, of several, or of the first one that comes.

    Args:
        metrics: names, or `"auto"`.
        rule: whether greater or less is better, for all of them or one for each; told from the names where left out.
        greater_keys: see `rule_of`.
        less_keys: see `rule_of`.

    Raises:
        ConfigError: a name does not tell its rule.
    """

    def __init__(
        self,
        metrics: str | Sequence[str] | None,
        rule: Rule | Sequence[Rule] | None = None,
        greater_keys: str | Sequence[str] | None = None,
        less_keys: str | Sequence[str] | None = None,
    ) -> None:
        keys, self._given = listed(metrics), listed(rule)
        self._greater_keys = None if greater_keys is None else listed(greater_keys)
        self._less_keys = None if less_keys is None else listed(less_keys)
        self._is_auto = keys == [AUTO]
        self.rules: dict[str, Rule] = {} if self._is_auto else {key: self._rule(key, i) for i, key in enumerate(keys)}
        """How each metric is compared; empty as long as the first one has not come."""
        self.scores: dict[str, float] = {}
        """The best value so far of each metric that had one."""

    def update(self, metrics: Mapping[str, Any], option: str) -> dict[str, float]:
        """Take in the metrics of a validation and return the scores that are better than ever; see `score_of`."""
        if not self.rules and metrics:
            first = next(iter(metrics))
            self.rules = {first: self._rule(first, 0)}
        scores = {key: score_of(metrics, key, option) for key in self.rules}  # all of them before the first one counts
        better = {key: s for key, s in scores.items() if s is not None and is_better(s, self.scores.get(key), self.rules[key])}
        self.scores |= better
        return better

    def state_dict(self) -> dict[str, Any]:
        """Return the scores and how they were compared."""
        return {"is_auto": self._is_auto, "rules": dict(self.rules), "scores": dict(self.scores)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the metric that was chosen, and the scores of those that are still compared, in the same way."""
        rules = state_dict["rules"]
        if self._is_auto and state_dict["is_auto"]:
            self.rules = {key: self._rule(key, 0) for key in rules}
        self.scores = {key: score for key, score in state_dict["scores"].items() if self.rules.get(key) == rules[key]}

    def _rule(self, key: str, index: int) -> Rule:
        if not self._given:
            return rule_of(key, self._greater_keys, self._less_keys)
        return self._given[index % len(self._given)]  # type: ignore[return-value]


def metric_problems(
    path: str,
    option: str,
    metrics: str | Sequence[str] | None,
    rule: str | Sequence[str] | None,
    greater_keys: str | Sequence[str] | None = None,
    less_keys: str | Sequence[str] | None = None,
) -> Iterator[str]:
    """Yield what keeps texts, or lists of them, from being the arguments of `BestScores`; `option` names the metrics."""
    keys, rules = listed(metrics), listed(rule)
    if not keys:
        given = {"rule": rule, "greater_keys": greater_keys, "less_keys": less_keys}
        wanted = [f"{path}.{name}={shown(value)}" for name, value in given.items() if value is not None]
        yield from (f"{text} says how to compare a metric; name the metric with {option}" for text in wanted)
        return
    if AUTO in keys and len(keys) > 1:
        yield f"{path}.{option} = {shown(metrics)}: {AUTO!r} stands for one metric; give it alone"
    if len(set(keys)) < len(keys):
        yield f"{path}.{option} = {shown(metrics)}: expected each metric once"
    if len(rules) not in (0, 1, len(keys)):
        yield f"{path}.rule = {shown(rule)}: expected one rule, or one for each of the {len(keys)} metrics of {option}"
    unknown = [each for each in rules if each not in get_args(Rule)]
    yield from (f"{path}.rule = {shown(each)}: {choices(each, get_args(Rule))}" for each in unknown)
    if not rules and AUTO not in keys:
        yield from _unclear(path, option, keys, greater_keys, less_keys)


def _unclear(
    path: str, option: str, keys: Sequence[str], greater_keys: str | Sequence[str] | None, less_keys: str | Sequence[str] | None
) -> Iterator[str]:
    greater, less = (None if given is None else listed(given) for given in (greater_keys, less_keys))
    for key in keys:
        try:
            rule_of(key, greater, less)
        except ConfigError as error:
            yield f"{path}.{option} = {shown(key)}: {error}"

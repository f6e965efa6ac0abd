"""Which rule a name tells, which score wins, and what is taken over from a checkpoint."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbus.best_metric import GREATER_KEYS, LESS_KEYS, BestScores, Rule, is_better, metric_problems, rule_of, score_of
from hookbus.errors import ConfigError, MetricNotFound


@pytest.mark.parametrize(
    ("metric", "rule"),
    [
        ("accuracy", "greater"),
        ("ACC", "greater"),
        ("top1", "greater"),
        ("test/acc", "greater"),
        ("val_loss", "less"),
        ("Loss", "less"),
        ("mean_squared_error", "less"),
        ("miou_loss", "greater"),  # a part that means greater comes before one that means less
        ("coco/bbox_mAP", "greater"),
        ("f1_score", "greater"),
        ("AUROC", None),
        ("fluffiness", None),
    ],
)
def test_the_rule_is_told_from_the_name_where_it_can_be(metric: str, rule: str | None) -> None:
    """Otherwise the error asks for it."""
    if rule is None:
        with pytest.raises(ValueError, match=rf"{metric}.*rule='greater'"):
            rule_of(metric)
    else:
        assert rule_of(metric) == rule


@pytest.mark.parametrize(
    ("metric", "greater_keys", "less_keys", "rule"),
    [
        ("fluffiness", ["fluff"], None, "greater"),
        ("fluffiness", None, ["FLUFF"], "less"),
        ("loss", ["loss"], ["loss"], "greater"),  # the whole name, and greater first
        ("loss", ["lo"], ["loss"], "less"),  # the whole name before any part
        ("hinge_loss", ["hinge"], ["loss"], "greater"),
        ("perplexity", ["fluff"], ["plex"], "less"),
    ],
)
def test_keys_of_ones_own_take_the_place_of_the_built_in_ones(
    metric: str, greater_keys: list[str] | None, less_keys: list[str] | None, rule: str
) -> None:
    """The list that is not given stays as it is."""
    assert rule_of(metric, greater_keys, less_keys) == rule


def test_a_list_that_is_replaced_no_longer_knows_the_built_in_names() -> None:
    """So the choice is wholly the user's."""
    with pytest.raises(ConfigError, match="accuracy"):
        rule_of("accuracy", greater_keys=["fluff"])


@given(st.sampled_from(GREATER_KEYS + LESS_KEYS), st.booleans())
@settings(max_examples=30, deadline=None, derandomize=True, database=None)
def test_case_does_not_matter(key: str, upper: bool) -> None:
    """Every built-in key in every writing."""
    assert rule_of(key.upper() if upper else key.lower()) == ("less" if key in LESS_KEYS else "greater")


@pytest.mark.parametrize(
    ("score", "best", "rule", "min_delta", "expected"),
    [
        (0.1, None, "greater", 0.0, True),
        (-math.inf, None, "greater", 0.0, True),
        (math.nan, None, "greater", 0.0, False),
        (math.nan, 0.5, "less", 0.0, False),
        (0.5, 0.5, "greater", 0.0, False),
        (0.6, 0.5, "greater", 0.0, True),
        (0.6, 0.5, "greater", 0.2, False),
        (0.4, 0.5, "less", 0.0, True),
        (0.4, 0.5, "less", 0.2, False),
        (0.5, 0.5, "less", 0.0, False),
    ],
)
def test_a_score_wins_only_if_it_is_strictly_better(
    score: float, best: float | None, rule: Rule, min_delta: float, expected: bool
) -> None:
    """NaN never wins."""
    assert is_better(score, best, rule, min_delta) is expected


def test_a_score_that_cannot_be_compared_is_refused_by_name() -> None:
    """Names the option that asked for it, and the nearest metric."""
    with pytest.raises(MetricNotFound, match=r"Hook\.monitor='acuracy'.*did you mean 'accuracy'"):
        score_of({"accuracy": 0.5}, "acuracy", "Hook.monitor")
    with pytest.raises(ConfigError, match=r"Hook\.monitor='matrix' cannot compare \[\[1, 0\], \[0, 1\]\]; expected one number"):
        score_of({"matrix": [[1, 0], [0, 1]]}, "matrix", "Hook.monitor")
    assert score_of({"accuracy": None}, "accuracy", "Hook.monitor") is None


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=True, width=16)), max_size=8), st.sampled_from(["greater", "less"]))
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_the_best_score_is_the_extreme_of_all(values: list[float | None], rule: Rule) -> None:
    """And it is announced when it comes first."""
    scores = BestScores("m", rule)
    better = [scores.update({"m": value}, "option") for value in values]
    real = [value for value in values if value is not None and not math.isnan(value)]
    extreme = (max if rule == "greater" else min)(real, default=None)
    assert scores.scores.get("m") == extreme
    if extreme is not None:
        first = values.index(extreme)
        assert better[first] == {"m": extreme}
        assert not any(better[first + 1 :])


def test_a_metric_that_is_missing_keeps_the_others_from_counting() -> None:
    """So that what is announced is complete."""
    scores = BestScores(["acc", "loss"])
    with pytest.raises(MetricNotFound):
        scores.update({"acc": 0.5}, "option")
    assert scores.scores == {}


@pytest.mark.parametrize(
    ("before", "after", "scores"),
    [
        (dict(metrics="acc"), dict(metrics="acc"), {"acc": 0.5}),
        (dict(metrics=["acc", "loss"]), dict(metrics="loss"), {"loss": 2.0}),
        (dict(metrics="acc"), dict(metrics=["acc", "loss"]), {"acc": 0.5}),
        (dict(metrics="acc"), dict(metrics="loss"), {}),
        (dict(metrics="acc"), dict(metrics="acc", rule="less"), {}),  # that was the greatest, not the least
        (dict(metrics="auto"), dict(metrics="auto"), {"acc": 0.5}),
        (dict(metrics="auto"), dict(metrics="acc"), {"acc": 0.5}),
        (dict(metrics="acc"), dict(metrics="auto"), {}),
    ],
)
def test_scores_are_taken_over_where_the_same_is_compared_in_the_same_way(
    before: dict[str, Any], after: dict[str, Any], scores: dict[str, float]
) -> None:
    """A restart may watch other metrics, or by another rule."""
    first, second = BestScores(**before), BestScores(**after)
    first.update({"acc": 0.5, "loss": 2.0}, "option")
    second.load_state_dict(first.state_dict())
    assert second.scores == scores


def test_the_metric_that_was_taken_first_stays() -> None:
    """Also after a restart, and where another one comes first."""
    first, second = BestScores("auto"), BestScores("auto")
    assert first.update({}, "option") == {}
    first.update({"loss": 2.0, "acc": 0.5}, "option")
    second.load_state_dict(first.state_dict())
    assert second.update({"acc": 0.9, "loss": 1.5}, "option") == {"loss": 1.5}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(metrics=["auto", "acc"]), ["auto", "give it alone"]),
        (dict(metrics=["acc", "acc"]), ["acc", "each metric once"]),
        (dict(metrics=["acc", "loss"], rule=["less", "less", "less"]), ["expected one rule, or one for each of the 2"]),
        (dict(metrics="acc", rule="grater"), ["Hook.rule = 'grater'", "did you mean 'greater'"]),
        (dict(metrics=["acc", "fluff"]), ["Hook.monitor = 'fluff'", "give rule="]),
        (dict(metrics="loss", less_keys=["fluff"]), ["Hook.monitor = 'loss'", "give rule="]),
        (dict(metrics=None, rule="less"), ["Hook.rule='less'", "name the metric with monitor"]),
        (dict(metrics=None, greater_keys="fluff"), ["Hook.greater_keys='fluff'", "name the metric with monitor"]),
    ],
)
def test_arguments_that_make_no_sense_are_named(arguments: dict[str, Any], words: list[str]) -> None:
    """Each with its value and what was expected."""
    (problem,) = metric_problems("Hook", "monitor", **{"rule": None} | arguments)
    assert [word for word in words if word not in problem] == [], problem


@pytest.mark.parametrize("metrics", [None, "auto", "acc", ["acc", "loss"], ("loss",)])
def test_good_arguments_have_no_problems(metrics: Any) -> None:
    """One metric, several, or the first that comes."""
    assert list(metric_problems("Hook", "monitor", metrics, None)) == []

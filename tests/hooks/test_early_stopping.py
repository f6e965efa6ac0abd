"""EarlyStoppingHook: when training ends early, how it ends, and what a resumed run knows of it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from hookbus.errors import ConfigError, MetricNotFound
from hookbus.events import AfterTrainEpoch, AfterTrainIter, AfterVal, AfterValEpoch
from hookbus.hooks import EarlyStoppingHook
from hookbus.runner import Runner
from tests.runner.builders import VALIDATION, checkpoints, make_runner, names, record

LOOPS: dict[str, dict[str, Any]] = {
    "by epoch": dict(max_epochs=8),
    "by iteration": dict(by_epoch=False, max_iters=8, val_interval=1),
}
"""Eight validations, after eight epochs of three iterations or eight iterations."""


class Scores:
    """An evaluator that gives one score after the other."""

    def __init__(self, name: str, values: list[Any]) -> None:
        self._name = name
        self._values = list(values)

    def reset(self) -> None: ...
    def update(self, predictions: Any, targets: Any) -> None: ...
    def compute(self) -> dict[str, Any]:
        return {self._name: self._values.pop(0)}


def make(work_dir: Path, values: list[Any], options: dict[str, Any], *, loop: str = "by epoch", **changes: Any) -> Runner:
    """Return a runner whose validations give these values of `acc`, with a hook that has these options."""
    hook = dict(type="EarlyStoppingHook", monitor="acc") | options
    parts: dict[str, Any] = dict(
        train_cfg=LOOPS[loop],
        val_evaluator=Scores("acc", values),
        default_hooks=dict(logger=None, checkpoint=None),
        custom_hooks=[hook],
    )
    return make_runner(work_dir, **parts | changes)


def hook_of(runner: Runner) -> EarlyStoppingHook:
    """Return the hook under test."""
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, EarlyStoppingHook))
    return hook


def log_of(runner: Runner) -> str:
    """Return what was logged."""
    return (runner.log_dir / "train.log").read_text(encoding="utf-8")


SAVING: dict[str, Any] = dict(default_hooks=dict(logger=None))
RISING = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("values", "options", "completed", "reason"),
    [
        (RISING, {}, 8, None),
        (RISING, dict(rule="less", patience=2), 3, "acc has not been better than 0.1 in the last 2 validations"),
        (RISING, dict(patience=2, min_delta=0.15), 8, None),
        (RISING, dict(patience=1, min_delta=0.15), 2, "better than 0.1 by more than 0.15 in the last 1 validations"),
        ([0.5] * 8, {}, 6, "acc has not been better than 0.5 in the last 5 validations"),
        ([0.5, 0.4, 0.6, 0.5, 0.5, 0.5, 0.9, 0.9], dict(patience=3), 6, "better than 0.6 in the last 3"),
        (RISING, dict(stopping_threshold=0.45), 5, "acc = 0.5 is better than stopping_threshold = 0.45"),
        (RISING, dict(stopping_threshold=0.5), 6, "acc = 0.6 is better than stopping_threshold = 0.5"),
        (RISING, dict(stopping_threshold=0.15, rule="less"), 1, "acc = 0.1 is better than"),
        ([0.1, math.nan, *RISING], {}, 2, "acc is nan"),
        ([0.1, math.inf, *RISING], {}, 2, "acc is inf"),
        ([0.1, math.nan, 0.2, math.nan, math.nan, 0.3, 0.4, 0.5], dict(check_finite=False, patience=3), 8, None),
        ([math.nan] * 8, dict(check_finite=False, patience=3), 3, "acc has not been a number in the last 3 validations"),
        ([0.5, None, None, None, 0.5, None, 0.5, 0.5], dict(patience=2), 7, "in the last 2 validations"),
    ],
)
def test_training_ends_when_the_metric_says_so(
    values: list[Any], options: dict[str, Any], completed: int, reason: str | None, loop: str, tmp_path: Path
) -> None:
    """By epochs and by iterations alike, and the reason is in the log."""
    runner = make(tmp_path, values, options, loop=loop)
    runner.train()
    assert runner.train_loop is not None
    assert runner.train_loop.completed == completed
    assert ("training ends early" in log_of(runner)) == (reason is not None)
    assert reason is None or reason in log_of(runner)


@pytest.mark.parametrize("loop", LOOPS)
def test_it_ends_as_it_does_at_the_maximum(loop: str, tmp_path: Path) -> None:
    """With the same last events, and with the last checkpoint."""
    early = make(tmp_path / "early", [0.5] * 8, dict(patience=2), loop=loop, **SAVING)
    first = record(early.bus)
    early.train()
    maximum = {"max_epochs": 3} if loop == "by epoch" else {"max_iters": 3}
    complete = make(tmp_path / "complete", [0.5] * 8, {}, train_cfg=LOOPS[loop] | maximum, **SAVING)
    second = record(complete.bus)
    complete.train()
    assert names(first)[-20:] == names(second)[-20:]
    assert [(event.epoch, event.iter) for event in first] == [(event.epoch, event.iter) for event in second]  # type: ignore[attr-defined]
    assert AfterTrainEpoch in map(type, first)
    assert checkpoints(tmp_path / "early")[-1:] == checkpoints(tmp_path / "complete")[-1:] != []


@pytest.mark.parametrize("event_type", [AfterTrainIter, AfterValEpoch, AfterVal])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_resumed_run_goes_on_counting(loop: str, event_type: Any, tmp_path: Path) -> None:
    """It ends where the uninterrupted run does, also where the last validation has to be run again."""
    values = [0.5, 0.6, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4]
    first = make(tmp_path, values, dict(patience=4), loop=loop, **SAVING)
    stop_at = 4 if loop == "by iteration" else 12
    first.bus.subscribe(
        event_type, first.stop, when=lambda event: event.iter + (event_type is AfterTrainIter) == stop_at, priority="LOWEST"
    )
    first.train()
    seen = 3 if event_type is AfterTrainIter else 4
    assert hook_of(first).validations_without_improvement == seen - 2
    second = make(tmp_path, values[3:], dict(patience=4), loop=loop, resume=True, **SAVING)
    if not first.progress.validation_due:
        second = make(tmp_path, values[4:], dict(patience=4), loop=loop, resume=True, **SAVING)
    second.train()
    assert second.train_loop is not None
    assert second.train_loop.completed == 6
    assert hook_of(second).best_score == 0.6


def test_a_run_that_was_stopped_early_stays_so(tmp_path: Path) -> None:
    """Calling `train` again, or resuming, trains no further; a larger patience does."""
    values = [0.5] * 20
    first = make(tmp_path, values, dict(patience=2), **SAVING)
    first.train()
    first.train()
    assert first.epoch == 3
    assert "in the last 2 validations, as it was before; raise patience or stopping_threshold to train on" in log_of(first)
    again = make(tmp_path, values, dict(patience=2), resume=True, **SAVING)
    seen = record(again.bus)
    again.train()
    assert again.epoch == 3
    assert names(seen) == ["BeforeRun", "AfterLoadCheckpoint", "BeforeTrain", *VALIDATION, "AfterTrain", "AfterRun"]
    more = make(tmp_path, values, dict(patience=4), resume=True, **SAVING)
    more.train()
    assert more.epoch == 5


@pytest.mark.parametrize("changes", [dict(monitor="accuracy"), dict(rule="less")])
def test_what_was_best_of_something_else_is_forgotten(changes: dict[str, Any]) -> None:
    """Another metric, or the other rule."""
    hook = EarlyStoppingHook("acc", rule="greater")
    hook.best_score, hook.validations_without_improvement = 0.5, 3
    other = EarlyStoppingHook(**dict(monitor="acc", rule="greater") | changes)
    other.load_state_dict(hook.state_dict())
    assert (other.best_score, other.validations_without_improvement) == (None, 0)
    same = EarlyStoppingHook("acc")
    same.load_state_dict(hook.state_dict())
    assert same.state_dict() == hook.state_dict()


def test_the_rule_is_told_from_the_name() -> None:
    """Losses are better when they are less."""
    assert EarlyStoppingHook("loss").rule == "less"
    assert EarlyStoppingHook("accuracy").rule == "greater"
    assert EarlyStoppingHook("loss", rule="greater").rule == "greater"


def test_an_unknown_metric_is_named_once_with_the_nearest_and_all_others(tmp_path: Path) -> None:
    """Training goes on, unless `strict`."""
    runner = make(tmp_path / "lenient", RISING, dict(monitor="ac", rule="greater"), train_cfg=dict(max_epochs=3))
    runner.train()
    complaint = (
        "EarlyStoppingHook.monitor='ac' is not among the metrics of the validation; did you mean 'acc'? valid choices: acc, loss"
    )
    assert log_of(runner).count(f"training will not end early: {complaint}") == 1
    assert runner.epoch == 3
    with pytest.raises(MetricNotFound, match=re.escape(complaint)):
        make(tmp_path / "strict", RISING, dict(monitor="ac", rule="greater", strict=True)).train()


def test_without_validation_nothing_ends_early_and_the_log_says_so(tmp_path: Path) -> None:
    """An error, if `strict`."""
    parts: dict[str, Any] = dict(val_dataloader=None, val_evaluator=None)
    runner = make(tmp_path / "lenient", [], {}, **parts)
    runner.train()
    complaint = "EarlyStoppingHook.monitor='acc' needs a validation; give the runner a val_dataloader"
    assert complaint in log_of(runner)
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        make(tmp_path / "strict", [], dict(strict=True), **parts).train()


def test_a_metric_that_is_no_number_is_refused(tmp_path: Path) -> None:
    """One value per class, for instance."""
    runner = make(tmp_path, [[0.1, 0.2]], {})
    with pytest.raises(ConfigError, match=r"EarlyStoppingHook.monitor='acc' cannot compare \[0.1, 0.2\]; expected one number"):
        runner.train()


def test_validations_and_tests_by_hand_do_not_count(tmp_path: Path) -> None:
    """They are no part of training, before it and after it."""
    runner = make(tmp_path, [0.9, 0.1, 0.2, 0.3, 0.1, 0.1], dict(patience=1), train_cfg=dict(max_epochs=3), test_dataloader=None)
    runner.val()
    runner.train()
    runner.val()
    assert runner.epoch == 3
    assert hook_of(runner).state_dict()["best_score"] == 0.3


def test_a_runner_for_tests_alone_takes_it(tmp_path: Path) -> None:
    """There is no training loop to stop."""
    parts: dict[str, Any] = dict(train_dataloader=None, train_cfg=None, optimizer=None, val_dataloader=None, val_evaluator=None)
    make(tmp_path, [], {}, **parts).test()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (dict(monitor=""), "EarlyStoppingHook.monitor = '': expected the name of a metric of the validation"),
        (dict(monitor=3), "EarlyStoppingHook.monitor = 3: expected the name of a metric of the validation"),
        (
            dict(monitor="psnr"),
            "EarlyStoppingHook.monitor = 'psnr': whether a greater 'psnr' is better cannot be told from its name; "
            "give rule='greater' or rule='less'",
        ),
        (dict(rule="grater"), "EarlyStoppingHook.rule = 'grater': did you mean 'greater'? valid choices: greater, less"),
        (dict(rule=1), "EarlyStoppingHook.rule = 1: expected 'greater', 'less' or None"),
        (dict(min_delta=-0.1), "EarlyStoppingHook.min_delta = -0.1: expected a number of at least 0"),
        (dict(min_delta=math.nan), "EarlyStoppingHook.min_delta = nan: expected a number of at least 0"),
        (dict(strict=1), "EarlyStoppingHook.strict = 1: expected True or False"),
        (dict(check_finite=None), "EarlyStoppingHook.check_finite = None: expected True or False"),
        (dict(patience=0), "EarlyStoppingHook.patience = 0: expected a whole number of at least 1"),
        (dict(patience=True), "EarlyStoppingHook.patience = True: expected a whole number of at least 1"),
        (dict(stopping_threshold="0.9"), "EarlyStoppingHook.stopping_threshold = '0.9': expected a number, or None"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], problem: str) -> None:
    """Each is named, with its value and what was expected."""
    with pytest.raises(ConfigError, match=f"^{re.escape(problem)}$"):
        EarlyStoppingHook(**dict(monitor="acc") | options)


def test_the_options_of_a_config_are_checked_before_anything_is_built(tmp_path: Path) -> None:
    """With their path."""
    with pytest.raises(ConfigError, match=r"custom_hooks\[0\].patience = 'five'"):
        make(tmp_path, [], dict(patience="five"))

"""EmptyCacheHook: when it empties the cache, and that it is not there where there is none."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hookbus.errors import ConfigError
from hookbus.events import MOUNT_POINTS
from hookbus.hooks import EmptyCacheHook
from hookbus.runner import Runner
from tests.runner.builders import make_runner

LOOPS: dict[str, dict[str, Any]] = {
    "by epoch": dict(max_epochs=2),
    "by iteration": dict(by_epoch=False, max_iters=6, val_interval=3),
}
"""Six iterations and two validations of two batches; by iteration, training is one epoch."""


class Accelerator:
    """Stands for `torch.accelerator`, and counts how often its cache is emptied."""

    def __init__(self) -> None:
        self.emptied = 0

    def is_available(self) -> bool:
        """Be there."""
        return True

    def empty_cache(self) -> None:
        """Count."""
        self.emptied += 1


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Accelerator:
    """Have the hook see an accelerator."""
    accelerator = Accelerator()
    monkeypatch.setattr("hookbus.hooks.empty_cache.torch", SimpleNamespace(accelerator=accelerator))
    return accelerator


def make(work_dir: Path, loop: str, options: dict[str, Any]) -> Runner:
    """Return a runner with the hook."""
    hook = dict(type="EmptyCacheHook") | options
    return make_runner(work_dir, train_cfg=LOOPS[loop], default_hooks=dict(logger=None, checkpoint=None), custom_hooks=[hook])


@pytest.mark.parametrize(
    ("options", "by_epoch", "by_iteration"),
    [
        ({}, 2 + 2 + 1, 1 + 2 + 1),
        (dict(before_epoch=True), 2 * (2 + 2 + 1), 2 * (1 + 2 + 1)),
        (dict(before_epoch=True, after_epoch=False), 2 + 2 + 1, 1 + 2 + 1),
        (dict(after_epoch=False, after_iter=True), 6 + 4 + 1, 6 + 4 + 1),
        (dict(before_epoch=True, after_iter=True), 2 * 5 + 11, 2 * 4 + 11),
    ],
)
@pytest.mark.parametrize("loop", LOOPS)
def test_the_cache_is_emptied_when_that_was_asked_for(
    loop: str, options: dict[str, bool], by_epoch: int, by_iteration: int, accelerator: Accelerator, tmp_path: Path
) -> None:
    """Epochs and iterations of training, validation and test."""
    runner = make(tmp_path, loop, options)
    runner.train()
    runner.test()
    assert accelerator.emptied == (by_epoch if loop == "by epoch" else by_iteration)


@pytest.mark.usefixtures("accelerator")
def test_what_was_not_asked_for_is_not_subscribed_to(tmp_path: Path) -> None:
    """The iterations cost nothing."""
    runner = make(tmp_path, "by epoch", {})
    assert subscribed(runner) == {"AfterTrainEpoch", "AfterValEpoch", "AfterTestEpoch"}


@pytest.mark.skipif(torch.accelerator.is_available(), reason="about machines without an accelerator")
def test_without_an_accelerator_nothing_is_subscribed_to(tmp_path: Path) -> None:
    """Whatever was asked for."""
    runner = make(tmp_path, "by epoch", dict(before_epoch=True, after_iter=True))
    assert subscribed(runner) == set()
    runner.train()


def subscribed(runner: Runner) -> set[str]:
    """Return the events that the hook listens to."""
    return {
        event_type.__name__
        for event_type in MOUNT_POINTS.values()
        if any("EmptyCacheHook" in str(entry) for entry in runner.bus.plan(event_type))
    }


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (dict(after_iter=1), "EmptyCacheHook.after_iter = 1: expected True or False"),
        (dict(before_epoch="yes"), "EmptyCacheHook.before_epoch = 'yes': expected True or False"),
        (
            dict(after_epoch=False),
            "EmptyCacheHook would do nothing: before_epoch, after_epoch, after_iter are all False; leave the hook out",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], problem: str) -> None:
    """Each is named."""
    with pytest.raises(ConfigError, match=f"^{re.escape(problem)}$"):
        EmptyCacheHook(**options)

"""The tutorial on writing a hook: each docstring is its sentence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hookbus.events import AfterTrainIter
from hookbus.hooks import Hook
from hookbus.registry import HOOKS
from hookbus.runner import Runner
from hookbus.testing import make_runner
from tests.runner.builders import make_loader


@HOOKS.register_module()
class TutorialLossHook(Hook):
    """The example of the tutorial."""

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval
        self.checked: list[int] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):  # type: ignore[no-untyped-def]
        """Check the loss every `interval` iterations."""
        if self.every_n_train_iters(runner, self.interval):
            self.checked.append(runner.iter + 1)
            assert torch.isfinite(outputs["loss"]), f"the loss is {outputs['loss']} at iteration {runner.iter + 1}"


@HOOKS.register_module()
class TutorialEarlyLossHook(TutorialLossHook):
    """The same with a place of its own."""

    priority = "ABOVE_NORMAL"


def make_checked_runner(work_dir: Path, losses: dict[int, float], hooks: Any, max_iters: int = 120) -> Runner:
    """Return a runner whose loss is not that of the model in some iterations, counted from 1."""

    def step(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        loss: torch.Tensor = model(batch[0]).square().mean() + losses.get(runner.iter + 1, 0.0)
        return loss

    runner = make_runner(
        work_dir,
        train_step=step,
        train_dataloader=make_loader(8),
        val_dataloader=None,
        train_cfg=dict(by_epoch=False, max_iters=max_iters),
        default_hooks=dict(checkpoint=None),
        custom_hooks=hooks,
    )
    return runner


def the_check(runner: Runner) -> TutorialLossHook:
    """Return the hook of the example."""
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, TutorialLossHook)]
    return hook


def place_of(runner: Runner, name: str) -> int:
    """Return the priority of a hook after an iteration."""
    (place,) = [entry.priority for entry in runner.bus.plan(AfterTrainIter) if entry.name.startswith(name)]
    return place


def test_three_steps_make_a_hook(tmp_path: Path) -> None:
    """Inherit the base class, register it with `@HOOKS.register_module()`, override the mount points wanted."""

    @HOOKS.register_module()
    class TutorialEpochHook(Hook):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def before_train_epoch(self, runner: Runner) -> None:
            self.heard.append(f"before {runner.epoch}")

        def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
            self.heard.append(f"validated {runner.epoch} {sorted(metrics)}")

    runner = make_runner(tmp_path, custom_hooks=[dict(type="TutorialEpochHook")])
    runner.train()
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, TutorialEpochHook)]
    assert hook.heard == ["before 0", "validated 1 ['loss']", "before 1", "validated 2 ['loss']"]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_fails_where_it_is_checked(loss: float, tmp_path: Path) -> None:
    """Checks every `interval=50` training iterations that `outputs['loss']` is finite, and fails otherwise."""
    runner = make_checked_runner(tmp_path, {100: loss}, [dict(type="TutorialLossHook", interval=50)])
    with pytest.raises(AssertionError, match=r"the loss is -?(nan|inf) at iteration 100"):
        runner.train()
    assert the_check(runner).checked == [50, 100]


def test_a_loss_is_looked_at_in_no_other_iteration(tmp_path: Path) -> None:
    """Checks every `interval=50` training iterations (`self.every_n_train_iters(runner, self.interval)`)."""
    runner = make_checked_runner(tmp_path, dict.fromkeys((1, 49, 51, 99, 101), math.nan), [dict(type="TutorialLossHook")])
    runner.train()
    assert the_check(runner).checked == [50, 100]
    assert runner.iter == 120


@pytest.mark.parametrize("form", ["a list", "a dict around a dict"])
def test_the_hook_is_passed_in_custom_hooks(form: str, tmp_path: Path) -> None:
    """The hook is passed to the runner in `custom_hooks` (the tutorial writes a dict around a single config).

    Better than a TypeError: that form is accepted, too.
    """
    config = dict(type="TutorialLossHook", interval=4)
    given = {"a list": [config], "a dict around a dict": dict(config)}
    runner = make_checked_runner(tmp_path, {}, given[form], max_iters=9)
    runner.train()
    assert the_check(runner).checked == [4, 8]


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (dict(type="TutorialLossHook", priority="ABOVE_NORMAL"), "TutorialLossHook"),
        (dict(type="TutorialEarlyLossHook"), "TutorialEarlyLossHook"),
    ],
)
def test_its_place_is_said_in_the_config_or_on_the_class(config: dict[str, Any], name: str, tmp_path: Path) -> None:
    """Its priority can be set in the config (`priority='ABOVE_NORMAL'`) or as a class attribute."""
    runner = make_checked_runner(tmp_path, {}, [config, dict(type="IterTimerHook", priority=39)], max_iters=1)
    assert place_of(runner, name) == 40
    assert [type(hook).__name__ for hook in runner.hooks][:3] == ["RuntimeInfoHook", "IterTimerHook", name]

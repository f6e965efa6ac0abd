"""Which hooks a run has, with which options, and in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from hookbus.events import MOUNT_POINTS, AfterTrainEpoch, AfterTrainIter, BeforeRun, BeforeTrainEpoch
from hookbus.hooks import CheckpointHook, Hook, IterTimerHook, LoggerHook
from hookbus.registry import HOOKS
from hookbus.runner import Runner
from hookbus.testing import make_runner

DEFAULTS = [
    ("RuntimeInfoHook", 10),
    ("IterTimerHook", 50),
    ("DistSamplerSeedHook", 50),
    ("LoggerHook", 60),
    ("ParamSchedulerHook", 70),
    ("CheckpointHook", 90),
]


@HOOKS.register_module()
class ProbeHook(Hook):
    """A hook that only stands in the order."""

    def __init__(self, label: str = "probe") -> None:
        self.label = label

    def before_train_epoch(self) -> None:
        """Stand at the beginning of an epoch."""

    def after_train_iter(self) -> None:
        """Stand behind an iteration."""


@HOOKS.register_module()
class EarlyProbeHook(ProbeHook):
    """One with a priority of its class."""

    priority: ClassVar[int | str] = "VERY_HIGH"


class QuietCheckpointHook(CheckpointHook):
    """A user's own kind of checkpoint hook."""


def hooks_of(runner: Runner) -> list[str]:
    """Return the names of the hooks in the order of priority."""
    return [type(hook).__name__ for hook in runner.hooks]


def the(runner: Runner, name: str) -> Any:
    """Return the hook of that class."""
    (hook,) = [hook for hook in runner.hooks if type(hook).__name__ == name]
    return hook


def order(runner: Runner, event_type: Any) -> list[str]:
    """Return who hears an event, in order, by the class alone."""
    return [entry.name.partition(".")[0] for entry in runner.bus.plan(event_type)]


def test_six_hooks_are_there_with_their_priorities(tmp_path: Path) -> None:
    """Registered in this order, each at its own place."""
    runner = make_runner(tmp_path)
    assert hooks_of(runner) == [name for name, _ in DEFAULTS]
    priorities = {
        entry.name.partition(".")[0]: entry.priority for point in MOUNT_POINTS.values() for entry in runner.bus.plan(point)
    }
    assert priorities == dict(DEFAULTS)
    assert the(runner, "CheckpointHook").interval == 1


def test_the_plan_of_an_iteration_follows_the_priorities(tmp_path: Path) -> None:
    """Schedulers step behind the log line, and saves are asked for last."""
    runner = make_runner(tmp_path)
    assert order(runner, AfterTrainIter) == ["RuntimeInfoHook", "IterTimerHook", "LoggerHook", "ParamSchedulerHook"]
    assert order(runner, AfterTrainEpoch)[-2:] == ["ParamSchedulerHook", "CheckpointHook"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (dict(max_keep_ckpts=2), dict(interval=1, max_keep_ckpts=2)),
        (dict(type="CheckpointHook", max_keep_ckpts=2), dict(interval=1, max_keep_ckpts=2)),
        (dict(interval=5), dict(interval=5, max_keep_ckpts=-1)),
        ({}, dict(interval=1)),
        (CheckpointHook(max_keep_ckpts=3), dict(interval=-1, max_keep_ckpts=3)),
    ],
)
def test_an_entry_inherits_the_options_it_does_not_set(given: Any, expected: dict[str, Any], tmp_path: Path) -> None:
    """An object is taken as it is."""
    runner = make_runner(tmp_path, default_hooks=dict(checkpoint=given))
    hook = the(runner, "CheckpointHook")
    assert {name: getattr(hook, name) for name in expected} == expected
    assert hooks_of(runner)[-1] == "CheckpointHook"


def test_an_entry_of_another_type_inherits_nothing_and_keeps_its_place(tmp_path: Path) -> None:
    """Also a hook of quite another kind."""
    hooks = dict(timer=dict(type="ProbeHook", label="mine"), checkpoint=dict(type=QuietCheckpointHook))
    runner = make_runner(tmp_path, default_hooks=hooks)
    assert hooks_of(runner)[1] == "ProbeHook"
    assert the(runner, "ProbeHook").label == "mine"
    assert the(runner, "QuietCheckpointHook").interval == -1


@pytest.mark.parametrize("name", ["runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint"])
def test_none_removes_a_default_hook(name: str, tmp_path: Path) -> None:
    """Every one of them can go, and training still works."""
    runner = make_runner(tmp_path, default_hooks={name: None})
    assert len(hooks_of(runner)) == 5
    runner.train()
    assert runner.epoch == 2


def test_training_works_without_any_hook(tmp_path: Path) -> None:
    """The loop needs none of them."""
    names = ["runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint"]
    runner = make_runner(tmp_path, default_hooks=dict.fromkeys(names))
    assert "loss" in runner.train()
    assert runner.hooks == []


def test_a_new_name_among_the_default_hooks_adds_a_hook(tmp_path: Path) -> None:
    """Behind the others of its priority, as a config or as an object."""
    hooks = dict(probe=dict(type="ProbeHook"), second=LoggerHook(interval=1))
    runner = make_runner(tmp_path, default_hooks=hooks)
    assert hooks_of(runner)[3:6] == ["ProbeHook", "LoggerHook", "LoggerHook"]


@pytest.mark.parametrize(
    "given", [dict(type="ProbeHook"), [dict(type="ProbeHook")], (dict(type="ProbeHook"),), [ProbeHook()], [dict(type=ProbeHook)]]
)
def test_custom_hooks_may_be_configs_objects_or_one_config(given: Any, tmp_path: Path) -> None:
    """The tutorial writes a dict around a single config; that is accepted, too."""
    runner = make_runner(tmp_path, custom_hooks=given)
    assert hooks_of(runner)[3] == "ProbeHook"
    assert order(runner, BeforeTrainEpoch).count("ProbeHook") == 1


@pytest.mark.parametrize(
    ("spec", "place"),
    [
        (dict(type="ProbeHook"), 50),
        (dict(type="ProbeHook", priority="LOWEST"), 100),
        (dict(type="ProbeHook", priority="very_high"), 10),
        (dict(type="ProbeHook", priority=42), 42),
        (dict(type="EarlyProbeHook"), 10),
        (dict(type="EarlyProbeHook", priority="LOW"), 70),
        (EarlyProbeHook(), 10),
    ],
)
def test_a_priority_comes_from_the_config_else_from_the_class(spec: Any, place: int, tmp_path: Path) -> None:
    """Else it is NORMAL."""
    runner = make_runner(tmp_path, custom_hooks=[spec])
    (entry,) = [entry for entry in runner.bus.plan(AfterTrainIter) if "Probe" in entry.name]
    assert entry.priority == place


def test_a_default_hook_may_be_given_another_priority(tmp_path: Path) -> None:
    """In its entry, beside its options."""
    runner = make_runner(tmp_path, default_hooks=dict(logger=dict(priority="LOWEST", interval=3)))
    assert order(runner, AfterTrainIter)[-1] == "LoggerHook"
    assert the(runner, "LoggerHook").interval == 3


def test_ties_go_in_the_order_of_registration(tmp_path: Path) -> None:
    """Default hooks first, then custom ones as they are listed, then whoever subscribes later."""
    runner = make_runner(tmp_path, custom_hooks=[dict(type="ProbeHook", label="first"), ProbeHook("second")])
    heard: list[str] = []
    for hook in runner.hooks:
        if isinstance(hook, ProbeHook):
            hook.after_train_iter = lambda label=hook.label: heard.append(label)  # type: ignore[method-assign, misc]
    runner.bus.subscribe(AfterTrainIter, lambda: None, name="later.function")
    runner.register_hook(ProbeHook("third"))
    tied = [entry.name.partition(".")[0] for entry in runner.bus.plan(AfterTrainIter) if entry.priority == 50]
    assert tied == ["IterTimerHook", "ProbeHook", "ProbeHook", "later", "ProbeHook"]
    assert [hook.label for hook in runner.hooks if isinstance(hook, ProbeHook)] == ["first", "second", "third"]


def test_register_hook_takes_configs_objects_and_a_priority(tmp_path: Path) -> None:
    """The argument goes before the config and the class."""
    runner = make_runner(tmp_path)
    runner.register_hook(dict(type="ProbeHook", priority="LOW"))
    runner.register_hook(EarlyProbeHook(), priority="LOWEST")
    runner.register_hook(IterTimerHook())
    places = [(entry.name.partition(".")[0], entry.priority) for entry in runner.bus.plan(AfterTrainIter)]
    assert ("ProbeHook", 70) in places
    assert ("EarlyProbeHook", 100) in places
    assert places.count(("IterTimerHook", 50)) == 2


def test_an_object_without_the_base_class_is_a_hook(tmp_path: Path) -> None:
    """Any object with mount-point methods will do, sync or async."""
    heard: list[str] = []

    class Plain:
        def before_run(self, loop: str) -> None:
            heard.append(f"before {loop}")

        async def after_run(self, loop: str) -> None:
            heard.append(f"after {loop}")

    runner = make_runner(tmp_path, custom_hooks=[Plain()])
    runner.test()
    assert heard == ["before test", "after test"]
    assert order(make_runner(tmp_path), BeforeRun) == ["RuntimeInfoHook", "LoggerHook"]


def test_the_classic_signatures_work_unchanged(tmp_path: Path) -> None:
    """Every mount point with the arguments that users of older hooks write."""
    heard: dict[str, Any] = {}

    class Classic(Hook):
        def before_run(self, runner):  # type: ignore[no-untyped-def]
            heard["before_run"] = runner

        def before_train_iter(self, runner, batch_idx, data_batch=None):  # type: ignore[no-untyped-def]
            heard["before_train_iter"] = (batch_idx, len(data_batch))

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):  # type: ignore[no-untyped-def]
            heard["after_train_iter"] = (batch_idx, len(data_batch), list(outputs))

        def _after_iter(self, runner, batch_idx, data_batch=None, outputs=None, mode="train"):  # type: ignore[no-untyped-def]
            heard[f"_after_iter {mode}"] = (batch_idx, tuple(outputs.shape))

        def after_val_epoch(self, runner, metrics=None):  # type: ignore[no-untyped-def]
            heard["after_val_epoch"] = list(metrics)

        def before_save_checkpoint(self, runner, checkpoint):  # type: ignore[no-untyped-def]
            heard["before_save_checkpoint"] = sorted(checkpoint)

    runner = make_runner(tmp_path, custom_hooks=[Classic()])
    runner.train()
    assert heard["before_run"] is runner
    assert heard["before_train_iter"] == (2, 2)
    assert heard["after_train_iter"] == (2, 2, ["loss"])
    assert heard["_after_iter val"] == (1, (4, 3))
    assert "_after_iter train" not in heard
    assert heard["after_val_epoch"] == ["loss"]
    expected = ["hooks", "loader", "message_hub", "meta", "optimizer", "param_schedulers", "progress", "rng", "state_dict"]
    assert heard["before_save_checkpoint"] == expected

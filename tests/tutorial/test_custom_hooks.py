"""The tutorial on giving hooks to a runner, and the rules of registration: each docstring is its sentence, or the rule."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from hookbus.errors import ConfigError
from hookbus.events import AfterTrainIter
from hookbus.hooks import Hook
from hookbus.registry import HOOKS
from hookbus.runner import Runner
from hookbus.testing import make_runner
from hookbus.writers import Record, Writer
from tests.runner.builders import checkpoints, read_records


@HOOKS.register_module()
class TutorialShowHook(Hook):
    """Counts what it could have shown."""

    def __init__(self, interval: int = 1) -> None:
        self.interval = interval
        self.shown: list[int] = []

    def after_train_iter(self, runner: Runner) -> None:
        """Count every `interval` iterations."""
        if self.every_n_train_iters(runner, self.interval):
            self.shown.append(runner.iter + 1)


@HOOKS.register_module()
class TutorialEarlyShowHook(TutorialShowHook):
    """One that says where it stands."""

    priority = "VERY_HIGH"


class KeepingWriter(Writer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def write(self, record: Record) -> None:
        """Keep it."""
        self.records.append(record)


def hooks_of(runner: Runner, kind: type[Any]) -> list[Any]:
    """Return the hooks of a class, in their order."""
    return [hook for hook in runner.hooks if isinstance(hook, kind)]


def places_of(runner: Runner, *names: str) -> list[int]:
    """Return the priorities that hooks of these classes have after an iteration."""
    return [entry.priority for entry in runner.bus.plan(AfterTrainIter) if entry.name.partition(".")[0] in names]


# --- what is given to the runner --------------------------------------------------------------------------------------


def test_hooks_are_given_as_configs(tmp_path: Path) -> None:
    """Default hooks are given to the runner as `default_hooks` (a dict of name -> config).

    Custom ones as `custom_hooks` (a list of configs); then `runner.train()`.
    """
    default_hooks = dict(
        logger=dict(type="LoggerHook", interval=2),
        checkpoint=dict(type="CheckpointHook", interval=2),
    )
    custom_hooks = [dict(type="TutorialShowHook", interval=4, priority="LOWEST"), dict(type="TutorialEarlyShowHook", interval=3)]
    runner = make_runner(tmp_path, default_hooks=default_hooks, custom_hooks=custom_hooks)
    runner.train()
    assert checkpoints(tmp_path) == ["epoch_2"]
    assert [line["iter"] for line in read_records(runner) if line["mode"] == "train"] == [2, 5]
    assert [hook.shown for hook in hooks_of(runner, TutorialShowHook)] == [[3, 6], [4]]


def test_a_config_names_its_place(tmp_path: Path) -> None:
    """`dict(type='NaiveVisualizationHook', priority='LOWEST')`, here with a hook of our own."""
    runner = make_runner(tmp_path, custom_hooks=[dict(type="TutorialShowHook", priority="LOWEST")])
    assert isinstance(runner.hooks[-1], TutorialShowHook)
    assert places_of(runner, "TutorialShowHook") == [100]


# --- the rules of registration ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hook", "argument", "place"),
    [
        (dict(type="TutorialShowHook"), None, 50),
        (dict(type="TutorialShowHook"), "LOW", 70),
        (dict(type="TutorialShowHook", priority="HIGH"), None, 30),
        (dict(type="TutorialShowHook", priority="HIGH"), "LOW", 70),
        (dict(type="TutorialEarlyShowHook"), None, 10),
        (dict(type="TutorialEarlyShowHook", priority=44), None, 44),
        (dict(type="TutorialEarlyShowHook", priority=44), 0, 0),
        (dict(type=TutorialEarlyShowHook, priority="LOWEST"), "HIGHEST", 0),
        (TutorialEarlyShowHook(), None, 10),
        (TutorialEarlyShowHook(), 100, 100),
    ],
)
def test_the_argument_goes_before_the_config_and_that_before_the_class(
    hook: Any, argument: int | str | None, place: int, tmp_path: Path
) -> None:
    """Better than taking the priority out of it: the config stays as it was, and so does the hook."""
    before = deepcopy(hook) if isinstance(hook, dict) else vars(hook).copy()
    runner = make_runner(tmp_path)
    runner.register_hook(hook, priority=argument)
    assert places_of(runner, "TutorialShowHook", "TutorialEarlyShowHook") == [place]
    assert (hook if isinstance(hook, dict) else vars(hook)) == before


def test_ties_go_to_default_hooks_then_to_custom_ones_as_listed(tmp_path: Path) -> None:
    """Whatever kind of thing they are, and whether they were given to the constructor or later."""
    custom = [TutorialShowHook(1), dict(type="TutorialShowHook", interval=2), dict(type=TutorialShowHook, interval=3)]
    runner = make_runner(tmp_path, custom_hooks=custom, default_hooks=dict(extra=dict(type="TutorialShowHook", interval=9)))
    runner.register_hook(dict(type="TutorialShowHook", interval=4))
    assert [type(hook).__name__ for hook in runner.hooks[1:3]] == ["IterTimerHook", "DistSamplerSeedHook"]
    assert [hook.interval for hook in runner.hooks[3:8] if isinstance(hook, TutorialShowHook)] == [9, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("given", "left"),
    [
        (dict(timer=None), ["RuntimeInfo", "DistSamplerSeed", "Logger", "ParamScheduler", "Checkpoint"]),
        (dict(timer=None, logger=None, checkpoint=None), ["RuntimeInfo", "DistSamplerSeed", "ParamScheduler"]),
        (
            dict(timer=dict(type="TutorialShowHook")),
            ["RuntimeInfo", "TutorialShow", "DistSamplerSeed", "Logger", "ParamScheduler", "Checkpoint"],
        ),
        (
            dict(mine=dict(type="TutorialEarlyShowHook"), timer=None),
            ["RuntimeInfo", "TutorialEarlyShow", "DistSamplerSeed", "Logger", "ParamScheduler", "Checkpoint"],
        ),
        (None, ["RuntimeInfo", "IterTimer", "DistSamplerSeed", "Logger", "ParamScheduler", "Checkpoint"]),
        ({}, ["RuntimeInfo", "IterTimer", "DistSamplerSeed", "Logger", "ParamScheduler", "Checkpoint"]),
    ],
)
def test_an_entry_removes_takes_the_place_of_or_adds(given: Any, left: list[str], tmp_path: Path) -> None:
    """None removes one, another type takes over its place, an unknown name adds one; what is not named stays."""
    runner = make_runner(tmp_path, default_hooks=given)
    assert [type(hook).__name__.removesuffix("Hook") for hook in runner.hooks] == left


@pytest.mark.parametrize(
    ("name", "entry", "words"),
    [
        ("tmer", None, "default_hooks has no 'tmer' .* did you mean 'timer'"),
        ("chekpoint", dict(interval=2), "default_hooks has no 'chekpoint' .* did you mean 'checkpoint'"),
    ],
)
def test_an_entry_that_means_none_of_them_is_an_error(name: str, entry: Any, words: str, tmp_path: Path) -> None:
    """Better than a bare assertion: it is named with the nearest one."""
    with pytest.raises(ConfigError, match=words):
        make_runner(tmp_path, default_hooks={name: entry})


def test_an_entry_keeps_what_it_does_not_set(tmp_path: Path) -> None:
    """Better than replacing the whole entry: `interval=1` is not lost with `max_keep_ckpts=3`, nor a place with an option."""
    checkpoint = dict(type="CheckpointHook", max_keep_ckpts=3)
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=5), default_hooks=dict(checkpoint=checkpoint))
    runner.train()
    assert checkpoints(tmp_path) == ["epoch_3", "epoch_4", "epoch_5"]


def test_the_same_type_twice_is_an_extra_one(tmp_path: Path) -> None:
    """A logger among the custom hooks logs beside the default one, each as often as it is told."""
    kept = KeepingWriter()
    second = dict(type="LoggerHook", interval=1, writers=[kept])
    runner = make_runner(tmp_path, custom_hooks=[second], default_hooks=dict(logger=dict(interval=3)))
    runner.train()
    assert [record.iter for record in kept.records if record.mode == "train"] == [1, 2, 3, 4, 5, 6]
    assert [line["iter"] for line in read_records(runner) if line["mode"] == "train"] == [3, 6]


def test_the_same_hook_twice_is_called_twice(tmp_path: Path) -> None:
    """Nobody looks for duplicates."""
    hook = TutorialShowHook(interval=2)
    make_runner(tmp_path, custom_hooks=[hook, hook]).train()
    assert hook.shown == [2, 2, 4, 4, 6, 6]


@pytest.mark.parametrize("wrong", [TutorialShowHook, "TutorialShowHook", 7, [], None], ids=repr)
def test_what_is_neither_a_hook_nor_a_config_is_refused(wrong: Any, tmp_path: Path) -> None:
    """A class is told to be called; the runner has the hooks it had."""
    runner = make_runner(tmp_path)
    with pytest.raises(ConfigError, match=r"hook"):
        runner.register_hook(wrong)
    assert len(runner.hooks) == 6

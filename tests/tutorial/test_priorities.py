"""The tutorial on mount points and priorities: each docstring is its sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from hookbus.bus import EventBus
from hookbus.checkpoint import load_checkpoint
from hookbus.events import AfterTrainEpoch, AfterTrainIter, AfterVal, BeforeTrainIter, Event, LogRecorded
from hookbus.hooks import (
    CheckpointHook,
    DistSamplerSeedHook,
    Hook,
    IterTimerHook,
    LoggerHook,
    ParamSchedulerHook,
    RuntimeInfoHook,
)
from hookbus.hub import MessageHub
from hookbus.optim import OptimWrapper
from hookbus.priority import get_priority
from hookbus.runner import Runner
from hookbus.testing import make_runner
from tests.runner.builders import record, same, weights
from tests.tutorial.hooks import CLASSIC, NamedHook

NAMES = ["HIGHEST", "VERY_HIGH", "HIGH", "ABOVE_NORMAL", "NORMAL", "BELOW_NORMAL", "LOW", "VERY_LOW", "LOWEST"]


class DishWashed(Event, frozen=True, kw_only=True):
    """A mount point of a program that has nothing to do with training."""

    dish: str


def wash(dishes: list[str], bus: EventBus) -> None:
    """Be that program."""
    for dish in dishes:
        bus.emit(DishWashed(dish=dish))


def make_crowd(priorities: list[str]) -> tuple[list[NamedHook], dict[str, list[str]]]:
    """Return one hook per priority, labelled with its place in the list, and the book they write into."""
    book: dict[str, list[str]] = {}
    hooks = [NamedHook(f"{index} {priority}", book) for index, priority in enumerate(priorities)]
    for hook, priority in zip(hooks, priorities, strict=True):
        hook.priority = priority  # type: ignore[misc]  # a hook's own wins over that of its class
    return hooks, book


# --- mount points -----------------------------------------------------------------------------------------------------


def test_everything_registered_at_a_mount_point_is_called(tmp_path: Path) -> None:
    """When the program reaches one [mount point], everything registered there is called."""
    called: list[str] = []

    class First(Hook):
        def after_train_epoch(self) -> None:
            called.append("first")

        def after_val(self) -> None:
            called.append("first, validated")

    class Second:
        async def after_train_epoch(self, runner: Runner) -> None:
            called.append("second")

    runner = make_runner(tmp_path, custom_hooks=[First(), Second()], train_cfg=dict(max_epochs=2, val_interval=2))
    runner.bus.subscribe(AfterTrainEpoch, lambda: called.append("function"))
    runner.bus.subscribe(AfterVal, lambda: called.append("function, validated"))
    runner.train()
    assert called == ["first", "second", "function"] * 2 + ["first, validated", "function, validated"]


def test_any_program_may_have_mount_points() -> None:
    """Hook programming puts mount points at one or several places of a program."""
    bus = EventBus()
    dried: list[str] = []
    bus.subscribe(DishWashed, lambda dish: dried.append(dish))
    wash(["cup", "plate"], bus)
    assert dried == ["cup", "plate"]


def test_a_hook_changes_what_a_program_does(tmp_path: Path) -> None:
    """Users add behaviour without touching the program."""

    class Freeze(Hook):
        def before_train_iter(self, runner: Runner) -> None:
            assert isinstance(runner.optim_wrapper, OptimWrapper)
            for group in runner.optim_wrapper.param_groups:
                group["lr"] = 0.0

    def program(work_dir: Path, custom_hooks: list[Any]) -> bool:
        runner = make_runner(work_dir, custom_hooks=custom_hooks)
        before = weights(runner.model)
        runner.train()
        return same(before, weights(runner.model))

    assert not program(tmp_path / "plain", [])
    assert program(tmp_path / "frozen", [Freeze()])


# --- the order --------------------------------------------------------------------------------------------------------


def test_every_hook_stands_somewhere(tmp_path: Path) -> None:
    """Every hook has a priority."""

    class Bare:
        def after_train_iter(self) -> None: ...

    class Own(Bare):
        priority: ClassVar[int] = 33

    runner = make_runner(tmp_path, custom_hooks=[Bare(), Own(), Hook()])
    runner.bus.subscribe(AfterTrainIter, lambda: None, name="function")
    places = {entry.name.partition(".")[0]: entry.priority for entry in runner.bus.plan(AfterTrainIter)}
    expected = {"RuntimeInfoHook": 10, "Own": 33, "IterTimerHook": 50, "Bare": 50, "function": 50, "LoggerHook": 60}
    assert places == expected | {"ParamSchedulerHook": 70}
    assert list(places) == [*expected, "ParamSchedulerHook"]


def test_a_higher_priority_is_called_earlier_at_every_mount_point(tmp_path: Path) -> None:
    """At one mount point a higher priority is called earlier."""
    hooks, book = make_crowd(NAMES[::-1])
    runner = make_runner(tmp_path, custom_hooks=hooks, train_cfg=dict(max_epochs=1))
    runner.train()
    runner.test()
    earliest_first = [hook.label for hook in reversed(hooks)]
    reached = {mount_point: labels[: len(hooks)] for mount_point, labels in book.items()}
    assert reached == {mount_point: earliest_first for mount_point in CLASSIC if mount_point != "after_load_checkpoint"}


def test_equal_priorities_are_called_in_the_order_of_registration(tmp_path: Path) -> None:
    """Equal priorities [are called] in the order of registration."""
    hooks, book = make_crowd(["LOW", "NORMAL", "HIGH", "NORMAL", "LOW", "NORMAL", "HIGH", "LOW"])
    *given, late = hooks
    runner = make_runner(tmp_path, custom_hooks=given, train_cfg=dict(max_epochs=1))
    runner.register_hook(late)
    runner.train()
    expected = ["2 HIGH", "6 HIGH", "1 NORMAL", "3 NORMAL", "5 NORMAL", "0 LOW", "4 LOW", "7 LOW"]
    assert {tuple(labels[: len(hooks)]) for labels in book.values()} == {tuple(expected)}


def test_the_names_mean_the_numbers_of_the_tutorial(tmp_path: Path) -> None:
    """HIGHEST 0, VERY_HIGH 10, HIGH 30, ABOVE_NORMAL 40, NORMAL 50, BELOW_NORMAL 60, LOW 70, VERY_LOW 90, LOWEST 100."""
    hooks, _ = make_crowd(NAMES)
    runner = make_runner(tmp_path, custom_hooks=hooks, default_hooks=dict.fromkeys(["logger", "checkpoint"]))
    plan = [entry.priority for entry in runner.bus.plan(BeforeTrainIter) if entry.name.startswith("NamedHook")]
    assert plan == [0, 10, 30, 40, 50, 60, 70, 90, 100]


# --- the places of the default hooks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["VERY_LOW", "HIGHEST"])
def test_the_saved_optimizer_is_the_one_of_the_next_epoch(place: str, tmp_path: Path) -> None:
    """CheckpointHook must come after ParamSchedulerHook so that the saved optimizer state is right.

    Better than that: a hook asks for a save and the runner takes it behind all hooks, so it is right in any order.
    """
    halve = dict(type="StepLR", step_size=1, gamma=0.5)
    runner = make_runner(tmp_path, param_scheduler=halve, default_hooks=dict(checkpoint=dict(priority=place)))
    used: list[float] = []
    runner.bus.subscribe(BeforeTrainIter, lambda runner: used.append(runner.optim_wrapper.param_groups[0]["lr"]))
    runner.train()
    saved = load_checkpoint(tmp_path / "checkpoints" / "epoch_1")["optimizer"]
    assert used == [0.1] * 3 + [0.05] * 3
    assert rates_in(saved) == [0.05]


def rates_in(state: Any) -> list[float]:
    """Return the learning rates in the state of an optimizer, however deep it lies."""
    if isinstance(state, dict):
        own = [state["lr"]] if "lr" in state else []
        return own + [rate for value in state.values() for rate in rates_in(value)]
    return [rate for item in state for rate in rates_in(item)] if isinstance(state, list | tuple) else []


def test_the_default_hooks_stand_where_the_tutorial_has_them(tmp_path: Path) -> None:
    """Default hooks' priorities should stay as they are (later ones rely on earlier ones)."""
    classes = [RuntimeInfoHook, IterTimerHook, DistSamplerSeedHook, LoggerHook, ParamSchedulerHook, CheckpointHook]
    assert [get_priority(hook.priority) for hook in classes] == [10, 50, 50, 60, 70, 90]
    assert [type(hook) for hook in make_runner(tmp_path).hooks] == classes


def test_a_custom_hook_stands_between_the_timer_and_the_logger(tmp_path: Path) -> None:
    """Custom hooks are NORMAL unless they say otherwise."""
    seen: list[tuple[int, int]] = []

    class Unassuming(Hook):
        def after_train_iter(self, hub: MessageHub) -> None:
            seen.append((len(hub.get_scalar("train/time").data[0]), len(lines)))

    hooks = dict(logger=dict(interval=1), checkpoint=None)
    runner = make_runner(tmp_path, custom_hooks=[Unassuming()], default_hooks=hooks, train_cfg=dict(max_epochs=1))
    lines = record(runner.bus, LogRecorded)
    runner.train()
    assert Unassuming.priority == "NORMAL"
    assert seen == [(1, 0), (2, 1), (3, 2)]  # its iteration is timed, and not logged yet

"""Hooks: which of their methods subscribe to what, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from hookbus.bus import EventBus, every, on
from hookbus.errors import ConfigError, HandlerSignatureError, SubscriptionError, UnknownMountPoint
from hookbus.events import MOUNT_POINTS, AfterTrainIter, BeforeTrainIter, IterEvent, MountPoint
from tests.bus.ticks import Tick, step, train_iter


def heard(bus: EventBus) -> dict[str, list[str]]:
    """Return who hears which mount point."""
    plans = {name: [entry.name for entry in bus.plan(event_type)] for name, event_type in MOUNT_POINTS.items()}
    return {name: names for name, names in plans.items() if names}


def test_methods_named_after_mount_points_subscribe() -> None:
    """Sync and async, inherited ones too, each once; anything else on the object is left alone."""

    class Base:
        def before_run(self) -> None:
            pass

    class Mine(Base):
        helper = 3

        async def after_val_epoch(self, metrics: Any, hub: Any) -> None:
            pass

        def compute(self) -> None:
            pass

    bus = EventBus()
    added = bus.add_hook(Mine())

    assert heard(bus) == {"before_run": ["Mine.before_run"], "after_val_epoch": ["Mine.after_val_epoch"]}
    assert len(added) == 2
    assert [subscription.lane.value for subscription in added] == ["inline", "awaited"]
    assert "Mine: 2" in repr(added)


def test_every_mount_point_can_be_a_method() -> None:
    """All of them, with the classic `runner` parameter."""
    hook = type("All", (), {name: lambda self, runner: None for name in MOUNT_POINTS})()
    bus = EventBus()
    bus.add_hook(hook)

    assert heard(bus) == {name: [f"All.{name}"] for name in MOUNT_POINTS}


def test_the_shared_methods_stand_for_three_mount_points_each() -> None:
    """With the mode as an argument; a method of the mount point itself goes first."""
    seen: list[Any] = []

    class Shared:
        def _before_iter(self, batch_idx: int, data_batch: Any = None, mode: str = "?") -> None:
            seen.append((batch_idx, data_batch, mode))

        def before_val_iter(self) -> None:
            pass

        def _after_epoch(self, mode: str) -> None:
            pass

    bus = EventBus()
    bus.add_hook(Shared())
    bus.emit(BeforeTrainIter(epoch=0, iter=0, batch_idx=7, data_time=0.0), step())

    assert seen == [(7, "batch", "train")]
    assert heard(bus) == {
        "before_train_iter": ["Shared._before_iter"],
        "before_val_iter": ["Shared.before_val_iter"],
        "before_test_iter": ["Shared._before_iter"],
        "after_train_epoch": ["Shared._after_epoch"],
        "after_val_epoch": ["Shared._after_epoch"],
        "after_test_epoch": ["Shared._after_epoch"],
    }


def test_the_decorators_carry_filters_and_own_events() -> None:
    """`every` on a mount point, `on` on any method, several on one, both together."""
    seen: list[str] = []

    class Decorated:
        @every(2)
        def after_train_iter(self) -> None:
            seen.append("every 2")

        @on(Tick, when=lambda event: event.n > 1)
        @on(MountPoint, every=3, priority="LOWEST", name="all mount points")
        def watch(self) -> None:
            seen.append("watch")

        @every(3)
        @on(Tick)
        def third(self) -> None:
            seen.append("third")

    bus = EventBus()
    added = bus.add_hook(Decorated())
    for n in range(4):
        bus.emit(train_iter(n), step())
    assert seen == ["every 2", "watch", "every 2"]
    seen.clear()
    for n in range(3):
        bus.emit(Tick(n=n))

    assert seen == ["third", "watch"]
    assert sorted(subscription.name for subscription in added) == [
        *("Decorated.after_train_iter", "Decorated.third", "Decorated.watch", "all mount points")
    ]


def test_a_decorated_mount_point_method_hears_only_what_the_decorator_says() -> None:
    """It is not subscribed by its name as well."""

    class Renamed:
        @on(AfterTrainIter)
        def before_train_iter(self) -> None:
            pass

    bus = EventBus()
    bus.add_hook(Renamed())
    assert heard(bus) == {"after_train_iter": ["Renamed.before_train_iter"]}


@pytest.mark.parametrize(
    ("given", "own", "expected"),
    [(None, None, 50), (None, "LOW", 70), ("HIGH", "LOW", 30), (0, 100, 0)],
)
def test_the_priority_is_the_callers_then_the_hooks_then_normal(given: Any, own: Any, expected: int) -> None:
    """In this order; the zero of HIGHEST counts as given."""

    class Hook:
        def before_run(self) -> None:
            pass

    hook = Hook()
    if own is not None:
        hook.priority = own  # type: ignore[attr-defined]  # hooks are any objects
    bus = EventBus()
    [subscription] = bus.add_hook(hook, priority=given)
    assert subscription.priority == expected


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("after_trian_iter", "after_train_iter"),
        ("after_train_iters", "after_train_iter"),
        ("before_runs", "before_run"),
        ("before_save_checkpont", "before_save_checkpoint"),
    ],
)
def test_a_method_that_is_nearly_a_mount_point_is_refused(wrong: str, near: str) -> None:
    """Naming hook, method, the nearest name and all of them; also when it is inherited."""
    base = type("Base", (), {wrong: lambda self: None, "before_train": lambda self: None})
    hook = type("Typo", (base,), {})()
    bus = EventBus()
    with pytest.raises(UnknownMountPoint, match=f"Typo.{wrong} is not a mount point; did you mean '{near}'.*after_run"):
        bus.add_hook(hook)
    assert bus.stats() == []


def test_what_only_looks_like_a_mount_point_is_left_alone() -> None:
    """Attributes, private methods, methods with a decorator, and the classic helpers."""

    class Fine:
        after_train_iters = 100

        def _after_trian_iter(self) -> None:
            pass

        def every_n_train_iters(self) -> None:
            pass

        def is_last_train_epoch(self) -> None:
            pass

        def end_of_epoch(self) -> None:
            pass

        @on(Tick)
        def after_train_iterx(self) -> None:
            pass

    bus = EventBus()
    assert len(bus.add_hook(Fine())) == 1


def test_a_class_instead_of_an_instance_is_refused() -> None:
    """With the remedy."""

    class Mine:
        def before_run(self) -> None:
            pass

    with pytest.raises(SubscriptionError, match=r"got the class Mine; add Mine\(\.\.\.\)"):
        EventBus().add_hook(Mine)


@pytest.mark.parametrize("nothing", [object(), 3, "EMAHook", {"type": "EMAHook"}, None, lambda: None])
def test_an_object_without_mount_points_is_refused(nothing: Any) -> None:
    """It could only be a mistake, such as a config that was not built."""
    with pytest.raises(SubscriptionError, match="not a hook"):
        EventBus().add_hook(nothing)


def test_adding_a_hook_is_all_or_nothing() -> None:
    """One method that asks for too much, and no other is subscribed."""

    class Half:
        def before_run(self) -> None:
            pass

        def after_train_iter(self, output: Any) -> None:
            pass

    bus = EventBus()
    with pytest.raises(HandlerSignatureError, match=r"Half.after_train_iter asks for 'output'.*did you mean 'outputs'"):
        bus.add_hook(Half())
    assert bus.stats() == []

    class BadOption:
        def before_run(self) -> None:
            pass

        @every(0)
        def after_train_iter(self) -> None:
            pass

    with pytest.raises(SubscriptionError, match="every must be"):
        bus.add_hook(BadOption())
    with pytest.raises(ConfigError, match="priority"):
        bus.add_hook(Half(), priority="TOP")
    assert bus.stats() == []


def test_a_hook_is_taken_off_as_a_whole() -> None:
    """By `cancel` or at the end of a block, its user's own subscriptions included."""

    class Mine:
        def before_run(self) -> None:
            pass

        @on(IterEvent)
        def watch(self) -> None:
            pass

    bus = EventBus()
    other = bus.subscribe(Tick, lambda: None)
    with bus.add_hook(Mine()) as added:
        assert len(bus.stats()) == 3
        assert added.hook.__class__ is Mine
    assert [stats.event for stats in bus.stats()] == ["Tick"]
    assert other.active
    added.cancel()


def test_looking_for_methods_asks_no_property_for_its_value() -> None:
    """A property that needs the run does not break adding the hook."""

    class Lazy:
        @property
        def runner(self) -> Any:
            raise RuntimeError("not attached yet")

        uses = 3

        def before_run(self) -> None:
            pass

    bus = EventBus()
    bus.add_hook(Lazy())
    assert heard(bus) == {"before_run": ["Lazy.before_run"]}


def test_functions_on_the_instance_are_methods_too() -> None:
    """As they are for any other caller."""

    class Bare:
        def before_run(self) -> None:
            pass

    hook, seen = Bare(), list[int]()
    hook.after_train_iter = lambda iter: seen.append(iter)  # type: ignore[attr-defined]  # what is tested
    bus = EventBus()
    bus.add_hook(hook)
    bus.emit(train_iter(3), step())

    assert seen == [3]

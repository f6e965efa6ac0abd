"""The map of the loop, and the rules of events."""

from __future__ import annotations

import copy
import pickle
import re
import types
import typing
from typing import Any, ClassVar

import msgspec
import pytest

from hookbus import events
from hookbus.errors import EventDefinitionError
from hookbus.events import (
    MOUNT_POINTS,
    AfterRun,
    AfterTrainIter,
    CheckpointEvent,
    EpochEvent,
    Event,
    IterEvent,
    MountPoint,
    PhaseEvent,
    RunEvent,
    RunFailed,
    StepEvent,
    mount_point_name,
)

CLASSIC = [
    "BeforeRun",
    "AfterLoadCheckpoint",
    "BeforeTrain",
    "BeforeTrainEpoch",
    "BeforeTrainIter",
    "AfterTrainIter",
    "AfterTrainEpoch",
    "BeforeVal",
    "BeforeValEpoch",
    "BeforeValIter",
    "AfterValIter",
    "AfterValEpoch",
    "AfterVal",
    "BeforeSaveCheckpoint",
    "AfterTrain",
    "BeforeTest",
    "BeforeTestEpoch",
    "BeforeTestIter",
    "AfterTestIter",
    "AfterTestEpoch",
    "AfterTest",
    "AfterRun",
]
"""The 22 mount points, in firing order."""
BEYOND = ["AfterBackward", "BeforeOptimizerStep", "AfterOptimizerStep", "RunFailed"]


def test_the_mount_points_are_those_of_the_design_in_firing_order() -> None:
    """22 classic ones and four beyond them."""
    names = [event_type.__name__ for event_type in MOUNT_POINTS.values()]
    assert len(CLASSIC) == 22
    assert [name for name in names if name not in BEYOND] == CLASSIC
    assert sorted(names) == sorted(CLASSIC + BEYOND)


def test_a_hook_method_is_named_like_its_class_in_snake_case() -> None:
    """The same words, and each can be imported by its class name."""
    for name, event_type in MOUNT_POINTS.items():
        assert name == mount_point_name(event_type)
        assert "".join(word.capitalize() for word in name.split("_")) == event_type.__name__
        assert getattr(events, event_type.__name__) is event_type
        assert event_type.__name__ in events.__all__
    assert mount_point_name(AfterTrainIter) == "after_train_iter"


def test_the_map_shows_every_mount_point_in_firing_order() -> None:
    """The docstring of the module is complete, and so is the docstring of each class."""
    assert events.__doc__ is not None
    shown = re.findall(r"\b(?:Before|After)[A-Z]\w+|RunFailed", events.__doc__)
    first = list(dict.fromkeys(shown))
    assert sorted(first) == sorted(event_type.__name__ for event_type in MOUNT_POINTS.values())
    for event_type in MOUNT_POINTS.values():
        assert event_type.__doc__
        assert event_type.__doc__.endswith(".")


def test_mount_points_come_in_pairs() -> None:
    """Whatever begins also ends, with the same counting and in the same part of the run."""
    alone = {"AfterLoadCheckpoint", "BeforeSaveCheckpoint", "AfterBackward", "RunFailed"}
    by_name = {event_type.__name__: event_type for event_type in MOUNT_POINTS.values()}
    for name, event_type in by_name.items():
        if name in alone:
            continue
        other = by_name[name.replace("Before", "After") if name.startswith("Before") else name.replace("After", "Before")]
        assert (event_type.mode, event_type.counted) == (other.mode, other.counted)
        assert event_type.__base__ is other.__base__


def test_the_tree_has_the_documented_bases() -> None:
    """Whoever subscribes to a base hears a whole family."""
    family = {
        base: {event_type.__name__ for event_type in MOUNT_POINTS.values() if issubclass(event_type, base)}
        for base in (RunEvent, PhaseEvent, EpochEvent, IterEvent, StepEvent, CheckpointEvent)
    }
    assert family[RunEvent] == {"BeforeRun", "AfterRun"}
    assert family[EpochEvent] == {f"{when}{what}Epoch" for when in ("Before", "After") for what in ("Train", "Val", "Test")}
    assert family[IterEvent] == {f"{when}{what}Iter" for when in ("Before", "After") for what in ("Train", "Val", "Test")}
    assert family[PhaseEvent] == {f"{when}{what}" for when in ("Before", "After") for what in ("Train", "Val", "Test")}
    assert family[StepEvent] == {"AfterBackward", "BeforeOptimizerStep", "AfterOptimizerStep"}
    assert family[CheckpointEvent] == {"AfterLoadCheckpoint", "BeforeSaveCheckpoint"}
    assert all(issubclass(event_type, MountPoint) for event_type in MOUNT_POINTS.values())


def test_every_is_counted_as_documented() -> None:
    """Iterations and epochs of training from one, batches of validation and test from one, the rest by publishes."""
    counted = {name: event_type.counted for name, event_type in MOUNT_POINTS.items() if event_type.counted is not None}
    for name, what in counted.items():
        if "_iter" in name:
            assert what == (("iter", 1) if "train" in name else ("batch_idx", 1))
        elif "_epoch" in name:
            assert what[0] == "epoch"
    assert counted["after_train_epoch"] == ("epoch", 1)
    assert {name for name in MOUNT_POINTS if "_iter" in name or "_epoch" in name} <= counted.keys()


def test_the_soft_veto_and_the_closing_events_are_the_documented_ones() -> None:
    """Three actions can be vetoed; two events run every handler."""
    skippable = {event_type.__name__ for event_type in MOUNT_POINTS.values() if event_type.skippable}
    closing = {event_type.__name__ for event_type in MOUNT_POINTS.values() if event_type.closing}
    assert skippable == {"BeforeOptimizerStep", "BeforeSaveCheckpoint", "BeforeVal"}
    assert closing == {"RunFailed", "AfterRun"}


@pytest.mark.parametrize("event_type", MOUNT_POINTS.values())
def test_an_event_holds_facts_only(event_type: type[MountPoint]) -> None:
    """Its fields are numbers, text and plain containers; what is alive travels beside it."""
    hints = typing.get_type_hints(event_type)
    for field in event_type.__struct_fields__:
        assert hints[field] in (int, float, bool, str, dict[str, Any])
    assert "runner" in event_type.live


def test_events_are_frozen_compared_printed_copied_and_pickled() -> None:
    """One form that may go to any thread."""
    event = AfterTrainIter(epoch=1, iter=2, batch_idx=3)
    with pytest.raises(AttributeError):
        event.iter = 5  # type: ignore[misc]  # what is tested
    with pytest.raises(AttributeError):
        event.extra = 5  # type: ignore[attr-defined]  # what is tested
    with pytest.raises(TypeError):
        AfterTrainIter(1, 2, 3)  # type: ignore[call-arg]  # what is tested
    assert event == AfterTrainIter(epoch=1, iter=2, batch_idx=3) != AfterTrainIter(epoch=1, iter=2, batch_idx=4)
    assert hash(event) == hash(copy.copy(event))
    assert repr(AfterRun(epoch=1, iter=2, loop="val")) == "AfterRun(epoch=1, iter=2, loop='val')"
    assert pickle.loads(pickle.dumps(event)) == event
    assert msgspec.structs.replace(event, iter=9).iter == 9


class Found(Event):
    """An event of a user's own."""

    path: str
    tags: tuple[str, ...] = ()
    live: ClassVar[tuple[str, ...]] = ("model",)


class FoundAgain(Found):
    """A kind of it."""

    times: int


def test_users_define_their_own_events() -> None:
    """Frozen and keyword-only without saying so, required fields behind optional ones, subclasses of them too."""
    event = FoundAgain(path="x", times=2)
    assert (event.path, event.tags, event.times, event.live) == ("x", (), 2, ("model",))
    with pytest.raises(AttributeError):
        event.path = "y"  # type: ignore[misc]  # what is tested
    with pytest.raises(TypeError):
        FoundAgain("x", times=2)  # type: ignore[call-arg]  # what is tested
    assert FoundAgain.__struct_config__.tag == f"{__name__}:FoundAgain"
    assert Found.counted is None


def test_a_users_event_may_be_a_kind_of_mount_point() -> None:
    """It inherits what the mount point offers, and is none itself."""

    class LateIter(AfterTrainIter):
        delay: float

    event = LateIter(epoch=0, iter=0, batch_idx=0, delay=0.5)
    assert event.mode == "train"
    assert LateIter.live == AfterTrainIter.live
    assert LateIter not in MOUNT_POINTS.values()


@pytest.mark.parametrize("name", ["event", "hub", "runner"])
def test_a_reserved_name_cannot_be_a_field(name: str) -> None:
    """The message lists the reserved ones."""
    with pytest.raises(EventDefinitionError, match=f"'{name}'.*event, hub, runner are reserved"):
        define(fields={name: int})


@pytest.mark.parametrize("name", ["live", "counted", "skippable", "closing"])
@pytest.mark.parametrize("before", [{}, {"first": int}])
def test_what_events_declare_about_themselves_cannot_be_a_field(name: str, before: dict[str, type]) -> None:
    """A closing price as a field must not turn an event into a closing one."""
    with pytest.raises(EventDefinitionError, match=f"'{name}', which is a class variable"):
        define(fields={**before, name: bool})


def test_a_name_cannot_be_field_and_live_object_at_once() -> None:
    """In a class of its own, and against what a base class declares."""
    with pytest.raises(EventDefinitionError, match="Bad declares 'model' both as a field and as a live name"):
        define(fields={"model": str}, live=("model",))
    with pytest.raises(EventDefinitionError, match="declares 'data_batch' both"):
        define(IterEvent, fields={"data_batch": str})
    with pytest.raises(EventDefinitionError, match="declares 'epoch' both"):
        define(RunFailed, live=("epoch",))


@pytest.mark.parametrize("live", ["model", ["model"], ("event",), ("model", "hub"), None])
def test_live_names_are_a_tuple_without_reserved_names(live: Any) -> None:
    """A text would count as one name per letter."""
    with pytest.raises(EventDefinitionError, match="must be a tuple of names"):
        define(live=live)


@pytest.mark.parametrize("option", ["frozen", "kw_only"])
def test_an_event_cannot_be_thawed(option: str) -> None:
    """The class is refused, not repaired in silence."""
    with pytest.raises(EventDefinitionError, match=f"{option}=False"):
        define(options={option: False})
    with pytest.raises(EventDefinitionError, match=f"{option}=False"):
        define(AfterRun, options={option: False})


def define(
    base: type[Event] = Event, *, fields: dict[str, Any] | None = None, options: dict[str, Any] | None = None, **namespace: Any
) -> type[Event]:
    """Define an event class named `Bad`."""
    body = {"__module__": __name__, "__qualname__": "Bad", "__annotations__": fields or {}, **namespace}
    return types.new_class("Bad", (base,), options or {}, lambda namespace: namespace.update(body))

"""Arguments by name: what a handler gets, and what it may not ask for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest

from hookbus.bus import EventBus
from hookbus.bus.arguments import CallPlan, bind_arguments, is_async, offered_names
from hookbus.errors import HandlerSignatureError, SubscriptionError
from hookbus.events import MOUNT_POINTS, AfterTrainIter, AfterValEpoch, BeforeTrain, Event, IterEvent
from hookbus.hub import MessageHub
from tests.bus.ticks import Delivery, Tick, step, train_iter

if TYPE_CHECKING:
    from collections import OrderedDict as OnlyForCheckers

EVENT = AfterTrainIter(epoch=3, iter=41, batch_idx=1)
RUNNER = object()


def received(handler: Callable[..., Any], event: Event = EVENT, live: Any = None) -> Any:
    """Subscribe one handler that returns through a list, emit one event, return what it got."""
    seen: list[Any] = []
    bus = EventBus()

    @functools.wraps(handler)
    def keep(*args: Any, **kwargs: Any) -> None:
        seen.append(handler(*args, **kwargs))

    bus.subscribe(type(event), keep)
    bus.emit(event, step(RUNNER) if live is None else live)
    assert len(seen) == 1
    return seen[0]


def check_by_name(handler: Callable[..., Any]) -> None:
    """Check that a handler `(outputs, hub, iter, event, mode, data_batch, runner, epoch)` gets each by its name."""
    outputs, hub, iter, event, mode, data_batch, runner, epoch = received(handler)
    assert outputs == {"loss": 1.0}
    assert isinstance(hub, MessageHub)
    assert (iter, event, mode, data_batch, runner, epoch) == (41, EVENT, "train", "batch", RUNNER, 3)


def everything(outputs: Any, hub: Any, iter: Any, event: Any, mode: Any, data_batch: Any, runner: Any, epoch: Any) -> Any:
    """Ask for everything, in an order of one's own."""
    return outputs, hub, iter, event, mode, data_batch, runner, epoch


def test_a_handler_gets_what_it_names_in_any_order() -> None:
    """The event, the hub, the mode, fields and live objects."""
    check_by_name(everything)


def test_a_dispatcher_that_swaps_arguments_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above fails on one that passes arguments in another order."""

    def swapped(handler: Callable[..., Any], event_type: type[Event], name: str, *, with_live: bool = True) -> CallPlan:
        plan = bind_arguments(handler, event_type, name, with_live=with_live)
        return CallPlan(", ".join(reversed(plan.arguments.split(", "))), plan.live_names)

    monkeypatch.setattr("hookbus.bus.checks.bind_arguments", swapped)
    with pytest.raises(AssertionError):
        check_by_name(everything)


def test_the_classic_signatures_work_unchanged() -> None:
    """Those of a hook class with `runner` first and defaults behind."""

    def after_train_iter(runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> Any:
        return runner, batch_idx, data_batch, outputs

    def after_val_epoch(runner: Any, metrics: dict[str, float] | None = None) -> Any:
        return runner, metrics

    assert received(after_train_iter) == (RUNNER, 1, "batch", {"loss": 1.0})
    assert received(after_val_epoch, AfterValEpoch(epoch=0, iter=0, metrics={"a": 1.0})) == (RUNNER, {"a": 1.0})


def test_parameters_with_unknown_names_keep_their_defaults() -> None:
    """Those behind them go by keyword, and star parameters get nothing."""

    def handler(n: int = 5, epoch: int = -1, *args: Any, own: str = "mine", iter: int = -1, **kwargs: Any) -> Any:
        return n, epoch, args, own, iter, kwargs

    assert received(handler) == (5, 3, (), "mine", 41, {})


def test_keyword_only_parameters_are_given_by_name() -> None:
    """In whatever order they stand."""

    def handler(*, iter: int, event: Any, epoch: int) -> Any:
        return iter, event, epoch

    assert received(handler) == (41, EVENT, 3)


def test_positional_only_parameters_are_given_by_position() -> None:
    """One behind a default that stays cannot be given and keeps its own; a required one is refused."""

    def plain(iter: int, epoch: int, /, hub: Any) -> Any:
        return iter, epoch

    def behind_a_default(unknown: int = 1, iter: int = -1, /, epoch: int = -2) -> Any:
        return unknown, iter, epoch

    assert received(plain) == (41, 3)
    assert received(behind_a_default) == (1, -1, 3)


def test_a_parameter_annotated_with_the_event_type_gets_the_event_whatever_its_name() -> None:
    """With the class itself, a base class, or a subclass; an annotation with another event does not count."""

    def own(e: AfterTrainIter) -> Any:
        return e

    def base(moment: Event, iter: IterEvent) -> Any:
        return moment, iter

    def other(event: Any, epoch: BeforeTrain = None) -> Any:  # type: ignore[assignment]  # what is tested
        return event, epoch

    assert received(own) is EVENT
    assert received(base) == (EVENT, EVENT)
    assert received(other) == (EVENT, None)


def test_an_annotation_that_only_a_type_checker_can_see_does_not_hide_the_others() -> None:
    """Each annotation is looked at by itself."""

    def handler(e: AfterTrainIter, epoch: OnlyForCheckers[str, int]) -> Any:
        return e, epoch

    assert received(handler) == (EVENT, 3)


class PlainCallable:
    """An object that can be called."""

    def __call__(self) -> None:
        """Do nothing."""

    def method(self) -> None:
        """Do nothing."""


class AsyncCallable:
    """An object that can be called and awaited."""

    async def __call__(self, epoch: int) -> Any:
        """Take one."""
        return epoch


def test_methods_callable_objects_and_partials_are_handlers() -> None:
    """Each with the parameters that are left to give."""
    bus, seen = EventBus(), list[Any]()

    class Keeper:
        def __call__(self, e: AfterTrainIter, epoch: int) -> None:
            seen.append((e, epoch))

        def method(self, iter: int, event: Any) -> None:
            seen.append((iter, event))

        @staticmethod
        def static(iter: int) -> None:
            seen.append(iter)

    def free(prefix: str, iter: int, hub: Any, *, suffix: str) -> None:
        seen.append((prefix, iter, hub, suffix))

    keeper = Keeper()
    for handler in (keeper, keeper.method, Keeper.static, functools.partial(free, "a", suffix="z", hub="mine")):
        bus.subscribe(AfterTrainIter, handler)
    bus.subscribe(AfterTrainIter, functools.partial(keeper.method, event="given"))
    bus.emit(EVENT)

    assert seen == [(seen[0][0], 3), (41, EVENT), 41, ("a", 41, "mine", "z"), (41, "given")]
    assert seen[0][0] is EVENT
    assert [entry.name for entry in bus.plan(AfterTrainIter)] == [
        "Keeper",
        "Keeper.method",
        "Keeper.static",
        "free",
        "Keeper.method",
    ]


def test_coroutine_functions_are_recognised_in_every_form() -> None:
    """A function, a method, a callable object, a partial of any of them."""

    async def function() -> None:
        pass

    class Holder:
        async def method(self) -> None:
            pass

    for handler in (function, Holder().method, AsyncCallable(), functools.partial(function), functools.partial(AsyncCallable())):
        assert is_async(handler)
    for other in (print, PlainCallable(), PlainCallable, functools.partial(PlainCallable().method), AsyncCallable):
        assert not is_async(other)


def test_a_mock_is_a_handler() -> None:
    """It takes anything, asks for nothing, and looking for its name comes to an end."""
    mock, bus = Mock(), EventBus()
    bus.subscribe(Tick, mock)
    bus.emit(Tick())

    mock.assert_called_once_with()


@pytest.mark.parametrize("name", Delivery.live)
def test_live_names_may_be_those_that_the_generated_code_uses_itself(name: str) -> None:
    """Nothing that a user calls an object gets into the way of the dispatch, filters and failures included."""
    namespace: dict[str, Any] = {"seen": []}
    exec(f"async def awaited({name}): seen.append({name})\ndef inline({name}): seen.append({name})", namespace)

    def fail() -> None:
        raise KeyError

    bus = EventBus()
    bus.subscribe(Delivery, namespace["inline"], every=2)
    bus.subscribe(Delivery, fail, on_error="log")
    bus.subscribe(Delivery, namespace["awaited"], when=lambda event: event.n == 2)
    bus.subscribe(Delivery, namespace["awaited"])
    live = {key: f"my {key}" for key in Delivery.live}
    with bus:
        bus.emit(Delivery(n=1), live)
        bus.emit(Delivery(n=2), live)

    assert namespace["seen"] == [f"my {name}"] * 4


class Method(Event):
    """An event with a method called like a name that mount points offer."""

    n: int = 0

    def mode(self) -> int:
        """Return anything."""
        return self.n


@pytest.mark.parametrize(
    ("handler", "event_type", "text"),
    [
        (lambda output: None, AfterTrainIter, "asks for 'output', which AfterTrainIter does not offer; did you mean 'outputs'"),
        (lambda evnt: None, Tick, "did you mean 'event'\\? valid choices: event, hub, n"),
        (lambda outputs: None, BeforeTrain, "valid choices: event, hub, mode, runner, epoch, iter"),
        (lambda mode: None, IterEvent, "asks for 'mode'"),
        (lambda mode: None, Method, "asks for 'mode'"),
        (lambda *, metric: None, AfterValEpoch, "did you mean 'metrics'"),
        (lambda live: None, Tick, "asks for 'live'"),
    ],
)
def test_a_name_that_the_event_does_not_offer_is_refused_with_the_choices(
    handler: Callable[..., Any], event_type: type[Event], text: str
) -> None:
    """At once, naming handler, name, event, the nearest choice and all of them; nothing is subscribed."""
    bus = EventBus()
    with pytest.raises(HandlerSignatureError, match=text):
        bus.subscribe(event_type, handler, name="mine")
    assert bus.stats() == []


def test_an_event_of_another_kind_is_refused() -> None:
    """A handler written for one event cannot be subscribed to another."""

    def handler(e: BeforeTrain) -> None:
        pass

    with pytest.raises(HandlerSignatureError, match="asks for 'e'"):
        EventBus().subscribe(AfterTrainIter, handler)


class Generating:
    """An object whose call is a generator."""

    def __call__(self) -> Iterator[int]:
        """Yield something that nobody would take."""
        yield 1


def test_what_cannot_be_a_handler_is_refused() -> None:
    """Generators, what has no signature, and what is not callable."""

    def generator() -> Iterator[int]:
        yield 1

    async def asynchronous() -> Any:
        yield 1

    bus = EventBus()
    for handler in (generator, asynchronous, functools.partial(generator), Generating()):
        with pytest.raises(SubscriptionError, match="is a generator function"):
            bus.subscribe(Tick, handler)
    with pytest.raises(SubscriptionError, match="must be a function"):
        bus.subscribe(Tick, 3)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(SubscriptionError, match="no readable signature"):
        bus.subscribe(Tick, type)
    assert bus.stats() == []


@pytest.mark.parametrize("event_type", MOUNT_POINTS.values())
def test_every_name_that_a_mount_point_offers_arrives(event_type: type[Event]) -> None:
    """What `offered_names` lists is what a handler that asks for all of it gets."""
    values: dict[str, Any] = {"metrics": {}, "loop": "train", "name": "x", "error_type": "E", "message": "", "handler": ""}
    fields = {field: values.get(field, 1) for field in event_type.__struct_fields__}
    live = {name: f"live {name}" for name in event_type.live}
    names = list(offered_names(event_type))
    namespace: dict[str, Any] = {}
    exec(f"def handler({', '.join(names)}): got.update(locals())", namespace)
    namespace["got"] = {}
    bus, event = EventBus(), event_type(**fields)
    bus.subscribe(event_type, namespace["handler"])
    bus.emit(event, live)

    got = namespace["got"]
    assert got.pop("event") is event
    assert got.pop("hub") is bus.hub
    assert got.pop("mode", None) == event_type.mode  # type: ignore[attr-defined]  # mount points have one
    assert got == fields | live


def test_a_subscription_to_a_base_class_may_ask_for_what_the_base_class_offers() -> None:
    """And gets it from each event that it hears."""
    bus, seen = EventBus(), list[Any]()
    bus.subscribe(IterEvent, lambda data_batch, batch_idx, event: seen.append((data_batch, batch_idx, type(event).__name__)))
    bus.emit(train_iter(4), step())

    assert seen == [("batch", 4, "AfterTrainIter")]

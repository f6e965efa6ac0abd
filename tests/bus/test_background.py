"""The background lane: the publisher leaves an event and goes on; each handler gets its events later, in order, once."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import pytest

from hookbus.bus import Background, EventBus, background, every, on
from hookbus.errors import BusNotEntered, HandlerSignatureError, SubscriptionError
from hookbus.events import AfterTrainIter, Event
from hookbus.hub import MessageHub
from hookbus.types import Backend
from tests.bus.listeners import KINDS, PATIENCE, Gate, Kind, balances, handler, numbers
from tests.bus.ticks import LoudTick, Tick, step, train_iter

BACKENDS: list[Backend] = ["asyncio", "trio"]


# --- order and threads ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_handler_gets_every_event_once_and_in_order(kind: Kind, backend: Backend) -> None:
    """Whatever the others do; leaving the bus waits for them."""
    bus = EventBus(backend=backend)
    seen: list[list[Event]] = [[] for _ in range(5)]
    for events in seen:
        bus.subscribe(Tick, handler(kind, events.append), background=Background(maxsize=5000))
    with bus:
        for n in range(3000):
            bus.emit(Tick(n=n))
    assert [numbers(events) for events in seen] == [list(range(3000))] * 5


@pytest.mark.parametrize("kind", KINDS)
async def test_a_bus_on_the_callers_loop_serves_the_background_too(kind: Kind) -> None:
    """From `emit` and from `publish`."""
    bus = EventBus()
    seen: list[Event] = []
    bus.subscribe(Tick, handler(kind, seen.append), background=True)
    async with bus:
        for n in range(0, 100, 2):
            bus.emit(Tick(n=n))
            await bus.publish(Tick(n=n + 1))
    assert numbers(seen) == list(range(100))


@pytest.mark.parametrize("kind", KINDS)
def test_the_publisher_does_not_wait(kind: Kind) -> None:
    """A handler that stands still holds up neither the publisher nor another handler."""
    bus, gate, seen = EventBus(), Gate(), list[Event]()
    standing = bus.subscribe(Tick, handler(kind, lambda event: None, gate), background=True)
    all_seen = threading.Event()

    def notes(event: Tick) -> None:
        seen.append(event)
        if event.n == 9:
            all_seen.set()

    bus.subscribe(Tick, notes, background=True)
    with bus:
        for n in range(10):
            bus.emit(Tick(n=n))
        assert all_seen.wait(PATIENCE)
        assert standing.stats().pending == 10
        gate.open()
    assert standing.stats().handled == 10


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_function_has_a_thread_of_its_own_and_coroutines_the_home_loop(backend: Backend) -> None:
    """The thread is the same for all events of one handler, named after it, and gone when the bus is left."""
    bus = EventBus(backend=backend)
    threads: dict[str, set[threading.Thread]] = {"one": set(), "two": set(), "loop": set()}

    async def on_the_loop() -> None:
        threads["loop"].add(threading.current_thread())

    for name in ("one", "two"):
        bus.subscribe(Tick, lambda name=name: threads[name].add(threading.current_thread()), background=True, name=name)
    bus.subscribe(Tick, on_the_loop, background=True)
    with bus:
        for _ in range(3):
            for _ in range(10):
                bus.emit(Tick())
            assert bus.drain()
    assert [len(each) for each in threads.values()] == [1, 1, 1]
    own = [next(iter(each)) for each in threads.values()]
    assert [thread.name for thread in own] == ["hookbus-background-one", "hookbus-background-two", "hookbus-loop"]
    assert threading.current_thread() not in own
    assert not any(thread.is_alive() for thread in own)


@pytest.mark.parametrize("kind", KINDS)
def test_background_handlers_run_after_the_inline_ones_and_see_what_those_recorded(kind: Kind) -> None:
    """Whatever their priority: the event is left for them at the end of the publish."""
    hub = MessageHub("recorded")
    bus = EventBus(hub=hub)
    read: list[float] = []

    def look(event: Event) -> None:
        read.append(hub.get_scalar("loss").current())

    bus.subscribe(Tick, handler(kind, look), background=True, priority="HIGHEST")
    bus.subscribe(Tick, lambda n: hub.update_scalar("loss", n), priority="LOWEST")
    with bus:
        for n in range(5):
            bus.emit(Tick(n=n))
            bus.drain()
    assert read == [0, 1, 2, 3, 4]


def test_an_event_is_left_for_the_background_even_when_its_publish_fails() -> None:
    """An observer hears of the step that ended the run, too."""
    bus, seen = EventBus(), list[Event]()

    def fails() -> None:
        raise KeyError

    bus.subscribe(Tick, fails)
    bus.subscribe(Tick, handler("function", seen.append), background=True)
    with bus, pytest.raises(KeyError):
        bus.emit(Tick(n=3))
    assert numbers(seen) == [3]


# --- what a handler may ask for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["runner", "outputs", "data_batch"])
@pytest.mark.parametrize("kind", KINDS)
def test_live_objects_are_refused_with_the_reason(kind: Kind, name: str) -> None:
    """They have changed by the time the handler runs."""
    asynchronous = "async " if kind == "coroutine" else ""
    namespace: dict[str, Any] = {}
    exec(f"{asynchronous}def watch({name}): ...", namespace)
    with pytest.raises(HandlerSignatureError) as caught:
        EventBus().subscribe(AfterTrainIter, namespace["watch"], background=True)
    assert str(caught.value) == (
        f"watch asks for '{name}', a live object of AfterTrainIter, but a background handler runs when training has gone on; "
        "it may ask for event, hub, mode, epoch, iter, batch_idx, data_time, and for recorded values subscribe to ScalarsLanded"
    )


def test_an_optional_live_object_keeps_its_default() -> None:
    """As the classic signatures have it."""
    bus, seen = EventBus(), list[Any]()

    def classic(batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        seen.append((batch_idx, data_batch, outputs))

    bus.subscribe(AfterTrainIter, classic, background=True)
    with bus:
        bus.emit(train_iter(4), step())
    assert seen == [(4, None, None)]


@pytest.mark.parametrize("option", [1, "yes", {"maxsize": 3}, 0.5])
def test_only_true_or_options_ask_for_the_background(option: Any) -> None:
    """Anything else is more likely a mistake."""
    with pytest.raises(SubscriptionError, match=r"background must be True, False or Background\(\.\.\.\)"):
        EventBus().subscribe(Tick, lambda: None, background=option)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(maxsize=0), "maxsize must be a whole number of at least 1, got 0"),
        (dict(maxsize=True), "maxsize must be a whole number of at least 1, got True"),
        (dict(overflow="drop_newest"), "drop_oldest"),
        (dict(block_timeout=0), "block_timeout must be a positive number of seconds, got 0"),
    ],
)
def test_options_that_do_not_fit_are_refused_at_once(options: dict[str, Any], text: str) -> None:
    """Where they are written, with what would fit."""
    with pytest.raises(SubscriptionError, match=text):
        Background(**options)


def test_a_bus_without_a_loop_refuses_before_anybody_is_called() -> None:
    """It says how to get one."""
    bus, seen = EventBus(), list[Event]()
    bus.subscribe(Tick, handler("function", seen.append))
    bus.subscribe(Tick, lambda: None, background=True)
    with pytest.raises(BusNotEntered, match="awaited or background handlers"):
        bus.emit(Tick())
    assert not seen


# --- filters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(every=3), [2, 5, 8]),
        (dict(once=True), [0]),
        (dict(when=lambda event: event.n % 4 == 1), [1, 5, 9]),
        (dict(every=2, when=lambda event: event.n > 4), [5, 7, 9]),
        (dict(once=True, when=lambda event: event.n > 4), [5]),
        (dict(once=True, every=4), [3]),
    ],
)
def test_filters_choose_what_the_other_lanes_would_get(kind: Kind, options: dict[str, Any], expected: list[int]) -> None:
    """`every` counts the publishes of a user's event; what is filtered out does not count as published for the handler."""
    bus = EventBus()
    inline, later = list[Event](), list[Event]()
    bus.subscribe(Tick, handler("function", inline.append), **options)
    subscription = bus.subscribe(Tick, handler(kind, later.append), background=True, **options)
    with bus:
        for n in range(10):
            bus.emit(Tick(n=n))
    assert numbers(later) == numbers(inline) == expected
    assert subscription.stats().published == subscription.stats().calls == len(expected)
    assert balances(subscription.stats())


def test_every_counts_iterations_by_their_number() -> None:
    """A run that resumes at iteration 7 goes on counting there."""
    bus, seen = EventBus(), list[int]()
    bus.subscribe(AfterTrainIter, lambda iter: seen.append(iter), every=5, background=True)
    with bus:
        for iter in range(7, 30):
            bus.emit(train_iter(iter), step())
    assert seen == [9, 14, 19, 24, 29]


def test_a_base_class_hears_its_subclasses_in_the_order_of_their_publishes() -> None:
    """Types do not overtake each other."""
    bus, seen = EventBus(), list[Event]()
    bus.subscribe(Tick, handler("function", seen.append), background=True)
    with bus:
        for n in range(50):
            bus.emit((Tick, LoudTick)[n % 2](n=n))
    assert numbers(seen) == list(range(50))


# --- hooks ------------------------------------------------------------------------------------------------------------


def test_methods_of_hooks_go_to_the_background_by_a_decorator() -> None:
    """Bare, with options, beside `every` and `on`, sync and async; the other methods stay where they are."""
    seen: dict[str, list[int]] = {"bare": [], "with_options": [], "named": [], "inline": []}

    class Watcher:
        @background
        def after_train_iter(self, iter: int) -> None:
            seen["bare"].append(iter)

        @every(4)
        @background(maxsize=7, overflow="drop_oldest")
        async def before_train_iter(self, iter: int) -> None:
            seen["with_options"].append(iter)

        @background
        @on(Tick)
        def listen(self, n: int) -> None:
            seen["named"].append(n)

        def after_val_iter(self, batch_idx: int) -> None:
            seen["inline"].append(batch_idx)

    bus = EventBus()
    added = {subscription.name: subscription for subscription in bus.add_hook(Watcher())}
    with bus:
        for iter in range(8):
            bus.emit(train_iter(iter), step())
            bus.emit(Tick(n=iter))
    lanes = {name.removeprefix("Watcher."): subscription.lane.value for name, subscription in added.items()}
    assert lanes == {
        "after_train_iter": "background",
        "before_train_iter": "background",
        "listen": "background",
        "after_val_iter": "inline",
    }
    backlog = added["Watcher.before_train_iter"].backlog
    assert backlog is not None
    assert backlog.options == Background(maxsize=7)
    assert seen == {"bare": list(range(8)), "with_options": [], "named": list(range(8)), "inline": []}


@pytest.mark.parametrize(
    ("wrong", "text"), [(dict(size=3), "maxsize"), (dict(overflow="blocks"), "block"), (dict(maxsize=-1), "at least 1")]
)
def test_the_decorator_refuses_what_does_not_fit(wrong: dict[str, Any], text: str) -> None:
    """When the class is written."""
    with pytest.raises(SubscriptionError, match=text):
        background(**wrong)


async def test_a_handler_that_takes_its_time_holds_up_only_itself() -> None:
    """Coroutines of the background share the loop, not a queue."""
    bus, gate, seen = EventBus(), Gate(), list[Event]()
    bus.subscribe(Tick, handler("coroutine", lambda event: None, gate), background=True)
    bus.subscribe(Tick, handler("coroutine", seen.append), background=True)
    async with bus:
        for n in range(20):
            bus.emit(Tick(n=n))
        with anyio.fail_after(PATIENCE):
            while len(seen) < 20:  # noqa: ASYNC110  the pump looks now and then
                await anyio.sleep(0.001)
        gate.open()
    assert numbers(seen) == list(range(20))

"""A bus that stands alone: entering, publishing from the right and the wrong place, nesting, leaving."""

from __future__ import annotations

import asyncio
import gc
import io
import threading
from collections.abc import Callable
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from hookbus.bus import EventBus, Subscription
from hookbus.errors import (
    BusError,
    BusNotEntered,
    ConfigError,
    EventDefinitionError,
    InvalidName,
    PublishDepthExceeded,
    SubscriptionError,
    WouldDeadlock,
    WrongThread,
)
from hookbus.events import AfterTrainIter, BeforeTrain, BeforeTrainIter, Event, MountPoint
from hookbus.hub import MessageHub
from hookbus.types import Backend
from tests.bus.ticks import LoudTick, Tick, Tock, calls, step, train_iter

BACKENDS: list[Backend] = ["asyncio", "trio"]


async def nothing() -> None:
    """Be an awaited handler."""


# --- entering and leaving ---------------------------------------------------------------------------------------------


def test_a_plain_bus_runs_inline_handlers_at_once() -> None:
    """No entering, no loop, no thread."""
    bus, seen = EventBus(), list[int]()
    bus.subscribe(Tick, lambda n: seen.append(n))

    assert bus.emit(Tick(n=3)) is None
    assert seen == [3]


def test_a_plain_bus_refuses_awaited_handlers_before_any_handler_runs() -> None:
    """Nobody sees an event that not everybody can see, and nothing is counted."""
    bus, seen = EventBus(), list[str]()
    bus.subscribe(Tick, lambda: seen.append("inline"), name="inline")
    bus.subscribe(Tick, nothing, name="awaited")

    with pytest.raises(BusNotEntered, match="with bus"):
        bus.emit(Tick())
    with pytest.raises(BusNotEntered, match="with bus"):
        bus.publish(Tick())
    with pytest.raises(BusNotEntered):
        bus.post(Tick())
    assert seen == []
    assert calls(bus) == {"inline": (0, 0), "awaited": (0, 0)}


@pytest.mark.parametrize("backend", BACKENDS)
def test_with_bus_runs_both_lanes_in_one_order(backend: Backend) -> None:
    """Sync handlers run on the entering thread, coroutine functions on the loop's, in the order of their priorities."""
    bus, seen = EventBus(backend=backend), list[tuple[str, bool]]()
    here = threading.get_ident()

    def inline() -> None:
        seen.append(("inline", threading.get_ident() == here))

    async def awaited() -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(("awaited", threading.get_ident() == here))

    bus.subscribe(Tick, inline, priority="LOW")
    bus.subscribe(Tick, awaited, priority="HIGH")
    bus.subscribe(Tick, inline, priority="HIGHEST")
    with bus:
        bus.emit(Tick())

    assert seen == [("inline", True), ("awaited", False), ("inline", True)]


async def test_async_with_bus_runs_everything_in_the_callers_task() -> None:
    """An awaited publish runs both lanes in the task that publishes."""
    bus, seen = EventBus(), list[int]()

    def inline() -> None:
        seen.append(anyio.get_current_task().id)

    async def awaited() -> None:
        inline()

    bus.subscribe(Tick, inline)
    bus.subscribe(Tick, awaited)
    async with bus:
        await bus.publish(Tick())

    assert seen == [anyio.get_current_task().id] * 2


async def test_a_coroutine_may_publish_inline_handlers_on_a_plain_bus() -> None:
    """Where no handler needs a loop, nobody has to enter."""
    bus, seen = EventBus(), list[int]()
    bus.subscribe(Tick, lambda n: seen.append(n))
    await bus.publish(Tick(n=1))

    assert seen == [1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hundred_visits_leave_the_same_threads(backend: Backend) -> None:
    """Each loop thread is joined, also when the body raises."""
    before = set(threading.enumerate())
    bus = EventBus(backend=backend)
    bus.subscribe(Tick, nothing)
    for visit in range(100):
        try:
            with bus:
                bus.emit(Tick())
                if visit % 2:
                    raise KeyError(visit)
        except KeyError:
            pass

    assert set(threading.enumerate()) == before
    assert [stats.calls for stats in bus.stats()] == [100]


@pytest.mark.parametrize("kind", [KeyError, KeyboardInterrupt])
def test_an_error_in_the_body_of_with_arrives_as_itself(kind: type[BaseException]) -> None:
    """The bus adds no group and no other error, and can be entered again."""
    bus, error = EventBus(), kind("body")
    with pytest.raises(kind) as caught, bus:
        raise error
    assert caught.value is error

    with bus:
        bus.emit(Tick())


async def test_an_error_in_the_body_of_async_with_arrives_as_itself() -> None:
    """Not in a group, although a task group is at work below, and the bus can be entered again."""
    bus, error = EventBus(), KeyError("body")
    bus.subscribe(Tick, nothing)
    with pytest.raises(KeyError) as caught:
        async with bus:
            await bus.publish(Tick())
            raise error
    assert caught.value is error

    async with bus:
        await bus.publish(Tick())


async def test_cancelling_the_body_of_async_with_is_seen_by_the_scope_that_cancels() -> None:
    """The scope around the bus ends, and the bus is free again."""
    bus = EventBus()
    with anyio.CancelScope() as scope:
        async with bus:
            scope.cancel()
            await anyio.sleep_forever()

    assert scope.cancelled_caught
    async with bus:
        pass


def test_a_bus_cannot_be_entered_twice() -> None:
    """The second visit is refused and the first goes on."""
    bus = EventBus()
    bus.subscribe(Tick, nothing, name="awaited")
    with bus:
        with pytest.raises(BusError, match="in use"), bus:
            pytest.fail("entered twice")
        bus.emit(Tick())

    assert calls(bus) == {"awaited": (1, 0)}


async def test_a_bus_cannot_be_entered_twice_on_a_loop() -> None:
    """The second visit is refused and the first goes on."""
    bus = EventBus()
    bus.subscribe(Tick, nothing, name="awaited")
    async with bus:
        with pytest.raises(BusError, match="in use"):
            async with bus:
                pytest.fail("entered twice")
        await bus.publish(Tick())
        await bus.post(Tick())

    assert calls(bus) == {"awaited": (2, 0)}


def test_a_loop_that_cannot_start_leaves_the_bus_free() -> None:
    """The error arrives as itself and no thread stays."""
    bus = EventBus(backend="nonsense")  # type: ignore[arg-type]  # what is tested
    for _ in range(2):
        with pytest.raises(LookupError, match="nonsense"), bus:
            pytest.fail("entered")


# --- the right and the wrong place ------------------------------------------------------------------------------------


def test_emit_from_another_thread_names_publish_and_post() -> None:
    """The entering thread owns the bus."""
    bus = EventBus()
    errors: list[BaseException] = []

    def emit_elsewhere() -> None:
        try:
            bus.emit(Tick())
        except WrongThread as error:
            errors.append(error)

    with bus:
        thread = threading.Thread(target=emit_elsewhere)
        thread.start()
        thread.join()

    assert "await bus.publish(Tick(...))" in str(errors[0])
    assert "bus.post(Tick(...))" in str(errors[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_emit_inside_an_awaited_handler_is_refused(backend: Backend) -> None:
    """It runs on the loop's thread, which does not own the bus; the refusal is that handler's error."""
    bus = EventBus(backend=backend)

    async def emitting() -> None:
        bus.emit(Tock())

    bus.subscribe(Tick, emitting)
    with bus, pytest.raises(WrongThread, match="publish"):
        bus.emit(Tick())


async def test_emit_on_the_callers_loop_is_refused_where_an_awaited_handler_subscribes() -> None:
    """The loop cannot wait for itself; inline handlers alone are fine, and none of them runs in vain."""
    bus, seen = EventBus(), list[str]()
    bus.subscribe(Tick, lambda: seen.append("tick"))
    bus.subscribe(Tick, nothing)
    bus.subscribe(Tock, lambda: seen.append("tock"))
    async with bus:
        bus.emit(Tock())
        with pytest.raises(WrongThread, match=r"await bus\.publish"):
            bus.emit(Tick())

    assert seen == ["tock"]


async def test_publish_on_another_thread_than_the_loops_is_refused() -> None:
    """It names the way that is open to any thread."""
    bus = EventBus()
    async with bus:
        with pytest.raises(WrongThread, match=r"bus\.post"):
            await anyio.to_thread.run_sync(bus.publish, Tick())


async def test_post_from_another_thread_is_answered() -> None:
    """A thread waits for the loop to have published."""
    bus, seen = EventBus(), list[int]()

    async def handler(n: int) -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(n)

    def elsewhere() -> None:
        for n in range(5):
            bus.post(Tick(n=n)).result(timeout=10)

    bus.subscribe(Tick, handler)
    async with bus:
        await anyio.to_thread.run_sync(elsewhere)

    assert seen == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("backend", BACKENDS)
def test_post_is_served_while_the_entering_thread_waits_for_a_handler(backend: Backend) -> None:
    """The handler waits for a thread which waits for the bus: nothing locks up."""
    bus, seen = EventBus(backend=backend), list[int]()
    here = threading.get_ident()

    async def waiting() -> None:
        await anyio.to_thread.run_sync(lambda: bus.post(Tock(n=7)).result(timeout=10))

    def inline(n: int) -> None:
        assert threading.get_ident() == here
        seen.append(n)

    bus.subscribe(Tick, waiting)
    bus.subscribe(Tock, inline)
    with bus:
        bus.emit(Tick())

    assert seen == [7]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_was_posted_is_published_before_a_bus_is_left(backend: Backend) -> None:
    """Nothing that was taken is lost, awaited handlers included."""
    bus, seen = EventBus(backend=backend), list[int]()

    async def handler(n: int) -> None:
        seen.append(n)

    bus.subscribe(Tick, handler)
    with bus:
        answers = [bus.post(Tick(n=n)) for n in range(3)]

    assert seen == [0, 1, 2]
    assert all(answer.done() for answer in answers)


async def test_what_was_posted_is_published_before_a_bus_on_a_loop_is_left() -> None:
    """Nothing that was taken is lost here, either."""
    bus, seen = EventBus(), list[int]()

    async def handler(n: int) -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(n)

    bus.subscribe(Tick, handler)
    async with bus:
        answers = [bus.post(Tick(n=n)) for n in range(3)]

    assert seen == [0, 1, 2]
    assert all(answer.done() for answer in answers)


async def test_who_waits_for_a_post_hears_that_the_bus_was_left() -> None:
    """A body that fails publishes nothing more, and nobody waits in vain: neither for the one at work nor for the next."""
    bus, begun = EventBus(), anyio.Event()

    async def hang() -> None:
        begun.set()
        await anyio.sleep_forever()

    bus.subscribe(Tick, hang)
    with pytest.raises(KeyError):
        async with bus:
            answers = [bus.post(Tick()), bus.post(Tick())]
            await begun.wait()
            raise KeyError
    for answer in answers:
        with pytest.raises(BusNotEntered, match="left before"):
            await answer


async def test_a_cancelled_handler_does_not_end_the_serving_of_posts() -> None:
    """A handler that waits for a cancelled task fails by itself; what is posted after it is published."""
    bus, seen = EventBus(), list[int]()

    async def stray(n: int) -> None:
        if n == 0 and isinstance(await current_backend_is_asyncio(), bool):
            raise asyncio.CancelledError
        seen.append(n)

    async def current_backend_is_asyncio() -> bool | None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return None
        return True

    bus.subscribe(Tick, stray)
    async with bus:
        first, second = bus.post(Tick(n=0)), bus.post(Tick(n=1))
        with anyio.fail_after(10):
            await second
        if await current_backend_is_asyncio():
            with pytest.raises(BusError, match="cancelled"):
                await first

    assert seen[-1] == 1


def test_waiting_on_the_entering_thread_for_its_own_publish_is_refused() -> None:
    """Nobody else could answer."""
    bus = EventBus()
    with bus:
        answer = bus.post(Tick())
        with pytest.raises(WouldDeadlock):
            answer.result()


async def test_blocking_the_loop_for_its_own_publish_is_refused() -> None:
    """On the loop's thread the answer is awaited."""
    bus = EventBus()
    async with bus:
        answer = bus.post(Tick())
        with pytest.raises(WouldDeadlock, match="await"):
            answer.result()
        await answer


async def test_a_posted_event_whose_handler_waits_for_another_post_is_refused() -> None:
    """Posts are published one after the other, so the second would wait for the first and the first for the second."""
    bus, seen = EventBus(), list[str]()

    async def impatient() -> None:
        await bus.post(Tock())

    bus.subscribe(Tick, impatient)
    bus.subscribe(Tock, lambda: seen.append("tock"))
    async with bus:
        with anyio.fail_after(10), pytest.raises(WouldDeadlock, match="publish"):
            await bus.post(Tick())

    assert seen == ["tock"]


async def test_an_error_in_one_of_several_posts_is_only_its_own() -> None:
    """The others are published, each answer has its own outcome."""
    bus, seen = EventBus(), list[int]()

    async def handler(n: int) -> None:
        if n == 1:
            raise KeyError(n)
        seen.append(n)

    bus.subscribe(Tick, handler)
    async with bus:
        answers = [bus.post(Tick(n=n)) for n in range(3)]
        await answers[0]
        with pytest.raises(KeyError) as caught:
            await answers[1]
        await answers[2]

    assert seen == [0, 2]
    assert caught.value.__notes__


# --- nesting ----------------------------------------------------------------------------------------------------------


def test_a_publish_inside_a_handler_runs_to_its_end_first() -> None:
    """The rest of the outer plan comes after the whole inner one."""
    bus, seen = EventBus(), list[str]()

    def outer() -> None:
        seen.append("outer begins")
        bus.emit(Tock())
        seen.append("outer ends")

    bus.subscribe(Tick, outer)
    bus.subscribe(Tick, lambda: seen.append("behind outer"))
    bus.subscribe(Tock, lambda: seen.append("inner 1"))
    bus.subscribe(Tock, lambda: seen.append("inner 2"))
    bus.emit(Tick())

    assert seen == ["outer begins", "inner 1", "inner 2", "outer ends", "behind outer"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_awaited_handlers_publish_through_the_entering_thread_many_levels_deep(backend: Backend) -> None:
    """Handler, thread, handler, thread: each level is finished before the one above goes on, inline ones on the thread."""
    bus, seen = EventBus(backend=backend), list[tuple[str, int]]()
    here = threading.get_ident()

    async def descend(n: int) -> None:
        seen.append(("down", n))
        if n < 10:
            await bus.publish(Tick(n=n + 1))
        seen.append(("up", n))

    def inline(n: int) -> None:
        assert threading.get_ident() == here
        seen.append(("inline", n))

    bus.subscribe(Tick, descend)
    bus.subscribe(Tick, inline)
    with bus:
        bus.emit(Tick(n=0))
        bus.emit(Tick(n=9))

    def expected(n: int) -> list[tuple[str, int]]:
        return [("down", n), *(expected(n + 1) if n < 10 else []), ("up", n), ("inline", n)]

    assert seen == expected(0) + expected(9)
    assert [stats.calls for stats in bus.stats()] == [13, 13]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("through", [0, 2])
@pytest.mark.parametrize("lane", ["inline", "awaited"])
def test_a_handler_that_causes_itself_ends_at_the_depth_limit(backend: Backend, through: int, lane: str) -> None:
    """Directly or through two other events: 32 levels run, then the error arrives, and the bus works on."""
    bus, seen = EventBus(backend=backend), list[int]()
    every: tuple[type[Event], ...] = (Tick, Tock, BeforeTrain)
    ring = every[: through + 1]

    def make(event_type: type[Event]) -> Callable[[], Any]:
        def successor() -> Event:
            seen.append(1)
            after = ring[(ring.index(event_type) + 1) % len(ring)]
            return BeforeTrain(epoch=0, iter=0) if after is BeforeTrain else after()

        async def awaited() -> None:
            await bus.publish(successor())

        return awaited if lane == "awaited" else lambda: bus.emit(successor())

    subscriptions = [bus.subscribe(event_type, make(event_type)) for event_type in ring]
    with bus:
        with pytest.raises(PublishDepthExceeded, match="32"):
            bus.emit(Tick())
        assert len(seen) == 32
        assert sum(stats.calls for stats in bus.stats()) == 32
        for subscription in subscriptions:
            subscription.cancel()
        bus.emit(Tick())


async def test_a_coroutine_handler_that_causes_itself_ends_at_the_depth_limit() -> None:
    """On the caller's loop, too."""
    bus, seen = EventBus(), list[int]()

    async def again() -> None:
        seen.append(1)
        await bus.publish(Tick())

    bus.subscribe(Tick, again)
    async with bus:
        with pytest.raises(PublishDepthExceeded):
            await bus.publish(Tick())
        assert len(seen) == 32
        assert bus.stats()[0].calls == 32


async def test_many_publishes_side_by_side_are_not_nested() -> None:
    """A hundred tasks publish at once; none of them is deep."""
    bus, seen = EventBus(), set[int]()
    all_here = anyio.Event()

    async def handler(n: int) -> None:
        seen.add(n)
        if len(seen) == 100:
            all_here.set()
        await all_here.wait()

    bus.subscribe(Tick, handler)
    async with bus, anyio.create_task_group() as tasks:
        for n in range(100):
            tasks.start_soon(bus.publish, Tick(n=n))  # type: ignore[arg-type]  # it returns an awaitable

    assert seen == set(range(100))


async def test_cancelling_a_task_that_publishes_cancels_its_handlers() -> None:
    """The handler sees the cancellation, those behind it do not run, the next publish is not disturbed."""
    bus, seen = EventBus(), list[str]()
    begun = anyio.Event()

    async def hang(n: int) -> None:
        if n == 0:
            begun.set()
            try:
                await anyio.sleep_forever()
            finally:
                seen.append("cancelled")

    async def publish() -> None:
        await bus.publish(Tick(n=0))

    bus.subscribe(Tick, hang)
    bus.subscribe(Tick, lambda n: seen.append(f"behind {n}"))
    async with bus:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(publish)
            await begun.wait()
            tasks.cancel_scope.cancel()
        await bus.publish(Tick(n=1))

    assert seen == ["cancelled", "behind 1"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_handler_may_start_a_task_in_its_own_task_group(backend: Backend) -> None:
    """The publish waits for the handler, and so for its children; an error of a child comes in that group."""
    bus, seen = EventBus(backend=backend), list[str]()

    async def child(fails: bool) -> None:
        await anyio.lowlevel.checkpoint()
        if fails:
            raise KeyError("child")
        seen.append("child")

    async def parent(n: int) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child, n == 1)

    bus.subscribe(Tick, parent)
    with bus:
        bus.emit(Tick(n=0))
        with pytest.raises(ExceptionGroup) as caught:
            bus.emit(Tick(n=1))

    assert seen == ["child"]
    assert isinstance(caught.value.exceptions[0], KeyError)


# --- finding buses ----------------------------------------------------------------------------------------------------


def test_a_named_bus_is_held_until_a_run_adopts_it() -> None:
    """What was subscribed before the run is there when it comes; afterwards the bus lives as long as it is used."""
    EventBus.get_instance("held-bus").subscribe(Tick, nothing, name="early")
    gc.collect()
    bus = EventBus.get_instance("held-bus")
    assert [stats.name for stats in bus.stats()] == ["early"]

    adopted = EventBus.for_run("held-bus")
    assert adopted is bus
    assert EventBus.get_instance("held-bus") is bus
    del bus, adopted
    gc.collect()
    assert EventBus.get_instance("held-bus").stats() == []


def test_a_run_gets_a_bus_of_its_own_while_another_one_owns_the_name() -> None:
    """A bus in use is not shared, and stays the one that is found until the next run begins."""
    first = EventBus.for_run("twice-bus")
    with first:
        second = EventBus.for_run("twice-bus")
        assert second is not first
        assert EventBus.get_instance("twice-bus") is first
    second.be_found()
    assert EventBus.get_instance("twice-bus") is second


@pytest.mark.parametrize("name", ["", "a b", "../x", ".x", "x" * 101, 3, None])
def test_a_bus_name_is_checked(name: Any) -> None:
    """It may stand in paths and logs."""
    with pytest.raises(InvalidName):
        EventBus.get_instance(name)


def test_handlers_get_the_hub_of_the_bus() -> None:
    """Also after it was replaced, which recompiles what was compiled."""
    bus, hubs = EventBus("hub-bus"), list[MessageHub]()
    bus.subscribe(Tick, lambda hub: hubs.append(hub))
    bus.emit(Tick())
    own = bus.hub
    bus.hub = MessageHub("other")
    bus.emit(Tick())

    assert [hub.name for hub in hubs] == ["hub-bus", "other"]
    assert own is hubs[0]


# --- looking ----------------------------------------------------------------------------------------------------------


def test_has_subscribers_follows_every_change() -> None:
    """Base classes count; a cancelled subscription does not."""
    bus = EventBus()
    assert not bus.has_subscribers(BeforeTrainIter)
    with bus.subscribe(MountPoint, nothing):
        assert bus.has_subscribers(BeforeTrainIter)
        assert not bus.has_subscribers(Tick)
    assert not bus.has_subscribers(BeforeTrainIter)


def test_the_plan_is_data_in_order() -> None:
    """Everything that was decided about a handler can be read."""
    bus = EventBus()
    bus.subscribe(Tick, nothing, priority=60, timeout=2, name="b", on_error="log")
    bus.subscribe(Tick, print_nothing, every=5, once=True, when=lambda event: True)
    plan = bus.plan(Tick)

    assert [(entry.name, entry.priority, entry.lane) for entry in plan] == [("print_nothing", 50, "inline"), ("b", 60, "awaited")]
    assert (plan[0].every, plan[0].once, plan[0].has_condition, plan[0].on_error) == (5, True, True, "raise")
    assert (plan[1].timeout, plan[1].on_error) == (2, "log")
    text = bus.describe()
    assert "(NORMAL 50)" in text
    assert "[every 5, once, on a condition]" in text
    assert "[awaited, at most 2 s, errors are logged]" in text


def print_nothing() -> None:
    """Be an inline handler."""


class Refined(AfterTrainIter):
    """A kind of iteration event that a user defined."""


class Other(Event):
    """An event that nobody has published."""


def test_the_description_leaves_out_nobody() -> None:
    """Subscriptions to mount points, to their base classes, to kinds of them and to own events all show, in a fixed order."""
    bus = EventBus()
    for event_type in (Other, Refined, MountPoint, Tick, LoudTick):
        bus.subscribe(event_type, print_nothing, name=f"on-{event_type.__name__}")
    text = bus.describe()

    for event_type in (Other, Refined, MountPoint, Tick, LoudTick):
        assert f"on-{event_type.__name__}" in text
    assert text.index("BeforeRun:") < text.index("BeforeTrainIter:") < text.index("AfterRun:") < text.index("Other:")
    assert text == bus.describe()
    bus.emit(Tick())
    assert "Tick:\n" in bus.describe()


def test_explain_prints_the_description() -> None:
    """To a file of the caller's choice; an empty bus says that it is empty."""
    bus, file = EventBus(), io.StringIO()
    bus.explain(file)
    assert file.getvalue() == "no handlers subscribe\n"


def test_explain_prints_to_the_screen_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    """What it prints is what `describe` returns."""
    bus = EventBus()
    bus.subscribe(Tick, print_nothing)
    bus.explain()

    assert capsys.readouterr().out == bus.describe() + "\n"
    assert repr(bus) == "<EventBus 'hookbus': 1 subscriptions>"


def test_publish_counts_survive_in_a_state_dict() -> None:
    """`every=` goes on where it stood, and looking at the plan before loading changes no statistics."""
    bus, again = EventBus(), EventBus()
    bus.subscribe(Tick, print_nothing, every=4)
    for _ in range(6):
        bus.emit(Tick())
    bus.emit(Tock())
    state = bus.state_dict()
    assert state == {"published": {"tests.bus.ticks:Tick": 6, "tests.bus.ticks:Tock": 1}}

    seen: list[int] = []
    again.subscribe(Tick, lambda n: seen.append(n), every=4)
    again.subscribe(Tick, print_nothing, name="all")
    again.emit(Tick())
    again.load_state_dict(state)
    for n in (7, 8, 9):
        again.emit(Tick(n=n))

    assert seen == [8]
    assert calls(again)["all"] == (4, 0)
    again.load_state_dict({"published": {"tests.bus.ticks:Tick": 0}})
    assert calls(again)["all"] == (4, 0)


# --- subscribing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"every": 0}, SubscriptionError, "every must be"),
        ({"every": True}, SubscriptionError, "every must be"),
        ({"every": 2.0}, SubscriptionError, "every must be"),
        ({"when": 3}, SubscriptionError, "when must be"),
        ({"when": nothing}, SubscriptionError, "when must be"),
        ({"timeout": 1.0}, SubscriptionError, "coroutine functions only"),
        ({"on_error": "lag"}, SubscriptionError, "did you mean 'log'"),
        ({"priority": "HIHG"}, ConfigError, "did you mean 'HIGH'"),
        ({"priority": 101}, ConfigError, "between 0"),
        ({"background": 3}, SubscriptionError, "background must be True, False or Background"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_at_once(options: dict[str, Any], error: type[Exception], text: str) -> None:
    """The message says what is allowed, and nothing is subscribed."""
    bus = EventBus()
    with pytest.raises(error, match=text):
        bus.subscribe(Tick, print_nothing, **options)
    assert bus.stats() == []


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), True, "5"])
def test_a_timeout_must_be_a_positive_number(timeout: Any) -> None:
    """Anything else is refused by name."""
    with pytest.raises(SubscriptionError, match="nothing: timeout must be a positive number"):
        EventBus().subscribe(Tick, nothing, timeout=timeout)


@pytest.mark.parametrize("event_type", ["AfterTrianIter", int, None, Tick()])
def test_only_event_classes_can_be_subscribed_to(event_type: Any) -> None:
    """A name in quotes gets the nearest class as a hint."""
    with pytest.raises(EventDefinitionError, match="must be a subclass of Event") as caught:
        EventBus().subscribe(event_type, nothing)
    if isinstance(event_type, str):
        assert "did you mean 'AfterTrainIter'" in str(caught.value)


def test_only_events_can_be_published() -> None:
    """The class instead of an event, or something else, is refused by every way in."""
    bus = EventBus()
    for wrong in (Tick, "Tick", None):
        with pytest.raises(EventDefinitionError):
            bus.emit(wrong)  # type: ignore[arg-type]  # what is tested
        with pytest.raises(EventDefinitionError):
            bus.publish(wrong)  # type: ignore[arg-type]  # what is tested


def test_a_live_object_that_is_missing_is_named_and_nobody_is_counted() -> None:
    """The publisher hears which name a handler waits for."""
    bus = EventBus()
    bus.subscribe(AfterTrainIter, lambda: None, name="first")
    bus.subscribe(AfterTrainIter, lambda outputs: None, name="second")
    with pytest.raises(BusError, match=r"without the live object 'outputs'.*data_batch"):
        bus.emit(train_iter(), {"data_batch": 1})
    assert calls(bus) == {"first": (0, 0), "second": (0, 0)}
    bus.emit(train_iter(), step())
    assert calls(bus) == {"first": (1, 0), "second": (1, 0)}


def test_cancelling_twice_and_from_many_threads_counts_once() -> None:
    """A subscription ends once, however often it is told to."""
    bus = EventBus()
    for _ in range(50):
        subscription = bus.subscribe(Tick, print_nothing)
        bus.emit(Tick())
        barrier = threading.Barrier(4)
        errors: list[BaseException] = []

        def cancel(
            subscription: Subscription[Tick] = subscription,
            barrier: threading.Barrier = barrier,
            errors: list[BaseException] = errors,
        ) -> None:
            barrier.wait()
            try:
                subscription.cancel()
            except BaseException as error:  # noqa: BLE001  the subject of this test
                errors.append(error)

        threads = [threading.Thread(target=cancel) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert subscription.stats().calls == 1
    assert bus.stats() == []

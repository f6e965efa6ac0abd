"""What happens when handlers fail: who runs, who does not, and what arrives where it is caught."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any

import anyio
import pytest

import hookbus.bridge
from hookbus.bus import EventBus
from hookbus.bus.subscription import ErrorPolicy
from hookbus.errors import HandlerCancelled, Skip
from hookbus.events import AfterTrainIter, BeforeOptimizerStep, BeforeSaveCheckpoint, BeforeVal, Event, RunFailed
from hookbus.types import Backend
from tests.bus.ticks import Closing, Optional, Tick, after_run, before_val, calls, step, train_iter

BACKENDS: list[Backend] = ["asyncio", "trio"]
HANDLERS = 5
ASYNC = (False, True, True, False, True)
"""Which of the five handlers are coroutine functions: neighbours that share a crossing, and ones that do not."""


class Broken(Exception):
    """What a failing handler raises."""


class Mute(Exception):
    """An exception that cannot even say what happened."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def add_five(bus: EventBus, event_type: type[Event], failing: Iterable[int], policy: ErrorPolicy, ran: list[int]) -> None:
    """Subscribe five handlers, a mix of functions and coroutine functions, some of which fail."""
    fails = set(failing)
    for index in range(HANDLERS):

        def handler(index: int = index) -> None:
            ran.append(index)
            if index in fails:
                raise Broken(index)

        async def coroutine(handler: Callable[[], None] = handler) -> None:
            await anyio.lowlevel.checkpoint()
            handler()

        bus.subscribe(event_type, coroutine if ASYNC[index] else handler, name=f"h{index}", on_error=policy)


def check_isolation(
    closing: bool, failing: Sequence[int], policy: ErrorPolicy, ran: list[int], error: BaseException | None, bus: EventBus
) -> None:
    """Compare what happened with what has to."""
    ends_at = failing[0] if failing and policy == "raise" and not closing else HANDLERS - 1
    assert ran == list(range(ends_at + 1))
    assert calls(bus) == {
        f"h{index}": (int(index <= ends_at), int(index in failing and index <= ends_at)) for index in range(HANDLERS)
    }
    if not failing or policy == "log":
        assert error is None
        return
    assert isinstance(error, Broken)
    assert error.args == (failing[0],)
    assert [frame.name for frame in traceback.extract_tb(error.__traceback__)][-1] == "handler"
    notes = error.__notes__
    assert notes[0].startswith(f"while h{failing[0]} handled ")
    later = [note for note in notes if note.startswith("and later")]
    assert later == ([f"and later: Broken: {index}" for index in failing[1:]] if closing else [])


SUBSETS = [[index for index, fails in enumerate(flags) if fails] for flags in product((False, True), repeat=HANDLERS)]


@pytest.mark.parametrize("closing", [False, True])
@pytest.mark.parametrize("policy", ["raise", "log"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_subset_of_failing_handlers_is_isolated_on_emit(policy: ErrorPolicy, backend: Backend, closing: bool) -> None:
    """Whoever fails, those behind it run or do not as the policy says, and the first error arrives as itself."""
    event: Event = after_run() if closing else train_iter()
    for failing in SUBSETS:
        bus, ran = EventBus(backend=backend), list[int]()
        add_five(bus, type(event), failing, policy, ran)
        error = None
        with bus:
            try:
                bus.emit(event)
            except Broken as caught:
                error = caught
        check_isolation(closing, failing, policy, ran, error, bus)


@pytest.mark.parametrize("closing", [False, True])
@pytest.mark.parametrize("policy", ["raise", "log"])
async def test_every_subset_of_failing_handlers_is_isolated_on_publish(policy: ErrorPolicy, closing: bool) -> None:
    """A publish on the caller's loop treats failures like an emit."""
    event: Event = after_run() if closing else train_iter()
    for failing in SUBSETS:
        bus, ran = EventBus(), list[int]()
        add_five(bus, type(event), failing, policy, ran)
        error = None
        async with bus:
            try:
                await bus.publish(event)
            except Broken as caught:
                error = caught
        check_isolation(closing, failing, policy, ran, error, bus)


@pytest.mark.parametrize("closing", [False, True])
def test_a_bus_that_swallows_or_goes_on_is_found_out(closing: bool) -> None:
    """The check above fails on a dispatcher that drops errors, and on one that runs or stops when it must not."""
    event: Event = after_run() if closing else train_iter()
    failing = [1, 3]

    class Swallowing(EventBus):
        def emit(self, event: Event, live: Any = None) -> Skip | None:
            try:
                return super().emit(event, {})
            except Broken:
                return None

    bus, ran = Swallowing(), list[int]()
    add_five(bus, type(event), failing, "raise", ran)
    with bus:
        bus.emit(event)
    with pytest.raises(AssertionError):
        check_isolation(closing, failing, "raise", ran, None, bus)
    with pytest.raises(AssertionError):  # judged by the other rule
        check_isolation(not closing, failing, "raise", ran, None, bus)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, Mute, Broken])
@pytest.mark.parametrize("place", ["body", "finally"])
@pytest.mark.parametrize("lane", ["inline", "awaited"])
@pytest.mark.parametrize("policy", ["raise", "log"])
def test_whatever_a_handler_raises_arrives_as_itself(
    backend: Backend, kind: type[BaseException], place: str, lane: str, policy: ErrorPolicy
) -> None:
    """Also from `finally`, also where it is no Exception (which no policy holds back), also without a text."""
    bus, raised, ran = EventBus(backend=backend), kind(), list[str]()

    def fail() -> None:
        if place == "body":
            raise raised
        try:
            ran.append("body")
        finally:
            raise raised

    async def fail_later() -> None:
        await anyio.lowlevel.checkpoint()
        fail()

    bus.subscribe(AfterTrainIter, fail if lane == "inline" else fail_later, name="failing", on_error=policy)
    bus.subscribe(AfterTrainIter, lambda: ran.append("behind"), name="behind")
    logged = policy == "log" and issubclass(kind, Exception)
    error: BaseException | None = None
    with bus:
        try:
            bus.emit(train_iter())
        except BaseException as caught:  # noqa: BLE001  the subject of this test
            error = caught

    assert error is (None if logged else raised)
    assert ("behind" in ran) is logged
    assert calls(bus) == {"failing": (1, 1), "behind": (int(logged), 0)}
    notes = getattr(raised, "__notes__", [])
    if issubclass(kind, Exception) and not logged:
        assert notes == [f"while failing handled {train_iter()!r}"]
    else:
        assert notes == []


def test_closing_events_run_every_handler_after_an_error_without_text() -> None:
    """The later errors become notes even when their own text cannot be built."""
    bus, ran = EventBus(), list[str]()

    def first() -> None:
        raise Broken("first")

    def mute() -> None:
        raise Mute

    bus.subscribe(RunFailed, first)
    bus.subscribe(RunFailed, mute)
    bus.subscribe(RunFailed, lambda: ran.append("last"))
    with pytest.raises(Broken) as caught:
        bus.emit(RunFailed(epoch=0, iter=0, error_type="E", message="m"))

    assert ran == ["last"]
    assert any("its text could not be built" in note for note in caught.value.__notes__)


def test_an_interrupt_in_a_closing_event_is_never_only_a_note() -> None:
    """Everybody runs, then the interrupt goes on, with the error before it noted."""
    bus, ran = EventBus(), list[str]()

    def broken() -> None:
        raise Broken("before")

    def interrupt() -> None:
        raise KeyboardInterrupt

    bus.subscribe(Closing, broken)
    bus.subscribe(Closing, interrupt)
    bus.subscribe(Closing, lambda: ran.append("last"))
    with pytest.raises(KeyboardInterrupt) as caught:
        bus.emit(Closing())

    assert ran == ["last"]
    assert "Broken: before" in caught.value.__notes__[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shared", [True, False])
def test_closing_handlers_that_take_too_long_end_in_a_timeout(
    backend: Backend, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline arrives as a TimeoutError, not as a cancellation, and the handlers behind that crossing still run."""
    monkeypatch.setattr(hookbus.bridge, "CLOSING_DEADLINE", 0.05)
    bus, ran = EventBus(backend=backend), list[str]()

    async def hang() -> None:
        await anyio.sleep_forever()

    async def neighbour() -> None:
        await anyio.lowlevel.checkpoint()
        ran.append("neighbour")

    bus.subscribe(Closing, hang)
    if shared:
        bus.subscribe(Closing, neighbour)
    bus.subscribe(Closing, lambda: ran.append("inline"))
    with bus, pytest.raises(TimeoutError, match=r"longer than 0\.05 s"):
        bus.emit(Closing())

    assert ran == ["inline"]


def test_a_stray_cancellation_in_a_closing_event_silences_nobody() -> None:
    """A handler that was cancelled by something else is an error like others; its neighbours run."""
    bus, ran = EventBus(), list[str]()

    async def stray() -> None:
        raise asyncio.CancelledError

    async def neighbour() -> None:
        ran.append("neighbour")

    bus.subscribe(Closing, stray)
    bus.subscribe(Closing, neighbour)
    with bus, pytest.raises(HandlerCancelled):
        bus.emit(Closing())

    assert ran == ["neighbour"]


@pytest.mark.parametrize("event_type", [BeforeVal, BeforeOptimizerStep, BeforeSaveCheckpoint, Optional])
@pytest.mark.parametrize("lane", ["inline", "awaited", "shared"])
@pytest.mark.parametrize("policy", ["raise", "log"])
def test_skip_vetoes_the_action_and_the_rest_of_the_plan(event_type: type[Event], lane: str, policy: ErrorPolicy) -> None:
    """The publish returns the veto with its reason, which is no failure."""
    bus, ran = EventBus(), list[str]()

    def veto() -> None:
        raise Skip("not today")

    async def veto_later() -> None:
        await anyio.lowlevel.checkpoint()
        veto()

    async def before() -> None:
        ran.append("before")

    if lane == "shared":
        bus.subscribe(event_type, before, name="before")
    bus.subscribe(event_type, veto if lane == "inline" else veto_later, name="veto", on_error=policy)
    bus.subscribe(event_type, lambda: ran.append("behind"), name="behind")
    fields = {"epoch": 0, "iter": 0, "batch_idx": 0, "name": "x", "optimizer": ""}
    event = event_type(**{field: fields[field] for field in event_type.__struct_fields__})
    with bus:
        skip = bus.emit(event)

    assert skip is not None
    assert skip.reason == "not today"
    assert "behind" not in ran
    assert {name: count for name, count in calls(bus).items() if name != "before"} == {"veto": (1, 0), "behind": (0, 0)}


async def test_skip_is_returned_by_publish() -> None:
    """The awaited form hands the veto over just so."""
    bus = EventBus()

    async def veto() -> None:
        raise Skip("no")

    bus.subscribe(BeforeVal, veto)
    async with bus:
        skip = await bus.publish(before_val())
        posted = await bus.post(before_val())

    assert skip is not None
    assert posted is not None
    assert (skip.reason, posted.reason) == ("no", "no")


@pytest.mark.parametrize("lane", ["inline", "awaited"])
def test_skip_elsewhere_is_an_error_that_says_so(lane: str) -> None:
    """Where nothing is announced there is nothing to skip."""
    bus = EventBus()

    def veto() -> None:
        raise Skip("no")

    async def veto_later() -> None:
        veto()

    bus.subscribe(AfterTrainIter, veto if lane == "inline" else veto_later)
    with bus, pytest.raises(Skip) as caught:
        bus.emit(train_iter())

    assert "announces nothing that could be skipped" in caught.value.__notes__[1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("limit", [0.02, 0.02000000001])
def test_a_timeout_limits_a_coroutine_function(backend: Backend, limit: float) -> None:
    """A handler that takes longer raises TimeoutError with the note of a failure."""
    bus, ran = EventBus(backend=backend), list[str]()

    async def slow() -> None:
        await anyio.sleep_forever()

    bus.subscribe(AfterTrainIter, slow, timeout=limit, name="slow")
    bus.subscribe(AfterTrainIter, lambda: ran.append("behind"))
    with bus, pytest.raises(TimeoutError) as caught:
        bus.emit(train_iter())

    assert caught.value.__notes__[0].startswith("while slow handled")
    assert ran == []


def test_a_timeout_under_the_log_policy_lets_the_others_run(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged like any failure."""
    bus, ran = EventBus(), list[str]()

    async def slow() -> None:
        await anyio.sleep_forever()

    bus.subscribe(AfterTrainIter, slow, timeout=0.01, name="slow", on_error="log")
    bus.subscribe(AfterTrainIter, lambda: ran.append("behind"))
    with bus:
        bus.emit(train_iter())

    assert ran == ["behind"]
    assert "slow failed on AfterTrainIter" in caplog.text


def test_a_timeout_may_be_infinite() -> None:
    """A number without a literal of its own works like any other."""
    bus, ran = EventBus(), list[int]()

    async def quick() -> None:
        ran.append(1)

    bus.subscribe(Tick, quick, timeout=float("inf"))
    with bus:
        bus.emit(Tick())

    assert ran == [1]


def test_a_repeated_failure_is_logged_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Only what looks different is logged again; the counts go on."""
    bus = EventBus()

    def fail(n: int) -> None:
        if n == 3:
            raise KeyError(n)
        raise ValueError(n)

    bus.subscribe(Tick, fail, on_error="log", name="fail")
    with caplog.at_level(logging.ERROR, "hookbus"):
        for n in range(5):
            bus.emit(Tick(n=n))

    assert ["ValueError: 0" in record.message for record in caplog.records] == [True, False]
    assert "KeyError: 3" in caplog.records[-1].message
    assert calls(bus) == {"fail": (5, 5)}


@pytest.mark.parametrize("lane", ["inline", "awaited"])
@pytest.mark.parametrize("policy", ["raise", "log"])
@pytest.mark.parametrize("event", [Tick(), Closing(), Optional()], ids=lambda event: type(event).__name__)
def test_a_condition_that_raises_is_a_failure_of_its_handler(lane: str, policy: ErrorPolicy, event: Event) -> None:
    """It follows the policy, is counted, carries the note, and in a closing event the others run."""
    bus, ran = EventBus(), list[str]()

    async def awaited() -> None:
        ran.append("never")

    def condition(event: Event) -> bool:
        raise Broken("condition")

    handler = (lambda: ran.append("never")) if lane == "inline" else awaited
    bus.subscribe(type(event), handler, when=condition, on_error=policy, name="conditional")
    bus.subscribe(type(event), lambda: ran.append("behind"), name="behind")
    error = None
    with bus:
        try:
            bus.emit(event)
        except Broken as caught:
            error = caught

    goes_on = policy == "log" or isinstance(event, Closing)
    assert ran == (["behind"] if goes_on else [])
    assert calls(bus) == {"conditional": (0, 1), "behind": (int(goes_on), 0)}
    assert (error is None) is (policy == "log")
    if error is not None:
        assert error.__notes__[0].startswith("while conditional handled")


@pytest.mark.parametrize("policy", ["raise", "log"])
@pytest.mark.parametrize("failing_neighbour", [0, 1])
def test_handlers_that_a_failure_in_a_shared_crossing_keeps_from_running_are_not_counted(
    policy: ErrorPolicy, failing_neighbour: int
) -> None:
    """Every handler behind the failure is missed once, whether it shares the crossing or not."""
    bus, ran = EventBus(), list[int]()

    def make(index: int) -> Callable[[], Any]:
        async def handler() -> None:
            ran.append(index)
            if index == failing_neighbour:
                raise KeyboardInterrupt

        return handler

    for index in range(3):
        bus.subscribe(AfterTrainIter, make(index), name=f"h{index}", on_error=policy)
    bus.subscribe(AfterTrainIter, lambda: ran.append(3), name="h3")
    with bus, pytest.raises(KeyboardInterrupt):
        bus.emit(train_iter(), step())

    assert ran == list(range(failing_neighbour + 1))
    assert [stats.calls for stats in bus.stats()] == [int(index <= failing_neighbour) for index in range(4)]

"""The background lane against a small model: order, exactly once, and what is dropped, for any sequence; and its broken twins.

The consumers of the model stand behind gates, so that what waits, and so what is dropped, is known at every moment. A broken
twin is a lane with one fault built in; each has to be found out here, or these tests could not fail.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

import hookbus.bus.checks
import hookbus.bus.hosting
from hookbus.bus import Background, EventBus, Subscription
from hookbus.bus.background import Overflow
from hookbus.bus.backlog import Backlog
from hookbus.bus.failures import FailureLog
from hookbus.bus.outbox import Outbox
from hookbus.events import Event
from hookbus.types import Backend
from tests.bus.listeners import KINDS, PATIENCE, Gate, Kind, balances, handler
from tests.bus.ticks import Tick, Tock

BACKENDS: list[Backend] = ["asyncio", "trio"]


@dataclass
class Model:
    """One background subscriber, in twenty lines."""

    maxsize: int
    overflow: Overflow
    fails: int
    waiting: deque[int] = field(default_factory=deque)
    got: list[int] = field(default_factory=list)
    published: int = 0
    dropped: int = 0

    def offer(self, number: int) -> None:
        self.published += 1
        room = 1 if self.overflow == "latest" else self.maxsize
        self.waiting.append(number)
        while len(self.waiting) > room:
            self.waiting.popleft()
            self.dropped += 1

    def take(self) -> None:
        self.got.append(self.waiting.popleft())

    def catch_up(self) -> None:
        self.got += self.waiting
        self.waiting.clear()

    @property
    def failed(self) -> int:
        return sum(number % self.fails == 0 for number in self.got) if self.fails else 0


class Failure(Exception):
    """What a handler of the model raises."""


class Subject:
    """The same subscriber on the bus; while it is held, it stands with one event in hand."""

    def __init__(self, bus: EventBus, kind: Kind, model: Model) -> None:
        self.got: list[int] = []
        self.model = model
        self.gate = Gate()
        self.gate.open()
        options = Background(maxsize=model.maxsize, overflow=model.overflow)
        act = self.act_on_thread if kind == "function" else self.act_on_loop
        self.subscription: Subscription[Tick] = bus.subscribe(Tick, act, background=options)

    def act_on_thread(self, n: int) -> None:
        self.gate.pass_through()
        self.take(n)

    async def act_on_loop(self, n: int) -> None:
        await self.gate.pass_through_here()
        self.take(n)

    def take(self, n: int) -> None:
        self.got.append(n)
        if self.model.fails and n % self.model.fails == 0:
            raise Failure(n)


class LaneMachine(RuleBasedStateMachine):
    """Does the same to a lane and to the model, and compares whenever nothing moves."""

    backend: Backend = "asyncio"

    @initialize()
    def enter(self) -> None:
        """Open the bus."""
        self.bus = EventBus(backend=self.backend, drain_timeout=2.0)
        self.subjects: list[Subject] = []
        self.gone: list[Subject] = []
        self.published = 0
        self.bus.__enter__()

    def teardown(self) -> None:
        """Close the bus."""
        if hasattr(self, "bus"):
            self.bus.__exit__(None, None, None)

    @precondition(lambda self: len(self.subjects) < 4)
    @rule(
        kind=st.sampled_from(KINDS),
        maxsize=st.integers(1, 5),
        overflow=st.sampled_from(["drop_oldest", "latest"]),
        fails=st.sampled_from([0, 0, 2, 5]),
    )
    def subscribe(self, kind: Kind, maxsize: int, overflow: Overflow, fails: int) -> None:
        """Add a subscriber; it hears what comes from now on."""
        self.subjects.append(Subject(self.bus, kind, Model(maxsize, overflow, fails)))

    def publish_one(self) -> None:
        """Publish one event that they hear, and one that nobody hears."""
        self.published += 1
        self.bus.emit(Tick(n=self.published))
        self.bus.emit(Tock(n=self.published))
        for subject in self.subjects:
            subject.model.offer(self.published)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have every consumer stand with one event in hand, so that what comes then has to wait."""
        for subject in self.subjects:
            subject.gate = Gate()
        try:
            self.publish_one()
            for subject in self.subjects:
                subject.gate.wait_until_reached()
                subject.model.take()
            yield
        finally:
            for subject in [*self.subjects, *self.gone]:
                subject.gate.open()

    def catch_up(self) -> None:
        """Let everybody handle what waits."""
        assert self.bus.drain(PATIENCE)
        for subject in self.subjects:
            subject.model.catch_up()

    @rule(count=st.integers(0, 12))
    def publish(self, count: int) -> None:
        """Publish some events, more than may wait perhaps; then let everybody catch up."""
        with self.held():
            for _ in range(count):
                self.publish_one()
            for subject in self.subjects:
                self.compare(subject, in_hand=1)
        self.catch_up()

    @precondition(lambda self: self.subjects)
    @rule(which=st.integers(0, 3), waiting=st.integers(0, 3))
    def cancel(self, which: int, waiting: int) -> None:
        """Take one off, with some events that wait for it."""
        with self.held():
            for _ in range(waiting):
                self.publish_one()
            self.bus.stats()
            subject = self.subjects.pop(which % len(self.subjects))
            self.gone.append(subject)
            subject.subscription.cancel()
        self.catch_up()
        stats = subject.subscription.stats()
        assert stats.cancelled == len(subject.model.waiting)
        assert stats.published == subject.model.published

    @invariant()
    def agrees(self) -> None:
        """Same events in the same order, each once; same counts."""
        for subject in getattr(self, "subjects", ()):
            assert subject.got == subject.model.got
            self.compare(subject, in_hand=0)
        for subject in getattr(self, "gone", ()):
            assert subject.got == subject.model.got
            assert balances(subject.subscription.stats())
            assert subject.subscription.stats().pending == 0

    def compare(self, subject: Subject, in_hand: int) -> None:
        """Compare the counts of one subscriber with the model's, which has handled what the other one has in hand."""
        self.bus.stats()
        stats, model = subject.subscription.stats(), subject.model
        assert balances(stats)
        assert (stats.published, stats.dropped) == (model.published, model.dropped)
        assert stats.pending == len(model.waiting) + in_hand
        if not in_hand:
            assert (stats.handled, stats.failures) == (len(model.got) - model.failed, model.failed)


def run(machine: type[LaneMachine], backend: Backend = "asyncio", examples: int = 25) -> None:
    """Run one machine, without looking for the smallest failure."""
    subject = type("Machine", (machine,), {"backend": backend})
    limits = settings(max_examples=examples, stateful_step_count=12, deadline=None, phases=[Phase.generate], database=None)
    run_state_machine_as_test(subject, settings=limits)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_background_lane_does_what_the_model_says(backend: Backend) -> None:
    """For any sequence of steps."""
    run(LaneMachine, backend)


# --- exactly once -----------------------------------------------------------------------------------------------------


def deliveries_while_others_come_and_go(publishes: int) -> tuple[Counter[tuple[int, int]], list[int]]:
    """Publish while a thread subscribes and cancels and another one looks; return who got what, and whose order broke."""
    bus = EventBus(drain_timeout=PATIENCE)
    got: dict[int, list[int]] = {}
    stop, began = threading.Event(), threading.Event()

    def listen(id: int) -> Subscription[Tick]:
        got[id] = []
        kind = KINDS[id % 2]
        return bus.subscribe(Tick, handler(kind, lambda event: got[id].append(event.n)), background=Background(maxsize=publishes))

    def disturb() -> None:
        id = STABLE
        while not stop.is_set():
            with listen(id):
                bus.stats()
                began.set()
            id += 1

    for id in range(STABLE):
        listen(id)
    thread, interval = threading.Thread(target=disturb), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with bus:
            thread.start()
            assert began.wait(PATIENCE)
            for n in range(publishes):
                bus.emit(Tick(n=n))
            stop.set()
            thread.join()
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
    counts = Counter((id, n) for id, events in got.items() for n in events)
    return counts, [id for id, events in got.items() if events != sorted(events)]


STABLE = 8


def test_each_gets_each_event_exactly_once_and_in_order_while_others_come_and_go() -> None:
    """Those that stay get all; those that pass by get what was published meanwhile, at most once."""
    publishes = 1500
    counts, out_of_order = deliveries_while_others_come_and_go(publishes)
    assert set(counts.values()) == {1}
    assert all(counts[id, n] == 1 for id in range(STABLE) for n in range(publishes))
    assert not out_of_order


# --- broken twins -----------------------------------------------------------------------------------------------------


def lose_the_last_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outbox that leaves out what came last."""

    class Losing(Outbox):
        def hand_out(self) -> bool:
            if len(self._entries) > 3:
                self._entries.pop()
            return super().hand_out()

    monkeypatch.setattr(hookbus.bus.hosting, "Outbox", Losing)


def miscount_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backlog that lets events go without a word."""

    class Miscounting(Backlog):
        def _make_room(self) -> bool:
            before = self._dropped
            has_room = super()._make_room()
            self._dropped = min(self._dropped, before)
            return has_room

    monkeypatch.setattr(hookbus.bus.checks, "Backlog", Miscounting)


def take_the_newest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backlog that is no queue."""

    class Stack(Backlog):
        def take(self) -> Event | None:
            with self._lock:
                self._events.rotate(1)
                return super().take()

    monkeypatch.setattr(hookbus.bus.checks, "Backlog", Stack)


def forget_what_is_in_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backlog for which an event is done with as soon as it is taken."""

    class Hasty(Backlog):
        def take(self) -> Event | None:
            event = super().take()
            self._taken = None
            return event

    monkeypatch.setattr(hookbus.bus.checks, "Backlog", Hasty)


@pytest.mark.parametrize("break_it", [lose_the_last_entry, miscount_drops, take_the_newest_first, forget_what_is_in_hand])
def test_a_broken_lane_is_found_out_by_the_model(
    break_it: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these faults."""
    break_it(monkeypatch)
    with pytest.raises(AssertionError):
        run(LaneMachine)


def test_a_hand_out_without_a_lock_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads that hand out at once overtake each other."""

    class Unlocked(Outbox):
        def __init__(self, failure_log: FailureLog) -> None:
            super().__init__(failure_log)
            self._lock = _NoLock()  # type: ignore[assignment]

        def hand_out(self) -> bool:
            self._is_handing_out = False  # what another thread does is no reason to wait here
            try:
                return super().hand_out()
            except IndexError:  # the other one took the last entry
                return True

    monkeypatch.setattr(hookbus.bus.hosting, "Outbox", Unlocked)
    for _ in range(20):
        counts, out_of_order = deliveries_while_others_come_and_go(1500)
        if out_of_order or len(counts) < STABLE * 1500:
            return
    pytest.fail("nothing was out of order")


class _NoLock:
    """Stands in for a lock, and lets everybody pass."""

    def __enter__(self) -> None:
        """Do not wait."""

    def __exit__(self, *_: object) -> None:
        """Do not wake."""

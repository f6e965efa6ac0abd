"""The background lane against a small model: order, exactly once, and what is dropped, for any sequence; and its broken twins.

The consumers of the model stand behind gates, so that what waits, and so what is dropped, is known at every moment. A broken
twin is a lane with one fault built in; each has to be found out here, or these tests could not fail.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

import hookbus.bus.backlog
from hookbus.bus import Background, EventBus, Subscription
from hookbus.bus.backlog import Backlog
from hookbus.bus.outbox import Outbox
from hookbus.events import Event
from hookbus.types import Backend
from tests.bus.listeners import KINDS, PATIENCE, Kind, balances, handler
from tests.bus.ticks import Tick, Tock

BACKENDS: list[Backend] = ["asyncio", "trio"]


@dataclass
class Model:
    """One background subscriber, in twenty lines."""

    maxsize: int
    overflow: str
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

    def catch_up(self) -> None:
        self.got += self.waiting
        self.waiting.clear()

    @property
    def failed(self) -> int:
        return sum(number % self.fails == 0 for number in self.got) if self.fails else 0


class Failure(Exception):
    """What a handler of the model raises."""


class Subject:
    """The same subscriber on the bus; it handles what waits only when it is let."""

    def __init__(self, bus: EventBus, kind: Kind, model: Model) -> None:
        self.got: list[int] = []
        self.model = model
        self.held = threading.Event()
        options = Background(maxsize=model.maxsize, overflow=model.overflow)  # type: ignore[arg-type]
        self.subscription: Subscription[Tick] = bus.subscribe(Tick, handler(kind, self.act), background=options)

    def act(self, event: Tick) -> None:
        self.got.append(event.n)
        if self.model.fails and event.n % self.model.fails == 0:
            raise Failure(event.n)


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
    def subscribe(self, kind: Kind, maxsize: int, overflow: str, fails: int) -> None:
        """Add a subscriber; it hears what comes from now on."""
        self.subjects.append(Subject(self.bus, kind, Model(maxsize, overflow, fails)))

    @rule(count=st.integers(1, 12))
    def publish(self, count: int) -> None:
        """Publish some events at once, while no consumer can take any; then have everybody catch up."""
        with _consumers_held():
            for _ in range(count):
                self.published += 1
                self.bus.emit(Tick(n=self.published))
                self.bus.emit(Tock(n=self.published))
                for subject in self.subjects:
                    subject.model.offer(self.published)
            for subject in self.subjects:
                self.compare(subject, waiting=len(subject.model.waiting))
        assert self.bus.drain(PATIENCE)
        for subject in self.subjects:
            subject.model.catch_up()

    @precondition(lambda self: self.subjects)
    @rule(which=st.integers(0, 3), waiting=st.integers(0, 3))
    def cancel(self, which: int, waiting: int) -> None:
        """Take one off, with some events that wait for it."""
        subject = self.subjects[which % len(self.subjects)]
        before = subject.subscription.stats().published
        with _consumers_held():
            for _ in range(waiting):
                self.published += 1
                self.bus.emit(Tick(n=self.published))
                for each in self.subjects:
                    each.model.offer(self.published)
            self.bus.stats()
            subject.subscription.cancel()
        assert self.bus.drain(PATIENCE)
        self.subjects.remove(subject)
        self.gone.append(subject)
        for each in self.subjects:
            each.model.catch_up()
        stats = subject.subscription.stats()
        assert stats.published == before + waiting
        assert stats.cancelled == len(subject.model.waiting)

    @invariant()
    def agrees(self) -> None:
        """Same events in the same order, each once; same counts."""
        for subject in getattr(self, "subjects", ()):
            assert subject.got == subject.model.got
            self.compare(subject, waiting=0)
        for subject in getattr(self, "gone", ()):
            assert subject.got == subject.model.got
            assert balances(subject.subscription.stats())
            assert subject.subscription.stats().pending == 0

    def compare(self, subject: Subject, waiting: int) -> None:
        """Compare the counts of one subscriber with the model's."""
        self.bus.stats()
        stats, model = subject.subscription.stats(), subject.model
        assert balances(stats)
        assert (stats.published, stats.dropped, stats.pending) == (model.published, model.dropped, waiting)
        assert (stats.handled, stats.failures) == (len(model.got) - model.failed, model.failed)


@contextmanager
def _consumers_held() -> Iterator[None]:
    """Have every backlog say that it is empty, so that no consumer takes anything meanwhile."""
    take = Backlog.take
    try:
        Backlog.take = lambda self: None  # type: ignore[method-assign]
        yield
    finally:
        Backlog.take = take  # type: ignore[method-assign]

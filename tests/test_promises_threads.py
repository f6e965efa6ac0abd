"""Eight threads at one bus, which take turns after each microsecond: promise P12, as far as an interpreter with a GIL shows it.

The free-threaded build of Python was not run.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hookbus import _named
from hookbus._named import NamedInstances
from hookbus.bus import Background, EventBus
from hookbus.events import AfterTrainIter
from tests.bus.ticks import Tick, Tock
from tests.runner.builders import make_runner

THREADS = 8
EVENTS = 100
"""How many each thread publishes, or how often it does what it does."""


@pytest.fixture(autouse=True)
def hasty_threads() -> Iterator[None]:
    """Have threads take turns after each microsecond instead of each five milliseconds."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def together(act: Callable[[int], object], threads: int = THREADS) -> None:
    """Have several threads do something at the same moment, and raise what one of them raised."""
    start = threading.Barrier(threads)
    errors: list[BaseException] = []

    def run(number: int) -> None:
        start.wait()
        try:
            act(number)
        except BaseException as error:  # noqa: BLE001  raised below
            errors.append(error)

    started = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    if errors:
        raise errors[0]


def in_order(heard: list[int]) -> bool:
    """Return whether the events of each thread came once each and in the order in which it posted them."""
    return all([n for n in heard if n // EVENTS == number] == list(events_of(number)) for number in range(THREADS))


def events_of(number: int) -> range:
    """Return the numbers of the events of one thread."""
    return range(number * EVENTS, (number + 1) * EVENTS)


def test_events_of_eight_threads_reach_every_subscriber_once_and_in_order() -> None:
    """Inline and in the background, on a thread and on the loop, while subscribers come and go."""
    lanes: list[list[int]] = [[] for _ in range(3)]

    async def hear(event: Tick) -> None:
        lanes[2].append(event.n)

    with EventBus() as bus:
        keep = Background(maxsize=THREADS * EVENTS)
        bus.subscribe(Tick, lambda event: lanes[0].append(event.n))
        bus.subscribe(Tick, lambda event: lanes[1].append(event.n), background=keep)
        bus.subscribe(Tick, hear, background=keep)

        def post(number: int) -> None:
            for n in events_of(number):
                bus.post(Tick(n=n))
                passing = bus.subscribe(Tick, lambda: None, background=n % 2 == 0)
                bus.stats()
                passing.cancel()

        together(post)
    assert [in_order(heard) for heard in lanes] == [True] * 3


def test_counts_balance_whenever_a_thread_reads_them() -> None:
    """Seven read while one publishes to lanes that drop."""
    over = threading.Event()
    read = Counter[int]()

    def look(number: int) -> None:
        while not over.is_set():
            for stats in bus.stats():
                assert stats.published == stats.handled + stats.failures + stats.dropped + stats.cancelled + stats.pending
            read[number] += 1

    def publish() -> None:
        with bus:
            for n in range(20 * EVENTS):
                bus.emit(Tick(n=n))
        over.set()

    bus = EventBus()
    for maxsize, overflow in itertools.product((1, 3), ("drop_oldest", "latest")):
        bus.subscribe(Tick, sum_up, background=Background(maxsize=maxsize, overflow=overflow))  # type: ignore[arg-type]
    together(lambda number: look(number) if number else publish())
    assert len(read) == THREADS - 1
    assert all(stats.published == 20 * EVENTS for stats in bus.stats())


def sum_up() -> int:
    """Take a little time."""
    return sum(range(50))


def test_eight_buses_in_eight_threads_hear_only_their_own() -> None:
    """Each with an event loop of its own."""
    heard: list[list[int]] = [[] for _ in range(THREADS)]

    async def wait(event: Tock) -> None:
        heard[event.n // EVENTS].append(event.n)

    def use(number: int) -> None:
        with EventBus() as bus:
            bus.subscribe(Tock, wait)
            bus.subscribe(Tock, lambda event: heard[number].append(event.n))
            for n in events_of(number):
                bus.emit(Tock(n=n))

    together(use)
    assert heard == [[n for n in events_of(number) for _ in range(2)] for number in range(THREADS)]


def test_controls_of_eight_threads_are_all_answered(tmp_path: Path) -> None:
    """Each pauses, goes on, sets the rate and reads the hub of a live run; then all of them stop it."""
    hooks = dict(checkpoint=None, logger=None)
    runner = make_runner(
        tmp_path, train_cfg=dict(max_epochs=100_000), val_dataloader=None, default_hooks=hooks, log_level="ERROR"
    )
    begun = threading.Event()
    runner.bus.subscribe(AfterTrainIter, begun.set, once=True)
    answered = Counter[int]()

    def act(number: int) -> None:
        if number == THREADS:
            runner.train()
            return
        begun.wait()
        iterations = []
        for _ in range(5):
            runner.pause()
            iterations.append(runner.unpause().result(30).iter)
            runner.set_lr(0.01 * (number + 1)).result(30)
            assert runner.message_hub.get_info("iter") is not None
            answered[number] += 1
        assert iterations == sorted(iterations)
        ready.wait()
        with contextlib.suppress(Exception):  # all but the first may come too late
            runner.stop().result(30)

    ready = threading.Barrier(THREADS)
    together(act, THREADS + 1)
    assert answered == dict.fromkeys(range(THREADS), 5)


def meet_by_name() -> int:
    """Return how many instances eight threads get that ask for one name at a time, over many names."""
    named: NamedInstances[object] = NamedInstances()
    found: dict[int, set[int]] = {n: set() for n in range(EVENTS)}
    kept: list[Any] = []
    turn = threading.Barrier(THREADS)

    def ask(_: int) -> None:
        for n in range(EVENTS):
            turn.wait()
            instance = named.get(f"name-{n}", Thing)
            kept.append(instance)
            found[n].add(id(instance))

    together(ask)
    return sum(map(len, found.values()))


class Thing:
    """What is found by name; making one takes a moment."""

    def __init__(self) -> None:
        sum_up()


def test_threads_that_ask_for_one_name_get_one_instance() -> None:
    """At the same moment."""
    assert meet_by_name() == EVENTS


def test_a_twin_without_a_lock_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the threads do get into one another's way here, GIL or not."""
    monkeypatch.setattr(_named, "threading", NoLocks)
    assert meet_by_name() > EVENTS


class NoLocks:
    """Stands in for `threading`, with a lock that holds nobody up."""

    Lock = contextlib.nullcontext

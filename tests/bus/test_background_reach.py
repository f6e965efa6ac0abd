"""What background handlers may do to the bus, and several buses, loops and runs beside each other and one after the other."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import pytest

from hookbus._current import current_hub
from hookbus.bus import EventBus
from hookbus.errors import WrongThread
from hookbus.events import Event
from hookbus.hub import MessageHub
from hookbus.types import Backend
from tests.bus.listeners import KINDS, PATIENCE, Gate, Kind, balances, handler, numbers
from tests.bus.ticks import Tick, Tock

BACKENDS: list[Backend] = ["asyncio", "trio"]


# --- what handlers may do ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_may_post_and_its_events_are_published_by_the_owner(kind: Kind, backend: Backend) -> None:
    """In the order in which it asked, on the thread where inline handlers always run; leaving waits for them."""
    bus, threads, seen = EventBus(backend=backend), set[int](), list[int]()

    def inline(n: int) -> None:
        threads.add(threading.get_ident())
        seen.append(n)

    bus.subscribe(Tock, inline)
    bus.subscribe(Tick, handler(kind, lambda event: bus.post(Tock(n=event.n))), background=True)
    with bus:
        for n in range(100):
            bus.emit(Tick(n=n))
    assert seen == list(range(100))
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_coroutine_function_may_await_what_it_publishes(backend: Backend) -> None:
    """The owner publishes it while it waits, here for the end."""
    bus, seen = EventBus(backend=backend), list[int]()

    async def publishes(n: int) -> None:
        await bus.publish(Tock(n=n))
        seen.append(-n)

    async def awaited(n: int) -> None:
        seen.append(n)

    bus.subscribe(Tick, publishes, background=True)
    bus.subscribe(Tock, awaited)
    with bus:
        for n in range(1, 20):
            bus.emit(Tick(n=n))
    assert seen == [sign * n for n in range(1, 20) for sign in (1, -1)]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_handler_may_publish_on_the_callers_loop(kind: Kind) -> None:
    """By `post`, from its thread or from the loop."""
    bus, seen = EventBus(), list[Event]()
    bus.subscribe(Tock, handler("coroutine", seen.append))
    bus.subscribe(Tick, handler(kind, lambda event: bus.post(Tock(n=event.n))), background=True)
    async with bus:
        for n in range(20):
            await bus.publish(Tick(n=n))
        with anyio.fail_after(PATIENCE):
            while len(seen) < 20:  # noqa: ASYNC110  handlers have threads of their own
                await anyio.sleep(0.001)
    assert [event.n for event in seen if isinstance(event, Tock)] == list(range(20))


@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_may_not_emit(kind: Kind) -> None:
    """Its thread does not own the bus; the error says what to call instead."""
    bus = EventBus()
    bus.subscribe(Tick, handler(kind, lambda event: bus.emit(Tock())), background=True, on_error="raise")
    with pytest.raises(WrongThread, match=r"await bus.publish\(Tock\(...\)\)"), bus:
        bus.emit(Tick())


@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_may_subscribe_and_cancel(kind: Kind) -> None:
    """What it adds hears the next events, in the background and inline."""
    bus, seen = EventBus(), list[Event]()

    def act(event: Event) -> None:
        mine.cancel()
        bus.subscribe(Tick, handler(kind, seen.append), background=True)
        bus.subscribe(Tick, handler("function", seen.append))

    mine = bus.subscribe(Tick, handler(kind, act), background=True)
    with bus:
        bus.emit(Tick(n=0))
        bus.drain()
        bus.emit(Tick(n=1))
    assert numbers(seen) == [1, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_finds_the_hub_of_its_run(kind: Kind) -> None:
    """Asked for by name, or as that of the code that is executing."""
    hub = MessageHub("mine")
    bus, seen = EventBus(hub=hub), list[Any]()

    def function(hub: MessageHub) -> None:
        seen.append((hub, current_hub.get()))

    async def coroutine(hub: MessageHub) -> None:
        seen.append((hub, current_hub.get()))

    bus.subscribe(Tick, function if kind == "function" else coroutine, background=True)
    with bus:
        bus.emit(Tick())
    assert seen == [(hub, hub)]


# --- buses beside each other ------------------------------------------------------------------------------------------


async def test_thirty_buses_on_one_loop_keep_their_events_to_themselves() -> None:
    """Each handler hears its own bus only, each bus ends without the others."""
    buses = [EventBus(f"bus-{number}") for number in range(30)]
    seen: dict[int, list[int]] = {number: [] for number in range(30)}

    async def use(number: int) -> None:
        bus = buses[number]
        bus.subscribe(Tick, handler("coroutine", lambda event: seen[number].append(event.n)), background=True)
        async with bus:
            for n in range(10):
                await bus.publish(Tick(n=100 * number + n))
                await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        for number in range(30):
            tasks.start_soon(use, number)
    assert seen == {number: [100 * number + n for n in range(10)] for number in range(30)}


def test_buses_on_two_loops_of_two_kinds_keep_their_events_to_themselves() -> None:
    """In two threads at once, one of which posts to the other one's bus."""
    buses = {backend: EventBus(backend, backend=backend) for backend in BACKENDS}
    seen: dict[str, list[int]] = {backend: [] for backend in BACKENDS}
    entered, done = threading.Barrier(2), threading.Barrier(2)

    def use(backend: Backend) -> None:
        bus = buses[backend]
        for kind in KINDS:
            bus.subscribe(Tick, handler(kind, lambda event: seen[backend].append(event.n)), background=True)
        with bus:
            entered.wait(PATIENCE)
            for n in range(200):
                bus.emit(Tick(n=n))
                if backend == "asyncio":
                    buses["trio"].post(Tick(n=-1 - n))
            done.wait(PATIENCE)

    threads = [threading.Thread(target=use, args=(backend,)) for backend in BACKENDS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen["asyncio"]) == sorted(2 * list(range(200)))
    assert sorted(seen["trio"]) == sorted(2 * list(range(-200, 200)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_bus_may_be_entered_again_and_again(kind: Kind) -> None:
    """On other loops and threads; what was subscribed hears each visit, counts go on, threads do not add up."""
    bus, seen, before = EventBus(), list[Event](), threading.active_count()
    subscription = bus.subscribe(Tick, handler(kind, seen.append), background=True)

    async def visit(n: int) -> None:
        async with bus:
            await bus.publish(Tick(n=n))

    for n in range(0, 12, 3):
        with bus:
            bus.emit(Tick(n=n))
        anyio.run(visit, n + 1, backend="trio")
        anyio.run(visit, n + 2, backend="asyncio")
    assert numbers(seen) == list(range(12))
    assert threading.active_count() - before <= 1  # trio keeps an idle worker
    stats = subscription.stats()
    assert (stats.published, stats.handled, stats.pending) == (12, 12, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_visit_that_was_cut_short_leaves_nothing_to_the_next_one(kind: Kind) -> None:
    """Events of before are cancelled, and stay so."""
    bus, gate, seen = EventBus(drain_timeout=0.05), Gate(), list[Event]()
    subscription = bus.subscribe(Tick, handler(kind, seen.append, gate), background=True)

    def open_when_left() -> None:
        gate.wait_until_reached()
        while not subscription.stats().cancelled:
            threading.Event().wait(0.001)
        gate.open()

    opener = threading.Thread(target=open_when_left)
    with bus:
        for n in range(5):
            bus.emit(Tick(n=n))
        opener.start()
    opener.join()
    with bus:
        for n in range(5, 10):
            bus.emit(Tick(n=n))
    assert numbers(seen)[-5:] == list(range(5, 10))
    assert 1 not in numbers(seen)
    assert balances(subscription.stats())
    assert subscription.stats().pending == 0

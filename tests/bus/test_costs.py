"""The warning about awaited handlers that cost too much of the step."""

from __future__ import annotations

import time

import anyio.lowlevel
import pytest

from hookbus.bus import EventBus
from hookbus.bus.costs import LOOK_AFTER_CROSSINGS
from hookbus.events import AfterTrainIter, Event
from hookbus.types import Backend
from tests.bus.ticks import Tick, train_iter

BACKENDS: list[Backend] = ["asyncio", "trio"]


async def dear() -> None:
    """Take longer than the rest of the step."""
    await anyio.sleep(0.003)


async def cheap() -> None:
    """Take next to nothing."""
    await anyio.lowlevel.checkpoint()


def work(seconds: float) -> None:
    """Keep the training thread busy, as a step does."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def run(bus: EventBus, event: Event, steps: int, seconds: float) -> None:
    """Publish once per step."""
    with bus:
        for _ in range(steps):
            work(seconds)
            bus.emit(event)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_dear_handler_is_named_once_with_the_remedy(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """However often it is looked at, and although a cheap one shares its crossing."""
    bus = EventBus(backend=backend)
    bus.subscribe(AfterTrainIter, cheap)
    bus.subscribe(AfterTrainIter, dear)
    run(bus, train_iter(), 3 * LOOK_AFTER_CROSSINGS, 0.001)

    [record] = [record for record in caplog.records if record.message.startswith("dear on AfterTrainIter takes")]
    assert "every=" in record.message
    assert "cost_warning=0.1" in record.message


def test_a_cheap_handler_is_not_named(caplog: pytest.LogCaptureFixture) -> None:
    """The crossing itself is far below the threshold of a step that does something."""
    bus = EventBus(cost_warning=0.8)
    bus.subscribe(AfterTrainIter, cheap)
    run(bus, train_iter(), 2 * LOOK_AFTER_CROSSINGS, 0.004)
    assert caplog.records == []


def test_a_rarely_called_handler_is_not_named(caplog: pytest.LogCaptureFixture) -> None:
    """Following the advice silences the warning."""
    bus = EventBus(cost_warning=0.8)
    bus.subscribe(AfterTrainIter, dear, when=lambda event: event.iter % 20 == 0)
    with bus:
        for iter in range(20 * (LOOK_AFTER_CROSSINGS + 1)):
            work(0.0005)
            bus.emit(train_iter(iter))
    assert caplog.records == []


def test_events_outside_the_step_are_not_judged(caplog: pytest.LogCaptureFixture) -> None:
    """There is no step whose time they could take."""
    bus = EventBus()
    bus.subscribe(Tick, dear)
    run(bus, Tick(), 2 * LOOK_AFTER_CROSSINGS, 0.0)
    assert caplog.records == []

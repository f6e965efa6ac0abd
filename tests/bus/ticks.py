"""Events of a user's own, and small makers of mount-point events, for the tests of the bus."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from hookbus.bus import EventBus
from hookbus.events import AfterRun, AfterTrainIter, BeforeVal, Event
from hookbus.types import Live

Publish = Callable[[EventBus, Event], Awaitable[Any]]


class Tick(Event):
    """An event that counts its publishes."""

    n: int = 0


class Tock(Event):
    """Another one."""

    n: int = 0


class LoudTick(Tick):
    """A kind of tick."""


class Delivery(Event):
    """An event that offers live objects, under names that a careless code generator might use itself."""

    live: ClassVar[tuple[str, ...]] = ("clock", "error", "errors", "number", "live", "counter", "skip", "missing")
    n: int = 0


class Closing(Event):
    """An event whose every handler runs."""

    closing: ClassVar[bool] = True


class Optional(Event):
    """An event that may be vetoed."""

    skippable: ClassVar[bool] = True


def train_iter(iter: int = 0, epoch: int = 0) -> AfterTrainIter:
    """Return the event of a finished iteration."""
    return AfterTrainIter(epoch=epoch, iter=iter, batch_idx=iter)


def before_val() -> BeforeVal:
    """Return the event that announces a validation."""
    return BeforeVal(epoch=0, iter=0)


def after_run() -> AfterRun:
    """Return the event that ends a run."""
    return AfterRun(epoch=0, iter=0, loop="train")


def step(runner: object = None) -> Live:
    """Return the live objects of a finished iteration."""
    return {"runner": runner, "data_batch": "batch", "outputs": {"loss": 1.0}}


def calls(bus: EventBus) -> dict[str, tuple[int, int]]:
    """Return calls and failures of every subscription by its name."""
    return {stats.name: (stats.calls, stats.failures) for stats in bus.stats()}

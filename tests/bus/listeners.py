"""Background handlers of both kinds for the tests of the background lane: open ones, and ones behind a gate."""

from __future__ import annotations

__all__ = ("KINDS", "Gate", "balances", "handler", "numbers")

import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import anyio

from hookbus.bus import SubscriptionStats
from hookbus.events import Event
from hookbus.types import Handler
from tests.bus.ticks import Tick

PATIENCE = 20.0
"""Seconds that a busy machine may take."""

Kind: TypeAlias = Literal["function", "coroutine"]
KINDS: list[Kind] = ["function", "coroutine"]
"""A function runs on a thread of its own, a coroutine function on the home loop."""


class Gate:
    """Where handlers stop until it is opened; it knows whether somebody came."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()

    def open(self) -> None:
        """Let everybody through from now on."""
        self._open.set()

    def wait_until_reached(self) -> None:
        """Wait until a handler stands here."""
        assert self.reached.wait(PATIENCE)

    def pass_through(self) -> None:
        """Stop here, on a thread."""
        self.reached.set()
        assert self._open.wait(PATIENCE)

    async def pass_through_here(self) -> None:
        """Stop here, on an event loop."""
        self.reached.set()
        with anyio.fail_after(PATIENCE):
            while not self._open.is_set():  # noqa: ASYNC110  it is opened on another thread
                await anyio.sleep(0.001)


def handler(kind: Kind, act: Callable[[Any], object], gate: Gate | None = None) -> Handler:
    """Return a handler of one kind that acts behind a gate."""

    def function(event: Event) -> None:
        if gate is not None:
            gate.pass_through()
        act(event)

    async def coroutine(event: Event) -> None:
        if gate is not None:
            await gate.pass_through_here()
        act(event)

    return function if kind == "function" else coroutine


def numbers(events: Sequence[Event]) -> list[int]:
    """Return the numbers of ticks."""
    return [event.n for event in events if isinstance(event, Tick)]


def balances(stats: SubscriptionStats) -> bool:
    """Return whether every event of a background subscriber is accounted for."""
    return stats.published == stats.handled + stats.failures + stats.dropped + stats.cancelled + stats.pending

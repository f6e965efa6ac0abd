"""The pull form of the background lane: events as an async iterator, on whatever event loop reads it."""

from __future__ import annotations

__all__ = ("EventStream",)

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

from anyio.lowlevel import checkpoint

from hookbus.bus.backlog import Backlog, Outcome
from hookbus.bus.consumers import TURN, rest
from hookbus.bus.subscription import Subscription
from hookbus.errors import SubscriptionError
from hookbus.events import Event

E = TypeVar("E", bound=Event)


class EventStream(Generic[E]):
    """Events of one type, from entering the stream to the end of the run or of the block; an async iterator.

    What has not been read when the run ends can still be read. A reader that falls behind loses the oldest events,
    which `dropped` counts; it never holds up the publisher, unless it asked for `overflow="block"`.
    """

    def __init__(self, subscribe: Callable[[], Subscription[E]]) -> None:
        self._subscribe = subscribe
        self._subscription: Subscription[E] | None = None
        self._turn_ends = 0.0

    async def __aenter__(self) -> EventStream[E]:
        if self._subscription is not None:
            msg = "a stream is entered once; call bus.stream(...) for another one"
            raise SubscriptionError(msg)
        self._subscription = self._subscribe()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._subscription is not None
        self._subscription.cancel()
        self._backlog.close()  # nobody reads what is left

    def __aiter__(self) -> EventStream[E]:
        return self

    async def __anext__(self) -> E:
        backlog = self._backlog
        if backlog.alarm is not None:
            msg = "a stream has one reader, and another task waits for its next event; enter a stream for each of them"
            raise SubscriptionError(msg)
        if time.perf_counter() > self._turn_ends:  # a reader that never waits must not keep the loop to itself
            await checkpoint()
            self._turn_ends = time.perf_counter() + TURN
        while True:
            event = backlog.take()
            if event is not None:
                backlog.settle(Outcome.HANDLED)
                return cast("E", event)
            if backlog.is_closed:
                self._raise_error()
                raise StopAsyncIteration
            await rest(backlog)

    @property
    def dropped(self) -> int:
        """How many events went because more came than may wait."""
        return self._backlog.counts().dropped

    @property
    def _backlog(self) -> Backlog:
        if self._subscription is None or self._subscription.backlog is None:
            msg = "a stream has to be entered before it is read: async with bus.stream(...) as events"
            raise SubscriptionError(msg)
        return self._subscription.backlog

    def _raise_error(self) -> None:
        error: Any = self._subscription.pull_error if self._subscription is not None else None
        if error is not None:
            raise error

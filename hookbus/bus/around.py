"""A context manager around every call of a handler: the seam for profilers and for finding what handlers should not do."""

from __future__ import annotations

__all__ = ("Around", "drive_around")

import types
from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractContextManager
from typing import Any, TypeAlias, TypeVar, cast

from hookbus.bus.subscription import Subscription

T = TypeVar("T")

Around: TypeAlias = Callable[[Subscription[Any]], AbstractContextManager[Any]]
"""Gives the context manager for one call, or for one step of a coroutine."""


async def drive_around(around: Around, subscription: Subscription[Any], coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine with each of its steps inside a context manager of its own, which other tasks never see."""
    return await _stepwise(around, subscription, coroutine)


@types.coroutine
def _stepwise(around: Around, subscription: Subscription[Any], coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    step: Callable[[], Any] = lambda: coroutine.send(None)  # noqa: E731  replaced after each step
    while True:
        try:
            with around(subscription):
                waits_for = step()
        except StopIteration as finished:
            return cast("T", finished.value)
        try:
            sent = yield waits_for
        except BaseException as error:  # noqa: BLE001  whatever the loop throws belongs to the coroutine
            step = _thrower(coroutine, error)
        else:
            step = _sender(coroutine, sent)


def _sender(coroutine: Coroutine[Any, Any, Any], value: Any) -> Callable[[], Any]:
    return lambda: coroutine.send(value)


def _thrower(coroutine: Coroutine[Any, Any, Any], error: BaseException) -> Callable[[], Any]:
    return lambda: coroutine.throw(error)

"""The subscriptions of one hook, taken off together."""

from __future__ import annotations

__all__ = ("HookSubscriptions",)

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

from hookbus.bus.subscription import Subscription
from hookbus.types import HookLike


class HookSubscriptions:
    """What adding a hook returns: its subscriptions; `cancel` them, or use it as a context manager."""

    def __init__(self, hook: HookLike, subscriptions: Iterable[Subscription[Any]]) -> None:
        self.hook = hook
        self._subscriptions = tuple(subscriptions)

    def __repr__(self) -> str:
        return f"<HookSubscriptions of {type(self.hook).__name__}: {len(self._subscriptions)}>"

    def __iter__(self) -> Iterator[Subscription[Any]]:
        return iter(self._subscriptions)

    def __len__(self) -> int:
        return len(self._subscriptions)

    def __enter__(self) -> HookSubscriptions:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Take the whole hook off the bus."""
        for subscription in self._subscriptions:
            subscription.cancel()

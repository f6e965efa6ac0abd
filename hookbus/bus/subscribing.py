"""Subscribing: everything about a handler is decided when it is added."""

from __future__ import annotations

__all__ = ("Subscribing",)

import sys
import threading
from abc import ABC, abstractmethod
from bisect import insort
from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar

from hookbus.bus.background import Background, Overflow
from hookbus.bus.checks import check_event_type, check_option_names, make_subscription
from hookbus.bus.hook_methods import hook_methods
from hookbus.bus.hook_subscriptions import HookSubscriptions
from hookbus.bus.stream import EventStream
from hookbus.bus.subscription import ErrorPolicy, Subscription
from hookbus.errors import RunEnded
from hookbus.events import Event
from hookbus.priority import Priority, get_priority
from hookbus.types import Handler, HookLike

E = TypeVar("E", bound=Event)
F = TypeVar("F", bound=Handler)


class Subscribing(ABC):
    """The subscribing side of an event bus: keeps the subscriptions in the order of their priorities."""

    name: str

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._order = count()
        self._early = count(-sys.maxsize)
        self._subscriptions: list[Subscription[Any]] = []

    @abstractmethod
    def _forget_plans(self) -> None:
        """Let the next publish of each event type see the subscriptions as they are now."""

    def subscribe(
        self,
        event_type: type[E],
        handler: Handler,
        *,
        priority: int | str | Priority = Priority.NORMAL,
        every: int = 1,
        once: bool = False,
        when: Callable[[E], object] | None = None,
        background: bool | Background = False,
        timeout: float | None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Subscription[E]:
        """Have `handler` called for events of `event_type` and of its subclasses.

        Args:
            event_type: an event class; a base class hears all its subclasses.
            handler: a function or coroutine function; it gets what its parameters name.
            priority: its place in the order; lower numbers run first.
            every: call it for every n-th only, of what the event class counts.
            once: call it a single time, then cancel.
            when: call it only for events for which this is true.
            background: True or `Background(...)`: the publisher does not wait; a coroutine function runs on the event loop, a
                function on a thread of its own, events in order, without live objects.
            timeout: seconds that a coroutine function may take.
            on_error: `"raise"` ends the publish and the run with the error, `"log"` logs it and goes on. The default is
                `"raise"`, in the background `"log"`; there `"raise"` ends the run at the next step boundary.
            name: what it is called in plans, notes and logs.

        Raises:
            SubscriptionError: an option does not fit.
            HandlerSignatureError: the handler asks for a name that the event does not offer.
            ConfigError: the priority is unknown.
        """
        subscription = make_subscription(
            event_type,
            handler,
            next(self._order),
            self._remove,
            priority=priority,
            every=every,
            once=once,
            when=when,
            background=background,
            timeout=timeout,
            on_error=on_error,
            name=name,
        )
        self._insert(subscription)
        return subscription

    def _insert(self, subscription: Subscription[Any]) -> None:
        with self._lock:
            insort(self._subscriptions, subscription, key=lambda s: (s.priority, s.order))
            self._forget_plans()

    def on(self, event_type: type[E], **options: Any) -> Callable[[F], F]:
        """Subscribe the decorated function; takes the options of `subscribe`."""
        check_event_type(event_type)
        check_option_names(options)

        def decorate(handler: F) -> F:
            self.subscribe(event_type, handler, **options)
            return handler

        return decorate

    def add_hook(
        self, hook: HookLike, priority: int | str | Priority | None = None, *, first_among_equals: bool = False
    ) -> HookSubscriptions:
        """Subscribe every method of `hook` that is named after a mount point or decorated with `on`.

        `first_among_equals` puts it before the handlers of its priority that are there already.

        Raises:
            SubscriptionError: it is not a hook, a method is nearly named like a mount point, or one asks for a
                name that its event does not offer. Nothing is subscribed then.
        """
        own = get_priority(priority if priority is not None else getattr(hook, "priority", Priority.NORMAL))
        added: list[Subscription[Any]] = []
        try:
            for method in hook_methods(hook):
                options = dict(method.options)
                if priority is not None or "priority" not in options:
                    options["priority"] = own
                options.setdefault("name", method.name)
                order = next(self._early if first_among_equals else self._order)
                added.append(make_subscription(method.event_type, method.handler, order, self._remove, **options))
                self._insert(added[-1])
        except Exception:
            for subscription in added:
                subscription.cancel()
            raise
        return HookSubscriptions(hook, added)

    def _remove(self, subscription: Subscription[Any]) -> None:
        with self._lock:  # two threads may cancel at once
            if subscription.active:
                self._subscriptions.remove(subscription)
                self._forget_plans()
                subscription.end()

    # --- pulling ------------------------------------------------------------------------------------------------------

    def stream(
        self,
        event_type: type[E],
        *,
        every: int = 1,
        once: bool = False,
        when: Callable[[E], object] | None = None,
        maxsize: int = 1024,
        overflow: Overflow = "drop_oldest",
        block_timeout: float = 30.0,
        name: str | None = None,
    ) -> EventStream[E]:
        """Return events as an async iterator: `async with bus.stream(AfterTrainIter) as events: async for event in events`.

        It may be read on any event loop, begins when it is entered, also before the run does, and ends with the run. The
        filters are those of `subscribe`, and what happens to a slow reader is what `Background` says.

        Raises:
            SubscriptionError: an option does not fit.
        """
        background = Background(maxsize, overflow, block_timeout)
        name = name or f"stream of {getattr(event_type, '__name__', event_type)}"
        check_event_type(event_type)

        def subscribe() -> Subscription[E]:
            subscription = make_subscription(
                event_type,
                _pulled,
                next(self._order),
                self._remove,
                every=every,
                once=once,
                when=when,
                background=background,
                name=name,
                is_pulled=True,
            )
            self._insert(subscription)
            return subscription

        return EventStream(subscribe)

    async def wait_for(self, event_type: type[E], when: Callable[[E], object] | None = None) -> E:
        """Return the next event of that type for which `when` is true.

        Raises:
            RunEnded: the run, or the block that entered the bus, ended before there was one.
        """
        async with self.stream(event_type, once=True, when=when, name=f"wait_for({event_type.__name__})") as events:
            async for event in events:
                return event
        msg = f"the event bus {self.name!r} was left before there was the {event_type.__name__} waited for"
        raise RunEnded(msg)


def _pulled(event: Event) -> None:
    """Stand in for the handler of a stream, whose reader pulls."""

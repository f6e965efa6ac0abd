"""Makes subscriptions, and refuses event types, handlers and options that do not fit, naming them."""

from __future__ import annotations

__all__ = ("check_event_type", "check_option_names", "make_subscription")

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, get_args

from hookbus.bus.arguments import bind_arguments, is_async
from hookbus.bus.background import Background, background_options
from hookbus.bus.backlog import Backlog
from hookbus.bus.subscription import ErrorPolicy, Lane, Subscription
from hookbus.errors import EventDefinitionError, SubscriptionError, choices
from hookbus.events import MOUNT_POINTS, Event
from hookbus.priority import Priority, get_priority
from hookbus.types import Handler

E = TypeVar("E", bound=Event)

OPTIONS = ("priority", "every", "once", "when", "background", "timeout", "on_error", "name")
"""What `subscribe` and its decorators take."""


def check_option_names(options: Iterable[str]) -> None:
    """Refuse options that nobody knows.

    Raises:
        SubscriptionError: names the nearest that is known.
    """
    for option in options:
        if option not in OPTIONS:
            msg = f"a subscription has no option {option!r}; {choices(option, OPTIONS)}"
            raise SubscriptionError(msg)


def check_event_type(event_type: object) -> None:
    """Refuse what is no event class."""
    if isinstance(event_type, type) and issubclass(event_type, Event):
        return
    msg = f"an event type must be a subclass of Event, got {event_type!r}"
    if isinstance(event_type, str):
        msg += f"; pass the class itself; {choices(event_type, [t.__name__ for t in MOUNT_POINTS.values()])}"
    if isinstance(event_type, type) and issubclass(event_type, type):
        msg = "an event must be an instance, got an event class; publish EventClass(...)"
    raise EventDefinitionError(msg)


def make_subscription(
    event_type: type[E],
    handler: Handler,
    order: int,
    on_cancel: Callable[[Subscription[Any]], None],
    *,
    priority: int | str | Priority = Priority.NORMAL,
    every: int = 1,
    once: bool = False,
    when: Callable[[E], object] | None = None,
    background: bool | Background | None = False,
    timeout: float | None = None,
    on_error: ErrorPolicy | None = None,
    name: str | None = None,
    is_pulled: bool = False,
) -> Subscription[E]:
    """Return a subscription with everything decided: lane, arguments, place in the order.

    Raises:
        SubscriptionError: an option does not fit.
        HandlerSignatureError: the handler asks for a name that the event does not offer.
        ConfigError: the priority is unknown.
    """
    check_event_type(event_type)
    _check_callable(handler, event_type)
    handler_name = name or _name_of(handler)
    options = background_options(background, handler_name)
    call = bind_arguments(handler, event_type, handler_name, with_live=options is None)
    lane = Lane.BACKGROUND if options is not None else Lane.AWAITED if is_async(handler) else Lane.INLINE
    _check_options(handler_name, may_time_out=is_async(handler), every=every, when=when, timeout=timeout)
    return Subscription(
        event_type,
        handler,
        name=handler_name,
        priority=get_priority(priority),
        order=order,
        lane=lane,
        call=call,
        every=every,
        once=once,
        when=when,
        timeout=timeout,
        on_error=_check_policy(handler_name, on_error, default="raise" if options is None else "log"),
        on_cancel=on_cancel,
        backlog=None if options is None else Backlog(options),
        is_pulled=is_pulled,
    )


def _check_callable(handler: object, event_type: type[Event]) -> None:
    """Refuse what cannot be called."""
    if not callable(handler):
        msg = f"a handler must be a function or a coroutine function, got {handler!r} for {event_type.__name__}"
        raise SubscriptionError(msg)


def _check_options(name: str, *, may_time_out: bool, every: Any, when: Any, timeout: Any) -> None:
    """Refuse options that do not fit, naming the handler."""
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        msg = f"{name}: every must be a whole number of at least 1, got {every!r}"
        raise SubscriptionError(msg)
    if when is not None and (not callable(when) or is_async(when)):
        msg = f"{name}: when must be a function of the event, got {when!r}"
        raise SubscriptionError(msg)
    if timeout is not None and not may_time_out:
        msg = f"{name}: timeout={timeout!r} limits coroutine functions only; a function runs to its end"
        raise SubscriptionError(msg)
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0):
        msg = f"{name}: timeout must be a positive number of seconds, got {timeout!r}"
        raise SubscriptionError(msg)


def _check_policy(name: str, on_error: str | None, default: ErrorPolicy) -> ErrorPolicy:
    """Return the error policy."""
    valid: tuple[ErrorPolicy, ...] = get_args(ErrorPolicy)
    for policy in valid:
        if on_error == policy:
            return policy
    if on_error is not None:
        msg = f"{name}: unknown on_error {on_error!r}; {choices(str(on_error), valid)}"
        raise SubscriptionError(msg)
    return default


def _name_of(handler: Any) -> str:
    """Return what a handler is called in plans, notes and logs."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    owner = getattr(handler, "__self__", None)
    if owner is not None and not isinstance(owner, type):
        return f"{type(owner).__name__}.{handler.__name__}"
    name = getattr(handler, "__qualname__", None) or type(handler).__name__
    return str(name).rpartition("<locals>.")[2]

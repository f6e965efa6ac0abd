"""Arguments by name: works out, once, how to call a handler with what its signature asks for."""

from __future__ import annotations

__all__ = ("CallPlan", "bind_arguments", "is_async", "offered_names")

import functools
import inspect
import typing
import weakref
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hookbus.errors import HandlerSignatureError, SubscriptionError, choices
from hookbus.events import Event
from hookbus.types import Handler

if TYPE_CHECKING:
    from hookbus.hub import MessageHub


@dataclass(frozen=True)
class CallPlan:
    """How to call one handler: source text of its arguments, and the live names they need."""

    arguments: str
    live_names: tuple[str, ...]

    def compiled(self, handler: Handler) -> Callable[[Event, MessageHub], Any]:
        """Return `handler` as a function of event and hub, for those who call it later and without live objects."""
        function: Callable[[Event, MessageHub], Any] = eval(f"lambda event, hub: handler({self.arguments})", {"handler": handler})
        return function


_method_plans: MutableMapping[Handler, MutableMapping[tuple[type[Event], bool], CallPlan]] = weakref.WeakKeyDictionary()
"""What was worked out for methods, by their functions: a hook is bound when it is checked and when it is added, in every run."""


def is_async(handler: Handler) -> bool:
    """Return whether calling `handler` gives a coroutine to be awaited."""
    return any(inspect.iscoroutinefunction(called) for called in _called(handler))


def _called(handler: Handler) -> tuple[Handler, Handler]:
    """Return what calling `handler` calls: itself, or the method of a callable object."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    return handler, type(handler).__call__


def offered_names(event_type: type[Event]) -> dict[str, str]:
    """Return every name that a handler of this event may ask for, with the source text that supplies it."""
    offered = {"event": "event", "hub": "hub"}
    mode = getattr(event_type, "mode", None)
    if isinstance(mode, str):
        offered["mode"] = repr(mode)
    offered |= {name: f"live_{name}" for name in event_type.live}
    return offered | {field: f"event.{field}" for field in event_type.__struct_fields__}


def bind_arguments(handler: Handler, event_type: type[Event], name: str, *, with_live: bool = True) -> CallPlan:
    """Work out how to call `handler` for events of `event_type`; without `with_live`, later and elsewhere.

    Raises:
        HandlerSignatureError: a required parameter has a name that the event does not offer.
        SubscriptionError: the handler has no readable signature, or is a generator.
    """
    function = getattr(handler, "__func__", None)
    if not inspect.isfunction(function):
        return _bind(handler, event_type, name, with_live=with_live)
    known = _method_plans.setdefault(function, {})
    if (event_type, with_live) not in known:
        known[event_type, with_live] = _bind(handler, event_type, name, with_live=with_live)
    return known[event_type, with_live]


def _bind(handler: Handler, event_type: type[Event], name: str, *, with_live: bool) -> CallPlan:
    if any(inspect.isasyncgenfunction(called) or inspect.isgeneratorfunction(called) for called in _called(handler)):
        msg = f"{name} is a generator function; a handler is a function or a coroutine function"
        raise SubscriptionError(msg)
    offered = offered_names(event_type)
    late = () if with_live else event_type.live
    offered = {name: source for name, source in offered.items() if name not in late}
    annotations = _annotations(handler)
    given = handler.keywords if isinstance(handler, functools.partial) else {}
    arguments: list[str] = []
    by_keyword = False
    for parameter in _parameters(handler, name):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        source = _source(parameter, annotations.get(parameter.name), event_type, offered)
        if parameter.name in given or (by_keyword and parameter.kind is parameter.POSITIONAL_ONLY):
            source = None  # given already, or cannot be given any more
        if source is None and parameter.default is parameter.empty:
            if parameter.name in late:
                raise HandlerSignatureError(_too_late(name, parameter.name, event_type, offered))
            raise HandlerSignatureError(_refusal(name, parameter.name, event_type, offered))
        if source is None or parameter.kind is parameter.KEYWORD_ONLY:
            by_keyword = True  # from the first one left out, the others go by keyword
        if source is not None:
            arguments.append(f"{parameter.name}={source}" if by_keyword else source)
    live_names = tuple(live for live in event_type.live if any(_is_value(f"live_{live}", given) for given in arguments))
    return CallPlan(", ".join(arguments), live_names)


def _is_value(source: str, given: str) -> bool:
    return given.rpartition("=")[2] == source


def _parameters(handler: Handler, name: str) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(handler).parameters.values())
    except (ValueError, TypeError):
        msg = f"{name} has no readable signature; wrap it: lambda event: ..."
        raise SubscriptionError(msg) from None


def _annotations(handler: Handler) -> dict[str, Any]:
    """Return the annotations, resolved where possible: one that only a type checker can see is not needed here."""
    function = handler.func if isinstance(handler, functools.partial) else handler
    function = function if inspect.isroutine(function) else type(function).__call__
    try:
        return typing.get_type_hints(function)
    except Exception:  # noqa: BLE001  annotations may hold anything; the others still count
        return {name: _resolved(function, annotation) for name, annotation in inspect.get_annotations(function).items()}


def _resolved(function: Handler, annotation: Any) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, getattr(inspect.unwrap(function), "__globals__", {}))
    except Exception:  # noqa: BLE001  the name of the parameter decides then
        return None


def _source(parameter: inspect.Parameter, annotation: Any, event_type: type[Event], offered: dict[str, str]) -> str | None:
    if isinstance(annotation, type) and issubclass(annotation, Event):
        if issubclass(event_type, annotation) or issubclass(annotation, event_type):
            return "event"
        return None
    return offered.get(parameter.name)


def _too_late(name: str, parameter: str, event_type: type[Event], offered: dict[str, str]) -> str:
    """Say why a background handler cannot have a live object."""
    return (
        f"{name} asks for {parameter!r}, a live object of {event_type.__name__}, but a background handler runs when training has "
        f"gone on; it may ask for {', '.join(offered)}, and for recorded values subscribe to ScalarsLanded"
    )


def _refusal(name: str, parameter: str, event_type: type[Event], offered: dict[str, str]) -> str:
    return f"{name} asks for {parameter!r}, which {event_type.__name__} does not offer; {choices(parameter, offered)}"

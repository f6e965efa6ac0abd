"""Which methods of a hook subscribe to which events, and the decorators that say so."""

from __future__ import annotations

__all__ = ("SHARED_METHODS", "HookMethod", "background", "every", "hook_methods", "on", "placeholder")

import difflib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar, overload

from hookbus.bus.background import Background, Overflow
from hookbus.bus.checks import check_event_type, check_option_names
from hookbus.errors import SubscriptionError, UnknownMountPoint, choices
from hookbus.events import MOUNT_POINTS, Event
from hookbus.registry import HOOK_ADAPTERS
from hookbus.types import Handler, HookLike

F = TypeVar("F", bound=Callable[..., Any])

_MARKS = "__hookbus_subscriptions__"
_EVERY = "__hookbus_every__"
_BACKGROUND = "__hookbus_background__"
_PLACEHOLDER = "__hookbus_placeholder__"
_ALIKE = 0.8
"""From this likeness on, a method name is taken for a misspelt mount point."""
SHARED_METHODS = {
    "_before_epoch": ("before_train_epoch", "before_val_epoch", "before_test_epoch"),
    "_after_epoch": ("after_train_epoch", "after_val_epoch", "after_test_epoch"),
    "_before_iter": ("before_train_iter", "before_val_iter", "before_test_iter"),
    "_after_iter": ("after_train_iter", "after_val_iter", "after_test_iter"),
}
"""Methods that stand for three mount points each; a method of the mount point itself goes first."""


class HookMethod(NamedTuple):
    """One subscription that a hook asks for."""

    event_type: type[Event]
    handler: Handler
    name: str
    options: dict[str, Any]


def on(event_type: type[Event], **options: Any) -> Callable[[F], F]:
    """Subscribe a hook's method to an event when the hook is added; takes the options of `EventBus.subscribe`."""
    check_event_type(event_type)
    check_option_names(options)

    def mark(method: F) -> F:
        marks = [*getattr(method, _MARKS, ()), (event_type, options)]
        setattr(method, _MARKS, marks)
        return method

    return mark


def every(n: int) -> Callable[[F], F]:
    """Call a hook's mount-point method only every `n` of what its event counts."""

    def mark(method: F) -> F:
        setattr(method, _EVERY, n)
        return method

    return mark


@overload
def background(method: F, /) -> F: ...
@overload
def background(*, maxsize: int = ..., overflow: Overflow = ..., block_timeout: float = ...) -> Callable[[F], F]: ...
def background(*given: Any, **options: Any) -> Any:
    """Let a hook's method observe in the background: `@background`, or `@background(maxsize=..., overflow=...)`.

    Raises:
        SubscriptionError: an option is unknown or does not fit.
    """
    if len(given) == 1 and callable(given[0]) and not options:
        setattr(given[0], _BACKGROUND, Background())
        return given[0]
    if given:
        msg = f"background takes options by name, got {given!r}; {choices('', Background.__dataclass_fields__)}"
        raise SubscriptionError(msg)
    for option in options:
        if option not in Background.__dataclass_fields__:
            msg = f"background has no option {option!r}; {choices(option, Background.__dataclass_fields__)}"
            raise SubscriptionError(msg)
    chosen = Background(**options)

    def mark(method: F) -> F:
        setattr(method, _BACKGROUND, chosen)
        return method

    return mark


def placeholder(method: F) -> F:
    """Mark a method of a base class that is there for `super()` alone: a hook that does not override it is not called there."""
    setattr(method, _PLACEHOLDER, True)
    return method


def hook_methods(hook: HookLike) -> list[HookMethod]:
    """Return the subscriptions that a hook asks for, in the order of the loop map.

    Raises:
        UnknownMountPoint: a method is nearly named like a mount point.
        SubscriptionError: it is a class instead of an instance, or has no method that could be called.
    """
    if isinstance(hook, type):
        msg = f"a hook must be an instance, got the class {hook.__name__}; add {hook.__name__}(...)"
        raise SubscriptionError(msg)
    found = [*_mount_points(hook), *_marked(hook)]
    if not found and not hasattr(hook, "priority"):
        msg = f"not a hook: {hook!r} has no method named after a mount point; {choices('', MOUNT_POINTS)}"
        raise SubscriptionError(msg)
    return found


def _mount_points(hook: HookLike) -> Iterator[HookMethod]:
    _refuse_near_misses(hook)
    owner = type(hook).__name__
    called = _adapted(hook)
    uses = getattr(called, "uses", None)
    for mount_point, event_type in MOUNT_POINTS.items():
        name = _method_for(called, mount_point)
        method = getattr(called, name, None) if name else None
        if method is None or hasattr(method, _MARKS) or (callable(uses) and not uses(mount_point)):
            continue
        yield HookMethod(event_type, method, f"{owner}.{name}", _own_options(method))


def _adapted(hook: HookLike) -> HookLike:
    """Return what is called in the place of a hook that was written for another library, else the hook itself."""
    bases = (f"{base.__module__}:{base.__qualname__}" for base in type(hook).__mro__)
    known = next((base for base in bases if base in HOOK_ADAPTERS), None)
    return hook if known is None else HOOK_ADAPTERS.get(known)(hook)


def _method_for(hook: HookLike, mount_point: str) -> str | None:
    """Return the name of the method that serves a mount point: its own, or a shared one."""
    shared = [name for name, mount_points in SHARED_METHODS.items() if mount_point in mount_points]
    return next((name for name in (mount_point, *shared) if _is_there(getattr(hook, name, None))), None)


def _is_there(method: object) -> bool:
    return callable(method) and not hasattr(method, _PLACEHOLDER)


def _marked(hook: HookLike) -> Iterator[HookMethod]:
    for name in dir(type(hook)):
        for event_type, options in getattr(getattr(type(hook), name, None), _MARKS, ()):
            method = getattr(hook, name)  # only now: a property must not be asked for its value
            yield HookMethod(event_type, method, f"{type(hook).__name__}.{name}", _own_options(method) | options)


def _own_options(method: Handler) -> dict[str, Any]:
    marks = {"every": _EVERY, "background": _BACKGROUND}
    return {option: getattr(method, mark) for option, mark in marks.items() if hasattr(method, mark)}


@functools.cache  # the names of methods are few, and each is compared with every mount point
def _misspelt(name: str) -> str | None:
    """Return the mount point that a name looks like."""
    near = difflib.get_close_matches(name, MOUNT_POINTS, n=1, cutoff=_ALIKE)
    return near[0] if near else None


def _refuse_near_misses(hook: HookLike) -> None:
    for name in dir(type(hook)):
        if name in MOUNT_POINTS or name.startswith("_") or hasattr(getattr(type(hook), name), _MARKS):
            continue
        near = _misspelt(name)
        if hasattr(getattr(type(hook), name), _EVERY):
            msg = f"{type(hook).__name__}.{name} is decorated with every, but it is no mount point; {choices(name, MOUNT_POINTS)}"
            raise UnknownMountPoint(msg)
        if near and callable(getattr(type(hook), name)):
            msg = f"{type(hook).__name__}.{name} is not a mount point; did you mean {near!r}?"
            raise UnknownMountPoint(f"{msg} valid choices: {', '.join(MOUNT_POINTS)}")

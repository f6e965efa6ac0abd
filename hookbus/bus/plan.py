"""The plan of one event type: its handlers in order, compiled into one function per way of publishing.

Dispatch is straight-line code, generated when the handlers of an event type change: each call stands there with
exactly the arguments its handler asked for, its filters before it and its error policy around it. Such code runs
within a few per cent of calling the handlers by hand, and a traceback through it reads like that, too.

```python
def emit(event, live):
    ...
    live_outputs = live["outputs"]
    try:
        if not (event.iter + 1) % 50:
            subscription_0.filtered_calls += 1
            handler_0(event, hub, live_outputs)
    except BaseException as error:
        end_in_failure(subscriptions, 0, error, event)
        raise
    cross(group_1, event, live)                 # neighbouring awaited handlers share one crossing
    ...
    put(event, number, listeners)               # one append for all background handlers
```

Each function exists twice, the second time with a clock around every call. Handlers of rare events are always timed, those of
steps now and then, so that their cost is known and costs next to nothing.
"""

from __future__ import annotations

__all__ = ("NESTING_LIMIT", "Nesting", "Plan", "Tools", "compile_plan")

import functools
import linecache
import sys
import time
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any, NamedTuple, NoReturn

import anyio

from hookbus.bus.around import Around, drive_around
from hookbus.bus.failures import FailureLog, end_in_failure, raise_all
from hookbus.bus.plan_source import NESTING_LIMIT, PlanSource, Subscriptions, blocks
from hookbus.bus.subscription import Counter, Lane, Subscription
from hookbus.errors import BusError, HandlerCancelled, PublishDepthExceeded, Skip
from hookbus.events import Event
from hookbus.hub import MessageHub
from hookbus.types import Live


class Nesting:
    """How many publishes of one bus are going on."""

    __slots__ = ("active",)

    def __init__(self) -> None:
        self.active = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """The handlers of one event type in order, ready to run."""

    event_type: type[Event]
    subscriptions: tuple[Subscription[Any], ...]
    emit: Callable[[Event, Live], Skip | None]
    timed_emit: Callable[[Event, Live], Skip | None]
    publish: Callable[[Event, Live], Awaitable[Skip | None]]
    namespace: dict[str, Any]
    """What the generated code sees."""

    @property
    def needs_loop(self) -> bool:
        """Whether a handler needs an event loop."""
        return any(subscription.lane is not Lane.INLINE for subscription in self.subscriptions)

    @property
    def has_to_wait(self) -> bool:
        """Whether the publisher waits for anything."""
        return any(subscription.lane is Lane.AWAITED or blocks(subscription) for subscription in self.subscriptions)


class Tools(NamedTuple):
    """What generated code calls."""

    cross: Callable[..., Skip | None]
    """Runs a group of awaited handlers on the event loop while the publisher waits; returns what it returned."""
    put: Callable[[Event, int, Subscriptions], None]
    """Leaves an event for background subscribers."""
    wait_for_room: Callable[[Subscriptions], None]
    """Waits until none of these has a full backlog."""
    await_room: Callable[[Subscriptions], Awaitable[None]]
    """Waits likewise, on the event loop."""


def compile_plan(
    event_type: type[Event],
    subscriptions: Subscriptions,
    counter: Counter,
    nesting: Nesting,
    hub: MessageHub,
    tools: Tools,
    failure_log: FailureLog,
    around: Around | None = None,
) -> Plan:
    """Generate the functions that run `subscriptions`, which are in order, for events of `event_type`."""
    listeners = tuple(subscription for subscription in subscriptions if subscription.lane is Lane.BACKGROUND)
    everybody, subscriptions = subscriptions, tuple(s for s in subscriptions if s.lane is not Lane.BACKGROUND)
    source = PlanSource(event_type, subscriptions, listeners, is_surrounded=around is not None)
    filename = f"<hookbus plan of {event_type.__name__}, {zlib.crc32(source.text.encode()):08x}>"  # equal texts share one
    namespace: dict[str, Any] = {
        "counter": counter,
        "nesting": nesting,
        "hub": hub,
        "cross": tools.cross,
        "put": tools.put,
        "wait_for_room": tools.wait_for_room,
        "await_room": tools.await_room,
        "listeners": listeners,
        "blockers": tuple(filter(blocks, listeners)),
        "around": around,
        "drive_around": drive_around,
        "clock": time.perf_counter,
        "subscriptions": tuple(subscriptions),
        "Skip": Skip,
        "check_depth": _check_depth,
        "end_in_failure": end_in_failure,
        "fail_after": anyio.fail_after,
        "keep": _keep,
        "lacks": _lacks,
        "log_failure": failure_log.take,
        "miss": _miss,
        "raise_all": raise_all,
    }
    for index, subscription in enumerate(subscriptions):
        namespace[f"handler_{index}"] = subscription.handler
        namespace[f"subscription_{index}"] = subscription
        namespace[f"when_{index}"] = subscription.when
        namespace[f"timeout_{index}"] = subscription.timeout
    linecache.cache[filename] = (len(source.text), None, source.text.splitlines(keepends=True), filename)
    exec(_compiled(source.text, filename), namespace)  # our own text, made of checked names
    for group in source.groups:
        namespace[f"group_{group[0]}"].members = tuple(subscriptions[index] for index in group)
    return Plan(
        event_type,
        tuple(everybody),
        emit=namespace["emit"],
        timed_emit=namespace["timed_emit"],
        publish=namespace["publish"],
        namespace=namespace,
    )


@functools.lru_cache(maxsize=512)  # runs that are made alike in one process have the same plans
def _compiled(text: str, filename: str) -> CodeType:
    return compile(text, filename, "exec")


def _miss(subscriptions: Subscriptions, index: int) -> None:
    for later in subscriptions[index + 1 :]:
        later.missed += 1


def _keep(errors: list[BaseException], error: BaseException, later: Subscriptions) -> None:
    """Keep the error of an awaited handler for the end of the publish, unless the deadline for all of them has passed."""
    if isinstance(error, Exception):
        errors.append(error)
    elif anyio.current_effective_deadline() == float("-inf"):
        _miss(later, -1)
        raise error
    elif isinstance(error, anyio.get_cancelled_exc_class()):
        stray = HandlerCancelled("a handler was cancelled, but not by its run")
        stray.__cause__ = error
        errors.append(stray)
    else:
        errors.append(error)


def _lacks(event: Event, live: Live, missing: KeyError, subscriptions: Subscriptions) -> NoReturn:
    _miss(subscriptions, -1)
    msg = f"{type(event).__name__} was published without the live object {missing.args[0]!r} that a handler asks for"
    raise BusError(f"{msg}; it came with: {', '.join(live) or '(none)'}") from None


def _check_depth(event: Event, subscriptions: Subscriptions) -> None:
    """Refuse a publish that is nested too deep; many side by side on one event loop are not."""
    frame: FrameType | None = sys._getframe(1)
    depth = 0
    while frame is not None:
        if frame.f_code.co_filename.startswith("<hookbus plan of") and frame.f_code.co_name in ("emit", "timed_emit", "publish"):
            depth += 1
        frame = frame.f_back
    if depth > NESTING_LIMIT:
        _miss(subscriptions, -1)
        msg = f"{type(event).__name__} is published inside {NESTING_LIMIT} other publishes; does a handler cause itself?"
        raise PublishDepthExceeded(msg)

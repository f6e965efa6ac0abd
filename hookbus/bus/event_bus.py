"""The event bus.

For one publish, handlers run in ascending priority, ties in the order of subscription, sync and async in one order.
Each subscription that was active when the publish began gets the event exactly once; one added or cancelled
meanwhile takes effect from the next publish. A publish inside a handler runs to its end first.

Background handlers stand outside of that order: at the end of a publish the event is left for them in an outbox.
"""

from __future__ import annotations

__all__ = ("EventBus",)

import functools
import logging
import time
from _thread import get_ident
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NoReturn, cast

from hookbus._named import NamedInstances, check_name
from hookbus.bus.around import Around
from hookbus.bus.checks import check_event_type
from hookbus.bus.costs import CostWatch
from hookbus.bus.hosting import Hosting
from hookbus.bus.plan import Nesting, Plan, Tools, compile_plan
from hookbus.bus.subscription import Counter, LateCounter
from hookbus.errors import BusNotEntered, Skip, WrongThread
from hookbus.events import Event, IterEvent, StepEvent
from hookbus.hub import MessageHub
from hookbus.mailbox import Acknowledgement
from hookbus.types import Backend, Live

_NO_LIVE: Live = MappingProxyType({})


class EventBus(Hosting):
    """Hands typed events to handlers in the order of their priorities.

    It works at once for inline handlers. Awaited and background handlers need an event loop: `with bus:` starts one on a
    thread of its own, `async with bus:` uses the caller's, and a run brings its own.

    Args:
        name: letters, digits, dots, dashes and underscores.
        hub: the message hub that handlers get as `hub`; one of the same name where left out.
        backend: the event loop that `with bus:` starts.
        cost_warning: share of the step from which an awaited handler is named in the log.
        stall_timeout: seconds without an answer of the event loop after which `BusStalled` is raised.
        drain_timeout: seconds that background handlers get to come to an end when the bus is left, or before a save.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        hub: MessageHub | None = None,
        backend: Backend = "asyncio",
        cost_warning: float = 0.1,
        stall_timeout: float = 60.0,
        drain_timeout: float = 30.0,
    ) -> None:
        super().__init__(backend)
        self.stall_timeout = stall_timeout
        self.drain_timeout = drain_timeout
        self.name = "hookbus" if name is None else check_name(name, "the name of an event bus")
        self._hub = hub if hub is not None else MessageHub(self.name)
        self._plans: dict[type[Event], Plan] = {}
        self._emitters: dict[type[Event], Callable[[Event, Live], Skip | None]] = {}
        """What runs the next publish of each event type."""
        self._is_timing = False
        self._around: Around | None = None
        self._occupied: dict[type[Event], bool] = {}
        self._nesting = Nesting()
        self._costs = CostWatch(cost_warning)
        self._tools = Tools(self._cross, self._outbox.put, self._wait_for_room, self._await_room)
        self._is_shared = False
        """Whether somebody asked for it by name."""

    def __repr__(self) -> str:
        return f"<EventBus {self.name!r}: {len(self._subscriptions)} subscriptions>"

    # --- finding buses ------------------------------------------------------------------------------------------------

    @classmethod
    def get_instance(cls, name: str) -> EventBus:
        """Return the bus of that name; it is made, and held for the run to come, where there is none."""
        bus = _buses.get(check_name(name, "the name of an event bus"), lambda: cls(name))
        bus._is_shared = True
        return bus

    @classmethod
    def for_run(cls, name: str) -> EventBus:
        """Return the bus for a new run of that name: the one that somebody asked for by name, or a fresh one.

        So what was subscribed by name hears every run of that name, and what was subscribed to `runner.bus` its own.
        """
        return _buses.adopt(
            check_name(name, "experiment_name"),
            lambda: cls(name),
            is_free=lambda bus: bus._is_shared and bus._host is None,
            is_live=lambda bus: bus._host is not None,
        )

    def be_found(self) -> None:
        """Be the bus that `get_instance` finds by this name from now on."""
        _buses.register(self.name, self)

    @property
    def hub(self) -> MessageHub:
        """The message hub that handlers get as `hub`."""
        return self._hub

    @hub.setter
    def hub(self, hub: MessageHub) -> None:
        with self._lock:
            self._hub = hub
            self._forget_plans()
            if self._host is not None:
                self._host.pump.hub = hub

    def log_to(self, logger: logging.Logger | None) -> None:
        """Report failures that are only logged, and dear handlers, to this logger; None goes back to `hookbus`."""
        self._failure_log.logger = self._costs.logger = logger or logging.getLogger("hookbus")

    # --- publishing ---------------------------------------------------------------------------------------------------

    def has_subscribers(self, event_type: type[Event]) -> bool:
        """Return whether anybody hears events of that type; one look-up."""
        try:
            return self._occupied[event_type]
        except KeyError:
            return bool(self._plan(event_type).subscriptions)

    def _forget_plans(self) -> None:
        for plan in self._plans.values():
            counter = self._counters[plan.event_type]
            plan.namespace["counter"] = LateCounter(counter, functools.partial(self._count_late, plan, counter))
        self._plans, self._emitters, self._occupied = {}, {}, {}

    def _count_late(self, plan: Plan, counter: Counter) -> None:
        """Count a publish with handlers that are no longer the newest: for those, and for nobody else."""
        with self._lock:
            counter.published += 1
            for subscription in plan.subscriptions:
                subscription.count_late()
            for subscription in self._subscriptions:
                if subscription not in plan.subscriptions:
                    subscription.shift_count(plan.event_type, 1)

    def _plan(self, event_type: type[Event]) -> Plan:
        """Return the plan of an event type, compiled where it is not."""
        with self._lock:
            plan = self._plans.get(event_type)
            if plan is None:
                check_event_type(event_type)
                counter = self._counters.setdefault(event_type, Counter())
                heard = [s for s in self._subscriptions if issubclass(event_type, s.event_type)]
                for subscription in heard:
                    subscription.count_from(event_type, counter)
                plan = compile_plan(
                    event_type, heard, counter, self._nesting, self._hub, self._tools, self._failure_log, self._around
                )
                if not self._can_emit(plan):
                    plan = replace(plan, emit=self._refuse_to_emit, timed_emit=self._refuse_to_emit)
                self._plans[event_type] = plan
                is_timed = self._is_timing or not issubclass(event_type, IterEvent | StepEvent)
                self._emitters[event_type] = plan.timed_emit if is_timed else plan.emit
                self._occupied[event_type] = bool(heard)
            return plan

    def _can_emit(self, plan: Plan) -> bool:
        """Return whether the thread that owns the bus can do what a plan needs."""
        if self._host is None:
            return not plan.needs_loop
        return not (self._host.on_own_loop and plan.has_to_wait)

    def _restart_costs(self) -> None:
        self._costs.restart()

    def emit(self, event: Event, live: Live = _NO_LIVE) -> Skip | None:
        """Publish from the thread that owns the bus; return when every handler is done.

        Returns the `Skip` of a handler that vetoed what a skippable event announces, else None.

        Raises:
            WrongThread: this is not the thread that owns the bus; use `publish` or `post`.
            BusNotEntered: awaited or background handlers subscribe, and there is no event loop for them.
            PublishDepthExceeded: publishes are nested too deep.
        """
        if self._thread_id is not None and get_ident() != self._thread_id:
            raise WrongThread(_not_here("emit", event, self.name))
        try:  # costs nothing where it succeeds, unlike asking first
            emitter = self._emitters[type(event)]
        except KeyError:
            plan = self._plan(type(event))  # and not the table again: another thread may have emptied it meanwhile
            emitter = plan.emit if isinstance(event, IterEvent | StepEvent) and not self._is_timing else plan.timed_emit
        return emitter(event, live)

    def publish(self, event: Event, live: Live = _NO_LIVE) -> Awaitable[Skip | None]:
        """Publish from a coroutine: `await bus.publish(event)` returns when every handler is done.

        On the bus of a run, the training thread emits the event at its next safe point.

        Raises:
            WrongThread: the bus was entered on another event loop; use `post`.
            BusNotEntered: awaited handlers subscribe, and there is no event loop for them.
        """
        host = self._host
        if host is not None and not host.on_own_loop:
            return self.post(event, live)
        if self._thread_id is not None and get_ident() != self._thread_id:
            raise WrongThread(_not_here("publish", event, self.name))
        plan = self._plans.get(type(event)) or self._plan(type(event))
        if host is None and plan.needs_loop:
            raise BusNotEntered(_not_entered(event))
        return plan.publish(event, live)

    def post(self, event: Event, live: Live = _NO_LIVE) -> Acknowledgement[Skip | None]:
        """Publish from any thread: returns at once an acknowledgement that may be awaited or waited for.

        Raises:
            BusNotEntered: nobody owns the bus who could publish the event.
        """
        if self._host is None:
            raise BusNotEntered(_not_entered(event))
        return self._host.post(
            lambda: self.emit(event, live),
            lambda: self._plan(type(event)).publish(event, live),
            f"the publish of {type(event).__name__}",
        )

    def _refuse_to_emit(self, event: Event, live: Live) -> NoReturn:
        """Stand in for a plan whose awaited handlers cannot be waited for, before any of its handlers has run."""
        if self._host is None:
            raise BusNotEntered(_not_entered(event))
        msg = "emit cannot run awaited handlers on the event loop it would have to wait for; use: await bus.publish(event)"
        raise WrongThread(msg)

    def _cross(self, group: Callable[..., Awaitable[Any]], *arguments: Any, closing: bool = False) -> Skip | None:
        """Run a group of awaited handlers on the event loop while the publisher waits."""
        if self._host is None:
            raise BusNotEntered(_not_entered(arguments[0]))
        started = time.perf_counter()
        try:
            return cast("Skip | None", self._host.cross(group, *arguments, closing=closing))
        finally:
            self._costs.note_crossing(group, time.perf_counter() - started)

    # --- timing -------------------------------------------------------------------------------------------------------

    def time_steps(self, is_timing: bool) -> None:
        """Time the handlers of steps, too, or no longer; those of rarer events always are."""
        if self._is_timing != is_timing:
            with self._lock:
                self._is_timing = is_timing
                for event_type, plan in self._plans.items():
                    if issubclass(event_type, IterEvent | StepEvent):
                        self._emitters[event_type] = plan.timed_emit if is_timing else plan.emit

    @property
    def around(self) -> Around | None:
        """Gives a context manager around each call of an inline or awaited handler, around each step of a coroutine."""
        return self._around

    @around.setter
    def around(self, around: Around | None) -> None:
        with self._lock:
            self._around = around
            self._forget_plans()


def _not_here(verb: str, event: Event, bus: str) -> str:
    name = type(event).__name__
    return (
        f"{verb}({name}) was called on a thread that does not own the event bus {bus!r}; "
        f"use: await bus.publish({name}(...)) in a coroutine of its loop, bus.post({name}(...)) anywhere else"
    )


def _not_entered(event: Event) -> str:
    how = "enter the bus (with bus: or async with bus:)"
    return f"{type(event).__name__} needs an event loop for its awaited or background handlers: {how}"


_buses: NamedInstances[EventBus] = NamedInstances()

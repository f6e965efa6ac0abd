"""The event bus.

For one publish, handlers run in ascending priority, ties in the order of subscription, sync and async in one order.
Each subscription that was active when the publish began gets the event exactly once; one added or cancelled
meanwhile takes effect from the next publish. A publish inside a handler runs to its end first.

Where the background lane will stand: a third `Lane`, whose subscriptions `compile_plan` turns into one append to an
outbox at the head of the generated function; nothing else in here has to change.
"""

from __future__ import annotations

__all__ = ("EventBus",)

import functools
import logging
import sys
import threading
import time
from _thread import get_ident
from bisect import insort
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from itertools import count
from types import MappingProxyType, TracebackType
from typing import Any, NoReturn, TextIO, TypeVar, cast

import anyio
import anyio.abc

from hookbus._named import NamedInstances, check_name
from hookbus.bus.checks import check_event_type, check_option_names, make_subscription
from hookbus.bus.costs import CostWatch
from hookbus.bus.explain import PlanEntry, describe_plans
from hookbus.bus.failures import FailureLog
from hookbus.bus.hook_methods import hook_methods
from hookbus.bus.hook_subscriptions import HookSubscriptions
from hookbus.bus.host import CallersLoop, Host, OwnThread
from hookbus.bus.plan import Nesting, Plan, compile_plan
from hookbus.bus.subscription import Counter, ErrorPolicy, LateCounter, Subscription, SubscriptionStats
from hookbus.errors import BusError, BusNotEntered, Skip, WrongThread
from hookbus.events import MOUNT_POINTS, Event, MountPoint
from hookbus.hub import MessageHub
from hookbus.mailbox import Acknowledgement
from hookbus.priority import Priority, get_priority
from hookbus.types import Backend, Handler, HookLike, Live

E = TypeVar("E", bound=Event)
F = TypeVar("F", bound=Handler)

_NO_LIVE: Live = MappingProxyType({})


class EventBus:
    """Hands typed events to handlers in the order of their priorities.

    It works at once for inline handlers. Awaited handlers need an event loop: `with bus:` starts one on a thread of
    its own, `async with bus:` uses the caller's, and a run brings its own.

    Args:
        name: letters, digits, dots, dashes and underscores.
        hub: the message hub that handlers get as `hub`; one of the same name where left out.
        backend: the event loop that `with bus:` starts.
        cost_warning: share of the step from which an awaited handler is named in the log.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        hub: MessageHub | None = None,
        backend: Backend = "asyncio",
        cost_warning: float = 0.1,
    ) -> None:
        self.name = "hookbus" if name is None else check_name(name, "the name of an event bus")
        self._hub = hub if hub is not None else MessageHub(self.name)
        self._backend: Backend = backend
        self._lock = threading.RLock()
        self._order = count()
        self._early = count(-sys.maxsize)
        self._subscriptions: list[Subscription[Any]] = []
        self._counters: dict[type[Event], Counter] = {}
        self._plans: dict[type[Event], Plan] = {}
        self._emitters: dict[type[Event], Callable[[Event, Live], Skip | None]] = {}
        self._occupied: dict[type[Event], bool] = {}
        self._nesting = Nesting()
        self._costs = CostWatch(cost_warning)
        self._failure_log = FailureLog()
        self._is_shared = False
        """Whether somebody asked for it by name."""
        self._host: Host | None = None
        self._thread_id: int | None = None
        self._tasks: anyio.abc.TaskGroup | None = None

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

    def log_to(self, logger: logging.Logger | None) -> None:
        """Report failures that are only logged, and dear handlers, to this logger; None goes back to `hookbus`."""
        self._failure_log.logger = self._costs.logger = logger or logging.getLogger("hookbus")

    # --- subscribing --------------------------------------------------------------------------------------------------

    def subscribe(
        self,
        event_type: type[E],
        handler: Handler,
        *,
        priority: int | str | Priority = Priority.NORMAL,
        every: int = 1,
        once: bool = False,
        when: Callable[[E], object] | None = None,
        background: bool = False,
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
            background: not available yet.
            timeout: seconds that a coroutine function may take.
            on_error: `"raise"` (the default) ends the publish and the run with the error; `"log"` logs and goes on.
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

    def has_subscribers(self, event_type: type[Event]) -> bool:
        """Return whether anybody hears events of that type; one look-up."""
        try:
            return self._occupied[event_type]
        except KeyError:
            return bool(self._plan(event_type).subscriptions)

    def _remove(self, subscription: Subscription[Any]) -> None:
        with self._lock:  # two threads may cancel at once
            if subscription.active:
                self._subscriptions.remove(subscription)
                self._forget_plans()
                subscription.end()

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
                plan = compile_plan(event_type, heard, counter, self._nesting, self._hub, self._cross, self._failure_log)
                if plan.has_awaited and (self._host is None or self._host.on_own_loop):
                    plan = replace(plan, emit=self._refuse_to_emit)
                self._plans[event_type] = plan
                self._emitters[event_type] = plan.emit
                self._occupied[event_type] = bool(heard)
            return plan

    # --- publishing ---------------------------------------------------------------------------------------------------

    def emit(self, event: Event, live: Live = _NO_LIVE) -> Skip | None:
        """Publish from the thread that owns the bus; return when every handler is done.

        Returns the `Skip` of a handler that vetoed what a skippable event announces, else None.

        Raises:
            WrongThread: this is not the thread that owns the bus; use `publish` or `post`.
            BusNotEntered: awaited handlers subscribe, and there is no event loop for them.
            PublishDepthExceeded: publishes are nested too deep.
        """
        if self._thread_id is not None and get_ident() != self._thread_id:
            raise WrongThread(_not_here("emit", event, self.name))
        try:  # costs nothing where it succeeds, unlike asking first
            emitter = self._emitters[type(event)]
        except KeyError:
            emitter = self._plan(type(event)).emit
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
        if host is None and plan.has_awaited:
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

    # --- looking ------------------------------------------------------------------------------------------------------

    def plan(self, event_type: type[Event]) -> tuple[PlanEntry, ...]:
        """Return the handlers of an event type in the order in which they run."""
        return tuple(PlanEntry.of(subscription) for subscription in self._plan(event_type).subscriptions)

    def describe(self) -> str:
        """Return the plans of all events that anybody hears, as text."""
        with self._lock:
            types = dict.fromkeys([*MOUNT_POINTS.values(), *self._counters])
            for subscription in self._subscriptions:
                if not any(issubclass(event_type, subscription.event_type) for event_type in types):
                    types[subscription.event_type] = None
        return describe_plans((event_type, self.plan(event_type)) for event_type in types)

    def explain(self, file: TextIO | None = None) -> None:
        """Print who hears what, in order."""
        print(self.describe(), file=file or sys.stdout)

    def stats(self) -> list[SubscriptionStats]:
        """Return the counts of every subscription, in order."""
        with self._lock:
            return [subscription.stats() for subscription in self._subscriptions]

    def state_dict(self) -> dict[str, Any]:
        """Return what `every=` counts for events that count their publishes."""
        with self._lock:
            return {"published": {_tag(t): c.published for t, c in self._counters.items() if _counts_publishes(t)}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on counting where a saved bus stood."""
        for event_type in _all_event_types(Event):
            published = state_dict["published"].get(_tag(event_type))
            if published is not None and _counts_publishes(event_type):
                with self._lock:
                    counter = self._counters.setdefault(event_type, Counter())
                    for subscription in self._subscriptions:
                        subscription.shift_count(event_type, published - counter.published)
                    counter.published = published

    # --- entering -----------------------------------------------------------------------------------------------------

    def enter(self, host: Host) -> None:
        """Give the bus to a host, which from now on owns it.

        Raises:
            BusError: it has one already.
        """
        with self._lock:
            if self._host is not None:
                msg = f"the event bus {self.name!r} is in use: a run or a with block owns it until it ends"
                raise BusError(msg)
            self._host, self._thread_id = host, host.thread_id
            self._forget_plans()  # whether emit can wait for awaited handlers depends on the host
            self._costs.restart()

    def leave(self) -> None:
        """Take the bus back from its host."""
        with self._lock:
            self._host = self._thread_id = None
            self._forget_plans()

    def __enter__(self) -> EventBus:
        host = OwnThread(self._hub, self._backend)
        self.enter(host)
        try:
            host.start()
        except BaseException:
            self.leave()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert isinstance(self._host, OwnThread)
        try:
            self._host.stop()
        finally:
            self.leave()

    async def __aenter__(self) -> EventBus:
        tasks = anyio.create_task_group()
        await tasks.__aenter__()
        try:
            self.enter(CallersLoop(tasks))
        except BaseException:
            tasks.cancel_scope.cancel()
            await tasks.__aexit__(None, None, None)
            raise
        self._tasks = tasks
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._tasks is not None
        assert isinstance(self._host, CallersLoop)
        host, tasks, self._tasks = self._host, self._tasks, None
        try:
            if error is None:
                await host.finish()
        finally:
            self.leave()
            host.stop()
            await tasks.__aexit__(None, None, None)  # the body's own error goes on as itself, not in a group


def _not_here(verb: str, event: Event, bus: str) -> str:
    name = type(event).__name__
    return (
        f"{verb}({name}) was called on a thread that does not own the event bus {bus!r}; "
        f"use: await bus.publish({name}(...)) in a coroutine of its loop, bus.post({name}(...)) anywhere else"
    )


def _not_entered(event: Event) -> str:
    return f"{type(event).__name__} needs an event loop for its awaited handlers: enter the bus (with bus: or async with bus:)"


def _counts_publishes(event_type: type[Event]) -> bool:
    """Return whether `every=` counts the publishes of an event, over all starts of a run."""
    return event_type.counted is None and not issubclass(event_type, MountPoint)


def _tag(event_type: type[Event]) -> str:
    return str(event_type.__struct_config__.tag)


def _all_event_types(base: type[Event]) -> Iterator[type[Event]]:
    for event_type in base.__subclasses__():
        yield event_type
        yield from _all_event_types(event_type)


_buses: NamedInstances[EventBus] = NamedInstances()

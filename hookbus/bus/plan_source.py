"""The text of a plan's functions: straight-line code with one call after the other.

Each function is written twice, the second time with a clock around every inline call.
"""

from __future__ import annotations

__all__ = ("NESTING_LIMIT", "PlanSource", "Subscriptions", "blocks")

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hookbus.bus.subscription import Lane, Subscription
from hookbus.events import Event

NESTING_LIMIT = 32
"""How deep publishes may be nested in handlers."""

Subscriptions = Sequence[Subscription[Any]]


class PlanSource:
    """Writes the text of a plan's functions."""

    def __init__(
        self, event_type: type[Event], subscriptions: Subscriptions, listeners: Subscriptions, *, is_surrounded: bool
    ) -> None:
        self._event_type = event_type
        self._subscriptions = subscriptions
        self._listeners = listeners
        self._is_surrounded = is_surrounded
        """Whether each call is made inside a context manager."""
        self._is_timed = False
        self._lines: list[str] = []
        steps = list(_groups(subscriptions))
        self.groups = [step for step in steps if subscriptions[step[0]].lane is Lane.AWAITED]
        """The places of awaited handlers that share a crossing."""
        for group in self.groups:
            self._write_group(group)
        self._write_function("emit", lambda: self._write_emit_body(steps))
        self._write_function("publish", self._write_publish_body, prefix="async ")
        self._is_timed = True
        self._write_function("timed_emit", lambda: self._write_emit_body(steps))
        self.text = "\n".join(self._lines) + "\n"

    def _add(self, depth: int, *lines: str) -> None:
        self._lines += [f"{'    ' * depth}{line}" for line in lines]

    def _write_function(self, name: str, write_body: Callable[[], None], prefix: str = "") -> None:
        self._add(0, f"{prefix}def {name}(event, live):")
        if not self._subscriptions and not self._listeners:
            self._add(1, "counter.published += 1")
            return
        self._add(1, "counter.published = number = counter.published + 1")
        if not self._subscriptions:
            self._write_put(1)
            self._write_wait_for_room(waits_by_await=bool(prefix))
            return
        self._add(1, "nesting.active = depth = nesting.active + 1")
        self._add(1, "try:")
        self._add(2, f"if depth > {NESTING_LIMIT}:", "    check_depth(event, subscriptions)")
        self._write_live_names(2, range(len(self._subscriptions)), sync_only=not prefix)
        if self._event_type.closing:
            self._add(2, "errors = []")
        write_body()
        self._add(1, "finally:", "    nesting.active -= 1")
        depth = 2 if self._listeners else 1  # they hear what failed, too, and find in the hub what was written
        if self._event_type.commits:
            self._add(depth, "if hub.dirty:", "    hub.commit()")
        self._write_put(depth)
        self._write_wait_for_room(waits_by_await=bool(prefix))
        if self._event_type.closing:
            self._add(1, "raise_all(errors)")

    def _write_put(self, depth: int) -> None:
        if self._listeners:
            self._add(depth, "put(event, number, listeners)")

    def _write_wait_for_room(self, *, waits_by_await: bool) -> None:
        """Write the wait for slow subscribers; after a publish that went well, so that no error is held up."""
        if any(map(blocks, self._listeners)):
            self._add(1, "await await_room(blockers)" if waits_by_await else "wait_for_room(blockers)")

    def _write_live_names(self, depth: int, indexes: Sequence[int], *, sync_only: bool) -> None:
        needed = {
            name: None
            for index in indexes
            for name in self._subscriptions[index].call.live_names
            if not (sync_only and self._subscriptions[index].lane is Lane.AWAITED)
        }
        if needed:
            self._add(depth, "try:", *(f"    live_{name} = live[{name!r}]" for name in needed))
            self._add(depth, "except KeyError as missing:")
            self._add(depth + 1, f"lacks(event, live, missing, subscriptions[{indexes[0]}:])")

    def _write_emit_body(self, steps: list[list[int]]) -> None:
        for step in steps:
            if step in self.groups:
                self._write_crossing(step)
            else:
                self._write_call(2, step[0])

    def _write_publish_body(self) -> None:
        for index in range(len(self._subscriptions)):
            self._write_call(2, index)

    def _write_call(self, depth: int, index: int, *, guarded: bool = True, group: Sequence[int] = ()) -> None:
        """Write one handler's call, its filters before it, its error policy around it."""
        subscription = self._subscriptions[index]
        guard = self._guard(index) if guarded else ""
        body = depth + 1 + bool(guard)
        is_timed = self._is_timed and subscription.lane is Lane.INLINE
        if group or is_timed:
            self._add(depth, "started = clock()")
        self._add(depth, "try:")
        if guard:
            self._add(depth + 1, f"if {guard}:")
        if subscription.is_filtered:
            self._add(body, f"subscription_{index}.filtered_calls += 1")
        if subscription.once and guarded:
            self._write_spending(body, index)
        self._add(body, *_call_lines(subscription, index, is_surrounded=self._is_surrounded))
        if is_timed:
            self._add(body, f"subscription_{index}.note_time(clock() - started)")
        self._write_policy(depth, index, group)
        if group:
            self._add(depth, f"subscription_{index}.took = clock() - started")

    def _write_spending(self, depth: int, index: int) -> None:
        self._add(depth, f"subscription_{index}.spent = True", f"subscription_{index}.cancel()")

    def _write_policy(self, depth: int, index: int, group: Sequence[int] = ()) -> None:
        """Write what happens when the handler above raises."""
        if self._event_type.skippable:
            self._add(depth, "except Skip as skip:", f"    miss(subscriptions, {index})", "    return skip")
        if self._subscriptions[index].on_error == "log":
            self._add(depth, "except Exception as error:", f"    log_failure(subscription_{index}, error, event)")
        if self._event_type.closing:
            self._add(depth, "except BaseException as error:", f"    end_in_failure(subscriptions[:{index + 1}],")
            self._lines[-1] += f" {index}, error, event)"
            late = f"keep(errors, error, subscriptions[{index + 1}:{group[-1] + 1}])" if group else "errors.append(error)"
            self._add(depth, f"    {late}")
        else:
            self._add(depth, "except BaseException as error:")
            self._add(depth, f"    end_in_failure(subscriptions, {index}, error, event)", "    raise")

    def _guard(self, index: int) -> str:
        """Return the condition under which a handler is called; empty where there is none."""
        subscription = self._subscriptions[index]
        conditions = []
        if subscription.once:
            conditions.append(f"not subscription_{index}.spent")
        if subscription.every > 1:
            conditions.append(f"not ({self._counted()}) % {subscription.every}")
        if subscription.when is not None:
            conditions.append(f"when_{index}(event)")
        return " and ".join(conditions)

    def _counted(self) -> str:
        if self._event_type.counted is None:
            return "number"
        field, offset = self._event_type.counted
        return f"event.{field} + {offset}"

    def _write_group(self, group: list[int]) -> None:
        """Write the coroutine function of neighbouring awaited handlers."""
        errors = ", errors" if self._event_type.closing else ""
        self._add(0, f"async def group_{group[0]}(event, live, number{errors}):")
        self._write_live_names(1, group, sync_only=False)
        for index in group:
            self._write_call(1, index, guarded=len(group) > 1, group=group)

    def _write_crossing(self, group: list[int]) -> None:
        """Write the step at which the training thread waits for a group."""
        guards = [self._guard(index) for index in group]
        depth = 2
        if self._subscriptions[group[0]].when is not None:  # it stands alone, and its condition may raise
            self._add(2, "due = False", "try:", f"    due = {guards[0]}")
            self._write_policy(2, group[0])
            guards = ["due"]
        if all(guards):
            self._add(2, f"if {' or '.join(guards)}:")
            depth = 3
        for index in group:
            if self._subscriptions[index].once:
                self._write_spending(depth, index)
        if self._event_type.closing:
            self._add(depth, "try:", f"    cross(group_{group[0]}, event, live, number, errors, closing=True)")
            self._add(depth, "except BaseException as error:", "    errors.append(error)")
        else:
            self._add(depth, f"skip = cross(group_{group[0]}, event, live, number)")
            if self._event_type.skippable:
                self._add(depth, "if skip is not None:", "    return skip")


def _groups(subscriptions: Subscriptions) -> Iterator[list[int]]:
    """Yield inline handlers alone and neighbouring awaited ones together.

    One with `once` or `when` crosses alone, because the publisher evaluates those before it decides to cross.
    """
    group: list[int] = []
    for index, subscription in enumerate(subscriptions):
        alone = subscription.lane is Lane.INLINE or subscription.once or subscription.when is not None
        if alone and group:
            yield group
            group = []
        if alone:
            yield [index]
        else:
            group.append(index)
    if group:
        yield group


def blocks(subscription: Subscription[Any]) -> bool:
    """Return whether a publisher waits where more events come than may wait for this subscriber."""
    return subscription.backlog is not None and subscription.backlog.options.overflow == "block"


def _call_lines(subscription: Subscription[Any], index: int, *, is_surrounded: bool) -> list[str]:
    call = f"handler_{index}({subscription.call.arguments})"
    if subscription.lane is Lane.INLINE:
        return [f"with around(subscription_{index}):", f"    {call}"] if is_surrounded else [call]
    if is_surrounded:
        call = f"drive_around(around, subscription_{index}, {call})"
    if subscription.timeout is None:
        return [f"await {call}"]
    return [f"with fail_after(timeout_{index}):", f"    await {call}"]

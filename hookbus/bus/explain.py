"""The ordered plans of a bus, as data and as text for people."""

from __future__ import annotations

__all__ = ("PlanEntry", "describe_plans")

from collections.abc import Iterable
from typing import Any

import msgspec

from hookbus.bus.subscription import ErrorPolicy, Subscription
from hookbus.events import Event
from hookbus.priority import Priority

_NAMES = {int(priority): priority.name for priority in Priority}


class PlanEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One handler in the plan of an event type."""

    name: str
    priority: int
    lane: str
    every: int
    once: bool
    has_condition: bool
    timeout: float | None
    on_error: ErrorPolicy

    @classmethod
    def of(cls, subscription: Subscription[Any]) -> PlanEntry:
        """Describe a subscription."""
        return cls(
            name=subscription.name,
            priority=subscription.priority,
            lane=subscription.lane.value,
            every=subscription.every,
            once=subscription.once,
            has_condition=subscription.when is not None,
            timeout=subscription.timeout,
            on_error=subscription.on_error,
        )

    def __str__(self) -> str:
        remarks = [
            "" if self.lane == "inline" else self.lane,
            f"every {self.every}" if self.every > 1 else "",
            "once" if self.once else "",
            "on a condition" if self.has_condition else "",
            f"at most {self.timeout:g} s" if self.timeout is not None else "",
            "errors are logged" if self.on_error == "log" else "",
        ]
        remark = ", ".join(filter(None, remarks))
        priority = f"({_NAMES.get(self.priority, '')} {self.priority})".replace("( ", "(")
        return f"{priority:<19} {self.name}{f'  [{remark}]' if remark else ''}"


def describe_plans(plans: Iterable[tuple[type[Event], tuple[PlanEntry, ...]]]) -> str:
    """Return the plans as text, one block per event type that anybody hears."""
    blocks = [
        "\n".join([f"{event_type.__name__}:", *(f"    {entry}" for entry in entries)]) for event_type, entries in plans if entries
    ]
    return "\n".join(blocks) if blocks else "no handlers subscribe"

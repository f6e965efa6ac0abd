"""Reads `handler_costs.json`: what each handler cost, as the end of a run writes it."""

from __future__ import annotations

__all__ = ("COSTS_FILE", "HandlerCost", "HandlerCosts", "read_handler_costs")

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

COSTS_FILE = "handler_costs.json"
_MOST_BYTES = 1 << 22


class HandlerCost(NamedTuple):
    """What one handler of one event took."""

    handler: str
    event: str
    lane: str
    calls: int
    seconds: float
    share: float
    """Of the time of a training step."""


class HandlerCosts(NamedTuple):
    """What the handlers of a start took, the dearest first; none where that is not on record."""

    entries: tuple[HandlerCost, ...] = ()
    problem: str = f"there is no {COSTS_FILE}: a run writes it when it ends"


def read_handler_costs(starts: Sequence[Path]) -> HandlerCosts:
    """Return the costs of the newest start that has them."""
    path = next((start / COSTS_FILE for start in reversed(starts) if (start / COSTS_FILE).is_file()), None)
    if path is None:
        return HandlerCosts()
    try:
        with path.open("rb") as file:
            found = msgspec.json.decode(file.read(_MOST_BYTES))
    except (OSError, msgspec.DecodeError, RecursionError):
        return HandlerCosts(problem=f"{COSTS_FILE} cannot be read as JSON")
    costs = [cost for entry in (found if isinstance(found, list) else []) if (cost := _cost(entry)) is not None]
    if not costs:
        return HandlerCosts(problem=f"{COSTS_FILE} names no handler")
    return HandlerCosts(tuple(sorted(costs, key=lambda cost: -cost.seconds)), problem="")


def _cost(entry: Any) -> HandlerCost | None:
    """Return an entry, or None where it does not say what took how long."""
    if not isinstance(entry, dict) or not isinstance(entry.get("handler"), str):
        return None
    seconds, share, calls = (_amount(entry.get(key)) for key in ("seconds", "share", "calls"))
    if seconds is None:
        return None
    event, lane = str(entry.get("event", "")), str(entry.get("lane", ""))
    return HandlerCost(entry["handler"], event, lane, int(calls or 0), seconds, share or 0.0)


def _amount(value: Any) -> float | None:
    is_amount = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e18 and math.isfinite(value)
    return float(value) if is_amount else None

"""What the handlers of a run cost, said at its end: the dearest in the log, all of them in `handler_costs.json`."""

from __future__ import annotations

__all__ = ("COSTS_FILE", "report_costs")

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from hookbus.bus import HandlerCost, Lane
from hookbus.distributed import is_main_process

if TYPE_CHECKING:
    from pathlib import Path

    from hookbus.runner.runner import Runner

COSTS_FILE = "handler_costs.json"
NAMED = 3
"""How many handlers are named in the log."""


def report_costs(runner: Runner, call: str, iterations: int) -> None:
    """Name the dearest handlers in the log, and keep the costs of all, those of every training of a start together.

    Args:
        runner: whose run ends.
        call: `train`, `val` or `test`; the costs of a training are not overwritten by those of the others.
        iterations: how many were trained; a training without any has nothing to tell.
    """
    path = runner.log_dir / COSTS_FILE
    costs = runner.bus.close_costs()
    if not costs or not is_main_process() or not path.parent.is_dir():
        return
    if call == "train" and iterations:
        runner.logger.info("dearest handlers, share of the run: %s", _dearest(costs))
        _write(path, _together(_read(path), costs))
    elif call != "train" and not path.exists():
        _write(path, costs)


def _dearest(costs: Sequence[HandlerCost]) -> str:
    """Return the handlers that training waits for the longest."""
    waited_for = [cost for cost in costs if cost.lane != Lane.BACKGROUND.value]
    return ", ".join(f"{cost.handler} {100 * min(cost.share, 1.0):.2g} %" for cost in waited_for[:NAMED])


def _together(before: Sequence[HandlerCost], now: Sequence[HandlerCost]) -> list[HandlerCost]:
    """Return the sums over two trainings, the dearest first."""
    passed = _passed(before) + _passed(now)
    sums: dict[tuple[str, str, str], HandlerCost] = {}
    for cost in (*before, *now):
        key = (cost.handler, cost.event, cost.lane)
        other = sums.get(key)
        calls = cost.calls + (other.calls if other else 0)
        seconds = cost.seconds + (other.seconds if other else 0.0)
        share = seconds / passed if passed else 0.0
        sums[key] = msgspec.structs.replace(cost, calls=calls, seconds=seconds, share=share)
    return sorted(sums.values(), key=lambda cost: -cost.seconds)


def _passed(costs: Sequence[HandlerCost]) -> float:
    """Return the seconds that shares are shares of."""
    return max((cost.seconds / cost.share for cost in costs if cost.share), default=0.0)


def _read(path: Path) -> list[HandlerCost]:
    return msgspec.json.decode(path.read_bytes(), type=list[HandlerCost]) if path.exists() else []


def _write(path: Path, costs: Sequence[HandlerCost]) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(costs)) + b"\n")

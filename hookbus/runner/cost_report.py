"""What the handlers of a run cost, said at its end: the dearest in the log, all of them in `handler_costs.json`."""

from __future__ import annotations

__all__ = ("COSTS_FILE", "report_costs")

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from hookbus.bus import HandlerCost, Lane
from hookbus.distributed import is_main_process

if TYPE_CHECKING:
    from hookbus.runner.runner import Runner

COSTS_FILE = "handler_costs.json"
NAMED = 3
"""How many handlers are named in the log."""


def report_costs(runner: Runner, call: str) -> None:
    """Name the dearest handlers of a training in the log, and keep the costs of all; those of a training are not overwritten."""
    path = runner.log_dir / COSTS_FILE
    costs = runner.bus.costs()
    if not costs or not is_main_process() or not path.parent.is_dir():
        return
    if call == "train":
        runner.logger.info("dearest handlers, share of the run: %s", _dearest(costs))
    if call == "train" or not path.exists():
        path.write_bytes(msgspec.json.format(msgspec.json.encode(costs)) + b"\n")


def _dearest(costs: Sequence[HandlerCost]) -> str:
    """Return the handlers that training waits for the longest."""
    waited_for = [cost for cost in costs if cost.lane != Lane.BACKGROUND.value]
    return ", ".join(f"{cost.handler} {100 * cost.share:.2g} %" for cost in waited_for[:NAMED])

"""How late the event loop of a service is while a run goes on in it, measured there and readable in the message hub."""

from __future__ import annotations

__all__ = ("LAG_KEY", "measure_lag")

from collections import deque

import anyio

from hookbus.hub import MessageHub

LAG_KEY = "loop_lag"
"""The information in the hub: a dict of `p50`, `p99` and `max`, in seconds, over the newest `KEPT` probes."""

PROBE = 0.02
"""Seconds between two probes."""
KEPT = 500
REPORT_EVERY = 25


async def measure_lag(hub: MessageHub) -> None:
    """Sleep again and again, and record how much longer than asked for it took; runs until cancelled."""
    lags: deque[float] = deque(maxlen=KEPT)
    while True:
        for _ in range(REPORT_EVERY):
            due = anyio.current_time() + PROBE
            await anyio.sleep(PROBE)
            lags.append(max(0.0, anyio.current_time() - due))
        hub.update_info(LAG_KEY, _summary(lags), resumed=False)


def _summary(lags: deque[float]) -> dict[str, float]:
    ordered = sorted(lags)
    last = len(ordered) - 1
    return {"p50": ordered[round(0.50 * last)], "p99": ordered[round(0.99 * last)], "max": ordered[last]}

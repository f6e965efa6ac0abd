"""Turns what was recorded and has reached the host into the event that says so."""

from __future__ import annotations

__all__ = ("scalars_landed",)

from collections.abc import Iterable

from hookbus._snapshot import INFO, Entry
from hookbus.events import ScalarsLanded


def scalars_landed(entries: Iterable[Entry]) -> ScalarsLanded | None:
    """Return the event for log entries, or None where no scalar is among them."""
    rows: dict[int, dict[str, float]] = {}
    for key, value, count, step in entries:
        if count != INFO:
            rows.setdefault(step, {})[key] = float(value)
    if not rows:
        return None
    steps = sorted(rows)
    keys = dict.fromkeys(key for step in steps for key in rows[step])
    return ScalarsLanded(iters=steps, scalars={key: [rows[step].get(key) for step in steps] for key in keys})

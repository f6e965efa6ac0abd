"""Drill 12: handlers that never return, and every other mistake that a deadlock could come of."""

from __future__ import annotations

import time
from typing import Any

from hookbus.bridge import Bridge
from hookbus.bus import hosting
from tests.drills import deadlocks
from tests.drills.children import Child
from tests.drills.deadlocks import MISTAKES, Mistake
from tests.drills.drill import Drill, Spec
from tests.drills.runs import warm_up

LIMIT = 20
"""Seconds after which a mistake has ended in a hang, on a machine that does something else as well."""
TWINS_LIMIT = 5
"""Seconds after which that of the twin has, which does hang."""


class PatientBridge(Bridge):
    """A twin: waits for its event loop, whether that answers or not."""

    def _wait_or_stall(self, crossing: Any) -> None:
        self.mailbox.wait(crossing.is_done)


def run(drill: Drill) -> None:
    """Make each mistake in a process of its own, two of them at a time, because they mostly wait."""
    warm_up()
    slowest, limit = 0.0, TWINS_LIMIT if drill.is_broken else LIMIT
    mistakes = drill.shuffled(mistake for mistake, ending in MISTAKES.items() if ending == "BusStalled" or not drill.is_broken)
    for first in drill.within(range(0, len(mistakes), 2)):
        started = time.monotonic()
        pair = mistakes[first : first + 2]
        children = [Child(lambda mistake=mistake: _make(drill, mistake), limit) for mistake in pair]  # type: ignore[misc]
        for mistake, child in zip(pair, children, strict=True):
            ended = child.join()
            drill.check(ended.code != -14, f"{mistake.__name__}: hangs")
            drill.check(ended.value == MISTAKES[mistake], f"{mistake.__name__}: expected {MISTAKES[mistake]}, got {ended}")
        slowest = max(slowest, time.monotonic() - started)
    drill.facts["seconds of the slowest"] = round(slowest, 1)


def _make(drill: Drill, mistake: Mistake) -> str:
    if drill.is_broken:
        Bridge._wait_or_stall = PatientBridge._wait_or_stall  # type: ignore[assignment, method-assign]
    hosting.JOIN_TIMEOUT = deadlocks.STALL
    return mistake(drill.directory / mistake.__name__)


SPEC = Spec(
    number=12,
    name="handlers that never return",
    promise="P8",
    expected="each mistake ends in an error that names it, or goes through; none hangs",
    twin="waits for an event loop that does not answer",
    run=run,
    weight=2,
)

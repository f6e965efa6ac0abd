"""Watches what awaited handlers cost, and names the dear ones once, with the remedies."""

from __future__ import annotations

__all__ = ("CostWatch",)

import logging
import time
from typing import Any

from hookbus.bus.subscription import Subscription
from hookbus.events import IterEvent, StepEvent

LOOK_AFTER_CROSSINGS = 32


class CostWatch:
    """Compares the time that a publisher waits for each awaited handler with the time that passes."""

    def __init__(self, threshold: float = 0.1) -> None:
        self.threshold = threshold
        """Share of the step from which a handler is named in the log."""
        self.logger = logging.getLogger("hookbus")
        self._crossings = 0
        self._waited: dict[Subscription[Any], float] = {}
        self._since = time.perf_counter()
        self._named: set[str] = set()

    def restart(self) -> None:
        """Begin anew, with the steps of another run."""
        self._crossings, self._since = 0, time.perf_counter()
        self._waited.clear()

    def note_crossing(self, group: Any, seconds: float) -> None:
        """Book one crossing; what is not any handler's own time is the first one's, for whom it was made."""
        members: tuple[Subscription[Any], ...] = group.members
        own = 0.0
        for member in members:
            own += member.took
            if member.took:
                member.note_time(member.took)
            self._waited[member] = self._waited.get(member, 0.0) + member.took
            member.took = 0.0
        members[0].timed_seconds += max(0.0, seconds - own)
        self._waited[members[0]] += max(0.0, seconds - own)
        self._crossings += 1
        if self._crossings >= LOOK_AFTER_CROSSINGS:
            self._look()
            self.restart()

    def _look(self) -> None:
        elapsed = time.perf_counter() - self._since
        for subscription, waited in self._waited.items():
            in_step = issubclass(subscription.event_type, IterEvent | StepEvent)
            if in_step and waited / elapsed > self.threshold and subscription.name not in self._named:
                self._named.add(subscription.name)
                self._warn(subscription, waited / elapsed)

    def _warn(self, subscription: Subscription[Any], share: float) -> None:
        self.logger.warning(
            "%s on %s takes %.0f %% of the step, and training waits for it (cost_warning=%g); call it less often with every=, "
            "or let it observe with background=True",
            subscription.name,
            subscription.event_type.__name__,
            100 * share,
            self.threshold,
        )

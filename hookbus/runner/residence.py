"""The hooks of a runner on its bus, which other runners may use before and after it.

They are there from the constructor on, so that the plan shows them and whoever subscribes later comes after them. Two
runners that share a bus, such as those of a notebook cell that ran twice, must not call each other's hooks: those of an
idle runner give way to those of the next one.
"""

from __future__ import annotations

__all__ = ("Residence",)

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from hookbus.bus import EventBus, Subscription
from hookbus.runner.defaults import HookEntry


class Residence:
    """The place of one runner's hooks on a bus; it keeps neither alive."""

    def __init__(self) -> None:
        self.live = False
        """Whether a run is going on, so that nobody may take this place."""
        self._was_here = False
        self._subscriptions: WeakSet[Subscription[Any]] = WeakSet()

    def is_on(self, bus: EventBus) -> bool:
        """Return whether the hooks are on the bus."""
        return _residences.get(bus) is self

    def take(self, bus: EventBus, entries: Iterable[HookEntry]) -> None:
        """Put the hooks on the bus, where they are not and no run of another runner is going on."""
        resident = _residences.get(bus)
        if resident is not None and (resident is self or resident.live):
            return
        if resident is not None:
            resident.leave(bus)
        _residences[bus] = self
        for entry in entries:  # who comes back is where it was: before those who came later
            self.add(bus, entry, first_among_equals=self._was_here)
        self._was_here = True

    def add(self, bus: EventBus, entry: HookEntry, *, first_among_equals: bool = False) -> None:
        """Put one more hook on the bus."""
        self._subscriptions.update(bus.add_hook(entry.hook, entry.priority, first_among_equals=first_among_equals))

    def leave(self, bus: EventBus) -> None:
        """Take the hooks off the bus."""
        _residences.pop(bus, None)
        for subscription in list(self._subscriptions):
            subscription.cancel()
        self._subscriptions.clear()


_residences: WeakKeyDictionary[EventBus, Residence] = WeakKeyDictionary()

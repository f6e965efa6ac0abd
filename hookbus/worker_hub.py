"""The hub in a worker process: code there finds a copy of its run's hub, by name and as the current one."""

from __future__ import annotations

__all__ = ("WorkerStart",)

from collections.abc import Callable

from hookbus._hub_copy import HubState
from hookbus.hub import HubCopy


class WorkerStart:
    """What a worker does first: makes a copy of the run's hub the one that its code finds, then calls what the user gave.

    Args:
        state: what the hub knew when the workers were started.
        then: the user's own function of the worker's number, if there is one.
    """

    def __init__(self, state: HubState, then: Callable[[int], object] | None) -> None:
        self._state = state
        self._then = then

    def __call__(self, worker_id: int) -> None:
        HubCopy.of(self._state).stand_in()
        if self._then is not None:
            self._then(worker_id)

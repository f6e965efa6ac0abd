"""What others have asked of a run, until the step boundary at which it takes effect.

Two queues, because some things may also happen between two boundaries - a stop, a pause - and others need the whole state.
"""

from __future__ import annotations

__all__ = ("LATER_ONES", "StepRequest", "StepRequests")

import itertools
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from hookbus.errors import RunEnded
from hookbus.mailbox import Acknowledgement

LATER_ONES = 16
"""How many requests that are made while others are carried out have their turn at the same place; the next ones wait for the
next step boundary, so that handlers which answer each control with another one hold nobody up."""


class StepRequest(NamedTuple):
    """Something to be done at a step boundary, or earlier."""

    action: Callable[[], Any]
    answer: Acknowledgement[Any]
    then: Callable[[Any], object] | None = None
    """Takes what was answered; for what is to be said once it has taken effect."""
    refusals: tuple[type[Exception], ...] = ()
    """Errors of the action that are for the one who asked, and do not end the run."""

    def carry_out(self) -> None:
        """Do it; an error that is not a refusal ends the run."""
        try:
            self.answer.carry_out_or_raise(self.action)
        except self.refusals:
            return  # whoever asked hears of it
        if self.then is not None:
            self.then(self.answer.result(0))


class StepRequests:
    """The requests to one training thread, which carries them out in the order in which they were made."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # reentrant, because a signal handler may ask for something, too
        self.is_closed = False
        """Whether no boundary comes any more."""
        self.at_boundary: deque[tuple[int, StepRequest]] = deque()
        """What waits for a boundary, numbered in the order of asking."""
        self.controls: deque[tuple[int, StepRequest]] = deque()
        """What may happen earlier, likewise."""
        self._numbers = itertools.count()

    def add(self, request: StepRequest, *, waits_for_boundary: bool) -> None:
        """Take a request; for holders of the lock."""
        (self.at_boundary if waits_for_boundary else self.controls).append((next(self._numbers), request))

    def any(self, *, with_boundary: bool) -> bool:
        """Return whether something waits."""
        return bool(self.controls or (with_boundary and self.at_boundary))

    def carry_out(self, *, with_boundary: bool) -> None:
        """Do what was asked for, in the order of asking, on the training thread."""
        queues = [self.controls, self.at_boundary] if with_boundary else [self.controls]
        for _ in range(sum(map(len, queues)) + LATER_ONES):
            waiting = [queue for queue in queues if queue]
            if not waiting:
                return
            _, request = min(waiting, key=_number_of_first).popleft()
            request.carry_out()

    def close(self) -> None:
        """Take no more."""
        with self.lock:
            self.is_closed = True

    def refuse(self) -> None:
        """Refuse what still waits."""
        for queue in (self.at_boundary, self.controls):
            while queue:
                answer = queue.popleft()[1].answer
                answer.set_error(RunEnded(f"{answer.what} could not take effect: the run ended before the next step boundary"))
                answer.forgive()


def _number_of_first(queue: deque[tuple[int, StepRequest]]) -> int:
    return queue[0][0]

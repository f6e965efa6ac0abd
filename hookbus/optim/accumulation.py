"""Which micro-batches share one update of the optimizer."""

from __future__ import annotations

__all__ = ("MicroBatches",)

from collections.abc import Callable


class MicroBatches:
    """Groups micro-batches for one update each; the last group of a run may be smaller."""

    __slots__ = ("done", "length", "per_update")

    def __init__(self, per_update: int) -> None:
        self.per_update = per_update
        self.done = 0
        """Micro-batches of the running group whose gradients are there."""
        self.length = per_update
        """How many the running group is to have; by that their losses are divided."""

    @property
    def is_complete(self) -> bool:
        """Whether the update of the running group is due."""
        return self.done >= self.length

    def begin(self, iters_left: Callable[[], int | None]) -> None:
        """Settle the length of a new group, which must not reach beyond the iterations that are left; None if unknown."""
        if not self.done:
            left = iters_left()
            self.length = self.per_update if left is None else max(1, min(self.per_update, left))

    def end(self) -> float:
        """Begin anew, and return by what the gradients must be multiplied if there were more or fewer than was planned."""
        factor = self.length / self.done if self.done else 1.0
        self.done = 0
        return factor

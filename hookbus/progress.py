"""How far a run has come: completed epochs and iterations, which go into checkpoints."""

from __future__ import annotations

__all__ = ("Progress",)

from typing import Any


class Progress:
    """Counts completed things; written by the loops, read by everybody."""

    __slots__ = ("batch_idx", "epoch", "iter", "validation_due")

    def __init__(self) -> None:
        self.epoch = 0
        """Completed epochs."""
        self.iter = 0
        """Completed training iterations."""
        self.batch_idx = 0
        """Completed batches of the running epoch."""
        self.validation_due = False
        """Whether a validation is to come before training goes on."""

    def __repr__(self) -> str:
        return f"<Progress: {self.epoch} epochs, {self.iter} iterations>"

    def state_dict(self) -> dict[str, Any]:
        """Return the counters, and what is due."""
        return {name: getattr(self, name) for name in self.__slots__}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from saved counters."""
        for name in self.__slots__:
            setattr(self, name, state_dict[name])

"""Counts the steps that an optimizer takes."""

from __future__ import annotations

__all__ = ("StepCounter",)

import weakref
from typing import Any

import torch


class StepCounter:
    """Counts the steps of an optimizer, whoever asks for them.

    An object of its own, because the optimizer keeps it: it must not keep the run alive.
    """

    __slots__ = ("steps",)

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Count one step; the optimizer calls it."""
        self.steps += 1

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, *, owner: object) -> StepCounter:
        """Return a counter that the optimizer keeps for as long as the owner lives."""
        counter = cls()
        handle = optimizer.register_step_post_hook(counter)
        weakref.finalize(owner, handle.remove).atexit = False
        return counter

"""Optimizers in a training loop: gradients accumulated, clipped and scaled, and the points around each step."""

from __future__ import annotations

__all__ = ("OptimWrapper", "OptimWrapperDict")

from hookbus.optim.several import OptimWrapperDict
from hookbus.optim.wrapper import OptimWrapper

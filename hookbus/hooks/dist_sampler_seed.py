"""Makes a distributed sampler shuffle differently in each epoch."""

from __future__ import annotations

__all__ = ("DistSamplerSeedHook",)

from typing import Any, ClassVar

from hookbus.hooks.base import Hook
from hookbus.samplers import set_epoch


class DistSamplerSeedHook(Hook):
    """Tells the sampler of the training data which epoch begins; in training by iterations the loop tells of later passes."""

    priority: ClassVar[int | str] = "NORMAL"

    def before_train_epoch(self, runner: Any, epoch: int) -> None:
        """Call `set_epoch` of the sampler, if it wants to know."""
        set_epoch(runner.train_dataloader, epoch)

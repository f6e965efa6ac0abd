"""Makes a distributed sampler shuffle differently in each epoch."""

from __future__ import annotations

__all__ = ("DistSamplerSeedHook",)

from typing import Any, ClassVar

from hookbus.hooks.base import Hook


class DistSamplerSeedHook(Hook):
    """Tells the sampler of the training data which epoch begins, if it wants to know."""

    priority: ClassVar[int | str] = "NORMAL"

    def before_train_epoch(self, runner: Any, epoch: int) -> None:
        """Call `set_epoch` of the sampler, or of the sampler that the batch sampler draws from."""
        loader = runner.train_dataloader
        batch_sampler: Any = getattr(loader, "batch_sampler", None)
        samplers: list[Any] = [getattr(loader, "sampler", None), getattr(batch_sampler, "sampler", None), batch_sampler]
        for sampler in samplers:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
                return

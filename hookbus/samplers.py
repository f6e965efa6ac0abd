"""Telling the sampler of a dataloader which pass over the data begins."""

from __future__ import annotations

__all__ = ("set_epoch",)

from typing import Any


def set_epoch(dataloader: Any, epoch: int) -> None:
    """Call `set_epoch` of the sampler, or of the sampler that the batch sampler draws from, where there is one.

    Distributed samplers shuffle differently in each epoch only if they are told.
    """
    batch_sampler: Any = getattr(dataloader, "batch_sampler", None)
    samplers: list[Any] = [getattr(dataloader, "sampler", None), getattr(batch_sampler, "sampler", None), batch_sampler]
    for sampler in samplers:
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
            return

"""Gives unused memory of the accelerator back, so that others can have it."""

from __future__ import annotations

__all__ = ("EmptyCacheHook",)

from typing import ClassVar

import torch

from hookbus._config import refuse, shown
from hookbus.hooks.base import Hook


class EmptyCacheHook(Hook):
    """Releases the memory that torch's allocator keeps of an accelerator without using it, in training, validation and test.

    What tensors occupy stays. The next allocation is dearer, because it has to ask the device again. On a machine without
    an accelerator the hook subscribes to nothing.

    Args:
        before_epoch: whether to do so before each epoch.
        after_epoch: whether to do so after each epoch.
        after_iter: whether to do so after each iteration, which slows training down.

    Raises:
        ConfigError: an option is neither True nor False, or none of them is True.
    """

    priority: ClassVar[int | str] = "NORMAL"

    def __init__(self, before_epoch: bool = False, after_epoch: bool = True, after_iter: bool = False) -> None:
        options = {"before_epoch": before_epoch, "after_epoch": after_epoch, "after_iter": after_iter}
        problems = [
            f"EmptyCacheHook.{name} = {shown(value)}: expected True or False"
            for name, value in options.items()
            if not isinstance(value, bool)
        ]
        if not any(options.values()):
            problems = problems or [f"EmptyCacheHook would do nothing: {', '.join(options)} are all False; leave the hook out"]
        refuse(problems)
        self.before_epoch = before_epoch
        self.after_epoch = after_epoch
        self.after_iter = after_iter

    def uses(self, mount_point: str) -> bool:
        """Leave alone what was not asked for, and everything where there is no accelerator."""
        asked_for = {
            "before_epoch": self.before_epoch,
            "after_epoch": self.after_epoch,
            "after_iter": self.after_iter,
        }
        before_or_after, *_, pass_or_batch = mount_point.split("_")
        return asked_for.get(f"{before_or_after}_{pass_or_batch}", False) and torch.accelerator.is_available()

    def _before_epoch(self) -> None:
        torch.accelerator.empty_cache()

    def _after_epoch(self) -> None:
        torch.accelerator.empty_cache()

    def _after_iter(self) -> None:
        torch.accelerator.empty_cache()

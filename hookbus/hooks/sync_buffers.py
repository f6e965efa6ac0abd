"""Makes the buffers of a model the same in all processes of a run."""

from __future__ import annotations

__all__ = ("SyncBuffersHook",)

from typing import Any, ClassVar

from hookbus.distributed import average, world_size
from hookbus.hooks.base import Hook


class SyncBuffersHook(Hook):
    """Averages buffers over the processes, the running statistics of BatchNorm for instance; counts are the main process's.

    It does so at the end of each epoch and of training, and before a validation that comes at any other time, as it does
    where iterations count. A checkpoint of such a moment has the averaged ones. In a single process there is nothing to do.
    """

    priority: ClassVar[int | str] = "NORMAL"

    def __init__(self) -> None:
        self._averaged_at: int | None = None
        """Completed iterations when the buffers were averaged last; averaging the same ones again would only round them."""

    def before_train(self) -> None:
        """Forget what an earlier call of `train` did: weights may have been loaded since."""
        self._averaged_at = None

    def after_train_epoch(self, runner: Any, iter: int) -> None:
        """Average the buffers."""
        self._average(runner, iter)

    def before_val(self, runner: Any, iter: int) -> None:
        """Average the buffers if training went on since; before the epoch begins, in which averaged weights change places."""
        if runner.is_training:
            self._average(runner, iter)

    def after_train(self, runner: Any, iter: int) -> None:
        """Average the buffers where training was stopped in mid-epoch."""
        self._average(runner, iter)

    def _average(self, runner: Any, iteration: int) -> None:
        if world_size() > 1 and self._averaged_at != iteration:
            average(runner.model.buffers())
            self._averaged_at = iteration

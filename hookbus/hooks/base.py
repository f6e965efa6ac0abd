"""The classic hook: one method per mount point, sync or async, and helpers that tell when to act.

A hook defines only the mount points it wants; see `hookbus.events` for all of them. `_before_epoch`, `_after_epoch`,
`_before_iter` and `_after_iter` each stand for training, validation and test alike and may ask for `mode`.

The base class has all of these methods as placeholders, which are there for `super()` and are not subscribed.
"""

from __future__ import annotations

__all__ = ("Hook",)

from collections.abc import Callable
from typing import Any, ClassVar

from hookbus.bus.hook_methods import placeholder
from hookbus.types import Mode


@placeholder
def _nothing(hook: Any, *arguments: Any, **named: Any) -> Any:
    """Do nothing."""


def _shared(method: str, mode: Mode) -> Callable[..., Any]:
    """Return a placeholder that passes its arguments, but for metrics, on to the method that stands for three mount points."""

    @placeholder
    def pass_on(hook: Any, *arguments: Any, metrics: Any = None, **named: Any) -> Any:
        taken = arguments[:1] if method.endswith("_epoch") else arguments
        return getattr(hook, method)(*taken, mode=mode, **named)

    return pass_on


class Hook:
    """Base of classic hooks; any object with mount-point methods will do, too."""

    priority: ClassVar[int | str] = "NORMAL"
    """Its place in the order, where it is not given when the hook is added."""

    before_run = after_run = run_failed = _nothing
    before_train = after_train = before_val = after_val = before_test = after_test = _nothing
    after_backward = before_optimizer_step = after_optimizer_step = _nothing
    before_save_checkpoint = after_load_checkpoint = _nothing
    _before_epoch = _after_epoch = _before_iter = _after_iter = _nothing
    before_train_epoch = _shared("_before_epoch", "train")
    before_val_epoch = _shared("_before_epoch", "val")
    before_test_epoch = _shared("_before_epoch", "test")
    after_train_epoch = _shared("_after_epoch", "train")
    after_val_epoch = _shared("_after_epoch", "val")
    after_test_epoch = _shared("_after_epoch", "test")
    before_train_iter = _shared("_before_iter", "train")
    before_val_iter = _shared("_before_iter", "val")
    before_test_iter = _shared("_before_iter", "test")
    after_train_iter = _shared("_after_iter", "train")
    after_val_iter = _shared("_after_iter", "val")
    after_test_iter = _shared("_after_iter", "test")

    def uses(self, mount_point: str) -> bool:
        """Return whether this instance wants to be called at a mount point that its class has a method for."""
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint should keep of this hook."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what a checkpoint kept of this hook."""

    def every_n_epochs(self, runner: Any, n: int, start: int = 0) -> bool:
        """Return whether the running epoch is a multiple of `n`, counted from `start`; never for n < 1."""
        completed = runner.epoch + 1 - start
        return n > 0 and completed >= 0 and completed % n == 0

    def every_n_train_iters(self, runner: Any, n: int, start: int = 0) -> bool:
        """Return whether the running iteration is a multiple of `n`, counted from `start`; never for n < 1."""
        completed = runner.iter + 1 - start
        return n > 0 and completed >= 0 and completed % n == 0

    def every_n_inner_iters(self, batch_idx: int, n: int) -> bool:
        """Return whether the running batch of the epoch is a multiple of `n`; never for n < 1."""
        return n > 0 and (batch_idx + 1) % n == 0

    def end_of_epoch(self, dataloader: Any, batch_idx: int) -> bool:
        """Return whether the running batch is the last one of its dataloader."""
        return batch_idx + 1 == len(dataloader)

    def is_last_train_epoch(self, runner: Any) -> bool:
        """Return whether the running epoch is the last one."""
        return bool(runner.epoch + 1 == runner.max_epochs)

    def is_last_train_iter(self, runner: Any) -> bool:
        """Return whether the running iteration is the last one."""
        return bool(runner.iter + 1 == runner.max_iters)

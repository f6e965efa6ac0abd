"""Times the iterations, and says how much of each was waiting for data."""

from __future__ import annotations

__all__ = ("IterTimerHook",)

from time import perf_counter
from typing import Any, ClassVar

from hookbus.hooks.base import Hook
from hookbus.hub import MessageHub

ETA_EVERY = 10
"""Training iterations between two estimates of the time left; the very first iteration gives one, too."""


class IterTimerHook(Hook):
    """Records `<mode>/time` and `<mode>/data_time` in seconds, and the information `eta`.

    `data_time` is what the loop waited for the batch, and nothing else. `time` is the whole iteration, from the end of
    the one before it, so all hooks are in it; validations and what happens between epochs are not. `eta` is about training,
    from the pace since it was started or resumed.
    """

    priority: ClassVar[int | str] = "NORMAL"

    def __init__(self) -> None:
        self._mark = perf_counter()  # registered in the middle of an epoch, it has no beginning to count from
        self._iterations = 0
        self._seconds = 0.0

    def before_train(self, hub: MessageHub) -> None:
        """Forget the pace of an earlier run, and what a checkpoint says about the time that one had left."""
        self._iterations, self._seconds = 0, 0.0
        hub.pop_info("eta")

    def _before_epoch(self) -> None:
        self._mark = perf_counter()

    def after_val(self) -> None:
        """Book nothing of the validation as an iteration of training: where iterations count, no epoch begins after it."""
        self._mark = perf_counter()

    def after_train_iter(self, runner: Any, iter: int, data_time: float, hub: MessageHub) -> None:
        """Book the iteration."""
        now = perf_counter()
        seconds, self._mark = now - self._mark, now
        hub.update_scalars({"train/time": seconds, "train/data_time": data_time})
        self._iterations += 1
        self._seconds += seconds
        if self._iterations % ETA_EVERY == 0 or self._iterations == 1:
            self._estimate(runner, iter + 1, hub)

    def _after_iter(self, mode: str, data_time: float, hub: MessageHub) -> None:
        now = perf_counter()
        hub.update_scalars({f"{mode}/time": now - self._mark, f"{mode}/data_time": data_time})
        self._mark = now

    def _estimate(self, runner: Any, completed: int, hub: MessageHub) -> None:
        if runner.max_iters is not None:
            hub.update_info("eta", self._seconds / self._iterations * (runner.max_iters - completed))

"""Times the iterations, and says how much of each was waiting for data, and how long the device was at it."""

from __future__ import annotations

__all__ = ("IterTimerHook",)

from collections import deque
from time import perf_counter
from typing import Any, ClassVar

import torch

from hookbus.hooks.base import Hook
from hookbus.hub import MessageHub

ETA_EVERY = 10
"""Training iterations between two estimates of the time left; the very first iteration gives one, too."""
LOOK_EVERY = 8
"""Training iterations between two looks at what a device has finished; each look asks it once, and waits for nothing."""


class IterTimerHook(Hook):
    """Records `<mode>/time`, `<mode>/data_time` and `train/device_time` in seconds, and the information `eta`.

    `data_time` is what the loop waited for the batch, and nothing else. `time` is the whole iteration, from the end of
    the one before it, so all hooks are in it; validations and what happens between epochs are not. `eta` is about training,
    from the pace since it was started or resumed.

    `device_time` is there where the model lives on an accelerator: from when the device reached the work of the iteration
    until it was done with it. Nobody waits for the device, so the value is recorded some iterations later.
    """

    priority: ClassVar[int | str] = "NORMAL"

    def __init__(self) -> None:
        self._mark = perf_counter()  # registered in the middle of an epoch, it has no beginning to count from
        self._iterations = 0
        self._seconds = 0.0
        self._device_clock: _DeviceClock | None = None

    def uses(self, mount_point: str) -> bool:
        """Leave the beginning of an iteration alone where there is no device to be timed from there."""
        return mount_point != "before_train_iter" or torch.accelerator.is_available()

    def before_train(self, runner: Any, hub: MessageHub) -> None:
        """Forget the pace of an earlier run, and what a checkpoint says about the time that one had left."""
        self._iterations, self._seconds = 0, 0.0
        self._device_clock = _DeviceClock(runner.device) if _has_clock(runner.device) else None
        hub.pop_info("eta")

    def before_train_iter(self) -> None:
        """Have the device note when it gets here."""
        if self._device_clock is not None:
            self._device_clock.start()

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
        if self._device_clock is not None:
            self._device_clock.stop()
            if self._iterations % LOOK_EVERY == 0:
                _record_device_times(self._device_clock.landed(), hub)

    def after_train(self, hub: MessageHub) -> None:
        """Wait for the device, once: training is over."""
        clock, self._device_clock = self._device_clock, None
        if clock is not None:
            _record_device_times(clock.landed(wait=True), hub)

    def _after_iter(self, mode: str, data_time: float, hub: MessageHub) -> None:
        now = perf_counter()
        hub.update_scalars({f"{mode}/time": now - self._mark, f"{mode}/data_time": data_time})
        self._mark = now

    def _estimate(self, runner: Any, completed: int, hub: MessageHub) -> None:
        if runner.max_iters is not None:
            hub.update_info("eta", self._seconds / self._iterations * (runner.max_iters - completed))


class _DeviceClock:
    """Pairs of events on the current stream of a device; their distance is read when the device has passed both."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._free: list[tuple[torch.Event, torch.Event]] = []
        self._running: tuple[torch.Event, torch.Event] | None = None
        self._under_way: deque[tuple[torch.Event, torch.Event]] = deque()

    def start(self) -> None:
        """Note where an interval begins; one that was begun and not ended, as in an iteration that failed, begins anew."""
        if self._running is None:
            self._running = self._free.pop() if self._free else (self._event(), self._event())
        self._running[0].record()

    def stop(self) -> None:
        """Note where it ends; nothing, if the clock came in the middle of it."""
        running, self._running = self._running, None
        if running is not None:
            running[1].record()
            self._under_way.append(running)

    def landed(self, *, wait: bool = False) -> list[float]:
        """Return the seconds of the intervals that the device has finished, in order; `wait` for all of them."""
        if wait and self._under_way:
            self._under_way[-1][1].synchronize()
        seconds = []
        while self._under_way and self._under_way[0][1].query():
            pair = self._under_way.popleft()
            seconds.append(pair[0].elapsed_time(pair[1]) / 1000)
            self._free.append(pair)
        return seconds

    def _event(self) -> torch.Event:
        return torch.Event(self._device, enable_timing=True)


def _has_clock(device: torch.device) -> bool:
    """Return whether a device has events that tell the time."""
    if device.type == "cpu":
        return False
    try:
        torch.Event(device, enable_timing=True)
    except (NotImplementedError, RuntimeError):
        return False
    return True


def _record_device_times(seconds: list[float], hub: MessageHub) -> None:
    for each in seconds:
        hub.update_scalar("train/device_time", each)

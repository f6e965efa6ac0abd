"""IterTimerHook books each second once, and where it belongs; and a device is timed without being waited for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hookbus.events import AfterTrainEpoch, AfterTrainIter, BeforeTrainIter, BeforeVal, BeforeValIter
from hookbus.hooks.iter_timer import LOOK_EVERY
from hookbus.runner import Runner
from tests.runner.builders import make_loader, make_runner

PAUSE = 0.03
"""Long beside everything else in a tiny iteration."""


class SlowLoader:
    """Takes its time for each batch."""

    def __iter__(self) -> Iterator[Any]:
        for batch in make_loader(12):
            time.sleep(PAUSE)
            yield batch


def times(runner: Runner, mode: str) -> tuple[list[float], list[float]]:
    """Return the times of the iterations, and what of them was waiting for data."""
    hub = runner.message_hub
    return hub.get_scalar(f"{mode}/time").data[0], hub.get_scalar(f"{mode}/data_time").data[0]


@pytest.mark.parametrize("mode", ["train", "val", "test"])
def test_waiting_for_data_is_data_time(mode: str, tmp_path: Path) -> None:
    """It is part of the whole, too."""
    runner = make_runner(tmp_path, **{f"{mode}_dataloader": SlowLoader()}, train_cfg=dict(max_epochs=1))
    getattr(runner, mode)()
    whole, data = times(runner, mode)
    assert len(whole) == len(data) == 3
    assert all(PAUSE <= waited <= total for total, waited in zip(whole, data, strict=True))


@pytest.mark.parametrize("priority", ["HIGHEST", "NORMAL", "LOWEST"])
@pytest.mark.parametrize("event_type", [BeforeTrainIter, AfterTrainIter])
def test_a_slow_hook_is_not_data_time(event_type: Any, priority: str, tmp_path: Path) -> None:
    """Wherever it stands, before or behind the timer."""
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=1))
    runner.bus.subscribe(event_type, lambda: time.sleep(PAUSE), priority=priority)
    runner.train()
    whole, data = times(runner, "train")
    assert max(data) < PAUSE
    assert sum(whole) >= 2 * PAUSE  # what runs behind the timer in the last iteration belongs to no later one


def test_what_happens_between_epochs_belongs_to_no_iteration(tmp_path: Path) -> None:
    """Saves, validations and slow hooks at the end of an epoch."""
    runner = make_runner(tmp_path)
    runner.bus.subscribe(AfterTrainEpoch, lambda: time.sleep(0.2))
    runner.train()
    whole, data = times(runner, "train")
    assert len(whole) == 6
    assert max(whole) < 0.2
    assert max(data) < 0.2


@pytest.mark.parametrize("event_type", [BeforeVal, BeforeValIter])
def test_where_iterations_count_a_validation_belongs_to_none_of_them(event_type: Any, tmp_path: Path) -> None:
    """It lies between two, and no epoch begins behind it."""
    runner = make_runner(tmp_path, train_cfg=dict(by_epoch=False, max_iters=6, val_interval=2))
    runner.bus.subscribe(event_type, lambda: time.sleep(0.2))
    runner.train()
    whole, data = times(runner, "train")
    assert len(whole) == 6
    assert max(whole) < 0.2
    assert max(data) < 0.2


def test_the_time_left_is_that_of_this_run(tmp_path: Path) -> None:
    """What an older one had left, as a checkpoint tells, is forgotten; there is an estimate from the first iteration on."""
    runner = make_runner(tmp_path, train_cfg=dict(by_epoch=False, max_iters=8))
    runner.message_hub.update_info("eta", 1e6)
    runner.progress.iter = 5
    estimates: list[float] = []
    runner.bus.subscribe(AfterTrainIter, lambda hub: estimates.append(hub.get_info("eta")))
    runner.train()
    assert len(estimates) == 3
    assert max(estimates) < 1e5
    (first, *_), _ = times(runner, "train")
    assert estimates[0] == pytest.approx(2 * first)


def test_the_time_left_falls_to_nothing(tmp_path: Path) -> None:
    """It is estimated from the pace of this run; where the length is unknown there is no estimate."""
    runner = make_runner(tmp_path, train_dataloader=make_loader(44), train_cfg=dict(max_epochs=2))
    estimates: list[float] = []
    runner.bus.subscribe(AfterTrainIter, lambda hub: estimates.append(hub.get_info("eta")), every=11)
    runner.train()
    assert all(estimate >= 0 for estimate in estimates)
    whole, _ = times(runner, "train")
    assert runner.message_hub.get_info("eta") <= sum(whole)
    unknown = make_runner(tmp_path, train_dataloader=SlowLoader(), train_cfg=dict(max_epochs=1))
    unknown.train()
    assert unknown.message_hub.get_info("eta") is None


def test_a_timer_registered_in_mid_epoch_begins_there(tmp_path: Path) -> None:
    """Its first iteration lasts from then on, not since the clock of the machine began."""
    runner = make_runner(tmp_path, default_hooks=dict(timer=None))
    runner.bus.subscribe(AfterTrainIter, lambda runner: runner.register_hook(dict(type="IterTimerHook")), once=True)
    runner.train()
    whole, _ = times(runner, "train")
    assert len(whole) == runner.iter - 1
    assert max(whole) < 1


# --- on a device --------------------------------------------------------------------------------------------------------


class Device:
    """Stands for a device that works off what it is given when a test says so; each of its events takes one tick."""

    def __init__(self) -> None:
        self.given = self.done = self.waits = self.made = 0
        self.keeps_up = True

    def event(self, device: torch.device, *, enable_timing: bool) -> DeviceEvent:
        """Make an event."""
        assert enable_timing
        self.made += 1
        return DeviceEvent(self)

    def is_available(self) -> bool:
        """Be there."""
        return True


class DeviceEvent:
    """An event of it."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._place = -1

    def record(self) -> None:
        """Take the next place in its queue."""
        self._device.given += 1
        self._place = self._device.given
        if self._device.keeps_up:
            self._device.done = self._place

    def query(self) -> bool:
        """Return whether it has got so far."""
        return self._place <= self._device.done

    def synchronize(self) -> None:
        """Wait until it has."""
        self._device.waits += 1
        self._device.done = max(self._device.done, self._place)

    def elapsed_time(self, end: DeviceEvent) -> float:
        """Return the milliseconds until another one."""
        assert self.query()
        assert end.query()
        return float(end._place - self._place)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """Have the timer take the CPU for a device."""
    device = Device()
    stand_in = SimpleNamespace(accelerator=device, Event=device.event, device=torch.device)
    monkeypatch.setattr("hookbus.hooks.iter_timer.torch", stand_in)
    monkeypatch.setattr("hookbus.hooks.iter_timer._has_clock", lambda device: True)
    return device


def device_times(runner: Runner) -> list[float]:
    """Return what was recorded of the device."""
    return [float(seconds) for seconds in runner.message_hub.get_scalar("train/device_time").data[0]]


@pytest.mark.parametrize("keeps_up", [True, False])
@pytest.mark.parametrize(
    "train_cfg", [dict(max_epochs=3), dict(by_epoch=False, max_iters=9, val_interval=4)], ids=["by epoch", "by iteration"]
)
def test_a_device_is_timed_in_each_iteration_and_waited_for_at_the_end_alone(
    train_cfg: dict[str, Any], keeps_up: bool, device: Device, tmp_path: Path
) -> None:
    """From the beginning of the iteration to its end, in seconds; validation and test are left out."""
    device.keeps_up = keeps_up
    runner = make_runner(tmp_path, train_cfg=train_cfg, default_hooks=dict(logger=None, checkpoint=None))
    waits: list[int] = []
    runner.bus.subscribe(AfterTrainIter, lambda: waits.append(device.waits), priority="LOWEST")
    runner.train()
    runner.val()
    runner.test()
    assert device_times(runner) == [0.001] * 9
    assert set(waits) == {0}
    assert device.waits == 1


def test_events_are_used_again(device: Device, tmp_path: Path) -> None:
    """As many as there are iterations between two looks, however long a run is."""
    train_cfg = dict(by_epoch=False, max_iters=80, val_interval=100)
    make_runner(tmp_path, train_cfg=train_cfg, default_hooks=dict(logger=None, checkpoint=None)).train()
    assert device.given == 160
    assert device.made <= 2 * LOOK_EVERY


def test_an_iteration_that_failed_is_not_timed(device: Device, tmp_path: Path) -> None:
    """The next run begins with its own first one."""
    runner = make_runner(tmp_path, default_hooks=dict(logger=None, checkpoint=None))

    def fail() -> None:
        raise ArithmeticError

    failing = runner.bus.subscribe(BeforeTrainIter, fail, priority="LOWEST", when=lambda event: event.iter == 2)
    with pytest.raises(ArithmeticError):
        runner.train()
    failing.cancel()
    runner.train()
    assert device_times(runner) == [0.001] * (runner.iter - 2)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="about machines without an accelerator")
def test_without_a_device_the_beginning_of_an_iteration_costs_nothing(tmp_path: Path) -> None:
    """The timer does not listen to it, and nothing is recorded of a device."""
    runner = make_runner(tmp_path)
    assert "IterTimerHook" not in str(runner.bus.plan(BeforeTrainIter))
    runner.train()
    assert "train/device_time" not in runner.message_hub.log_scalars

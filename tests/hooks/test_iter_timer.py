"""IterTimerHook books each second once, and where it belongs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hookbus.events import AfterTrainEpoch, AfterTrainIter, BeforeTrainIter, BeforeVal, BeforeValIter
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

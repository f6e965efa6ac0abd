"""ParamSchedulerHook: which schedules step, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hookbus.events import BeforeTrainIter, MountPoint
from tests.runner.builders import make_model, make_runner


class FixedMetric:
    """An evaluator that gives one value after the other."""

    def __init__(self, *values: float) -> None:
        self._values = list(values)

    def reset(self) -> None: ...
    def update(self, predictions: Any, targets: Any) -> None: ...
    def compute(self) -> dict[str, float]:
        return {"score": self._values.pop(0)}


def rates_of(tmp_path: Path, scheduler: Any, **changes: Any) -> list[float]:
    """Return the learning rate that each iteration of a training used."""
    runner = make_runner(tmp_path, param_scheduler=scheduler, **changes)
    rates: list[float] = []
    runner.bus.subscribe(BeforeTrainIter, lambda runner: rates.append(runner.optim_wrapper.param_groups[0]["lr"]))
    runner.train()
    return [round(rate, 6) for rate in rates]


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (dict(type="StepLR", step_size=1, gamma=0.5), [0.1] * 3 + [0.05] * 3),
        (dict(type="StepLR", step_size=1, gamma=0.5, by_epoch=True), [0.1] * 3 + [0.05] * 3),
        (dict(type="StepLR", step_size=2, gamma=0.5, by_epoch=False), [0.1, 0.1, 0.05, 0.05, 0.025, 0.025]),
        (None, [0.1] * 6),
        ([], [0.1] * 6),
        (
            [dict(type="StepLR", step_size=3, gamma=0.5, by_epoch=False), dict(type="StepLR", step_size=1, gamma=0.1)],
            [0.1, 0.1, 0.1, 0.005, 0.005, 0.005],
        ),
    ],
)
def test_schedules_follow_epochs_or_iterations(scheduler: Any, expected: list[float], tmp_path: Path) -> None:
    """Epochs where nothing is said; several multiply."""
    assert rates_of(tmp_path, scheduler) == expected


def test_a_plateau_follows_the_metric_of_validations(tmp_path: Path) -> None:
    """One step per validation, with the value that was computed there."""
    scheduler = dict(type="ReduceLROnPlateau", patience=0, factor=0.5, monitor="score", mode="max")
    changes: dict[str, Any] = dict(val_evaluator=FixedMetric(0.5, 0.6, 0.6, 0.7), train_cfg=dict(max_epochs=4))
    assert rates_of(tmp_path, scheduler, **changes)[::3] == [0.1, 0.1, 0.1, 0.05]


def test_a_plateau_without_a_name_follows_the_loss(tmp_path: Path) -> None:
    """The validation loss of a `loss_fn` model."""
    scheduler = dict(type="ReduceLROnPlateau", patience=100)
    assert rates_of(tmp_path, scheduler) == [0.1] * 6


def test_a_plateau_given_by_iterations_follows_validations_as_well(tmp_path: Path) -> None:
    """No iteration has a metric to step it with."""
    scheduler = dict(type="ReduceLROnPlateau", patience=0, factor=0.5, monitor="score", mode="max", by_epoch=False)
    changes: dict[str, Any] = dict(val_evaluator=FixedMetric(0.5, 0.4, 0.3), train_cfg=dict(max_epochs=3))
    assert rates_of(tmp_path, scheduler, **changes)[::3] == [0.1, 0.1, 0.05]


def test_a_validation_of_its_own_steps_no_schedule(tmp_path: Path) -> None:
    """Looking at a model must not change how it will be trained."""
    scheduler = dict(type="ReduceLROnPlateau", patience=0, factor=0.5)
    runner = make_runner(tmp_path, param_scheduler=scheduler)
    for _ in range(4):
        runner.val()
    assert runner.optim_wrapper is not None
    assert runner.optim_wrapper.param_groups[0]["lr"] == 0.1


def test_a_scheduler_object_follows_epochs_or_what_it_is_given_with(tmp_path: Path) -> None:
    """An object alone, and one in a dict."""
    for by_epoch, expected in ((None, [0.1] * 3 + [0.05] * 3), (False, [0.1, 0.05, 0.025, 0.0125, 0.00625, 0.003125])):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        spec = scheduler if by_epoch is None else dict(scheduler=scheduler, by_epoch=by_epoch)
        assert rates_of(tmp_path / str(by_epoch), spec, model=model, optimizer=optimizer) == expected


def test_saved_schedules_are_those_after_the_step(tmp_path: Path) -> None:
    """CheckpointHook comes behind ParamSchedulerHook, so that the state is that of the next iteration."""
    runner = make_runner(tmp_path, param_scheduler=dict(type="StepLR", step_size=1, gamma=0.5), train_cfg=dict(max_epochs=1))
    saved: list[Any] = []
    runner.bus.subscribe(MountPoint, lambda: None)

    class Keep:
        def before_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            saved.append((checkpoint["param_schedulers"][0]["last_epoch"], checkpoint["optimizer"]["param_groups"][0]["lr"]))

    runner.register_hook(Keep())
    runner.train()
    assert saved == [(1, 0.05)]

"""ParamSchedulerHook: which schedules step, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hookbus.errors import ConfigError, Skip
from hookbus.events import BeforeOptimizerStep, BeforeTrainIter, MountPoint
from hookbus.optim import OptimWrapper
from hookbus.runner import Runner
from tests.runner.builders import at_iter, make_loader, make_model, make_runner


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


def wrapper_of(runner: Runner) -> OptimWrapper:
    """Return the wrapper of the only optimizer."""
    assert isinstance(runner.optim_wrapper, OptimWrapper)
    return runner.optim_wrapper


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
    assert wrapper_of(runner).param_groups[0]["lr"] == 0.1


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
            state = checkpoint["param_schedulers"][0]
            saved.append((state["completed"], state["scheduler"]["last_epoch"], checkpoint["optimizer"]["param_groups"][0]["lr"]))

    runner.register_hook(Keep())
    runner.train()
    assert saved == [(1, 1, 0.05)]


# parts of the run

WARM_UP = dict(type="LinearLR", start_factor=0.5, total_iters=4, by_epoch=False, begin=0, end=4)


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        pytest.param(
            [WARM_UP, dict(type="CosineAnnealingLR", T_max=2, begin=1, end=3)],
            [0.05, 0.0625, 0.075, 0.0875, 0.1, 0.1, 0.05, 0.05, 0.05, 0.0, 0.0, 0.0],
            id="a warm-up by iteration, a cosine by epoch from the second on",
        ),
        pytest.param(
            [WARM_UP, dict(type="CosineAnnealingLR", T_max=4, by_epoch=False, begin=4, end=8)],
            [0.05, 0.0625, 0.075, 0.0875, 0.1, 0.085355, 0.05, 0.014645, 0.0, 0.0, 0.0, 0.0],
            id="both by iteration",
        ),
        pytest.param(
            [WARM_UP, dict(type="MultiStepLR", milestones=[2, 3])],
            [0.05, 0.0625, 0.075, 0.0875, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001, 0.001, 0.001],
            id="milestones count from the start of the run",
        ),
        pytest.param(
            dict(type="ExponentialLR", gamma=0.5, begin=1, end=3),
            [0.1] * 6 + [0.05] * 3 + [0.025] * 3,
            id="two epochs in the middle",
        ),
    ],
)
def test_schedules_have_their_parts_of_the_run(scheduler: Any, expected: list[float], tmp_path: Path) -> None:
    """Four epochs of three iterations; the numbers are those that each iteration used."""
    assert rates_of(tmp_path, scheduler, train_cfg=dict(max_epochs=4)) == expected


def test_the_momentum_follows_a_schedule(tmp_path: Path) -> None:
    """The optimizer that steps is the one whose momentum moves."""
    scheduler = dict(type="LinearLR", start_factor=0.5, total_iters=4, by_epoch=False, param_name="momentum")
    runner = make_runner(tmp_path, param_scheduler=scheduler)
    momenta: list[float] = []
    runner.bus.subscribe(BeforeTrainIter, lambda runner: momenta.append(runner.optim_wrapper.param_groups[0]["momentum"]))
    runner.train()
    assert momenta == pytest.approx([0.45, 0.5625, 0.675, 0.7875, 0.9, 0.9])


# updates

HALVE = dict(type="ExponentialLR", gamma=0.5, by_epoch=False)


def test_a_schedule_by_iteration_steps_once_for_each_update(tmp_path: Path) -> None:
    """Not in iterations that only add to the gradients; the last update of an incomplete group counts as well."""
    changes: dict[str, Any] = dict(optim_wrapper=dict(accumulative_counts=2), train_dataloader=make_loader(4 * 5))
    changes["train_cfg"] = dict(max_epochs=1)
    assert rates_of(tmp_path, HALVE, **changes) == [0.1, 0.1, 0.05, 0.05, 0.025]


class Endless(torch.utils.data.IterableDataset[Any]):
    """Three batches that nobody could count beforehand."""

    def __iter__(self) -> Any:
        return iter(list(make_loader(4 * 3)))


def test_the_update_that_finishes_the_training_counts(tmp_path: Path) -> None:
    """Where the end of the data comes as a surprise, the optimizer takes a last step after the last iteration."""
    loader = torch.utils.data.DataLoader(Endless(), batch_size=None)
    changes: dict[str, Any] = dict(optim_wrapper=dict(accumulative_counts=2), train_dataloader=loader)
    runner = make_runner(tmp_path, param_scheduler=HALVE, train_cfg=dict(max_epochs=1), **changes)
    runner.train()
    assert wrapper_of(runner).updates == 2
    assert wrapper_of(runner).param_groups[0]["lr"] == 0.025


def test_an_update_that_was_left_out_does_not_count(tmp_path: Path) -> None:
    """A hook may skip one."""
    runner = make_runner(tmp_path, param_scheduler=HALVE, train_cfg=dict(max_epochs=1))
    rates: list[float] = []

    def leave_out() -> None:
        raise Skip("for the test")

    runner.bus.subscribe(BeforeOptimizerStep, at_iter(1, leave_out))
    runner.bus.subscribe(BeforeTrainIter, lambda runner: rates.append(runner.optim_wrapper.param_groups[0]["lr"]))
    runner.train()
    assert rates == [0.1, 0.05, 0.05]


class Two(torch.nn.Module):
    """Two models with an optimizer each; one is updated twice an iteration, the other in every second one."""

    def __init__(self) -> None:
        super().__init__()
        self.often, self.seldom = make_model(0), make_model(1)
        self.iterations = 0

    def train_step(self, batch: Any, optim_wrapper: Any) -> dict[str, torch.Tensor]:
        """Train on one batch."""
        inputs, targets = batch
        loss = torch.nn.functional.cross_entropy
        for _ in range(2):
            optim_wrapper["often"].update_params(loss(self.often(inputs), targets))
        if self.iterations % 2:
            optim_wrapper["seldom"].update_params(loss(self.seldom(inputs), targets))
        self.iterations += 1
        return {"loss": loss(self.often(inputs), targets)}


@pytest.mark.parametrize(
    ("scheduler", "often", "seldom"),
    [
        (HALVE, [0.1, 0.025, 0.00625, 0.0015625], [0.2, 0.2, 0.1, 0.1]),
        (dict(often=HALVE), [0.1, 0.025, 0.00625, 0.0015625], [0.2] * 4),
        (dict(seldom=[HALVE | dict(end=1), HALVE | dict(begin=1)]), [0.1] * 4, [0.2, 0.2, 0.1, 0.1]),
        (dict(seldom=dict(type="ExponentialLR", gamma=0.5), often=HALVE | dict(begin=2)), [0.1, 0.1, 0.025, 0.00625], [0.2] * 4),
    ],
    ids=["for both", "for one", "two for one", "one by epoch"],
)
def test_each_optimizer_counts_its_own_updates(scheduler: Any, often: list[float], seldom: list[float], tmp_path: Path) -> None:
    """Two updates in one iteration are two steps, and none is none."""
    runner = make_runner(
        tmp_path,
        model=Two(),
        loss_fn=None,
        optimizer=dict(often=dict(type="SGD", lr=0.1), seldom=dict(type="SGD", lr=0.2)),
        param_scheduler=scheduler,
        train_dataloader=make_loader(4 * 4),
        val_dataloader=None,
        test_dataloader=None,
        train_cfg=dict(max_epochs=1),
    )
    rates: list[tuple[float, ...]] = []

    def note(runner: Any) -> None:
        rates.append(tuple(runner.optim_wrapper[name].param_groups[0]["lr"] for name in ("often", "seldom")))

    runner.bus.subscribe(BeforeTrainIter, note)
    runner.train()
    assert rates == list(zip(often, seldom, strict=True))


def test_training_on_does_not_count_updates_twice(tmp_path: Path) -> None:
    """Nor those that others made between two calls of `train`."""
    runner = make_runner(tmp_path, param_scheduler=HALVE, train_cfg=dict(max_epochs=1))
    runner.train()
    assert wrapper_of(runner).param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**3)
    wrapper_of(runner).optimizer.step()
    runner.train_loop.max_epochs = 2
    runner.train()
    assert wrapper_of(runner).param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**6)


def test_a_resumed_run_goes_on_with_its_schedules(tmp_path: Path) -> None:
    """A warm-up by iteration that is cut, a cosine by epoch that has not begun, and a momentum that has."""
    scheduler = [
        WARM_UP | dict(total_iters=8, end=8),
        dict(type="CosineAnnealingLR", T_max=2, begin=2, end=4),
        dict(type="ExponentialLR", gamma=0.5, param_name="momentum", begin=1),
    ]
    straight = rates_of(tmp_path / "straight", scheduler, train_cfg=dict(max_epochs=4))
    first = rates_of(tmp_path / "cut", scheduler, train_cfg=dict(max_epochs=2))
    second = rates_of(tmp_path / "cut", scheduler, train_cfg=dict(max_epochs=4), resume=True)
    assert first + second == straight


# training by iterations

BY_ITERATIONS: dict[str, Any] = dict(train_cfg=dict(by_epoch=False, max_iters=4, val_interval=2))


def test_schedules_count_iterations_where_the_loop_does(tmp_path: Path) -> None:
    """Unless they say what they count."""
    scheduler = dict(type="ExponentialLR", gamma=0.5, begin=1)
    assert rates_of(tmp_path, scheduler, **BY_ITERATIONS) == [0.1, 0.1, 0.05, 0.025]


def test_a_schedule_by_epoch_is_refused_where_epochs_never_end(tmp_path: Path) -> None:
    """It would never take a step."""
    runner = make_runner(tmp_path, param_scheduler=dict(type="StepLR", step_size=1, by_epoch=True), **BY_ITERATIONS)
    with pytest.raises(ConfigError) as caught:
        runner.train()
    assert str(caught.value) == (
        "ParamScheduler(StepLR, by_epoch=True) counts epochs, which never end in a training by iterations; give it by_epoch=False"
    )


@pytest.mark.parametrize("by_epoch", [True, False])
def test_a_plateau_follows_validations_in_a_training_by_iterations(by_epoch: bool, tmp_path: Path) -> None:
    """Whatever it is said to count."""
    scheduler = dict(type="ReduceLROnPlateau", patience=0, factor=0.5, monitor="score", mode="max", by_epoch=by_epoch)
    train_cfg = dict(by_epoch=False, max_iters=6, val_interval=2)
    changes: dict[str, Any] = dict(val_evaluator=FixedMetric(0.5, 0.4, 0.3), train_cfg=train_cfg)
    assert rates_of(tmp_path, scheduler, **changes) == [0.1, 0.1, 0.1, 0.1, 0.05, 0.05]

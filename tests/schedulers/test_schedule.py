"""Schedules, which are torch's own, and the part of a run in which each takes its steps."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as lrs

from hookbus.errors import ConfigError, MetricNotFound
from hookbus.registry import PARAM_SCHEDULERS
from hookbus.schedulers import ParamScheduler
from tests.schedulers.builders import (
    USUAL,
    build,
    course,
    label,
    make_adam,
    make_optimizer,
    make_parameter,
    make_plain,
    rates,
    step_all,
    values_of,
)


@pytest.mark.parametrize("config", USUAL, ids=label)
def test_a_schedule_from_a_config_is_that_of_torch(config: dict[str, Any]) -> None:
    """The learning rates are equal to the last bit over 20 steps."""
    ours, theirs = make_optimizer(), make_optimizer()
    options = {name: value for name, value in config.items() if name != "type"}
    (schedule,) = build(config, ours)
    bare = getattr(lrs, config["type"])(theirs, **options)
    assert rates(ours, schedule.step) == rates(theirs, bare.step)


def test_several_schedules_work_together_like_those_of_torch() -> None:
    """In the order of the list."""
    ours, theirs = make_optimizer(), make_optimizer()
    config = [dict(type="LinearLR", total_iters=5), dict(type="CosineAnnealingLR", T_max=20)]
    bare = [lrs.LinearLR(theirs, total_iters=5), lrs.CosineAnnealingLR(theirs, T_max=20)]
    chained = lrs.ChainedScheduler(bare, optimizer=theirs)
    assert rates(ours, step_all(build(config, ours))) == rates(theirs, chained.step)


def test_schedules_of_schedules_are_built_by_the_user() -> None:
    """A config may hold the scheduler objects that they are made of."""
    for name, options in (("SequentialLR", dict(milestones=[5])), ("ChainedScheduler", {})):
        optimizers = make_optimizer(), make_optimizer()
        parts = [[lrs.ConstantLR(optimizer, 0.5, 5), lrs.ExponentialLR(optimizer, 0.9)] for optimizer in optimizers]
        (schedule,) = build(dict(type=name, schedulers=parts[0], **options), optimizers[0])
        bare = getattr(lrs, name)(optimizer=optimizers[1], schedulers=parts[1], **options)
        assert rates(optimizers[0], schedule.step) == rates(optimizers[1], bare.step)


def test_every_scheduler_of_torch_is_covered_here() -> None:
    """A new one in the table needs a case above."""
    covered = {config["type"] for config in USUAL} | {"SequentialLR", "ChainedScheduler", "ReduceLROnPlateau"}
    assert covered == set(PARAM_SCHEDULERS.names())


def test_normal_use_gives_no_warning_of_torch() -> None:
    """Its warnings are about steps in the wrong order, and there are none, whenever a schedule begins and whatever it drives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for begin in (0, 3):
            for name in ("lr", "weight_decay"):
                optimizer = make_optimizer()
                spec = [config | dict(begin=begin, param_name=name) for config in USUAL[:9]]
                rates(optimizer, step_all(build(spec, optimizer)))
    assert caught == []


# begin and end

LINEAR = dict(type="LinearLR", start_factor=0.5, total_iters=4)
HALVE = dict(type="StepLR", step_size=1, gamma=0.5)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        pytest.param(LINEAR | dict(end=4), [0.05, 0.0625, 0.075, 0.0875, 0.1, 0.1], id="to its end factor"),
        pytest.param(LINEAR | dict(end=2), [0.05, 0.0625, 0.075, 0.075, 0.075], id="it ends before torch would"),
        pytest.param(LINEAR | dict(begin=2), [0.1, 0.1, 0.05, 0.0625, 0.075, 0.0875, 0.1, 0.1], id="it begins later"),
        pytest.param(HALVE | dict(begin=2, end=4), [0.1, 0.1, 0.1, 0.05, 0.025, 0.025], id="two steps after the second"),
        pytest.param(HALVE | dict(begin=0, end=1), [0.1, 0.05, 0.05, 0.05], id="one step"),
        pytest.param(HALVE | dict(begin=None, end=None), [0.1, 0.05, 0.025, 0.0125], id="the whole run"),
        pytest.param(dict(type="ConstantLR", factor=0.5, total_iters=2, begin=1), [0.1, 0.05, 0.05, 0.1], id="a window"),
        pytest.param(
            [LINEAR | dict(end=4), dict(type="CosineAnnealingLR", T_max=4, begin=4, end=8)],
            [0.05, 0.0625, 0.075, 0.0875, 0.1, 0.085355339, 0.05, 0.014644661, 0.0, 0.0],
            id="a warm-up and a cosine",
        ),
        pytest.param(
            [dict(type="CosineAnnealingLR", T_max=4, begin=4, end=8), LINEAR | dict(end=4)],
            [0.05, 0.0625, 0.075, 0.0875, 0.1, 0.085355339, 0.05, 0.014644661, 0.0, 0.0],
            id="in the other order",
        ),
        pytest.param(
            [LINEAR | dict(end=4), dict(type="MultiStepLR", milestones=[5, 7], gamma=0.1)],
            [0.05, 0.0625, 0.075, 0.0875, 0.1, 0.01, 0.01, 0.001, 0.001],
            id="a warm-up, and milestones that count from the start",
        ),
        pytest.param(
            [HALVE | dict(end=2), dict(type="ConstantLR", factor=1, total_iters=1), HALVE | dict(begin=3, end=4)],
            [0.1, 0.05, 0.025, 0.025, 0.0125, 0.0125],
            id="steps, a plain, a step",
        ),
    ],
)
def test_a_schedule_has_its_part_of_the_run(spec: Any, expected: list[float]) -> None:
    """It starts from the value it finds, takes `end - begin` steps and leaves the value where it is."""
    assert course(spec, len(expected) - 1) == expected


def test_a_long_warm_up_ends_at_exactly_its_end_factor() -> None:
    """After 500 steps, and the main schedule goes on from there."""
    optimizer = make_plain()
    warm_up = dict(type="LinearLR", start_factor=0.001, total_iters=500, begin=0, end=500)
    seen = rates(optimizer, step_all(build([warm_up, dict(type="CosineAnnealingLR", T_max=100, begin=500)], optimizer)), 600)
    assert seen[0] == [0.1 * 0.001]
    assert [seen[number][0] for number in (250, 500, 550, 600)] == pytest.approx([0.05005, 0.1, 0.05, 0.0])


def test_schedules_one_after_another_are_the_sequence_of_torch() -> None:
    """`begin` and `end` say what `SequentialLR` says with milestones."""
    ours, theirs = make_optimizer(), make_optimizer()
    config = [
        dict(type="LinearLR", start_factor=0.1, total_iters=5, end=5),
        dict(type="CosineAnnealingLR", T_max=10, begin=5, end=15),
        dict(type="ConstantLR", factor=0.5, total_iters=100, begin=15),
    ]
    parts: list[lrs.LRScheduler] = [lrs.LinearLR(theirs, 0.1, total_iters=5), lrs.CosineAnnealingLR(theirs, 10)]
    bare = lrs.SequentialLR(theirs, parts, milestones=[5])
    assert rates(ours, step_all(build(config, ours)), 14) == [
        pytest.approx(values, abs=1e-15) for values in rates(theirs, bare.step, 14)
    ]


@given(begin=st.integers(0, 12), length=st.integers(1, 12), num_steps=st.integers(0, 30))
def test_a_schedule_takes_as_many_steps_as_its_part_is_long(begin: int, length: int, num_steps: int) -> None:
    """None before, and none after."""
    optimizer = make_plain(1.0)
    (schedule,) = build(dict(type="ExponentialLR", gamma=0.5, begin=begin, end=begin + length), optimizer)
    seen = rates(optimizer, schedule.step, num_steps)
    assert seen == [[0.5 ** min(max(done - begin, 0), length)] for done in range(num_steps + 1)]
    assert (schedule.completed, schedule.scheduler is None) == (num_steps, num_steps < begin)


def test_an_object_may_end_before_the_run() -> None:
    """It has begun when it was made."""
    optimizer = make_plain()
    (schedule,) = build(dict(scheduler=lrs.StepLR(optimizer, 1, 0.5), begin=0, end=2), optimizer)
    assert [first for (first,) in rates(optimizer, schedule.step, 4)] == [0.1, 0.05, 0.025, 0.025, 0.025]


def test_the_base_of_a_later_schedule_is_that_of_torch() -> None:
    """One that computes from the first learning rate of the run does so whenever it begins."""
    assert course([HALVE | dict(end=2), dict(type="LambdaLR", lr_lambda=lambda step: 1 - step / 10, begin=4)], 6) == [
        0.1,
        0.05,
        0.025,
        0.025,
        0.1,
        0.09,
        0.08,
    ]


def test_a_later_schedule_is_not_changed_by_its_config() -> None:
    """What a user does with a dict or list afterwards does not reach it."""
    optimizer, milestones = make_plain(), [1]
    config = dict(type="MultiStepLR", milestones=milestones, begin=2)
    (schedule,) = build(config, optimizer)
    milestones[0] = config["begin"] = 1000
    assert [first for (first,) in rates(optimizer, schedule.step, 3)] == pytest.approx([0.1, 0.1, 0.1, 0.01])


def test_a_config_of_a_schedule_is_not_changed() -> None:
    """What is ours is taken from a copy."""
    config = dict(type="MultiStepLR", milestones=[3, 1], by_epoch=False, begin=0, end=None, param_name="lr")
    before = {**config, "milestones": [3, 1]}
    build(config)
    assert config == before


def test_a_learning_rate_that_is_a_tensor_stays_that_tensor() -> None:
    """As captured optimizers need it, also for a schedule that begins later and for one that goes on from its state."""
    rate = torch.tensor(0.1)
    optimizer = torch.optim.AdamW([make_parameter()], lr=rate, foreach=False)
    (schedule,) = build(HALVE | dict(begin=1), optimizer)
    assert rates(optimizer, schedule.step, 2) == [[pytest.approx(value)] for value in (0.1, 0.1, 0.05)]
    (resumed,) = build(HALVE | dict(begin=1), optimizer)
    resumed.load_state_dict(schedule.state_dict())
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.05)


# plateaus

PLATEAU = dict(type="ReduceLROnPlateau", mode="max", factor=0.5, patience=0)


def test_a_plateau_follows_its_metric_like_that_of_torch() -> None:
    """It is told the value at each step."""
    ours, theirs = make_optimizer(), make_optimizer()
    (schedule,) = build(dict(type="ReduceLROnPlateau", mode="max", patience=1, min_lr=[0.001, 0], monitor="accuracy"), ours)
    bare = lrs.ReduceLROnPlateau(theirs, mode="max", patience=1, min_lr=[0.001, 0])
    assert schedule.needs_metric
    assert schedule.monitor == "accuracy"
    metric = [0.5, 0.6, 0.6, 0.6, 0.6, 0.7, 0.1, 0.1, 0.1, 0.1]
    left, right = iter(metric), iter(metric)
    assert rates(ours, lambda: schedule.step(next(left)), 10) == rates(theirs, lambda: bare.step(next(right)), 10)
    assert ours.param_groups[0]["lr"] < 0.1


def test_a_plateau_has_its_part_of_the_run_in_validations() -> None:
    """It does not see those before, and does nothing after; any parameter may follow."""
    for name in ("lr", "weight_decay"):
        optimizer = make_optimizer()
        (schedule,) = build(PLATEAU | dict(begin=2, end=5, param_name=name), optimizer)
        metric = iter([0.9, 0.9, 0.5, 0.4, 0.6, 0.1, 0.1])
        seen = rates(optimizer, lambda: schedule.step(next(metric)), 7, name)  # noqa: B023  used in this round only
        assert [first for first, _ in seen] == [0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05]


@pytest.mark.parametrize("begin", [0, 5])
def test_a_plateau_without_its_metric_says_so(begin: int) -> None:
    """It names the metric that was asked for, also before it begins."""
    (schedule,) = build(dict(type="ReduceLROnPlateau", monitor="accuracy", begin=begin))
    with pytest.raises(MetricNotFound, match="ReduceLROnPlateau follows the metric 'accuracy', and no value was given"):
        schedule.step()
    (schedule,) = build(dict(type="ReduceLROnPlateau", begin=begin))
    with pytest.raises(MetricNotFound, match="ReduceLROnPlateau follows a metric, and no value was given"):
        schedule.step()


def test_other_schedules_ignore_the_metric() -> None:
    """So a caller may give it to all of them."""
    optimizer = make_optimizer()
    (schedule,) = build(dict(type="StepLR", step_size=1), optimizer)
    optimizer.step()
    schedule.step(0.5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    assert not schedule.needs_metric


# going on from a state

NUM_STEPS = 14
PARTS: list[dict[str, Any]] = [dict(end=9), dict(begin=3), dict(begin=3, end=9, param_name="weight_decay")]


def schedules_first(schedule: ParamScheduler, state: dict[str, Any], optimizer: Optimizer, values: dict[str, Any]) -> None:
    """Load the state of the schedule, then that of the optimizer."""
    schedule.load_state_dict(state)
    optimizer.load_state_dict(values)


def optimizer_first(schedule: ParamScheduler, state: dict[str, Any], optimizer: Optimizer, values: dict[str, Any]) -> None:
    """Load the state of the optimizer, then that of the schedule."""
    optimizer.load_state_dict(values)
    schedule.load_state_dict(state)


def assert_plain(value: object) -> None:
    """Fail if a state holds anything but plain data."""
    if isinstance(value, dict | Counter):
        for key, inner in value.items():
            assert isinstance(key, str | int)
            assert_plain(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            assert_plain(inner)
    else:
        assert isinstance(value, bool | int | float | str | None)


@pytest.mark.parametrize("config", [*USUAL, PLATEAU], ids=label)
def test_a_schedule_goes_on_from_its_state(config: dict[str, Any]) -> None:
    """Cut anywhere and restored in either order, the numbers are those of the run that was not cut, to the last bit."""
    for part in PARTS:
        spec = config | part
        if config["type"] in ("OneCycleLR", "CyclicLR"):
            spec["cycle_momentum"] = "param_name" not in part
        expected, states = whole_run(spec)
        for cut, (state, values) in enumerate(states):
            optimizer = make_optimizer()
            (schedule,) = build(spec, optimizer)
            restore = (schedules_first, optimizer_first)[cut % 2]
            restore(schedule, state, optimizer, values)
            assert run(schedule, optimizer, NUM_STEPS - cut) == expected[cut:], (part, cut)


def whole_run(spec: dict[str, Any]) -> tuple[list[Any], list[tuple[dict[str, Any], dict[str, Any]]]]:
    """Return the values of a run, and at each of its steps the states of schedule and optimizer."""
    optimizer = make_optimizer()
    (schedule,) = build(spec, optimizer)
    states = []

    def keep() -> None:
        assert_plain(schedule.state_dict())
        states.append(copy.deepcopy((schedule.state_dict(), optimizer.state_dict())))

    keep()
    return run(schedule, optimizer, NUM_STEPS, keep), states


def run(schedule: ParamScheduler, optimizer: SGD, num_steps: int, after: Callable[[], None] = lambda: None) -> list[Any]:
    """Return all that a schedule may drive, at the beginning and after each step."""

    def values() -> list[list[float]]:
        return [values_of(optimizer, name) for name in ("lr", "weight_decay", "momentum")]

    seen = [values()]
    for _ in range(num_steps):
        optimizer.step()
        schedule.step(0.5)
        after()
        seen.append(values())
    return seen


@pytest.mark.parametrize("name", ["SequentialLR", "ChainedScheduler"])
def test_schedules_of_schedules_go_on_from_their_state(name: str) -> None:
    """Given as objects."""

    def make(optimizer: SGD) -> ParamScheduler:
        parts: list[lrs.LRScheduler] = [lrs.ConstantLR(optimizer, 0.5, 5), lrs.ExponentialLR(optimizer, 0.9)]
        whole = lrs.SequentialLR(optimizer, parts, [4]) if name == "SequentialLR" else lrs.ChainedScheduler(parts, optimizer)
        return build(whole, optimizer)[0]

    straight = make_optimizer()
    expected = rates(straight, make(straight).step, NUM_STEPS)
    for cut in range(NUM_STEPS):
        broken, resumed = make_optimizer(), make_optimizer()
        first = make(broken)
        rates(broken, first.step, cut)
        second = make(resumed)
        resumed.load_state_dict(broken.state_dict())
        second.load_state_dict(first.state_dict())
        assert rates(resumed, second.step, NUM_STEPS - cut) == expected[cut:]


def test_a_momentum_goes_on_from_its_state_with_the_base_of_the_first_run() -> None:
    """The optimizer keeps the value before all schedules, as torch keeps the first learning rate."""
    spec = [
        dict(type="ExponentialLR", gamma=0.5, begin=1, end=3, param_name="momentum"),
        dict(type="LambdaLR", lr_lambda=lambda step: 1 - step / 10, begin=5, param_name="momentum"),
    ]
    straight = make_adam()
    expected = rates(straight, step_all(build(spec, straight)), 8, "beta")
    assert [round(first, 9) for (first,) in expected] == [0.8, 0.8, 0.4, 0.2, 0.2, 0.8, 0.72, 0.64, 0.56]
    for cut in range(9):
        broken, resumed = make_adam(), make_adam()
        first = build(spec, broken)
        rates(broken, step_all(first), cut, "beta")
        second = build(spec, resumed)
        resumed.load_state_dict(broken.state_dict())
        for schedule, earlier in zip(second, first, strict=True):
            schedule.load_state_dict(earlier.state_dict())
        assert rates(resumed, step_all(second), 8 - cut, "beta") == expected[cut:]


def test_a_schedule_can_go_back_to_before_its_begin() -> None:
    """An earlier state of the same run is taken over as well."""
    optimizer = make_plain()
    (schedule,) = build(HALVE | dict(begin=2), optimizer)
    early = schedule.state_dict(), optimizer.state_dict()
    once = rates(optimizer, schedule.step, 5)
    schedule.load_state_dict(early[0])
    optimizer.load_state_dict(early[1])
    assert rates(optimizer, schedule.step, 5) == once


def test_a_state_does_not_fit_another_scheduler() -> None:
    """Its numbers would mean something else there."""
    (before,), (after,) = build(HALVE), build(dict(type="ExponentialLR", gamma=0.9))
    with pytest.raises(ConfigError) as caught:
        after.load_state_dict(before.state_dict())
    assert str(caught.value) == (
        "the saved schedule is a StepLR and cannot go on as ExponentialLR; expected dict(type='StepLR', ...)"
    )


def test_a_schedule_shows_what_it_is() -> None:
    """As messages name it: what differs from the default."""
    optimizer = make_optimizer()
    assert repr(build(HALVE, optimizer)[0]) == "ParamScheduler(StepLR, by_epoch=True)"
    assert repr(build(HALVE | dict(begin=2, end=5, param_name="momentum", by_epoch=False), optimizer)[0]) == (
        "ParamScheduler(StepLR, by_epoch=False, begin=2, end=5, param_name='momentum')"
    )
    assert values_of(optimizer) == [0.1, 0.02]

"""A factor on learning rates: whatever the schedule, what follows is the schedule times that factor."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import Optimizer
from torch.optim import lr_scheduler as lrs

from hookbus.registry import PARAM_SCHEDULERS
from hookbus.schedulers import ParamScheduler
from hookbus.schedulers.scaling import NOTES, can_be_scaled, scale_to, set_rate
from tests.schedulers.builders import USUAL, build, label, make_optimizer, make_parameter, make_plain, values_of

STEPS = 14
METRICS = [0.5, 0.6, 0.6, 0.6, 0.6, 0.7, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
PLATEAU = dict(type="ReduceLROnPlateau", mode="max", factor=0.5, patience=1, min_lr=[0.001, 0.0])


def compound(name: str) -> Any:
    """Return a maker of a schedule of schedules, which are objects of one optimizer."""

    def make(optimizer: Optimizer) -> dict[str, Any]:
        parts = [lrs.LinearLR(optimizer, 0.5, total_iters=4), lrs.ExponentialLR(optimizer, 0.9)]
        return dict(type=name, schedulers=parts, **(dict(milestones=[5]) if name == "SequentialLR" else {}))

    make.__name__ = name
    return make


WARM_UP = dict(type="LinearLR", start_factor=0.1, total_iters=4, end=4)
SPECS: list[Any] = [
    *USUAL,
    PLATEAU,
    compound("SequentialLR"),
    compound("ChainedScheduler"),
    [WARM_UP, dict(type="CosineAnnealingLR", T_max=20, eta_min=1e-3, begin=4)],
    [dict(type="LambdaLR", lr_lambda=lambda step: 1 / (1 + step), begin=6)],
    [dict(type="StepLR", step_size=2, gamma=0.5), dict(type="MultiStepLR", milestones=[3, 7], gamma=0.5)],
]
"""Every scheduler of torch, and some that begin later or work together."""


def schedules_of(spec: Any, optimizer: Optimizer) -> list[ParamScheduler]:
    """Build a specification, or what a maker returns for the optimizer."""
    return build(spec(optimizer) if callable(spec) else copy.copy(spec), optimizer)


def step(optimizer: Optimizer, schedules: list[ParamScheduler], number: int) -> list[float]:
    """Take one step and return the rates."""
    optimizer.step()
    for schedule in schedules:
        schedule.step(METRICS[number] if schedule.needs_metric else None)
    return values_of(optimizer)


def change(optimizer: Optimizer, factors: tuple[float, float]) -> None:
    """Multiply the rates of both groups."""
    for group, factor in zip(optimizer.param_groups, factors, strict=True):
        scale_to(group, float(group["lr"]) * factor)


def test_every_scheduler_of_torch_is_covered_here() -> None:
    """A new one in the table needs a case above."""
    covered = {spec["type"] for spec in SPECS if isinstance(spec, dict)} | {"SequentialLR", "ChainedScheduler"}
    assert covered == set(PARAM_SCHEDULERS.names())


def name_of(spec: Any) -> str:
    """Return the name of a case."""
    return getattr(spec, "__name__", None) or label(spec)


@pytest.mark.parametrize("spec", SPECS, ids=name_of)
@pytest.mark.parametrize("when", [0, 1, 3, 6, 9])
def test_what_follows_is_the_schedule_times_the_factor(spec: Any, when: int) -> None:
    """Each group by its own factor, floors and peaks included, whenever it is set."""
    untouched, changed = make_optimizer(), make_optimizer()
    theirs, ours = schedules_of(spec, untouched), schedules_of(spec, changed)
    factors = (0.25, 3.0)
    for number in range(STEPS):
        if number == when:
            before = values_of(changed)
            change(changed, factors)
            assert values_of(changed) == [rate * factor for rate, factor in zip(before, factors, strict=True)]
        applied = factors if number >= when else (1.0, 1.0)
        expected = [rate * factor for rate, factor in zip(step(untouched, theirs, number), applied, strict=True)]
        assert step(changed, ours, number) == pytest.approx(expected, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize("spec", SPECS, ids=name_of)
def test_the_factor_survives_a_resume(spec: Any) -> None:
    """Another process goes on from the states alone, to the last bit."""
    straight, cut = make_optimizer(), make_optimizer()
    ours, before = schedules_of(spec, straight), schedules_of(spec, cut)
    for optimizer, schedules in ((straight, ours), (cut, before)):
        for number in range(7):
            if number == 3:
                change(optimizer, (0.3, 7.0))
            step(optimizer, schedules, number)
    resumed = make_optimizer()
    after = schedules_of(spec, resumed)
    resumed.load_state_dict(copy.deepcopy(cut.state_dict()))
    for schedule, saved in zip(after, before, strict=True):
        schedule.load_state_dict(copy.deepcopy(saved.state_dict()))
    for number in range(7, STEPS):
        assert step(resumed, after, number) == step(straight, ours, number)


@settings(max_examples=50, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 11), st.floats(1e-4, 10.0)), max_size=5))
def test_the_last_one_counts(changes: list[tuple[int, float]]) -> None:
    """Set as often as one likes, the rate is what was set last times what the schedule did since."""
    optimizer, untouched = make_plain(), make_plain()
    ours, theirs = build(USUAL[5], optimizer), build(USUAL[5], untouched)
    expected = 0.1
    for number in range(12):
        for _, rate in (each for each in changes if each[0] == number):
            scale_to(optimizer.param_groups[0], rate)
            expected = rate
            assert values_of(optimizer) == [rate]
        before = values_of(untouched)[0]
        expected *= step(untouched, theirs, number)[0] / before
        assert step(optimizer, ours, number) == pytest.approx([expected], rel=1e-9)


def test_a_rate_of_zero_is_no_dead_end() -> None:
    """The schedule goes on behind it, and a later rate is measured against the schedule."""
    optimizer = make_plain()
    schedules = build(dict(type="ExponentialLR", gamma=0.5), optimizer)
    scale_to(optimizer.param_groups[0], 0.0)
    assert [step(optimizer, schedules, number) for number in range(3)] == [[0.0]] * 3
    assert can_be_scaled(optimizer.param_groups[0])
    scale_to(optimizer.param_groups[0], 0.8)
    assert step(optimizer, schedules, 3) == pytest.approx([0.4])


def test_a_schedule_that_stands_at_zero_cannot_be_scaled() -> None:
    """Also where it is zero up to rounding; without a factor the rate is simply set."""
    optimizer = make_plain()
    schedules = build(dict(type="CosineAnnealingLR", T_max=3), optimizer)
    group = optimizer.param_groups[0]
    assert can_be_scaled(group)
    for number in range(3):
        step(optimizer, schedules, number)
    assert not can_be_scaled(group)
    group["lr"] = 1e-17
    assert not can_be_scaled(group)
    set_rate(group, 0.3)
    assert (group["lr"], can_be_scaled(group)) == (0.3, True)


def test_a_rate_that_a_hook_writes_is_where_the_schedule_goes_on() -> None:
    """As without a factor, whatever that is, zero included."""
    for factor, following in ((0.5, 0.2), (0.0, 0.2)):
        optimizer = make_plain()
        schedules = build(dict(type="ExponentialLR", gamma=0.5), optimizer)
        scale_to(optimizer.param_groups[0], 0.1 * factor)
        optimizer.param_groups[0]["lr"] = 0.4
        assert step(optimizer, schedules, 0) == pytest.approx([following])


def test_a_rate_that_is_a_tensor_stays_that_tensor() -> None:
    """A captured optimizer reads it where it is."""
    rate = torch.tensor(0.1)
    optimizer = torch.optim.AdamW([make_parameter()], lr=rate, foreach=False)
    schedules = build(dict(type="StepLR", step_size=1, gamma=0.5), optimizer)
    scale_to(optimizer.param_groups[0], 0.8)
    assert rate.item() == pytest.approx(0.8)
    assert [step(optimizer, schedules, number) for number in range(2)] == [[pytest.approx(0.4)], [pytest.approx(0.2)]]
    assert optimizer.param_groups[0]["lr"] is rate


def test_schedules_of_other_parameters_do_not_notice() -> None:
    """A momentum goes its way, and nothing is noted where no factor is."""
    optimizer, untouched = make_plain(), make_plain()
    spec = dict(type="ExponentialLR", gamma=0.9, param_name="momentum")
    ours, theirs = build(spec, optimizer), build(spec, untouched)
    scale_to(optimizer.param_groups[0], 0.01)
    for number in range(4):
        step(optimizer, ours, number)
        step(untouched, theirs, number)
    assert values_of(optimizer, "momentum") == values_of(untouched, "momentum")
    assert values_of(optimizer) == [0.01]
    assert not set(NOTES) & untouched.param_groups[0].keys()

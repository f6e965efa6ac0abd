"""Which parameter a schedule drives: the learning rate, the momentum or any other number of the optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import LBFGS, SGD, AdamW, NAdam, Optimizer, RMSprop
from torch.optim import lr_scheduler as lrs
from torch.optim.optimizer import register_optimizer_step_post_hook

from hookbus.schedulers.parameters import ParameterView, numeric_options, stand_in_for
from tests.schedulers.builders import (
    RATES,
    USUAL,
    build,
    course,
    label,
    make_adam,
    make_optimizer,
    make_parameter,
    make_plain,
    rates,
    refusal,
    step_all,
    values_of,
)


@pytest.mark.parametrize("config", USUAL, ids=label)
def test_any_parameter_follows_the_arithmetic_of_torch(config: dict[str, Any]) -> None:
    """The weight decay takes the values that torch gives to an equal learning rate, to the last bit, and nothing else changes."""
    options = {name: value for name, value in config.items() if name != "type"}
    if config["type"] in ("OneCycleLR", "CyclicLR"):
        options["cycle_momentum"] = False
    ours, theirs = make_optimizer(), make_optimizer()
    (schedule,) = build({"type": config["type"], "param_name": "weight_decay"} | options, ours)
    bare = getattr(lrs, config["type"])(theirs, **options)
    assert rates(ours, schedule.step, name="weight_decay") == rates(theirs, bare.step)
    assert values_of(ours) == list(RATES)
    assert values_of(ours, "momentum") == [0.9, 0.9]
    assert schedule.param_name == "weight_decay"
    assert schedule.optimizer is ours


HALVE_MOMENTUM = dict(type="StepLR", step_size=1, gamma=0.5, param_name="momentum")


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [
        (SGD([make_parameter()], lr=0.1, momentum=0.8), "momentum"),
        (RMSprop([make_parameter()], lr=0.1, momentum=0.8), "momentum"),
        (make_adam(), "beta"),
        (NAdam([make_parameter()], lr=0.1, betas=(0.8, 0.99), momentum_decay=0.004), "beta"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Optimizer) else value,
)
def test_the_momentum_is_the_first_beta_where_there_are_betas(optimizer: Optimizer, name: str) -> None:
    """The second one stays."""
    assert course(HALVE_MOMENTUM, 3, optimizer, name) == [0.8, 0.4, 0.2, 0.1]
    group = optimizer.param_groups[0]
    assert group["lr"] == 0.1
    assert group.get("betas", (0, 0.99))[1] == 0.99


def test_learning_rate_and_momentum_go_side_by_side() -> None:
    """Each with its own part of the run, as one cycle does it."""
    optimizer = make_plain(0.1)
    spec = [
        dict(type="LinearLR", start_factor=0.5, total_iters=2, end=2),
        dict(type="LinearLR", start_factor=0.5, total_iters=2, end=2, param_name="momentum"),
        dict(type="ExponentialLR", gamma=0.5, begin=2),
        dict(type="ExponentialLR", gamma=0.25, begin=3, param_name="momentum"),
    ]
    schedules = build(spec, optimizer)
    seen = []
    for _ in range(5):
        seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        optimizer.step()
        step_all(schedules)()
    assert seen == [pytest.approx(pair) for pair in [(0.05, 0.4), (0.075, 0.6), (0.1, 0.8), (0.05, 0.8), (0.025, 0.2)]]


def test_a_schedule_goes_on_from_what_others_made_of_the_parameter() -> None:
    """A hook may set it in between; a schedule that multiplies goes on from there."""
    optimizer = make_plain()
    (schedule,) = build(HALVE_MOMENTUM, optimizer)
    optimizer.param_groups[0]["momentum"] = 0.4
    schedule.step()
    assert optimizer.param_groups[0]["momentum"] == 0.2


def test_a_beta_that_is_a_tensor_is_driven_as_well() -> None:
    """Captured optimizers may have them; the value is followed, and the caller's own tensor is left alone."""
    beta = torch.tensor(0.8)
    optimizer = AdamW([make_parameter()], lr=torch.tensor(0.1), betas=(beta, torch.tensor(0.99)), foreach=False, capturable=True)
    (schedule,) = build(HALVE_MOMENTUM | dict(begin=1), optimizer)
    seen = [optimizer.param_groups[0]["betas"][0].item()]
    for _ in range(3):
        schedule.step()
        seen.append(optimizer.param_groups[0]["betas"][0].item())
    assert seen == pytest.approx([0.8, 0.8, 0.4, 0.2])
    assert beta.item() == pytest.approx(0.8)


def test_a_view_of_a_parameter_is_no_optimizer_to_others() -> None:
    """Global hooks on the steps of optimizers do not hear of it."""
    heard: list[object] = []
    handle = register_optimizer_step_post_hook(lambda optimizer, *_: heard.append(optimizer))
    try:
        optimizer = make_plain()
        (schedule,) = build(HALVE_MOMENTUM, optimizer)
        schedule.step()
        ParameterView(optimizer, "momentum").step()
        assert heard == []
    finally:
        handle.remove()


def test_a_stand_in_keeps_what_is_tried_on_it_to_itself() -> None:
    """Values in groups, tensors in place, and the step that torch wraps."""
    optimizer = AdamW([make_parameter()], lr=torch.tensor(0.1), foreach=False)
    lrs.StepLR(optimizer, 1)
    before = vars(optimizer)["step"], dict(optimizer.param_groups[0])
    double = stand_in_for(optimizer)
    lrs.LinearLR(double)
    lrs.OneCycleLR(double, 0.5, total_steps=5)
    assert type(double) is AdamW
    assert vars(double)["step"] is not vars(optimizer)["step"]
    assert (vars(optimizer)["step"], dict(optimizer.param_groups[0])) == before
    assert optimizer.param_groups[0]["lr"].item() == pytest.approx(0.1)


def test_the_numbers_of_an_optimizer_are_what_a_schedule_may_drive() -> None:
    """Those of every group; the notes of schedulers are not among them."""
    optimizer = make_optimizer()
    expected = ["lr", "weight_decay", "momentum", "dampening"]
    assert sorted(numeric_options(optimizer)) == sorted(expected)
    lrs.OneCycleLR(optimizer, 0.5, total_steps=5)
    build(HALVE_MOMENTUM, optimizer)
    assert sorted(numeric_options(optimizer)) == sorted(expected)
    assert sorted(numeric_options(make_adam())) == ["eps", "lr", "momentum", "weight_decay"]
    optimizer.param_groups[0]["own"] = 1.0
    assert "own" not in numeric_options(optimizer)
    optimizer.param_groups[1]["own"] = 2.0
    assert "own" in numeric_options(optimizer)


# refusals


def test_a_parameter_has_to_be_a_number_of_the_optimizer() -> None:
    """The text lists those there are."""
    assert refusal(HALVE_MOMENTUM | dict(param_name="momentun"), make_plain()) == (
        "param_scheduler.param_name = 'momentun': SGD has no number of that name; "
        "did you mean 'momentum'? valid choices: lr, momentum, dampening, weight_decay"
    )
    text = "param_scheduler.param_name = 'momentum': LBFGS has no number of that name; valid choices: lr, "
    assert refusal(HALVE_MOMENTUM, LBFGS([make_parameter()])).startswith(text)
    assert refusal(HALVE_MOMENTUM | dict(param_name=None)) == (
        "param_scheduler.param_name = None: expected the name of an option of the optimizer"
    )


@pytest.mark.parametrize("config", [USUAL[9], USUAL[10]], ids=label)
def test_a_cycle_of_another_parameter_leaves_the_momentum_alone(config: dict[str, Any]) -> None:
    """Those that drive it beside the learning rate have to be told not to."""
    expected = f"{config['type']} would drive the momentum beside 'weight_decay'; expected False"
    spec = config | dict(param_name="weight_decay")
    assert refusal(spec) == f"param_scheduler.cycle_momentum = True: {expected}"
    assert refusal(spec | dict(cycle_momentum=True)) == f"param_scheduler.cycle_momentum = True: {expected}"


@pytest.mark.parametrize(
    "spec_of", [lambda s: dict(scheduler=s), lambda s: dict(type="ChainedScheduler", schedulers=[s])], ids=["alone", "inside"]
)
def test_a_scheduler_object_drives_the_learning_rate(spec_of: Any) -> None:
    """It did so when it was made."""
    optimizer = make_plain()
    spec = spec_of(lrs.StepLR(optimizer, 1)) | dict(param_name="momentum")
    assert refusal(spec, optimizer) == (
        "param_scheduler.param_name = 'momentum': a scheduler object set its first value when it was made; "
        "expected 'lr', or dict(type=...) instead"
    )

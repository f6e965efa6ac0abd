"""Small makers for the tests of schedules: optimizers, schedules for them, and the values that come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch.optim import SGD, AdamW, Optimizer
from torch.optim import lr_scheduler as lrs

from hookbus.errors import ConfigError
from hookbus.schedulers import ParamScheduler, build_param_schedulers

RATES = (0.1, 0.02)

USUAL: list[dict[str, Any]] = [
    dict(type="StepLR", step_size=3, gamma=0.5),
    dict(type="MultiStepLR", milestones=[2, 5, 11], gamma=0.1),
    dict(type="MultiStepLR", milestones=range(0, 20, 4)),
    dict(type="ConstantLR", factor=0.5, total_iters=4),
    dict(type="LinearLR", start_factor=0.1, end_factor=1, total_iters=5),
    dict(type="ExponentialLR", gamma=0.9),
    dict(type="PolynomialLR", total_iters=10, power=2),
    dict(type="CosineAnnealingLR", T_max=20, eta_min=0),
    dict(type="CosineAnnealingWarmRestarts", T_0=4, T_mult=2, eta_min=1e-4),
    dict(type="CyclicLR", base_lr=0.01, max_lr=[0.1, 0.2], step_size_up=3, step_size_down=None, mode="triangular2"),
    dict(type="OneCycleLR", max_lr=[0.2, 0.1], total_steps=21, anneal_strategy="linear", three_phase=True),
    dict(type="OneCycleLR", max_lr=1, epochs=7, steps_per_epoch=3, pct_start=0.3),
    dict(type="LambdaLR", lr_lambda=lambda step: 0.5**step),
    dict(type="LambdaLR", lr_lambda=[lambda step: 1 / (step + 1), lambda step: 1.0]),
    dict(type="MultiplicativeLR", lr_lambda=lambda step: 0.95),
]
"""A config of each scheduler of torch that needs neither a metric nor other schedulers."""


def label(value: object) -> str:
    """Return the name of a test case that is a config, the same in every process."""
    texts = map(str, value.values()) if isinstance(value, Mapping) else [str(value)]
    return " ".join(texts).split(" at ")[0][:60]


def make_optimizer(**options: Any) -> SGD:
    """Return an optimizer of two groups with different learning rates, and the same numbers as weight decay."""
    groups = [{"params": [make_parameter()], "lr": rate, "weight_decay": rate} for rate in RATES]
    return SGD(groups, **{"momentum": 0.9} | options)


def make_plain(rate: float = 0.1) -> SGD:
    """Return an optimizer of one group."""
    return SGD([make_parameter()], lr=rate, momentum=0.8)


def make_adam() -> AdamW:
    """Return an optimizer whose momentum is its first beta."""
    return AdamW([make_parameter()], lr=0.1, betas=(0.8, 0.99))


def make_parameter() -> torch.nn.Parameter:
    """Return something to optimize; it has no gradient, so that steps change nothing."""
    return torch.nn.Parameter(torch.ones(2))


def build(spec: object, optimizer: Optimizer | None = None, *, loop_by_epoch: bool = True) -> list[ParamScheduler]:
    """Build schedules for an optimizer of a new run, or for this one."""
    return build_param_schedulers(spec, optimizer or make_optimizer(), loop_by_epoch=loop_by_epoch)


def values_of(optimizer: Optimizer, name: str = "lr") -> list[Any]:
    """Return the present value of a parameter in each group."""
    return [float(group["betas"][0] if name == "beta" else group[name]) for group in optimizer.param_groups]


def rates(optimizer: Optimizer, step: Callable[[], object], num_steps: int = 20, name: str = "lr") -> list[list[float]]:
    """Return the values of a parameter at the beginning and after each step."""
    seen = [values_of(optimizer, name)]
    for _ in range(num_steps):
        optimizer.step()
        step()
        seen.append(values_of(optimizer, name))
    return seen


def course(spec: object, num_steps: int, optimizer: Optimizer | None = None, name: str = "lr") -> list[float]:
    """Return the values in the first group of an optimizer at the beginning and after each step, without rounding noise."""
    optimizer = optimizer or make_plain()
    schedules = build(spec, optimizer)
    return [round(first, 9) for first, *_ in rates(optimizer, step_all(schedules), num_steps, name)]


def step_all(schedules: Sequence[ParamScheduler | lrs.LRScheduler]) -> Callable[[], None]:
    """Return a function that steps all of them in order."""

    def step() -> None:
        for schedule in schedules:
            schedule.step()

    return step


def refusal(spec: object, optimizers: Optimizer | Mapping[str, Optimizer] | None = None) -> str:
    """Return the text with which a specification is refused."""
    with pytest.raises(ConfigError) as caught:
        build_param_schedulers(spec, optimizers or make_optimizer(), loop_by_epoch=True)
    return str(caught.value)

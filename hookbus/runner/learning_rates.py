"""Changing learning rates in the middle of a run, so that schedules go on in proportion."""

from __future__ import annotations

__all__ = ("Rates", "check_rates", "set_rates")

import math
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from torch.optim import Optimizer

from hookbus._config import refuse, shown
from hookbus.errors import ConfigError, choices
from hookbus.schedulers.scaling import can_be_scaled, scale_to, set_rate

if TYPE_CHECKING:
    from hookbus.runner.runner import Runner

Rates: TypeAlias = float | Mapping[str, float]
"""A learning rate for all parameter groups, or rates by the name of an optimizer or group."""


class _Group(NamedTuple):
    """A parameter group under the names by which it may be meant."""

    names: tuple[str, ...]
    optimizer: Optimizer
    options: dict[str, Any]


def check_rates(runner: Runner, lr: Any) -> float | dict[str, float]:
    """Return learning rates as plain numbers.

    Raises:
        ConfigError: nothing is trained, a name is unknown, or a rate is no number of at least 0; names each.
    """
    groups = _groups(runner)
    if not groups:
        msg = f"set_lr({shown(lr)}) cannot take effect: the runner has no optimizer"
        raise ConfigError(msg)
    if not isinstance(lr, Mapping):
        refuse(list(_rate_problems("lr", lr)))
        return float(lr)
    known = list(dict.fromkeys(name for group in groups for name in group.names))
    problems = [f"set_lr({shown(lr)}): expected at least one learning rate"] if not lr else []
    for name, rate in lr.items():
        problems += [] if str(name) in known else [f"set_lr: no optimizer or group is called {shown(name)}; {_hint(name, known)}"]
        problems += _rate_problems(f"lr[{shown(name)}]", rate)
    refuse(problems)
    return {str(name): float(rate) for name, rate in lr.items()}


def set_rates(runner: Runner, lr: float | Mapping[str, float]) -> None:
    """Set checked learning rates, all or none; the schedules that drive them go on in proportion.

    Raises:
        ConfigError: the schedule of one stands at 0, which no factor turns into another rate.
    """
    wanted = [(group, rate) for group in _groups(runner) if (rate := _rate_for(group, lr)) is not None]
    stuck = [group for group, _ in wanted if _is_driven(runner, group) and not can_be_scaled(group.options)]
    if stuck:
        msg = (
            f"set_lr({shown(lr)}): the schedules of group {stuck[0].names[-1]} stand at 0, and no factor makes another "
            "learning rate of that; ask again when they have moved on"
        )
        raise ConfigError(msg)
    for group, rate in wanted:
        change = scale_to if _is_driven(runner, group) else set_rate
        change(group.options, rate)


def _groups(runner: Runner) -> list[_Group]:
    if runner.optim_wrapper is None:
        return []
    return [
        _Group(_names(optimizer_name, options, number), wrapper.optimizer, options)
        for optimizer_name, wrapper in runner.optim_wrapper.wrappers().items()
        for number, options in enumerate(wrapper.optimizer.param_groups)
    ]


def _names(optimizer_name: str, options: Mapping[str, Any], number: int) -> tuple[str, ...]:
    """Return what a group may be called: by its optimizer, where there are several, and by its own name or number."""
    own = str(options.get("name", number))
    return (optimizer_name, f"{optimizer_name}.{own}") if optimizer_name else (own,)


def _rate_for(group: _Group, lr: float | Mapping[str, float]) -> float | None:
    """Return the rate that is meant for a group, the most precise name first; None where it stays as it is."""
    if not isinstance(lr, Mapping):
        return lr
    return next((lr[name] for name in reversed(group.names) if name in lr), None)


def _is_driven(runner: Runner, group: _Group) -> bool:
    """Return whether a schedule will set the rate of a group, now or later."""
    schedules = [schedule for schedule in runner.param_schedulers if schedule.optimizer is group.optimizer]
    return any(schedule.param_name == "lr" and not schedule.is_over for schedule in schedules)


def _rate_problems(name: str, rate: Any) -> Iterator[str]:
    is_number = isinstance(rate, Real) and not isinstance(rate, bool)
    if not is_number or not math.isfinite(rate) or rate < 0:
        yield f"set_lr: {name} = {shown(rate)}: expected a number of at least 0"


def _hint(name: object, known: list[str]) -> str:
    return choices(str(name)[:100], known)

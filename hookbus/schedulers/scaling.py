"""A factor on the learning rate of a parameter group whose schedules go on as if nobody had touched it.

The schedules see, and keep notes of, what the rate would be without the factor: `unscaled_lr` in the group. Whenever they
have set a new value, the rate becomes that value times `lr_scale`. So it holds for every scheduler alike, also for one that
begins later; both numbers lie in the groups of the optimizer, and with them in checkpoints.
"""

from __future__ import annotations

__all__ = ("NOTES", "as_scheduled", "can_be_scaled", "is_scaled", "scale_to", "set_rate")

import math
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

NOTES = ("lr_scale", "unscaled_lr")
"""The keys of a group under which the factor is kept, and the rate without it; absent where nobody asked for a factor."""
_SCALE, _UNSCALED = NOTES
_NOTHING = 1e-9
"""Rates below this part of the first one are rounding errors of a schedule that stands at 0."""

_Group = MutableMapping[str, Any]


def can_be_scaled(group: _Group) -> bool:
    """Return whether its schedules give a rate other than 0 now, so that a factor can make another rate of it."""
    return abs(_unscaled(group)) > _NOTHING * abs(float(group.get("initial_lr", 0.0)))


def scale_to(group: _Group, rate: float) -> None:
    """Set the rate of a group, and what follows in proportion."""
    scale = rate / _unscaled(group)
    if _SCALE not in group:
        held = group["lr"]
        group[_UNSCALED] = held.clone() if isinstance(held, Tensor) else held
    group[_SCALE] = scale
    _put(group, "lr", rate)


def set_rate(group: _Group, rate: float) -> None:
    """Set the rate of a group that no schedule drives."""
    for note in NOTES:
        group.pop(note, None)
    _put(group, "lr", rate)


def is_scaled(optimizer: Optimizer) -> bool:
    """Return whether there is a factor on any of its rates."""
    for group in optimizer.param_groups:  # noqa: SIM110  asked at every step, and a generator costs more
        if _SCALE in group:
            return True
    return False


@contextmanager
def as_scheduled(optimizer: Optimizer) -> Iterator[None]:
    """Show its schedules the rates of an optimizer without the factors, and apply those to what they make of it."""
    scaled = [group for group in optimizer.param_groups if _SCALE in group]
    for group in scaled:
        _take_over_changes(group)
        _put(group, "lr", group[_UNSCALED])
    try:
        yield
    finally:
        for group in scaled:
            _put(group, _UNSCALED, group["lr"])
            _put(group, "lr", group["lr"] * group[_SCALE])


def _unscaled(group: _Group) -> float:
    """Return what the schedules give now; waits for the device where the rate is a tensor there."""
    if _SCALE in group:
        _take_over_changes(group)
    return float(group.get(_UNSCALED, group["lr"]))


def _take_over_changes(group: _Group) -> None:
    """Have the schedules go on from a rate that somebody wrote into the group; of one on a device nobody could tell."""
    rate, unscaled, scale = group["lr"], group[_UNSCALED], group[_SCALE]
    if isinstance(rate, Tensor) or math.isclose(rate, unscaled * scale):
        return
    if scale == 0.0:
        group[_SCALE] = scale = 1.0
    group[_UNSCALED] = rate / scale


def _put(group: _Group, name: str, value: Any) -> None:
    held = group[name]
    if isinstance(held, Tensor):
        with torch.no_grad():
            held.copy_(value) if isinstance(value, Tensor) else held.fill_(value)  # a captured graph reads it where it is
    else:
        group[name] = value

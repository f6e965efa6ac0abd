"""The parameter of an optimizer that a schedule drives, shown to torch's schedulers as the learning rate they know."""

from __future__ import annotations

__all__ = ("ParameterView", "numeric_options", "stand_in_for", "values_kept")

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from hookbus.schedulers.scaling import NOTES

_NOTES = ("initial_", "max_lr", "min_lr", "max_momentum", "base_momentum", *NOTES)
"""How the keys begin under which schedulers, and ours, keep notes of their own in the groups of an optimizer."""


class ParameterView(Optimizer):
    """An optimizer in the eyes of a scheduler, whose learning rate is another parameter of a real optimizer.

    Its step only reads that parameter. The base of all its schedules is kept in the real groups as `initial_<name>`, like torch
    keeps `initial_lr`, so that a later schedule finds it and a checkpoint of the optimizer holds it.
    """

    def __init__(self, optimizer: Optimizer, name: str) -> None:
        # The constructor of torch is left out: with it, profilers and global step hooks would take this for an optimizer.
        self._optimizer = optimizer
        self._name = name
        self.defaults = optimizer.defaults
        self.param_groups = [self._shown(group) for group in optimizer.param_groups]

    def _shown(self, group: dict[str, Any]) -> dict[str, Any]:
        shown = {"params": group["params"], "lr": _own(_read(group, self._name))}
        base = group.get(f"initial_{self._name}")
        return shown if base is None else shown | {"initial_lr": base}

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Read the parameter, which others may have changed; no weight moves."""
        for shown, group in zip(self.param_groups, self._optimizer.param_groups, strict=True):
            shown["lr"] = _own(_read(group, self._name))
        return None

    def write(self) -> None:
        """Set the parameter to what the scheduler has made of it."""
        for shown, group in zip(self.param_groups, self._optimizer.param_groups, strict=True):
            _write(group, self._name, shown["lr"])

    def write_base(self) -> None:
        """Keep the base that the scheduler has noted or changed when it was made."""
        for shown, group in zip(self.param_groups, self._optimizer.param_groups, strict=True):
            if "initial_lr" in shown:
                group[f"initial_{self._name}"] = shown["initial_lr"]


def numeric_options(optimizer: Optimizer) -> list[str]:
    """Return the options that every group of an optimizer has as a number; the first beta counts as the momentum."""
    first, *others = optimizer.param_groups
    names = [name for name, value in first.items() if _is_number(value) and not name.startswith(_NOTES)]
    if "momentum" not in first and "betas" in first:
        names.append("momentum")
    return [name for name in names if all(name in group or _has_betas_for(name, group) for group in others)]


def stand_in_for(optimizer: Optimizer) -> Optimizer:
    """Return an optimizer with the same groups on which a scheduler may be tried; nothing it sets reaches the real one."""
    double: Optimizer = object.__new__(type(optimizer))
    vars(double).update(vars(optimizer))
    vars(double).pop("step", None)  # a scheduler puts its own wrapper there, which would call the real one
    double.param_groups = [{key: _own(value) for key, value in group.items()} for group in optimizer.param_groups]
    return double


@contextmanager
def values_kept(optimizer: Optimizer) -> Iterator[None]:
    """Put every option of the groups back as it was; what is added stays."""
    before = [_options(group) for group in optimizer.param_groups]
    yield
    for group, options in zip(optimizer.param_groups, before, strict=True):
        for name, value in options.items():
            _set(group, name, value)


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _own(value) for name, value in group.items() if name != "params"}


def _own(value: Any) -> Any:
    """Return a value that others do not change in place: torch fills a learning rate that is a tensor."""
    return value.clone() if isinstance(value, Tensor) else value


def _is_number(value: object) -> bool:
    return isinstance(value, Real | Tensor) and not isinstance(value, bool)


def _has_betas_for(name: str, group: Mapping[str, Any]) -> bool:
    return name == "momentum" and "momentum" not in group and "betas" in group


def _read(group: Mapping[str, Any], name: str) -> Any:
    return group["betas"][0] if _has_betas_for(name, group) else group[name]


def _write(group: dict[str, Any], name: str, value: Any) -> None:
    if _has_betas_for(name, group):
        group["betas"] = (_own(value), *group["betas"][1:])
    else:
        _set(group, name, value)


def _set(group: dict[str, Any], name: str, value: Any) -> None:
    held = group.get(name)
    if isinstance(held, Tensor) and isinstance(value, Tensor):
        with torch.no_grad():
            held.copy_(value)  # the same tensor: a captured graph reads it where it is
    else:
        group[name] = value

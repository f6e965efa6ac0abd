"""What is done to gradients between backward and step: clipping, and agreeing on them with other processes."""

from __future__ import annotations

__all__ = ("Clipping", "average_over_processes", "clip_problems", "gradients_of", "parameters_of")

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from hookbus._config import Constructor, place, refuse, shown
from hookbus.distributed import world_size
from hookbus.errors import choices

_WAYS: dict[str, Callable[..., Any]] = {"norm": clip_grad_norm_, "value": clip_grad_value_}
_POSITIVE = ("max_norm", "clip_value", "norm_type")


class Clipping:
    """Clips gradients by their norm, or each element by its value; torch's own functions do it.

    Args:
        options: `dict(max_norm=1.0, norm_type=2.0)`, or `dict(type="value", clip_value=0.5)`.

    Raises:
        ConfigError: an option is unknown, missing, ill-typed or out of range.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        refuse(clip_problems(options, "clip_grad"))
        self._options = {key: value for key, value in options.items() if key != "type"}
        self._clip = _WAYS[options.get("type", "norm")]

    def __call__(self, parameters: list[torch.Tensor]) -> torch.Tensor | None:
        """Clip, and return the norm from before where it is the norm that is clipped; the device is not waited for."""
        norm: torch.Tensor | None = self._clip(parameters, **self._options)
        return None if norm is None else norm.detach()


def clip_problems(options: object, path: str) -> list[str]:
    """Return everything that is wrong with the options of a clipping."""
    if not isinstance(options, Mapping):
        return [f"{path} = {shown(options)}: expected a dict such as dict(max_norm=1.0) or dict(type='value', clip_value=0.5)"]
    way = options.get("type", "norm")
    if way not in tuple(_WAYS):
        return [f"{place(path, 'type')} = {shown(way)}: {choices(str(way)[:100], _WAYS)}"]
    given = {str(key): value for key, value in options.items() if key != "type"}
    _, problems = _signature(way).fit(given, path, given={}, extra_keys=("type",))
    return problems or [
        f"{place(path, key)} = {shown(given[key])}: expected a number above 0"
        for key in _POSITIVE
        if key in given and not given[key] > 0
    ]


def _signature(way: str) -> Constructor:
    """Return what a clipping function takes besides the parameters, in the form that configs are checked against."""
    function = _WAYS[way]
    _, *parameters = inspect.signature(function).parameters.values()
    return Constructor(f"clipping by {way}", {p.name: p for p in parameters}, namespace=inspect.unwrap(function).__globals__)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return what an optimizer updates, over all its groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def gradients_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return the gradients that there are at present."""
    return [parameter.grad for parameter in parameters_of(optimizer) if parameter.grad is not None]


def average_over_processes(gradients: Iterable[torch.Tensor]) -> None:
    """Make gradients that were added up without synchronisation the same in every process; each has to call it."""
    size = world_size()
    if size == 1:
        return
    for gradient in gradients:
        torch.distributed.all_reduce(gradient)
        gradient.div_(size)

"""Low precision: which number formats a model may compute in, and the scaling of losses that float16 needs."""

from __future__ import annotations

__all__ = ("LossScaler", "low_precision", "precision_problems")

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler

from hookbus._config import Constructor, place, shown
from hookbus.errors import choices

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_OUR_BUSINESS = {"device": None, "enabled": None}
_ABOVE = {"init_scale": 0, "growth_factor": 1, "backoff_factor": 0, "growth_interval": 0}
_BELOW = {"init_scale": math.inf, "growth_factor": math.inf, "backoff_factor": 1, "growth_interval": math.inf}


def low_precision(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Return the number format that a name stands for; None is that of the parameters."""
    return _DTYPES[dtype] if isinstance(dtype, str) else dtype


def precision_problems(dtype: object, loss_scale: object, path: str = "") -> list[str]:
    """Return everything that is wrong with a number format and its loss scale."""
    where, scale_where = (f"{path}.dtype", f"{path}.loss_scale") if path else ("dtype", "loss_scale")
    problems = [] if dtype is None else list(_dtype_problems(dtype, where))
    if loss_scale == "dynamic" or loss_scale is None:
        return problems
    wrong = _scale_problems(loss_scale, scale_where)
    if not wrong and not problems and loss_scale != 1 and dtype not in ("float16", torch.float16):
        wrong = [f"{scale_where} = {shown(loss_scale)}: only dtype='float16' scales the loss, and dtype is {shown(dtype)}"]
    return problems + wrong


def _dtype_problems(dtype: object, path: str) -> list[str]:
    if dtype in _DTYPES.values() or (isinstance(dtype, str) and dtype in _DTYPES):
        return []
    name = str(dtype)[:100].removeprefix("torch.")
    if name in ("float32", "float64", "float", "double"):
        return [f"{path} = {shown(dtype)}: leave it out to compute in the format of the parameters; {choices('', _DTYPES)}"]
    return [f"{path} = {shown(dtype)}: no number format for autocast; {choices(name, _DTYPES)}"]


def _scale_problems(loss_scale: object, path: str) -> list[str]:
    if isinstance(loss_scale, Mapping):
        return _option_problems(loss_scale, path)
    is_number = isinstance(loss_scale, int | float) and not isinstance(loss_scale, bool)
    if is_number and 0 < loss_scale < math.inf:  # type: ignore[operator]  # a number, as was just asked
        return []
    return [f"{path} = {shown(loss_scale)}: expected 'dynamic', a number above 0, a dict of options for it, or None"]


def _option_problems(options: Mapping[Any, Any], path: str) -> list[str]:
    given = {str(key): value for key, value in options.items()}
    _, problems = Constructor.of(GradScaler).fit(given, path, given=_OUR_BUSINESS, extra_keys=())
    return problems or [
        f"{place(path, key)} = {shown(given[key])}: expected a number above {low} and below {_BELOW[key]}"
        for key, low in _ABOVE.items()
        if key in given and not low < given[key] < _BELOW[key]
    ]


class LossScaler:
    """Scales losses so that float16 gradients do not vanish, and leaves out an update whose gradients overflowed.

    torch's own scaler does the work. A number is a scale that stays; "dynamic", or a dict of options, is one that adapts.
    """

    def __init__(self, loss_scale: str | float | Mapping[str, Any], device_type: str) -> None:
        self._fixed = float(loss_scale) if isinstance(loss_scale, int | float) else None
        if self._fixed is not None:
            self._options: dict[str, Any] = {"init_scale": self._fixed}
        else:
            self._options = dict(loss_scale) if isinstance(loss_scale, Mapping) else {}
        self._device_type = device_type
        self._scaler = self._make()

    def _make(self) -> GradScaler:
        return GradScaler(self._device_type, **self._options)

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss times the present scale."""
        scaled: torch.Tensor = self._scaler.scale(loss)
        return scaled

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Bring the gradients of an optimizer back to their own size, and look for overflows."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Have the optimizer take its step, unless its gradients overflowed."""
        self._scaler.step(optimizer)

    def update(self) -> None:
        """Adapt the scale, once per update of the optimizer, also where it was left out."""
        self._scaler.update(self._fixed)

    def restart(self) -> None:
        """Forget an update that broke off in the middle, and keep the scale."""
        state = self.state_dict()
        self._scaler = self._make()
        self.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """Return the scale and the rules by which it changes."""
        return self._scaler.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on with a saved scale, by the rules of this run; a scale that stays is that of this run, too."""
        if self._fixed is None:
            adapted = {key: state_dict[key] for key in ("scale", "_growth_tracker")}
            self._scaler.load_state_dict(self._scaler.state_dict() | adapted)

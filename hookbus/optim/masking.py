"""Leaving no trace of a batch that was invalid, also where only the device knows that it was: the host asks nothing.

Whether it was is a tensor, true or false, on the device of the gradients. What a batch changes are the parameters and the
state of an optimizer, and the buffers of a model, running statistics for instance.
"""

from __future__ import annotations

__all__ = ("KeptBuffers", "LeftOut", "MaskedUpdates", "largest_unless_finite")

import cmath
import math
from collections.abc import Iterable, Iterator

import torch

from hookbus._scalars import on_device
from hookbus.optim.gradients import gradients_of, parameters_of
from hookbus.optim.wrapper import OptimWrapper


class MaskedUpdates:
    """Has one optimizer leave out the updates that its device calls invalid.

    A fused optimizer is told so and changes nothing. Of any other one, parameters and state are copied before the step, and
    taken back behind it where it was invalid. A state that lies on the host, the step count of an `Adam` that is neither
    fused nor capturable, cannot be told: it counts the update.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._begun: set[int] = set()
        """The parameters, by identity, that have had an update, and so a state to go back to."""
        self._is_valid: dict[torch.device, torch.Tensor] = {}
        self._changing: list[torch.Tensor] = []
        self._copies: list[torch.Tensor] = []

    @torch.no_grad()
    def begin(self, is_invalid: torch.Tensor) -> bool:
        """Prepare for the step that comes next; return False where it must not be taken at all.

        The first update of a parameter makes its state, which cannot be undone: this one time the device is waited for.
        """
        updated = {id(parameter) for parameter in parameters_of(self._optimizer) if parameter.grad is not None}
        if not updated <= self._begun:
            if bool(is_invalid):
                return False
            self._begun |= updated
        elif getattr(self._optimizer, "_step_supports_amp_scaling", False):  # what torch's own GradScaler asks
            self._optimizer.found_inf = is_invalid.float()  # type: ignore[attr-defined]
        else:
            self._is_valid = {is_invalid.device: ~is_invalid}
            self._copy()
        return True

    @torch.no_grad()
    def settle(self) -> None:
        """Take the step back, if it was taken and was invalid."""
        vars(self._optimizer).pop("found_inf", None)
        for tensor, before in zip(self._changing, self._copies, strict=True) if self._is_valid else ():
            torch.where(self._valid_on(tensor.device), tensor, before, out=tensor)
        self._is_valid = {}

    def _copy(self) -> None:
        changing = list(self._what_changes())
        if [*map(id, changing)] != [*map(id, self._changing)]:
            self._changing, self._copies = changing, [torch.empty_like(tensor) for tensor in changing]
        torch._foreach_copy_(self._copies, self._changing)

    def _what_changes(self) -> Iterator[torch.Tensor]:
        for parameter in parameters_of(self._optimizer):
            if parameter.grad is not None:
                yield parameter
                state = self._optimizer.state.get(parameter, {}).values()
                yield from (value for value in state if isinstance(value, torch.Tensor) and on_device(value))

    def _valid_on(self, device: torch.device) -> torch.Tensor:
        if device not in self._is_valid:
            first = next(iter(self._is_valid.values()))
            self._is_valid[device] = first.to(device, non_blocking=True)
        return self._is_valid[device]


class KeptBuffers:
    """The buffers of a model as they were before a batch; all of them, because a batch norm leaves no mark on its own."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._buffers = list(model.buffers())
        self._copies = [torch.empty_like(buffer) for buffer in self._buffers]

    def __bool__(self) -> bool:
        return bool(self._buffers)

    @torch.no_grad()
    def keep(self) -> None:
        """Copy them."""
        if self._buffers:
            torch._foreach_copy_(self._copies, self._buffers)

    @torch.no_grad()
    def take_back(self, is_invalid: torch.Tensor | None = None) -> None:
        """Undo what happened to them since; with a tensor, where that is true."""
        for buffer, before in zip(self._buffers, self._copies, strict=True):
            if is_invalid is None:
                buffer.copy_(before)
            else:
                torch.where(is_invalid.to(buffer.device, non_blocking=True), before, buffer, out=buffer)


class LeftOut:
    """Leaves out batches whose gradients are not all finite, for all optimizers of a run."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._buffers = KeptBuffers(model)
        self._updates: dict[str, MaskedUpdates] = {}

    def begin_batch(self) -> None:
        """Keep what the forward pass may change."""
        self._buffers.keep()

    def end_micro_batch(self, wrapper: OptimWrapper) -> None:
        """Take back the buffers behind each of several micro-batches; their update is a matter of all of them."""
        if wrapper.accumulative_counts > 1 and self._buffers:
            self._largest_unless_finite(wrapper)

    def begin_update(self, wrapper: OptimWrapper) -> tuple[torch.Tensor | float | None, bool]:
        """Prepare for an update, or refuse it; behind it comes `end_update`.

        Returns:
            The largest gradient, unless it is known to be finite, and whether the update is to be taken.
        """
        largest = self._largest_unless_finite(wrapper)
        if not isinstance(largest, torch.Tensor):
            return largest, largest is None
        updates = self._updates.setdefault(wrapper.name, MaskedUpdates(wrapper.optimizer))
        return largest, updates.begin(~torch.isfinite(largest))

    def end_update(self, optimizer: str) -> None:
        """Take the update back where only the device knew that it was invalid."""
        if optimizer in self._updates:
            self._updates[optimizer].settle()

    def _largest_unless_finite(self, wrapper: OptimWrapper) -> torch.Tensor | float | None:
        """Return the largest gradient, None where it is known to be finite; if it is not, the buffers go back."""
        dense = [gradient._values() if gradient.is_sparse else gradient for gradient in gradients_of(wrapper.optimizer)]
        largest = largest_unless_finite(dense)
        if largest is not None:
            self._buffers.take_back(~torch.isfinite(largest) if isinstance(largest, torch.Tensor) else None)
        return largest


@torch.no_grad()
def largest_unless_finite(tensors: Iterable[torch.Tensor]) -> torch.Tensor | float | None:
    """Return the largest element of all, NaN where one is; None where the host knows that all are finite."""
    filled = [tensor for tensor in tensors if tensor.numel()]
    if not any(map(on_device, filled)) and all(cmath.isfinite(_sum(tensor)) for tensor in filled):
        return None
    largest = torch.nn.utils.get_total_norm(filled, math.inf)
    if on_device(largest):
        return largest
    value: float = largest.item()
    return None if math.isfinite(value) else value  # a sum may overflow where no element has


def _sum(tensor: torch.Tensor) -> complex:
    """Return the sum on the host, which takes a tenth of the time of the largest element and is not finite where one is not."""
    precision = torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else None
    value: complex = tensor.sum(dtype=precision).item()
    return value

"""Which process of a distributed run this is; on one process, the only one."""

from __future__ import annotations

__all__ = ("agree", "average", "is_main_process", "rank", "world_size")

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch


def rank() -> int:
    """Return the number of this process, 0 where there is only one."""
    group = _process_group()
    return int(group.get_rank()) if group is not None else 0


def world_size() -> int:
    """Return the number of processes."""
    group = _process_group()
    return int(group.get_world_size()) if group is not None else 1


def is_main_process() -> bool:
    """Return whether this process writes the logs and checkpoints."""
    return rank() == 0


def agree(value: float | None, device: torch.device) -> float | None:
    """Return on every process what the main one gave; a collective call, for which `device` is where the group communicates."""
    group = _process_group()
    if group is None:
        return value
    import torch

    said = torch.tensor([value is not None, value or 0.0], dtype=torch.float64, device=device)
    group.broadcast(said, src=0)
    is_given, agreed = said.tolist()
    return agreed if is_given else None


def average(tensors: Iterable[torch.Tensor]) -> None:
    """Replace tensors, in place, by their mean over the processes; whole numbers and truth values by the main process's.

    A collective call: every process has to give tensors of the same shapes and types, in the same order. Those of one kind
    travel as one message, numbers of less than 32 bits in 32.
    """
    group = _process_group()
    if group is None:
        return
    import torch

    with torch.no_grad():
        for kind, those in _by_kind(tensors).items():
            message = torch.cat([tensor.reshape(-1).to(kind.dtype) for tensor in those])
            if kind.dtype.is_floating_point:
                group.all_reduce(message)
                message /= group.get_world_size()
            else:
                group.broadcast(message, src=0)
            parts = torch.split(message, [tensor.numel() for tensor in those])
            for tensor, part in zip(those, parts, strict=True):
                tensor.copy_(part.view_as(tensor))


class _Kind(NamedTuple):
    """What can travel together."""

    device: torch.device
    dtype: torch.dtype


def _by_kind(tensors: Iterable[torch.Tensor]) -> dict[_Kind, list[torch.Tensor]]:
    import torch

    kinds: dict[_Kind, list[torch.Tensor]] = {}
    for tensor in tensors:
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        small = real.dtype.is_floating_point and real.dtype.itemsize < torch.float32.itemsize
        dtype = torch.float32 if small else torch.uint8 if real.dtype == torch.bool else real.dtype
        kinds.setdefault(_Kind(real.device, dtype), []).append(real)
    return kinds


def _process_group() -> Any:
    torch = sys.modules.get("torch")  # without torch there is no process group either
    distributed = getattr(torch, "distributed", None)
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed
    return None

"""Which process of a distributed run this is; on one process, the only one."""

from __future__ import annotations

__all__ = ("is_main_process", "rank", "world_size")

import sys
from typing import Any


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


def _process_group() -> Any:
    torch = sys.modules.get("torch")  # without torch there is no process group either
    distributed = getattr(torch, "distributed", None)
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed
    return None

"""The options of an `OptimWrapper`, checked before anything is built."""

from __future__ import annotations

__all__ = ("WRAPPER_OPTIONS", "wrapper_problems")

from collections.abc import Mapping
from typing import Any

import torch

from hookbus._config import shown
from hookbus.optim.gradients import clip_problems
from hookbus.optim.precision import precision_problems

WRAPPER_OPTIONS = ("accumulative_counts", "clip_grad", "dtype", "loss_scale")
"""What may be set besides the optimizer and its name."""


def wrapper_problems(options: Mapping[str, Any], path: str = "") -> list[str]:
    """Return everything that is wrong with the options of an `OptimWrapper`; `path` is where they stand."""
    prefix = f"{path}." if path else ""
    counts, clip_grad = options.get("accumulative_counts", 1), options.get("clip_grad")
    problems = []
    if not isinstance(options.get("optimizer"), torch.optim.Optimizer | None):
        problems.append(f"{prefix}optimizer = {shown(options['optimizer'])}: expected a torch optimizer")
    if type(counts) is not int or counts < 1:
        problems.append(f"{prefix}accumulative_counts = {shown(counts)}: expected a whole number of at least 1")
    if clip_grad is not None:
        problems += clip_problems(clip_grad, f"{prefix}clip_grad")
    return problems + precision_problems(options.get("dtype"), options.get("loss_scale", "dynamic"), path)

"""The model itself, and the names of its weights, whatever was wrapped around it."""

from __future__ import annotations

__all__ = ("bare", "inner_name")

import torch


def bare(model: torch.nn.Module) -> torch.nn.Module:
    """Return a model as it was before `torch.compile` wrapped it; its weights have their own names."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, torch.nn.Module) else model


def inner_name(name: str) -> str:
    """Return the name of a weight without what wrappers put before it."""
    return name.removeprefix("module.").removeprefix("_orig_mod.").removeprefix("module.")

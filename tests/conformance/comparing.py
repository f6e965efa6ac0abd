"""Two objects that were made alike are alike; two that were not are not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from enum import Enum
from pathlib import Path
from typing import Any

import torch

_DEPTH = 8


def looks(value: Any, depth: int = _DEPTH) -> Any:
    """Return what an object is made of, as plain values that can be compared; identities and locks are left out."""
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    if value is None or isinstance(value, bool | int | float | str | bytes | Path | Enum | type):
        return value
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.tolist())
    if depth == 0:
        return type(value).__qualname__
    if isinstance(value, Mapping):
        return {str(key): looks(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [looks(item, depth - 1) for item in value]
    if isinstance(value, Set):
        return sorted(repr(looks(item, depth - 1)) for item in value)
    return (type(value).__qualname__, getattr(value, "__qualname__", ""), looks(getattr(value, "__dict__", {}), depth - 1))


def public(value: Any) -> dict[str, Any]:
    """Return what the public attributes of an object look like."""
    return {name: looks(item) for name, item in vars(value).items() if not name.startswith("_")}

"""Values as an event may carry them: numbers, text and plain containers, whatever they were before."""

from __future__ import annotations

__all__ = ("plain",)

from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """Return a value without arrays, tensors and other objects; NaN and infinities stay, what has no plain form is text."""
    if type(value) is float or value is None or isinstance(value, bool):
        return value
    if isinstance(value, float | int | str):  # also of a subclass, such as numpy's
        return next(kind(value) for kind in (float, int, str) if isinstance(value, kind))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)

"""JSON that every program reads: there is no NaN in it, whatever the values are."""

from __future__ import annotations

__all__ = ("strict_json",)

import math
from collections.abc import Mapping
from typing import Any

import msgspec


def strict_json(value: Any) -> bytes:
    """Return a value as one line of JSON; NaN and infinities become `null`, arrays and tensors lists, what is left over text."""
    return msgspec.json.encode(_plain(value))


def _plain(value: Any) -> Any:
    """Return the value in the types of JSON."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Mapping):
        return {_text(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return _text(str(value))


def _text(text: str) -> str:
    """Return a text that UTF-8 can spell, which half a surrogate pair is not."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()

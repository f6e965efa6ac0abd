"""The glossary: aliases that several parts of hookbus share."""

from __future__ import annotations

__all__ = ("Backend", "Handler", "HookLike", "Live", "Mode", "Scalar")

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

Mode: TypeAlias = Literal["train", "val", "test"]
"""Which part of a run an event belongs to."""

Backend: TypeAlias = Literal["asyncio", "trio"]
"""Which event loop a bus or a run starts where it needs one of its own."""

Handler: TypeAlias = Callable[..., Any]
"""A function, coroutine function or bound method; it asks by parameter name for what it needs."""

HookLike: TypeAlias = object
"""Any object with methods named after mount points."""

Live: TypeAlias = Mapping[str, Any]
"""The live objects that travel beside an event, by the names its class declares."""

Scalar: TypeAlias = Any
"""A Python or numpy number, or a tensor of one element."""

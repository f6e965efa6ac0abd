"""Where a value stands in a state tree, and how errors and tensor names spell it.

A path is the tuple of dict keys and list indices from the root; it is spelled like Python: `optimizer.state[3]['exp avg']`.
"""

from __future__ import annotations

__all__ = ("MAX_DEPTH", "StatePath", "spell_path")

from typing import Any

StatePath = tuple[Any, ...]
"""The dict keys and list indices that lead from the root of a state to one value."""

MAX_DEPTH = 100
"""How many containers may stand inside one another, in a state and in a document."""


def spell_path(path: StatePath) -> str:
    """Return the path as Python would write it, or "the state" for the root."""
    return "".join(_spell_key(key) for key in path).removeprefix(".") or "the state"


def _spell_key(key: Any) -> str:
    return f".{key}" if isinstance(key, str) and key.isascii() and key.isidentifier() else f"[{key!r}]"

"""The runner: puts the parts of a run together, and runs its loops."""

from __future__ import annotations

__all__ = ("Runner",)

from hookbus.runner.runner import Runner

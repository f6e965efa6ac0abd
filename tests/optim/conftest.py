"""Training here is tiny, so more than one thread would only slow it down."""

from __future__ import annotations

from tests.runner.conftest import one_torch_thread

__all__ = ("one_torch_thread",)

"""Waits for what another thread is about to do."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 20.0


def comes_true(condition: Callable[[], object]) -> bool:
    """Return whether a condition comes true within reasonable time."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True

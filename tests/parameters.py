"""Parameters of which some suffice for a quick run of the tests; `make test-slow` has the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def slow_unless(is_quick: Callable[..., bool], values: Iterable[Any]) -> list[Any]:
    """Return the values, marked as slow where `is_quick` does not hold for what stands in one."""
    parameters = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*each, marks=() if is_quick(*each) else pytest.mark.slow) for each in parameters]

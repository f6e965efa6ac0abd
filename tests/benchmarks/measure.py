"""Fair timing on a noisy machine: candidates take turns, and what is compared is taken from the same round."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


class Pair(NamedTuple):
    """Two candidates timed in turns; seconds per repetition, medians over the rounds."""

    ours: float
    other: float
    ratio: float
    difference: float


def timed(function: Callable[[], object]) -> float:
    """Return the seconds that one call takes, without the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        started = time.perf_counter()
        function()
        return time.perf_counter() - started
    finally:
        gc.enable()


def compare(ours: Callable[[], float], other: Callable[[], float], *, repetitions: int, rounds: int) -> Pair:
    """Let two candidates, each returning its own seconds, take turns; compare them round by round."""
    if rounds > 2:  # long candidates warm themselves up
        ours(), other()
    pairs = [(ours(), other()) for _ in range(rounds)]
    return Pair(
        statistics.median(a for a, _ in pairs) / repetitions,
        statistics.median(b for _, b in pairs) / repetitions,
        statistics.median(a / b for a, b in pairs),
        statistics.median(a - b for a, b in pairs) / repetitions,
    )


class Row(NamedTuple):
    """One line of the report."""

    what: str
    measured: str
    limit: str
    met: bool

    def __str__(self) -> str:
        return f"| {self.what} | {self.measured} | {self.limit} | {'met' if self.met else '**missed**'} |"

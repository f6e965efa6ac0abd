"""One line that says how far a run is: `Epoch 3/20 ━━━━━━╸───── 1240/2260  loss 0.2137  lr 1.0e-03  eta 0:00:12`."""

from __future__ import annotations

__all__ = ("ProgressLine",)

import datetime
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from hookbus.writers.base import Record, RunPosition

SHORTEST, LONGEST = 8, 40
"""Columns of the bar itself."""
_LONGEST_ETA = 10.0**9


class ProgressLine:
    """Draws one line, never more, so that whoever draws it anew erases nothing but it.

    Args:
        position: tells how far the run is.
        clock: gives the time in seconds.
    """

    def __init__(self, position: Callable[[], RunPosition], clock: Callable[[], float] = time.monotonic) -> None:
        self._position = position
        self._clock = clock
        self._values: Mapping[str, Any] = {}
        self._ends_at: float | None = None

    def learn(self, record: Record) -> None:
        """Take over what a line of training says: loss, learning rate and the time left."""
        if record.mode == "train":
            prefix = f"{record.mode}/"
            self._values = {key.removeprefix(prefix): value for key, value in record.values.items()}
            eta = self._values.get("eta")
            self._ends_at = self._clock() + eta if isinstance(eta, float | int) and 0 <= eta < _LONGEST_ETA else None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        at = self._position()
        left = Text(f"{_place(at)} ")
        right = Text(f" {_fraction(at)}")
        for name, form in (("loss", ".4f"), ("lr", ".2e")):
            if isinstance(self._values.get(name), float):
                right.append(f"  {name} ", "dim").append(format(self._values[name], form))
        if self._ends_at is not None:
            seconds = max(0, round(self._ends_at - self._clock()))
            right.append("  eta ", "dim").append(str(datetime.timedelta(seconds=seconds)))
        room = options.max_width - 1 - left.cell_len - right.cell_len  # the last column stays free: some terminals wrap there
        bar = _bar(_share(at), min(LONGEST, max(SHORTEST, room)), is_ascii=options.ascii_only)
        line = Text.assemble(left, bar, right, end="")
        line.truncate(options.max_width - 1)
        yield line


def _place(at: RunPosition) -> str:
    """Return what goes on; where epochs count, also in which one."""
    if at.mode in ("val", "test"):
        return "Validation" if at.mode == "val" else "Test"
    if at.max_epochs is None:
        return "Training"
    return f"Epoch {min(at.epoch + 1, at.max_epochs)}/{at.max_epochs}"


def _counted(at: RunPosition) -> tuple[int, int | None]:
    return (at.batch, at.num_batches) if at.mode in ("val", "test") else (at.iter, at.max_iters)


def _fraction(at: RunPosition) -> str:
    done, length = _counted(at)
    whole = str(length or "?")
    return f"{done:>{len(whole)}}/{whole}"


def _share(at: RunPosition) -> float | None:
    done, length = _counted(at)
    return None if not length else min(1.0, done / length)


def _bar(share: float | None, width: int, *, is_ascii: bool) -> Text:
    """Return a bar of half columns; an empty one where nobody knows the length."""
    full, half, empty = ("=", "-", " ") if is_ascii else ("━", "╸", "━")
    halves = round((share or 0.0) * width * 2)
    done = full * (halves // 2) + half * (halves % 2)
    return Text.assemble((done, "cyan" if share != 1.0 else "green"), (empty * (width - len(done)), "bright_black"))

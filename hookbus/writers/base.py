"""What a writer is given, and what it has to offer."""

from __future__ import annotations

__all__ = ("Record", "RunPlace", "RunPosition", "Writer")

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec

from hookbus.events import HistogramsTaken, ImagesDrawn, LogRecorded
from hookbus.types import HookLike, Mode

Record: TypeAlias = LogRecorded
"""One line of a log: `mode`, `epoch`, `iter` (completed iterations), `values`, and the same as `text`."""


class RunPosition(msgspec.Struct, frozen=True, kw_only=True):
    """How far a run is at this moment."""

    mode: Mode | None
    """What goes on; None between two passes."""
    epoch: int
    """Completed epochs."""
    max_epochs: int | None
    iter: int
    """Completed iterations."""
    max_iters: int | None
    batch: int
    """Batches of the running validation or test that are done."""
    num_batches: int | None


class RunPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run logs to, and from where on."""

    logger: logging.Logger
    log_dir: Path
    first_iter: int = 1
    """The first training iteration to come; what an earlier run in `log_dir` recorded from there on is out of date."""
    experiment_name: str = "run"
    hyperparameters: Mapping[str, bool | int | float | str] = {}
    """What the run was started with, by name."""
    position: Callable[[], RunPosition] | None = None
    """Tells any thread how far the run is; cheap enough to be asked ten times a second."""


class Writer:
    """One destination: `open` before the first record of a run, `write` record after record, `close` at the end, once or more.

    In a run, one thread at a time calls it, and all but `open` are called on a thread of its own. What they raise is
    reported and counted, and the next record is tried all the same.
    """

    def open(self, place: RunPlace) -> None:
        """Learn where the run logs to; the destination itself waits for the first record, because training waits for this."""

    def write(self, record: Record) -> None:
        """Take one record."""
        msg = f"{type(self).__name__} must define write(record)"
        raise NotImplementedError(msg)

    def show(self, record: Record) -> None:
        """Show how far a validation or test has come; nothing to be kept, so only destinations for people do."""

    def write_images(self, images: ImagesDrawn) -> None:
        """Take images that were drawn; they lie in files."""

    def write_histograms(self, histograms: HistogramsTaken) -> None:
        """Take histograms of weights and gradients."""

    def hooks(self) -> Sequence[HookLike]:
        """Return what is to be on the bus while a run logs, for what can only be seen on the training thread."""
        return ()

    def flush(self) -> None:
        """Bring everything to its destination; called at the end of each validation and test."""

    def close(self) -> None:
        """Flush, and let go of the destination."""

"""The checkpoints of a run as lines for a terminal."""

from __future__ import annotations

__all__ = ("checkpoint_lines",)

from collections.abc import Iterator

from hookbus.cli.checkpoint_list import CheckpointListing, score_of
from hookbus.cli.words import bytes_in_words, number_in_words, shortened

_HEADINGS = ("name", "epoch", "iteration", "size", "role", "score", "state")
_NUMBERS = (1, 2, 3)
"""The columns that are aligned at the right."""


def checkpoint_lines(listing: CheckpointListing) -> Iterator[str]:
    """Yield a heading, a line for each checkpoint, and what is wrong with the damaged ones."""
    if not listing.sound and not listing.damaged:
        yield f"no checkpoints in {listing.directory}"
        return
    rows = [_HEADINGS, *_rows(listing)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    for row in rows:
        sized = enumerate(zip(row, widths, strict=True))
        cells = [cell.rjust(width) if column in _NUMBERS else cell.ljust(width) for column, (cell, width) in sized]
        yield "  ".join(cells).rstrip()
    for name, problem in listing.damaged.items():
        yield f"{shortened(name, 100)} is damaged: {shortened(problem, 400)}"


def _rows(listing: CheckpointListing) -> Iterator[tuple[str, ...]]:
    state = "verified" if listing.is_verified else "complete"
    for info in listing.sound:
        score = score_of(info)
        text = f"{shortened(score[0], 40)} {number_in_words(score[1])}" if score else ""
        counts = (str(info.epoch), str(info.iter), bytes_in_words(info.size))
        yield (info.name, *counts, shortened(info.role, 20), text, state)
    for name in listing.damaged:
        yield (shortened(name, 100), "", "", "", "", "", "DAMAGED")

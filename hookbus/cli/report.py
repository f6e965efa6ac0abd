"""Writes the report of a run: a picture, a page, or both."""

from __future__ import annotations

__all__ = ("write_report",)

import datetime
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib

from hookbus.cli.inks import text_style
from hookbus.cli.page import render_page
from hookbus.cli.panels import Panel, build_panels
from hookbus.cli.poster import draw_poster
from hookbus.cli.run_summary import RunSummary, gather

_DOTS_PER_INCH = 150


def write_report(
    run_dir: Path, out: Path, formats: Sequence[str], checkpoint_directory: Path | None, now: datetime.datetime
) -> Iterator[Path]:
    """Write `report.png`, `report.html` or both, and yield the path of each; what is there is replaced in one step.

    Args:
        run_dir: a work directory, or the log directory of one start.
        out: where the files go; it is made where it is missing.
        formats: `png` and `html`, or one of them.
        checkpoint_directory: where the checkpoints lie, if that is not the usual place.
        now: the local time, from which follows how long a run has been silent.

    Raises:
        ConfigError: there is no run.
        OSError: a file cannot be read or written.
    """
    summary = gather(run_dir, checkpoint_directory, now)
    panels = build_panels(summary.metrics)
    renderers = {"png": _picture, "html": render_page}
    out.mkdir(parents=True, exist_ok=True)
    for name in formats:
        with _style():
            content = renderers[name](summary, panels)
        yield _replaced(out / f"report.{name}", content)


def _picture(summary: RunSummary, panels: list[Panel]) -> bytes:
    image = io.BytesIO()
    draw_poster(summary, panels).savefig(image, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return image.getvalue()


@contextmanager
def _style() -> Iterator[None]:
    with matplotlib.rc_context(text_style()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name may be in any script; a box stands for it
        yield


def _replaced(path: Path, content: bytes) -> Path:
    """Write a file that appears complete: somebody may be looking at the one before."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path

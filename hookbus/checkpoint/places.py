"""Where the checkpoints of a run lie."""

from __future__ import annotations

__all__ = ("directory_of",)

from pathlib import Path


def directory_of(work_dir: Path, out_dir: str | Path | None = None) -> Path:
    """Return `checkpoints/` in the work directory, or the folder in `out_dir` that is named after the work directory."""
    return work_dir / "checkpoints" if out_dir is None else Path(out_dir) / work_dir.resolve().name

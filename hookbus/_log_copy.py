"""Brings the log files of a run to a second place, where they outlive the machine that trained."""

from __future__ import annotations

__all__ = ("LogCopy",)

import os
import shutil
from pathlib import Path
from typing import BinaryIO

from hookbus.errors import ConfigError, RunError

GROWING = (".jsonl", ".log")
"""Files that a later run of the same start goes on writing; others are written as a whole."""


class LogCopy:
    """Copies what lies in a log directory to `<out_dir>/<work_dir>/<start>/`.

    Args:
        out_dir: holds one directory per work directory.
        keep_local: leave the files where they were written, too.
    """

    def __init__(self, out_dir: str | Path, *, keep_local: bool) -> None:
        self._out_dir = Path(out_dir)
        self._keep_local = keep_local
        self._moved: set[Path] = set()
        """Copies whose local files are gone, so that what comes later goes behind them."""

    def target(self, work_dir: Path, log_dir: Path) -> Path:
        """Return where the files of a start go, the same for each of its runs.

        Raises:
            ConfigError: that is the log directory itself, or lies in it.
        """
        target = self._out_dir / work_dir.resolve().name / log_dir.name
        if target.resolve().is_relative_to(log_dir.resolve()):
            msg = f"LoggerHook.out_dir = {str(self._out_dir)!r}: {log_dir} would be copied into itself, to {target}"
            raise ConfigError(msg)
        return target

    def bring(self, log_dir: Path, target: Path) -> None:
        """Copy every file; only when all are there, let the local ones go, where they are not to be kept.

        Raises:
            RunError: a file could not be copied.
        """
        files = sorted(path for path in log_dir.rglob("*") if path.is_file())
        for path in files:
            self._copy(path, target / path.relative_to(log_dir))
        if not self._keep_local:
            self._moved |= {target / path.relative_to(log_dir) for path in files}
            _remove(files, log_dir)

    def _copy(self, source: Path, copy: Path) -> None:
        """Copy one file as a stream; it appears under its name when it is complete."""
        unfinished = copy.with_name(f"{copy.name}.part")
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                if copy.suffix in GROWING and copy in self._moved:
                    _append(copy, file)
                _append(source, file)
                file.flush()
                os.fsync(file.fileno())  # the original may be deleted next
            unfinished.replace(copy)
        except OSError as error:
            msg = f"the log file {source} could not be copied to {copy}: {error}"
            raise RunError(msg) from error


def _append(source: Path, file: BinaryIO) -> None:
    with source.open("rb") as stream:
        shutil.copyfileobj(stream, file)


def _remove(files: list[Path], log_dir: Path) -> None:
    """Delete files and the directories below `log_dir` that they leave empty."""
    for path in files:
        path.unlink()
    for directory in sorted({parent for path in files for parent in path.parents if log_dir in parent.parents}, reverse=True):
        if not any(directory.iterdir()):
            directory.rmdir()

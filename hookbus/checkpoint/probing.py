"""Tries out whether checkpoints can be written to a place, before hours of training depend on it."""

from __future__ import annotations

__all__ = ("probe_directory", "probe_file")

import contextlib
from collections.abc import Iterator
from pathlib import Path

from hookbus.checkpoint.files import Files
from hookbus.checkpoint.leftovers import discard_directory, hidden_path
from hookbus.checkpoint.writing import make_directories, write_file

_BLOCK = bytes(4096)
"""So much that a disk without room says so."""


def probe_directory(directory: Path, files: Files) -> None:
    """Make, fill, sync, rename and remove a hidden directory as a commit does, and leave everything as it was.

    Raises:
        OSError: what the file system answered.
    """
    first, second = (hidden_path(directory / "probe", "tmp") for _ in range(2))
    with _existing(directory, files):
        try:
            files.make_directory(first)
            write_file(first / "probe.json", [_BLOCK], files)
            files.sync_directory(first)
            files.rename(first, second)
            files.sync_directory(directory)
            discard_directory(second, files)
        except BaseException:
            for left in (first, second):
                with contextlib.suppress(OSError):
                    discard_directory(left, files)
            raise


def probe_file(target: Path, files: Files) -> None:
    """Write and remove a hidden file beside the target, which stays as it is.

    Raises:
        OSError: what the file system answered.
    """
    temporary = hidden_path(target, "tmp")
    with _existing(target.parent, files):
        try:
            write_file(temporary, [_BLOCK], files)
            files.sync_directory(target.parent)
        finally:
            if files.exists(temporary):
                files.remove_file(temporary)


@contextlib.contextmanager
def _existing(directory: Path, files: Files) -> Iterator[None]:
    """See to it that the directory is there meanwhile."""
    missing = [path for path in (directory, *directory.parents) if not files.exists(path)]
    try:
        make_directories(directory, files)
        yield
    finally:
        for path in missing:
            if files.exists(path):
                with contextlib.suppress(OSError):  # an empty directory harms nobody
                    files.remove_directory(path)

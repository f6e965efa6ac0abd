"""File systems that misbehave: each takes the place of the one object through which checkpoints reach the disk."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
from pathlib import Path
from typing import BinaryIO, NoReturn

from hookbus.checkpoint import Files
from tests.checkpoint.builders import FaultyFiles

KILLED = 137
"""The exit code of a process that ended in the middle of an operation."""

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EROFS, errno.EFBIG)


class DeadlyFiles(FaultyFiles):
    """Ends the process at one operation; no `finally` runs, no buffer is flushed."""

    def _fail(self) -> NoReturn:
        os._exit(KILLED)


class CopyingFiles(Files):
    """A twin: renames by copying file by file, as some libraries do."""

    def rename(self, source: Path, target: Path) -> None:
        """Copy, then delete."""
        if source.is_file():
            shutil.copyfile(source, target)
            self.remove_file(source)
            return
        self.make_directory(target)
        for name in self.list_names(source):
            with self.create(target / name) as file:
                self.write(file, (source / name).read_bytes())
        for name in self.list_names(source):
            self.remove_file(source / name)
        self.remove_directory(source)


class DeadlyCopyingFiles(CopyingFiles, DeadlyFiles):
    """That twin, with an end at each of its operations."""


class _Halving(io.FileIO):
    """Takes at most half of what it is given, as the system may."""

    def write(self, data: object, /) -> int:
        """Write half, at least one byte, and return how much that was."""
        view = memoryview(data)  # type: ignore[arg-type]
        return super().write(view[: max(1, len(view) // 2)]) or 0


class ShortWrites(Files):
    """The system takes only a part of each write."""

    def create(self, path: Path) -> BinaryIO:
        """See `Files`."""
        return io.BufferedWriter(_Halving(path, "x"), buffer_size=16)


class ShortWritesUnnoticed(ShortWrites):
    """A twin: does not look at how much was written."""

    def create(self, path: Path) -> BinaryIO:
        """Open a file without the buffer that would write the rest."""
        return _Halving(path, "x")


class ErrorsUnnoticed(Files):
    """A twin: what the system refuses while writing counts as done."""

    def write(self, file: BinaryIO, chunk: bytes | memoryview) -> None:
        """Write, come what may."""
        with contextlib.suppress(OSError):
            super().write(file, chunk)

    def sync(self, file: BinaryIO) -> None:
        """Sync, come what may."""
        with contextlib.suppress(OSError):
            super().sync(file)


class FaultsUnnoticed(ErrorsUnnoticed, FaultyFiles):
    """That twin, with an operation that fails."""

"""A file that grows by whole pieces: one that cannot be written completely leaves nothing behind."""

from __future__ import annotations

__all__ = ("AppendedFile",)

import os
from pathlib import Path


class AppendedFile:
    """Appends pieces of bytes, each at once and without a buffer, so that an error belongs to the piece it is about.

    Args:
        path: the file; it is made where there is none.
        is_new: whether it must not be there yet.
    """

    def __init__(self, path: Path, *, is_new: bool = False) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | (os.O_EXCL if is_new else 0)
        self._descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0), 0o666)

    @property
    def is_deleted(self) -> bool:
        """Whether nobody would find what is appended."""
        return os.fstat(self._descriptor).st_nlink == 0

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return os.fstat(self._descriptor).st_size

    def append(self, data: bytes) -> None:
        """Append a piece, or nothing of it."""
        before = self.size
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            if self.size != before:
                os.ftruncate(self._descriptor, before)
            raise

    def end_line(self) -> None:
        """Close a line that was torn off, by the end of a process for instance."""
        with self.path.open("rb") as file:
            is_torn = file.seek(0, os.SEEK_END) > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
        if is_torn:
            self.append(b"\n")

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)

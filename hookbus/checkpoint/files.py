"""Every operation on the file system that checkpoints need, and no other.

The store works through one `Files` object, so that tests can count the operations, let each of them fail, and stop at each of
them.
"""

from __future__ import annotations

__all__ = ("CHUNK_SIZE", "Files")

import errno
import os
import stat
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CHUNK_SIZE = 1 << 22
"""How many bytes are read or written at a time."""

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


class Files:
    """The operating system's file operations; each method is one point at which a machine may stop or a disk may refuse."""

    written = 0
    """How many bytes were written so far, for whoever watches from another thread."""

    def make_directory(self, path: Path) -> None:
        """Create one directory, whose parent exists and which itself does not."""
        path.mkdir()

    def create(self, path: Path) -> BinaryIO:
        """Open a file for writing that does not exist yet; a symbolic link in its place is an error."""
        return path.open("xb")

    def write(self, file: BinaryIO, chunk: bytes | memoryview) -> None:
        """Write the whole chunk."""
        file.write(chunk)
        self.written += len(chunk)

    def sync(self, file: BinaryIO) -> None:
        """Return when all that was written is durable."""
        file.flush()
        os.fsync(file.fileno())

    def sync_directory(self, path: Path) -> None:
        """Return when the names in the directory are durable. Windows offers no such operation and needs none."""
        if os.name == "nt":
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Rename in one step; a file in the place of the target is replaced."""
        source.replace(target)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a further name, which does not exist yet."""
        os.link(source, target, follow_symlinks=False)

    def lock(self, path: Path) -> FileIO | None:
        """Open a file, which is made where it is missing, and lock it for as long as it is open; None where somebody else has.

        Whoever has the lock may remove the file.
        """
        if fcntl is None:
            raise OSError(errno.ENOTSUP, "this system has no locks of this kind")
        while True:
            file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | _NO_FOLLOW, 0o666), "r+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self.exists(path) and os.path.samestat(os.fstat(file.fileno()), path.lstat()):
                    return file
                file.close()  # it was removed between the two calls
            except BlockingIOError:
                file.close()
                return None
            except BaseException:
                file.close()
                raise

    def remove_file(self, path: Path) -> None:
        """Remove one file or symbolic link."""
        path.unlink()

    def remove_directory(self, path: Path) -> None:
        """Remove one empty directory."""
        path.rmdir()

    def list_names(self, path: Path) -> list[str]:
        """Return the sorted names in a directory, none if there is no such directory."""
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []

    def exists(self, path: Path) -> bool:
        """Say whether anything, be it a broken symbolic link, has this name; an error where nobody can tell."""
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def is_directory(self, path: Path) -> bool:
        """Say whether the path is a directory itself, not a symbolic link to one."""
        return self.exists(path) and stat.S_ISDIR(path.lstat().st_mode)

    def is_file(self, path: Path) -> bool:
        """Say whether the path is a regular file itself, not a symbolic link to one."""
        return self.exists(path) and stat.S_ISREG(path.lstat().st_mode)

    def size(self, path: Path) -> int:
        """Return the length of a file in bytes."""
        return path.lstat().st_size

    def open(self, path: Path) -> BinaryIO:
        """Open a file for reading; a symbolic link is an error."""
        return open(os.open(path, os.O_RDONLY | _NO_FOLLOW), "rb")

    def read(self, path: Path) -> Iterator[bytes]:
        """Yield the content of a file in pieces; a symbolic link is an error."""
        with self.open(path) as file:
            while chunk := file.read(CHUNK_SIZE):
                yield chunk

    def read_into(self, file: BinaryIO, buffer: memoryview) -> int:
        """Read the next bytes into a buffer, at most as many as it holds, and return how many; 0 at the end."""
        return file.readinto(buffer)  # type: ignore[attr-defined,no-any-return]  # every file opened here has it

"""Keeps a second live run out of a directory of checkpoints.

The operating system locks an open file, `.lock`, so the lock ends with the process that holds it, however that ends, and a file
that is left over locks nobody out. Only who writes takes it; reading needs none. Where the system or the file system cannot lock,
a warning says so.
"""

from __future__ import annotations

__all__ = ("LOCK_FILE", "DirectoryLocks")

import contextlib
import errno
import os
import platform
import re
import weakref
from collections.abc import Callable, Iterable
from io import FileIO
from pathlib import Path

from hookbus.checkpoint.files import Files
from hookbus.checkpoint.writing import make_directories, write_errors
from hookbus.errors import CheckpointsInUse

LOCK_FILE = ".lock"

_CANNOT_LOCK = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL})
"""What is answered where there are no locks."""

_OWNER = re.compile(rb"(\d{1,10}) ([A-Za-z0-9._-]{1,100})")
"""Who holds a lock: process and machine."""

_open: weakref.WeakSet[FileIO] = weakref.WeakSet()


def _close_all() -> None:
    """Leave the locks to the parent: a child that is forked shares them, and would hold them after its death."""
    for file in list(_open):
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all)


class DirectoryLocks:
    """The directories that one runner keeps for itself.

    Args:
        warn: is told, once per directory, where that is impossible.
    """

    def __init__(self, warn: Callable[..., object]) -> None:
        self._warn = warn
        self._warned: set[Path] = set()
        self._held: dict[Path, _Lock] = {}

    def take(self, directories: Iterable[Path], files: Files) -> None:
        """Lock the directories that are not locked yet; those that are missing are made.

        Raises:
            CheckpointsInUse: another live run has one of them.
            CheckpointWriteError: the file system refused.
        """
        for directory in directories:
            key = directory.resolve()
            if key in self._held:
                continue
            with write_errors(f"checkpoints cannot be written to {directory}, as a trial shows"):
                lock = _lock(directory, files)
            if lock is not None:
                self._held[key] = lock
            elif key not in self._warned:
                self._warned.add(key)
                self._warn("nothing keeps a second run out of %s: files cannot be locked there", directory)

    def release(self) -> None:
        """Give all of them back."""
        while self._held:
            self._held.popitem()[1].release()


class _Lock:
    """A directory that is locked."""

    def __init__(self, file: FileIO, path: Path, made: list[Path], files: Files) -> None:
        self._file = file
        self._path = path
        self._made = made
        self._files = files
        _open.add(file)

    def release(self) -> None:
        """Remove the file while it is still locked, and the directories that were made for it if they are empty."""
        if self._file.closed:  # in a child
            return
        with contextlib.suppress(OSError):  # a file that stays locks nobody out
            self._files.remove_file(self._path)
        self._file.close()
        with contextlib.suppress(OSError):
            for directory in reversed(self._made):
                self._files.remove_directory(directory)


def _lock(directory: Path, files: Files) -> _Lock | None:
    """Return the lock of a directory; None where there are no locks."""
    made = make_directories(directory, files)
    path = directory / LOCK_FILE
    try:
        file = files.lock(path)
    except OSError as error:
        if error.errno not in _CANNOT_LOCK:
            raise
        return None
    if file is None:
        owner = _owner(path, files)
        message = f"{directory} is in use: {owner} writes checkpoints there; give this run another work_dir, or wait for its end"
        raise CheckpointsInUse(message)
    lock = _Lock(file, path, made, files)
    with contextlib.suppress(OSError):  # on a full disk nobody is named; it is locked all the same
        file.truncate(0)
        file.write(f"{os.getpid()} {platform.node()}".encode())
    return lock


def _owner(path: Path, files: Files) -> str:
    """Say who holds a lock, as far as that is known."""
    try:
        found = _OWNER.fullmatch(b"".join(files.read(path)))
    except OSError:
        found = None
    if found is None:
        return "another run"
    process, machine = int(found[1]), found[2].decode()
    if machine != platform.node():
        return f"process {process} on {machine}"
    return f"another run of this process ({process})" if process == os.getpid() else f"process {process}"

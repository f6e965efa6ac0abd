"""Writes one file of a checkpoint: hashed as it is written, and durable when it is done; or linked, where it is there already."""

from __future__ import annotations

__all__ = ("Content", "LinkedContent", "make_directories", "write_errors", "write_file", "write_files")

import contextlib
import errno
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hookbus.checkpoint.digest import StreamDigest
from hookbus.checkpoint.files import CHUNK_SIZE, Files
from hookbus.checkpoint.manifest import FileRecord
from hookbus.errors import CheckpointError, CheckpointWriteError

_AHEAD = 16
"""How many batches may be written that are not hashed yet."""

_CANNOT_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOENT})
"""What a file system answers that has no hard links here, or no more of them, or no longer that file."""


@dataclass(frozen=True, slots=True)
class LinkedContent:
    """The content of a file that a committed checkpoint holds already, so that it need not be written again."""

    source: Path
    record: FileRecord
    """What the manifest of that checkpoint says about it."""
    pieces: Iterable[bytes | memoryview]
    """The same content, for where the file system has no hard links."""


Content = Iterable[bytes | memoryview] | LinkedContent
"""What a file holds, in pieces."""


def write_file(path: Path, content: Content, files: Files) -> FileRecord:
    """Make a new file of the content, durable but for its name, and return what a manifest says about it."""
    return write_files(path.parent, {path.name: content}, files)[path.name]


def write_files(directory: Path, contents: Mapping[str, Content], files: Files) -> dict[str, FileRecord]:
    """Make new files in a directory, durable but for their names, and return what a manifest says about each.

    Each file is hashed on a thread of its own while it and the next ones are written.
    """
    with contextlib.ExitStack() as stack:
        digests = {name: stack.enter_context(StreamDigest(_AHEAD)) for name in contents}
        written = {name: _write(directory / name, content, digests[name], files) for name, content in contents.items()}
        return {name: found or FileRecord(digests[name].size, digests[name].hexdigest()) for name, found in written.items()}


def _write(path: Path, content: Content, digest: StreamDigest, files: Files) -> FileRecord | None:
    """Link or write the file; return its record where it was linked."""
    if not isinstance(content, LinkedContent):
        _write_pieces(path, content, digest, files)
        return None
    try:
        files.link(content.source, path)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        _write_pieces(path, content.pieces, digest, files)
        return None
    return content.record


def _write_pieces(path: Path, content: Iterable[bytes | memoryview], digest: StreamDigest, files: Files) -> None:
    with files.create(path) as file:
        for piece in _in_chunks(content):
            files.write(file, piece)
            digest.update(piece)
        files.sync(file)


def _in_chunks(content: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """Cut long pieces, so that hashing begins while they are written."""
    for piece in content:
        if len(piece) <= CHUNK_SIZE:
            yield piece
            continue
        for start in range(0, len(piece), CHUNK_SIZE):
            yield memoryview(piece)[start : start + CHUNK_SIZE]


def make_directories(path: Path, files: Files) -> list[Path]:
    """Make a directory and those above it that are missing, all durable; return what was made, the outermost first."""
    if files.exists(path):
        return []
    made = make_directories(path.parent, files)
    files.make_directory(path)
    files.sync_directory(path.parent)
    return [*made, path]


@contextlib.contextmanager
def write_errors(outcome: str) -> Iterator[None]:
    """Turn what the operating system refuses into a `CheckpointWriteError` that keeps its number."""
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        refused = CheckpointWriteError(f"{outcome}: {error}")
        refused.errno = error.errno
        raise refused from error

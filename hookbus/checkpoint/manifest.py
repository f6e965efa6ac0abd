"""The manifest of a checkpoint: what it is, and the size and SHA-256 of every file in it.

A directory is a checkpoint if and only if it holds a manifest that passes its own digest. The manifest is verified before it is
parsed, and every file before it is used.
"""

from __future__ import annotations

__all__ = (
    "FILE_NAME",
    "FORMAT",
    "FORMAT_VERSION",
    "MANIFEST_FILE",
    "STATE_FILE",
    "CheckpointInfo",
    "FileRecord",
    "check_digest",
    "check_file",
    "check_name",
    "check_names",
    "compare_digest",
    "read_chunks",
    "read_errors",
    "read_manifest",
    "render_manifest",
    "verify_files",
)

import contextlib
import errno
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import index
from pathlib import Path
from typing import Any

from hookbus.checkpoint.decode import decode_state
from hookbus.checkpoint.digest import StreamDigest
from hookbus.checkpoint.encode import encode_state
from hookbus.checkpoint.files import Files
from hookbus.errors import CheckpointCorrupt, CheckpointError, CheckpointReadError, InvalidName, StateEncodingError

FORMAT = "hookbus.checkpoint"
"""What the manifest of every checkpoint says first."""

FORMAT_VERSION = 1
"""The version written, and the highest version read."""

MANIFEST_FILE = "manifest.json"

STATE_FILE = "state.json"
"""What every checkpoint of a run holds: all of it that is not a tensor."""

FILE_NAME = re.compile(r"(?!manifest\.json)[a-z][a-z0-9_]{0,49}\.(safetensors|json)")
"""What files in a checkpoint, other than the manifest, may be called."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MAX_MANIFEST_BYTES = 1 << 24
_DIGEST = re.compile(rb'"manifest_sha256": "([0-9a-f]{64})"\n}\n\Z')
_NO_DIGEST = b"0" * 64

_NOT_AS_WRITTEN = frozenset({None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO})
"""What is reported where a file is missing, too short, or no file; other reports, of rights for instance, say nothing of that."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What the manifest says about one file."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """What the manifest says about one checkpoint."""

    name: str
    path: Path
    epoch: int
    """Completed epochs."""
    iter: int
    """Completed training iterations."""
    role: str = "periodic"
    """Why it was taken: "periodic" ones may be superseded, all others ("best", ...) stay until removed by name."""
    hookbus_version: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the caller added: plain values without tensors."""
    files: dict[str, FileRecord] = field(default_factory=dict)

    @property
    def step(self) -> tuple[int, int, bool, str]:
        """What checkpoints are ordered by: iterations, then epochs; of two equal ones the periodic one comes last."""
        return (self.iter, self.epoch, self.role == "periodic", self.name)

    @property
    def size(self) -> int:
        """The bytes of all files together, without the manifest."""
        return sum(record.size for record in self.files.values())


def check_name(name: str) -> str:
    """Return the name if a checkpoint may have it.

    Raises:
        InvalidName: if it could leave the directory, hide, or trouble a file system.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        expected = "a letter or digit, then up to 99 letters, digits, dots, dashes or underscores"
        message = f"{name!r} cannot name a checkpoint: expected {expected}"
        raise InvalidName(message)
    return name


def render_manifest(info: CheckpointInfo) -> bytes:
    """Return the content of the manifest file, which ends with its own digest.

    Raises:
        StateEncodingError: if the facts hold a tensor, an array or something that has no exact form.
    """
    facts = encode_state(info.facts)
    if facts.tensors:
        message = f"facts{next(iter(facts.tensors))} is a tensor or an array, which a manifest cannot hold; allowed: plain values"
        raise StateEncodingError(message)
    entries: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": info.name,
        "role": info.role,
        "epoch": index(info.epoch),
        "iter": index(info.iter),
        "hookbus_version": info.hookbus_version,
        "facts": facts.document,
        "files": {name: {"size": record.size, "sha256": record.sha256} for name, record in sorted(info.files.items())},
        "manifest_sha256": _NO_DIGEST.decode(),
    }
    text = (json.dumps(entries, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    digest = hashlib.sha256(text).hexdigest().encode()
    return _DIGEST.sub(lambda found: found[0].replace(_NO_DIGEST, digest), text)


def read_manifest(path: Path, files: Files) -> CheckpointInfo:
    """Return what the manifest in the directory says.

    Raises:
        CheckpointCorrupt: if there is none, or it is not what was written.
        CheckpointReadError: if the file system cannot read it.
        CheckpointError: if it was written by a later version of the format.
    """
    file = path / MANIFEST_FILE
    entries = _parse(_read_verified(file, files), file)
    version = entries.get("format_version")
    if entries.get("format") == FORMAT and isinstance(version, int) and version > FORMAT_VERSION:
        writer = f"hookbus {entries.get('hookbus_version')}"
        message = f"{file} has format version {version}, written by {writer}; this one reads up to {FORMAT_VERSION}"
        raise CheckpointError(message)
    try:
        return _info(entries, path)
    except (KeyError, TypeError, ValueError) as error:
        message = f"{file} is not a manifest of {FORMAT}: {error}"
        raise CheckpointCorrupt(message) from error


def check_names(info: CheckpointInfo, files: Files) -> None:
    """Raise CheckpointCorrupt for the first file in the directory that the manifest does not list."""
    with read_errors(info.path):
        found = set(files.list_names(info.path)) - {MANIFEST_FILE}
    for name in sorted(found - set(info.files)):
        message = f"{info.path / name} is not in the manifest, which lists {', '.join(sorted(info.files))}"
        raise CheckpointCorrupt(message)


def check_file(file: Path, record: FileRecord | None, files: Files) -> int:
    """Return the size of a file; raise CheckpointCorrupt unless it is a regular one, and of the size on record if any."""
    with read_errors(file):
        if not files.is_file(file):
            expected = "a file" if record is None else f"a file of {record.size} bytes"
            message = f"{file} is {'not a regular file' if files.exists(file) else 'missing'}, expected {expected}"
            raise CheckpointCorrupt(message)
        size = files.size(file)
    if record is not None and size != record.size:
        message = f"{file} has {size} bytes, expected {record.size}"
        raise CheckpointCorrupt(message)
    return size


def check_digest(file: Path, record: FileRecord, files: Files) -> None:
    """Compare every byte of a file with its record; raise CheckpointCorrupt for any difference."""
    with StreamDigest() as digest:
        for chunk in read_chunks(file, files):
            digest.update(chunk)
        compare_digest(file, record, digest.hexdigest())


def compare_digest(file: Path, record: FileRecord, found: str) -> None:
    """Raise CheckpointCorrupt unless what was found is the digest on record."""
    if found != record.sha256:
        message = f"{file} has the SHA-256 {found}, expected {record.sha256}"
        raise CheckpointCorrupt(message)


def verify_files(info: CheckpointInfo, files: Files) -> None:
    """Compare every byte of the checkpoint with the manifest.

    Raises:
        CheckpointCorrupt: naming the first file that is missing, too much, not a regular file, or not what was written.
    """
    check_names(info, files)
    for name, record in info.files.items():
        check_file(info.path / name, record, files)
        check_digest(info.path / name, record, files)


def read_chunks(file: Path, files: Files) -> Iterator[bytes]:
    """Yield the content of a file.

    Raises:
        CheckpointCorrupt: if it is not there, or something else is in its place.
        CheckpointReadError: if the file system cannot read it to the end.
    """
    with read_errors(file):
        yield from files.read(file)


@contextlib.contextmanager
def read_errors(file: Path) -> Iterator[None]:
    """Turn what the operating system reports while the file is read into CheckpointCorrupt, or CheckpointReadError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        if error.errno in _NOT_AS_WRITTEN:
            message = f"{file} cannot be read: {error}"
            raise CheckpointCorrupt(message) from error
        unread = CheckpointReadError(f"{file} cannot be read, so nobody knows whether it is sound: {error}")
        unread.errno = error.errno
        raise unread from error


def _read_verified(file: Path, files: Files) -> bytes:
    with read_errors(file):
        is_readable = files.is_file(file) and files.size(file) <= _MAX_MANIFEST_BYTES
    if not is_readable:
        message = f"{file} is missing, not a regular file or larger than {_MAX_MANIFEST_BYTES} bytes, expected a manifest"
        raise CheckpointCorrupt(message)
    text = b"".join(read_chunks(file, files))
    ending = _DIGEST.search(text)
    if ending is None:
        message = f"{file} does not end with its own digest, expected a complete manifest"
        raise CheckpointCorrupt(message)
    digest = hashlib.sha256(text[: ending.start(1)] + _NO_DIGEST + text[ending.end(1) :]).hexdigest().encode()
    if digest != ending[1]:
        message = f"{file} has the SHA-256 {digest.decode()}, expected {ending[1].decode()} as it says itself"
        raise CheckpointCorrupt(message)
    return text


def _parse(text: bytes, file: Path) -> dict[str, Any]:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        message = f"{file} is not JSON: {error}"
        raise CheckpointCorrupt(message) from error
    return entries if isinstance(entries, dict) else {}


def _info(entries: dict[str, Any], path: Path) -> CheckpointInfo:
    if entries["format"] != FORMAT:
        message = f"its format is {entries['format']!r}, expected {FORMAT!r}"
        raise ValueError(message)
    return CheckpointInfo(
        name=check_name(entries["name"]),
        path=path,
        epoch=_typed(entries, "epoch", int),
        iter=_typed(entries, "iter", int),
        role=_typed(entries, "role", str),
        hookbus_version=_typed(entries, "hookbus_version", str),
        facts=decode_state(_typed(entries, "facts", dict), {}),
        files={name: _record(name, record) for name, record in _typed(entries, "files", dict).items()},
    )


def _typed(entries: Mapping[str, Any], key: str, kind: type) -> Any:
    if type(entries[key]) is not kind:
        message = f"its {key} is {entries[key]!r}, expected {kind.__name__}"
        raise TypeError(message)
    return entries[key]


def _record(name: str, entries: Any) -> FileRecord:
    if not FILE_NAME.fullmatch(name):
        message = f"it lists the file {name!r}, expected a plain file name such as model.safetensors or state.json"
        raise ValueError(message)
    return FileRecord(size=_typed(entries, "size", int), sha256=_typed(entries, "sha256", str))

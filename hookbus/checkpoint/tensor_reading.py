"""Reads a safetensors file once: each tensor straight into memory of its own, and the digest of the whole worked out beside it.

A header is data from outside. It is checked against the length of the file before anything is allocated: the tensors must fill
the file from end to end, without gaps or overlaps, so a small file can never claim much memory.
"""

from __future__ import annotations

__all__ = ("read_tensors", "read_verified")

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from hookbus.checkpoint.digest import StreamDigest
from hookbus.checkpoint.files import CHUNK_SIZE, Files
from hookbus.checkpoint.manifest import FileRecord, check_digest, check_file, compare_digest, read_errors
from hookbus.checkpoint.tensor_file import MAX_HEADER_BYTES, TENSOR_DTYPES, tensor_bytes
from hookbus.errors import CheckpointCorrupt

_DTYPES = {name: dtype for dtype, name in TENSOR_DTYPES.items()}
_MAX_DIMENSIONS = 64
_MAX_SIZE = 1 << 62


class _Entry(NamedTuple):
    """What the header says about one tensor."""

    name: str
    dtype: torch.dtype
    shape: list[int]
    start: int
    stop: int


def read_tensors(path: Path, *, files: Files | None = None) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file, in memory of their own on the CPU.

    Raises:
        CheckpointCorrupt: if the file is not in the safetensors format, or cannot be read.
    """
    return _read_file(path, None, None, files or Files())


def read_verified(directory: Path, records: Mapping[str, FileRecord], files: Files) -> dict[str, dict[str, torch.Tensor]]:
    """Return the tensors of several safetensors files by file and name, once all of them have the size and SHA-256 on record.

    Each file is hashed on a thread of its own while it and the next ones are read.

    Raises:
        CheckpointCorrupt: naming the first file that is not in the safetensors format, cannot be read, or is not as recorded.
    """
    with contextlib.ExitStack() as stack:
        digests = {name: stack.enter_context(StreamDigest(ahead=None)) for name in records}
        tensors = {name: _read_file(directory / name, record, digests[name], files) for name, record in records.items()}
        for name, record in records.items():
            compare_digest(directory / name, record, digests[name].hexdigest())
    return tensors


def _read_file(path: Path, record: FileRecord | None, digest: StreamDigest | None, files: Files) -> dict[str, torch.Tensor]:
    size = check_file(path, record, files)
    with read_errors(path), files.open(path) as file:
        try:
            header = _read_header(file, size, files)
            entries = _entries(header, size)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if record is not None:
                check_digest(path, record, files)  # damage is called damage
            message = f"{path} is not a readable safetensors file: {error}"
            raise CheckpointCorrupt(message) from error
        if digest is not None:
            digest.update(header)
        return {entry.name: _read_tensor(file, entry, digest, files) for entry in entries}


def _read_header(file: BinaryIO, size: int, files: Files) -> bytes:
    """Return the first bytes of the file: the length of the description that follows, and that."""
    if size < 8:
        message = f"it has {size} bytes, expected at least the 8 that say how long its header is"
        raise ValueError(message)
    length = bytearray(8)
    _fill(file, memoryview(length), files)
    claimed = int.from_bytes(length, "little")
    if claimed > min(size - 8, MAX_HEADER_BYTES):
        message = f"its header claims {claimed} bytes; the file has {size}, and at most {MAX_HEADER_BYTES} are allowed"
        raise ValueError(message)
    text = bytearray(claimed)
    _fill(file, memoryview(text), files)
    return bytes(length + text)


def _entries(header: bytes, size: int) -> list[_Entry]:
    """Return what the file holds, in the order in which it stands there."""
    described = json.loads(header[8:], object_pairs_hook=_unique)
    if not isinstance(described, dict):
        message = f"its header is a {type(described).__name__}, expected an object"
        raise TypeError(message)
    described.pop("__metadata__", None)
    entries = sorted((_entry(name, fields) for name, fields in described.items()), key=lambda entry: (entry.start, entry.stop))
    reached = 0
    for entry in entries:
        if entry.start != reached:
            message = f"{entry.name!r} begins at byte {entry.start}, expected {reached}"
            raise ValueError(message)
        reached = entry.stop
    if reached != size - len(header):
        message = f"its tensors claim {reached} bytes, but {size - len(header)} follow the header"
        raise ValueError(message)
    return entries


def _entry(name: str, fields: dict[str, Any]) -> _Entry:
    if fields.keys() != {"dtype", "shape", "data_offsets"} or fields["dtype"] not in _DTYPES:
        message = f"{name!r} is described by {str(fields)[:80]}, expected dtype, shape and data_offsets of a known dtype"
        raise ValueError(message)
    dtype, shape, (start, stop) = _DTYPES[fields["dtype"]], fields["shape"], fields["data_offsets"]
    if not _is_sizes([start, stop]) or not _is_sizes(shape):
        message = f"{name!r} has the shape {str(shape)[:80]} and stands at {start} to {stop}, expected whole numbers from 0 up"
        raise ValueError(message)
    if stop - start != math.prod(shape) * dtype.itemsize:
        message = f"{name!r} of shape {shape} and dtype {dtype} stands in {stop - start} bytes"
        raise ValueError(message)
    return _Entry(name, dtype, shape, start, stop)


def _is_sizes(numbers: Any) -> bool:
    """Say whether these are sizes that torch can work with, also where one of them is 0."""
    if type(numbers) is not list or len(numbers) > _MAX_DIMENSIONS or not all(type(number) is int for number in numbers):
        return False
    return all(number >= 0 for number in numbers) and math.prod(max(number, 1) for number in numbers) < _MAX_SIZE


def _read_tensor(file: BinaryIO, entry: _Entry, digest: StreamDigest | None, files: Files) -> torch.Tensor:
    tensor = torch.empty(entry.shape, dtype=entry.dtype)
    if tensor.numel():
        content = tensor_bytes(tensor)
        for start in range(0, len(content), CHUNK_SIZE):
            piece = content[start : start + CHUNK_SIZE]
            _fill(file, piece, files)
            if digest is not None:
                digest.update(piece)
    return tensor


def _fill(file: BinaryIO, buffer: memoryview, files: Files) -> None:
    filled = 0
    while filled < len(buffer):
        count = files.read_into(file, buffer[filled:])
        if count == 0:
            message = "it ended while it was read"
            raise OSError(message)
        filled += count


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        message = "its header has a key twice"
        raise ValueError(message)
    return entries

"""Decides which tensor files of a checkpoint a committed one holds already, byte for byte, so that they can be linked."""

from __future__ import annotations

__all__ = ("linked",)

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from hookbus.checkpoint.digest import StreamDigest
from hookbus.checkpoint.files import Files
from hookbus.checkpoint.manifest import CheckpointInfo, FileRecord, read_manifest
from hookbus.checkpoint.tensor_file import tensor_chunks, tensor_header
from hookbus.checkpoint.writing import LinkedContent
from hookbus.errors import CheckpointError

_Tensors = Mapping[str, torch.Tensor]


def linked(tensors: Mapping[str, _Tensors], source: Path, step: tuple[int, int], *, trusted: bool) -> dict[str, LinkedContent]:
    """Return the files, of those with these tensors, that the checkpoint in the directory `source` holds already.

    It has to be of the same step (epoch and iteration) and sound. If `trusted`, a file with tensors of the same names, shapes
    and dtypes is taken for the same; if not, its digest is compared with that of the tensors.
    """
    files = Files()
    try:
        info = read_manifest(source, files)
        return dict(_same_files(tensors, info, files, trusted=trusted)) if (info.epoch, info.iter) == step else {}
    except (CheckpointError, OSError):
        return {}  # nothing to link to: all is written


def _same_files(
    tensors: Mapping[str, _Tensors], info: CheckpointInfo, files: Files, *, trusted: bool
) -> Iterator[tuple[str, LinkedContent]]:
    for file, held in tensors.items():
        record, path = info.files.get(file), info.path / file
        if record is None or not files.is_file(path) or files.size(path) != record.size:
            continue
        if _begins_with(path, tensor_header(held), files) and (trusted or _has_digest(held, record)):
            yield file, LinkedContent(path, record, tensor_chunks(held))


def _begins_with(path: Path, header: bytes, files: Files) -> bool:
    found = bytearray(len(header))
    try:
        with files.open(path) as file:
            return files.read_into(file, memoryview(found)) == len(header) and found == header
    except OSError:
        return False


def _has_digest(tensors: _Tensors, record: FileRecord) -> bool:
    with StreamDigest() as digest:
        for chunk in tensor_chunks(tensors):
            digest.update(chunk)
        return digest.hexdigest() == record.sha256

"""Weights to hand out: one plain safetensors file beside the checkpoint it was taken from.

`epoch_5-1a2b3c4d.safetensors` loads with `safetensors.torch.load_file`. The digits are the first ones of the SHA-256 of the
file, so two files of one name hold the same weights.
"""

from __future__ import annotations

__all__ = ("PUBLISHABLE", "publish_weights")

import contextlib
from pathlib import Path

from hookbus.checkpoint.files import Files
from hookbus.checkpoint.leftovers import hidden_path
from hookbus.checkpoint.manifest import FileRecord, compare_digest, read_chunks, read_manifest
from hookbus.checkpoint.snapshot import WEIGHT_FILES
from hookbus.checkpoint.writing import write_errors, write_file
from hookbus.errors import CheckpointError, choices

PUBLISHABLE = tuple(WEIGHT_FILES)
"""The entries of a checkpoint that can be published."""

_DIGITS = 8


def publish_weights(checkpoint: Path, entry: str = "state_dict", *, files: Files | None = None) -> Path:
    """Copy the weights of a checkpoint into a file of their own, which appears complete or not at all; return its path.

    Args:
        checkpoint: the directory of the checkpoint.
        entry: `state_dict`, or `averaged`; the name of the file then says so.
        files: the operations of the file system.

    Raises:
        CheckpointError: the checkpoint holds no such weights.
        CheckpointCorrupt: it is not what was written.
        CheckpointWriteError: the file system refused; nothing was published.
    """
    files = files or Files()
    info = read_manifest(checkpoint, files)
    file = WEIGHT_FILES.get(entry, "")
    if file not in info.files:
        held = [key for key, name in WEIGHT_FILES.items() if name in info.files]
        msg = f"{checkpoint} holds no weights {entry!r} to publish; {choices(entry, held)}"
        raise CheckpointError(msg)
    middle = "" if entry == "state_dict" else f"_{entry}"
    target = checkpoint.with_name(f"{info.name}{middle}-{info.files[file].sha256[:_DIGITS]}.safetensors")
    with write_errors(f"{target} was not published"):
        _copy(checkpoint / file, info.files[file], target, files)
    return target


def _copy(source: Path, record: FileRecord, target: Path, files: Files) -> None:
    """Copy a file, compare what was read with its record, and only then give the copy its name."""
    temporary = hidden_path(target, "tmp")
    try:
        written = write_file(temporary, read_chunks(source, files), files)
        compare_digest(source, record, written.sha256)
        files.rename(temporary, target)
        files.sync_directory(target.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            files.remove_file(temporary)
        raise

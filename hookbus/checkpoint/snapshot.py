"""One checkpoint of a run: the dict that hooks see, as the files of a directory, and back.

`state_dict` and `averaged` go to files that load as plain state dicts, the tensors of `optimizer` to `optimizer.safetensors`,
every other tensor to `tensors.safetensors`, and all the rest to `state.json`. What `load_checkpoint` returns equals what
`save_checkpoint` was given; its tensors are on the CPU. Saving is synchronous and copies no contiguous CPU tensor. Loading
reads each file once, and nothing is decoded before every byte is verified.
"""

from __future__ import annotations

__all__ = ("load_checkpoint", "save_checkpoint", "verify_checkpoint")

import copy
import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hookbus.checkpoint.decode import decode_state
from hookbus.checkpoint.encode import StoredWeight, encode_state
from hookbus.checkpoint.files import Files
from hookbus.checkpoint.linking import linked
from hookbus.checkpoint.manifest import (
    MANIFEST_FILE,
    STATE_FILE,
    CheckpointInfo,
    check_digest,
    check_file,
    check_names,
    compare_digest,
    read_chunks,
    read_manifest,
    verify_files,
)
from hookbus.checkpoint.sharing import check_tensor
from hookbus.checkpoint.store import CheckpointStore
from hookbus.checkpoint.tensor_file import TENSOR_DTYPES, tensor_chunks
from hookbus.checkpoint.tensor_reading import read_verified
from hookbus.checkpoint.writing import Content
from hookbus.errors import CheckpointCorrupt, CheckpointError, StateEncodingError, choices

WEIGHT_FILES = {"state_dict": "model.safetensors", "averaged": "averaged.safetensors"}
"""The entries of a checkpoint whose tensors have a file of their own, under their own names."""

OPTIMIZER_FILE = "optimizer.safetensors"
"""Has a file of its own because it is large and, unlike the rest, the same in two checkpoints of one step."""

TENSORS_FILE = "tensors.safetensors"

MAX_STATE_BYTES = 1 << 26
"""The longest `state.json` written or read: what is large belongs in tensors and arrays, which are not in it."""


TENSOR_FILES = (OPTIMIZER_FILE, *WEIGHT_FILES.values(), TENSORS_FILE)

LINKABLE = (*WEIGHT_FILES.values(), OPTIMIZER_FILE)
"""The files that two checkpoints of one step share."""

_OF_OPTIMIZER = re.compile(r"optimizer(?![A-Za-z0-9_])")
"""How the names of its tensors begin: they are their paths in the checkpoint."""


def save_checkpoint(
    store: CheckpointStore,
    name: str,
    checkpoint: Mapping[str, Any],
    *,
    epoch: int,
    iter: int,
    role: str = "periodic",
    hookbus_version: str = "",
    facts: Mapping[str, Any] | None = None,
    replace: bool = False,
    link_from: Path | None = None,
    is_unchanged: bool = False,
) -> Path:
    """Commit the checkpoint under the name and return its directory.

    The entries of `state_dict` and `averaged` that are tensors are written under each of their names, also those that share
    memory, and contiguously; of those that are the same tensor it is recorded that they are. `facts` go into the manifest.

    Args:
        link_from: the directory of a committed checkpoint of the same step. Weights and optimizer tensors that are the same
            bytes as there are hard-linked instead of written; either of the two can then be removed without the other. Where
            that is impossible they are written.
        is_unchanged: the caller vouches that weights and optimizer have not changed since that one was assembled, so the tensors
            are not even read. Without it their digests are compared.

    Raises:
        StateEncodingError: if a value has no exact form, or the state is too large; nothing was written.
        InvalidName, CheckpointError, CheckpointWriteError: see `CheckpointStore.save`.
    """
    contents, tensors = _contents(checkpoint)
    if link_from is not None:
        step = (epoch, iter)
        contents |= linked({file: tensors[file] for file in LINKABLE if file in tensors}, link_from, step, trusted=is_unchanged)
    return store.save(
        name,
        contents,
        epoch=epoch,
        iter=iter,
        role=role,
        hookbus_version=hookbus_version,
        facts=facts,
        replace=replace,
    )


def load_checkpoint(path: str | Path, *, files: Files | None = None) -> dict[str, Any]:
    """Return the dict that was saved in the directory, after every byte was compared with the manifest.

    Raises:
        CheckpointError: if there is no directory at the path, or a later version wrote it.
        CheckpointCorrupt: naming the file, what was expected and what was found.
    """
    files = files or Files()
    info = _read_info(Path(path), files)
    check_names(info, files)
    for file, record in info.files.items():
        check_file(info.path / file, record, files)
    document = _read_state(info, files)
    held = read_verified(info.path, {file: info.files[file] for file in TENSOR_FILES if file in info.files}, files)
    tensors = held.pop(OPTIMIZER_FILE, {}) | held.pop(TENSORS_FILE, {})
    for file in info.files.keys() - {STATE_FILE, *TENSOR_FILES}:
        check_digest(info.path / file, info.files[file], files)
    try:
        checkpoint = decode_state(document, tensors, weights=held)
    except CheckpointCorrupt as error:
        message = f"{info.path / STATE_FILE}: {error}"
        raise CheckpointCorrupt(message) from error
    if not isinstance(checkpoint, dict):
        message = f"{info.path / STATE_FILE} holds a {type(checkpoint).__name__}, expected a dict"
        raise CheckpointCorrupt(message)
    return checkpoint


def verify_checkpoint(path: str | Path, *, files: Files | None = None) -> CheckpointInfo:
    """Compare every byte in the directory with its manifest, and return what the manifest says; raises like `load_checkpoint`."""
    files = files or Files()
    info = _read_info(Path(path), files)
    verify_files(info, files)
    return info


def _read_info(path: Path, files: Files) -> CheckpointInfo:
    if path.is_file():
        is_inside = (path.parent / MANIFEST_FILE).exists()
        hint = f"give the directory {path.parent}" if is_inside else "read it with hookbus.import_weights and load_state_dict"
        message = f"{path} is a file, expected the directory of a checkpoint; {hint}"
        raise CheckpointError(message)
    if not path.is_dir():
        known = [info.name for info in CheckpointStore(path.parent).list()]
        message = f"there is no checkpoint at {path}; {choices(path.name, known)}"
        raise CheckpointError(message)
    inside = [] if (path / MANIFEST_FILE).exists() else sorted(path.glob(f"**/{MANIFEST_FILE}"))
    if inside:
        found = [str(file.parent.relative_to(path)) for file in inside]
        message = f"{path} is a directory with checkpoints and not one itself; {choices(path.name, found)}"
        raise CheckpointError(message)
    return read_manifest(path, files)


def _contents(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Content], dict[str, dict[str, torch.Tensor]]]:
    """Return what each file is to hold, and the tensors by file and name."""
    tree, tensors = dict(checkpoint), dict[str, dict[str, torch.Tensor]]()
    for key, file in WEIGHT_FILES.items():
        if type(tree.get(key)) in (dict, OrderedDict):
            tree[key], tensors[file] = _take_weights(tree[key], key, file)
    state = encode_state(tree)
    of_optimizer = {name: tensor for name, tensor in state.tensors.items() if _OF_OPTIMIZER.match(name)}
    if of_optimizer:
        tensors[OPTIMIZER_FILE] = of_optimizer
    tensors[TENSORS_FILE] = {name: tensor for name, tensor in state.tensors.items() if name not in of_optimizer}
    contents: dict[str, Content] = {file: tensor_chunks(held) for file, held in tensors.items()}
    return contents | {STATE_FILE: [_render(state.document)]}, tensors


def _take_weights(mapping: dict[Any, Any], key: str, file: str) -> tuple[dict[Any, Any], dict[str, torch.Tensor]]:
    """Return the mapping with a reference in the place of each tensor, and the tensors by name."""
    rest, tensors, known = copy.copy(mapping), dict[str, torch.Tensor](), dict[Any, StoredWeight]()
    for name, tensor in mapping.items():
        if not isinstance(tensor, torch.Tensor) or not _is_weight_name(name):
            continue
        check_tensor(tensor, (key, name))
        if tensor.dtype in TENSOR_DTYPES:
            tensors[name] = tensor.detach()
            rest[name] = known.setdefault(_identity(tensor), StoredWeight(file, name))
    return rest, tensors


def _is_weight_name(name: Any) -> bool:
    return type(name) is str and name != "__metadata__" and name.isprintable()


def _identity(tensor: torch.Tensor) -> Any:
    if tensor.numel() == 0:
        return id(tensor)
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.is_conj(), tensor.is_neg())


def _render(document: Any) -> bytes:
    """Return the document as JSON text, one entry of the checkpoint per line."""
    if "$dict" in document:  # an entry with a name that JSON cannot show as it is
        text = json.dumps(document, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        return _limited(text, {})
    entries = {key: json.dumps(entry, ensure_ascii=False, allow_nan=False) for key, entry in document.items()}
    lines = (f"{json.dumps(key)}: {entry}" for key, entry in entries.items())
    return _limited(("{\n" + ",\n".join(lines) + "\n}\n").encode(), entries)


def _limited(text: bytes, entries: Mapping[str, str]) -> bytes:
    """Return the text if it can be read again."""
    if len(text) > MAX_STATE_BYTES:
        largest = max(entries, key=lambda key: len(entries[key]), default="")
        message = (
            f"all of the state but its tensors and arrays takes {len(text)} bytes, most of them in {largest!r}; expected at most "
            f"{MAX_STATE_BYTES}: keep long lists of numbers as tensors or numpy arrays"
        )
        raise StateEncodingError(message)
    return text


def _read_state(info: CheckpointInfo, files: Files) -> Any:
    file = info.path / STATE_FILE
    record = info.files.get(STATE_FILE)
    if record is None or record.size > MAX_STATE_BYTES:
        held = ", ".join(f"{name} of {record.size} bytes" for name, record in sorted(info.files.items())) or "no files"
        message = f"{info.path} holds {held}; expected {STATE_FILE} of at most {MAX_STATE_BYTES} bytes"
        raise CheckpointCorrupt(message)
    text = b"".join(read_chunks(file, files))
    compare_digest(file, record, hashlib.sha256(text).hexdigest())
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        message = f"{file} is not the JSON that was written: {error}"
        raise CheckpointCorrupt(message) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        message = f"an object has a key twice among {[key for key, _ in pairs][:5]}"
        raise ValueError(message)
    return entries


def _refuse_constant(name: str) -> Any:
    message = f"{name} is not JSON"
    raise ValueError(message)

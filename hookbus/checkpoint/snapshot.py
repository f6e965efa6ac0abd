"""One checkpoint of a run: the dict that hooks see, as the files of a directory, and back.

`state_dict` and `averaged` go to files that load as plain state dicts, every other tensor to `tensors.safetensors`, and all the
rest to `state.json`. What `load_checkpoint` returns equals what `save_checkpoint` was given; its tensors are on the CPU. Saving
is synchronous and copies no CPU tensor. Loading verifies every byte before it parses any.
"""

from __future__ import annotations

__all__ = ("load_checkpoint", "save_checkpoint", "verify_checkpoint")

import copy
import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hookbus.checkpoint.decode import decode_state
from hookbus.checkpoint.encode import StoredWeight, encode_state
from hookbus.checkpoint.files import Files
from hookbus.checkpoint.manifest import CheckpointInfo, read_chunks, read_manifest, verify_files
from hookbus.checkpoint.sharing import check_tensor
from hookbus.checkpoint.store import CheckpointStore, Content
from hookbus.checkpoint.tensor_file import TENSOR_DTYPES, read_tensors, tensor_chunks
from hookbus.errors import CheckpointCorrupt, CheckpointError, choices

WEIGHT_FILES = {"state_dict": "model.safetensors", "averaged": "averaged.safetensors"}
"""The entries of a checkpoint whose tensors have a file of their own, under their own names."""

TENSORS_FILE = "tensors.safetensors"
STATE_FILE = "state.json"


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
) -> Path:
    """Commit the checkpoint under the name and return its directory.

    The entries of `state_dict` and `averaged` that are tensors are written under each of their names, also those that share
    memory, and contiguously; of those that are the same tensor it is recorded that they are. `facts` go into the manifest.

    Raises:
        StateEncodingError: if a value has no exact form; nothing was written.
        InvalidName, CheckpointError, CheckpointWriteError: see `CheckpointStore.save`.
    """
    return store.save(
        name,
        _contents(checkpoint),
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
    info = verify_checkpoint(path, files=files)
    weights = {file: read_tensors(info.path / file) for file in WEIGHT_FILES.values() if file in info.files}
    tensors = read_tensors(info.path / TENSORS_FILE) if TENSORS_FILE in info.files else {}
    document = _read_state(info, files or Files())
    try:
        checkpoint = decode_state(document, tensors, weights=weights)
    except CheckpointCorrupt as error:
        message = f"{info.path / STATE_FILE}: {error}"
        raise CheckpointCorrupt(message) from error
    if not isinstance(checkpoint, dict):
        message = f"{info.path / STATE_FILE} holds a {type(checkpoint).__name__}, expected a dict"
        raise CheckpointCorrupt(message)
    return checkpoint


def verify_checkpoint(path: str | Path, *, files: Files | None = None) -> CheckpointInfo:
    """Compare every byte in the directory with its manifest, and return what the manifest says; raises like `load_checkpoint`."""
    path, files = Path(path), files or Files()
    if not path.is_dir():
        message = (
            f"there is no checkpoint at {path}; {choices(path.name, [info.name for info in CheckpointStore(path.parent).list()])}"
        )
        raise CheckpointError(message)
    info = read_manifest(path, files)
    verify_files(info, files)
    return info


def _contents(checkpoint: Mapping[str, Any]) -> dict[str, Content]:
    tree, weights = dict(checkpoint), dict[str, dict[str, torch.Tensor]]()
    for key, file in WEIGHT_FILES.items():
        if type(tree.get(key)) in (dict, OrderedDict):
            tree[key], weights[file] = _take_weights(tree[key], key, file)
    state = encode_state(tree)
    contents: dict[str, Content] = {file: tensor_chunks(tensors) for file, tensors in weights.items()}
    contents[TENSORS_FILE] = tensor_chunks(state.tensors)
    contents[STATE_FILE] = [_render(state.document)]
    return contents


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
        return json.dumps(document, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    lines = (f"{json.dumps(key)}: {json.dumps(entry, ensure_ascii=False, allow_nan=False)}" for key, entry in document.items())
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _read_state(info: CheckpointInfo, files: Files) -> Any:
    file = info.path / STATE_FILE
    if STATE_FILE not in info.files:
        message = f"{info.path} holds {', '.join(sorted(info.files)) or 'no files'}, expected {STATE_FILE}"
        raise CheckpointCorrupt(message)
    try:
        return json.loads(b"".join(read_chunks(file, files)), object_pairs_hook=_unique, parse_constant=_refuse_constant)
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

"""Weights from elsewhere: the one door for files that hookbus did not write, and it runs nothing that is in them.

`.safetensors` files hold no code. `.pth`, `.pt`, `.bin` and `.ckpt` files are pickles: torch reads them with `weights_only=True`,
and what it refuses stays refused. Not read: files whose entries are compressed (torch writes none, and a small one could fill the
memory), directories, files of several parts, and what is neither tensor nor container of tensors.
"""

from __future__ import annotations

__all__ = ("import_weights",)

import mmap
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from hookbus.checkpoint import read_tensors
from hookbus.errors import CheckpointCorrupt, CheckpointError, UnsafeCheckpoint, choices

PICKLED = (".pth", ".pt", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *PICKLED)
WRAPPERS = ("state_dict", "model")
"""Under which key files of whole training runs keep the weights."""

_ARCHIVE = b"PK\x03\x04"
_EARLY_FORMAT = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
"""How files of torch before 1.6 begin: one pickle after the other, nothing compressed."""

_BYTEARRAY = b"\nbytearray\n"
"""How a pickle names that class, in the one way that torch understands."""

_PARALLEL = "module."
_ADVICE = (
    "if you trust where it comes from, load it in a program of its own, with torch.load(..., weights_only=False), and save its "
    "state dict with safetensors.torch.save_file"
)


def import_weights(path: str | Path, *, max_bytes: int = 1 << 36) -> dict[str, torch.Tensor]:
    """Return the tensors of a file by name, on the CPU, as `load_state_dict` takes them.

    A dict that holds the weights under `state_dict` or `model` is unwrapped, and the prefix `module.` goes where all names have
    it. `max_bytes` is the largest file that is read, 64 GiB unless said otherwise. Tensors take no more memory than the file has
    bytes; other objects in a pickle may take some sixty times their bytes.

    Raises:
        CheckpointError: if there is no such file, it is of another kind, or it does not hold named tensors.
        UnsafeCheckpoint: if reading it would run code, or take more memory than it may.
        CheckpointCorrupt: if it is damaged.
    """
    path = Path(path)
    _check(path, max_bytes)
    content = read_tensors(path) if path.suffix == ".safetensors" else _unpickle(path)
    return _without_prefix(_named_tensors(_unwrapped(content), path))


def _check(path: Path, max_bytes: int) -> None:
    if path.suffix not in SUFFIXES:
        message = f"{path} is not a file of weights; {choices(path.suffix, SUFFIXES)}"
        raise CheckpointError(message)
    if not path.is_file():
        message = f"there is no file {path}, expected one of weights"
        raise CheckpointError(message)
    size = path.stat().st_size
    if size > max_bytes:
        message = f"{path} has {size} bytes, expected at most {max_bytes}; max_bytes= allows more"
        raise UnsafeCheckpoint(message)


def _unpickle(path: Path) -> Any:
    _check_archive(path)
    _check_pickles(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except pickle.UnpicklingError as error:
        message = f"{path} holds more than weights, and reading it could run code: {_reason(error)}; {_ADVICE}"
        raise UnsafeCheckpoint(message) from error
    except Exception as error:
        message = f"{path} is not a readable file of weights: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise CheckpointCorrupt(message) from error


def _reason(error: BaseException) -> str:
    """Return what torch found, without its advice to read the file all the same."""
    return " ".join(str(error.__context__ or error).partition(" Please use")[0].split())[:300]


def _check_archive(path: Path) -> None:
    """Refuse what torch did not write, and an archive that would grow when it is read."""
    with path.open("rb") as file:
        begins = file.read(len(_EARLY_FORMAT))
    if begins == _EARLY_FORMAT:
        return
    if not begins.startswith(_ARCHIVE):
        message = f"{path} begins with {begins!r}, unlike what torch writes; {_ADVICE}"
        raise UnsafeCheckpoint(message)
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
            compressed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        message = f"{path} is not a readable file of weights: {error}"
        raise CheckpointCorrupt(message) from error
    if compressed or claimed > path.stat().st_size:
        what = f"its entry {compressed[0]!r} is compressed" if compressed else "its entries overlap"
        message = f"{path} of {path.stat().st_size} bytes claims {claimed} bytes of memory: {what}, which torch never writes"
        raise UnsafeCheckpoint(message)


def _check_pickles(path: Path) -> None:
    """Refuse a pickle that makes a bytearray: torch lets it say how long, and no file of weights has one."""
    if any(pickled.find(_BYTEARRAY) >= 0 for pickled in _pickles(path)):
        message = f"{path} makes a bytearray, which can be of any length and is no part of weights; {_ADVICE}"
        raise UnsafeCheckpoint(message)


def _pickles(path: Path) -> Iterator[bytes | mmap.mmap]:
    """Yield the pickles in an archive, or all of a file that is none: there they stand between the tensors."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from (archive.read(entry) for entry in archive.infolist() if entry.filename.endswith(".pkl"))
    elif path.stat().st_size:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content


def _unwrapped(content: Any) -> Any:
    for key in 2 * WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    return content


def _named_tensors(content: Any, path: Path) -> dict[str, torch.Tensor]:
    if not isinstance(content, Mapping):
        message = f"{path} holds a {type(content).__name__}, expected named tensors, alone or under {' or '.join(WRAPPERS)}"
        raise CheckpointError(message)
    others = [name for name, tensor in content.items() if not isinstance(name, str) or not isinstance(tensor, torch.Tensor)]
    if others:
        shown = ", ".join(f"{name!r} ({type(content[name]).__name__})" for name in others[:5])
        message = f"{path} holds {shown}, expected nothing but named tensors, alone or under {' or '.join(WRAPPERS)}"
        raise CheckpointError(message)
    return {name: tensor.detach() for name, tensor in content.items()}


def _without_prefix(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if not all(name.startswith(_PARALLEL) for name in weights):
        return weights
    return {name.removeprefix(_PARALLEL): tensor for name, tensor in weights.items()}

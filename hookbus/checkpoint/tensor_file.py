"""The safetensors format: a mapping of names to tensors as a stream of byte chunks, and back.

Writing is done here rather than by the library, because a stream can be hashed in the same pass, reports the operating system's
own error, and may hold tensors that share memory: each is written in full under each of its names. What is written loads with
`safetensors.torch.load_file`, and reading is left to the library.
"""

from __future__ import annotations

__all__ = ("TENSOR_DTYPES", "read_tensors", "tensor_chunks")

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from hookbus.errors import CheckpointCorrupt

_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}

TENSOR_DTYPES: dict[torch.dtype, str] = {
    getattr(torch, torch_name): name for name, torch_name in _NAMES.items() if hasattr(torch, torch_name)
}
"""The dtypes a safetensors file can hold, with the format's own name for each."""

Chunk = bytes | memoryview
"""A piece of a file's content."""


def tensor_chunks(tensors: Mapping[str, torch.Tensor]) -> Iterator[Chunk]:
    """Yield the content of a safetensors file: the header, then one chunk per tensor that is not empty.

    A tensor is copied only when its chunk is asked for, and only if it is not a contiguous CPU tensor.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))  # wide items first keep every tensor aligned
    yield _header(ordered)
    for _, tensor in ordered:
        if tensor.numel():
            yield _content(tensor)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file, in memory of their own on the CPU.

    Raises:
        CheckpointCorrupt: if the file is not in the safetensors format.
    """
    try:
        mapped = safetensors.torch.load_file(path, device="cpu")
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        message = f"{path} is not a readable safetensors file: {error}"
        raise CheckpointCorrupt(message) from error
    return {name: tensor.clone() for name, tensor in mapped.items()}  # not mapped to the file: it may change or go away


def _header(ordered: list[tuple[str, torch.Tensor]]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in ordered:
        stop = offset + math.prod(tensor.shape) * tensor.itemsize
        entries[name] = {"dtype": TENSOR_DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _content(tensor: torch.Tensor) -> memoryview:
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().data

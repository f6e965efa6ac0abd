"""The safetensors format: a mapping of names to tensors as a stream of byte chunks.

Writing is done here rather than by the library, because a stream can be hashed in the same pass, reports the operating system's
own error, and may hold tensors that share memory: each is written in full under each of its names. What is written loads with
`safetensors.torch.load_file`; `hookbus.checkpoint.tensor_reading` reads and verifies it in one pass.
"""

from __future__ import annotations

__all__ = ("MAX_HEADER_BYTES", "TENSOR_DTYPES", "tensor_bytes", "tensor_chunks", "tensor_header")

import json
import math
from collections.abc import Iterator, Mapping

import torch

from hookbus.errors import StateEncodingError

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

MAX_HEADER_BYTES = 1 << 26
"""The longest header written or read: room for half a million tensors."""

Chunk = bytes | memoryview
"""A piece of a file's content."""


def tensor_chunks(tensors: Mapping[str, torch.Tensor]) -> Iterator[Chunk]:
    """Yield the content of a safetensors file: the header, then one chunk per tensor that is not empty.

    A tensor is copied only when its chunk is asked for, and only if it is not a contiguous CPU tensor.
    """
    yield tensor_header(tensors)
    for _, tensor in _ordered(tensors):
        if tensor.numel():
            yield tensor_bytes(tensor.detach().resolve_conj().resolve_neg().cpu().contiguous())


def tensor_header(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Return how such a file begins, which says everything about the tensors but their values.

    Raises:
        StateEncodingError: there are too many tensors for one file.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in _ordered(tensors):
        stop = offset + math.prod(tensor.shape) * tensor.itemsize
        entries[name] = {"dtype": TENSOR_DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        message = f"the names and shapes of {len(tensors)} tensors take {len(text)} bytes, expected at most {MAX_HEADER_BYTES}"
        raise StateEncodingError(message)
    return len(text).to_bytes(8, "little") + text


def _ordered(tensors: Mapping[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    return sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))  # wide items first keep every tensor aligned


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous CPU tensor that is not empty, as bytes."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data

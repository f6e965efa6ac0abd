"""Whether the weights and the optimizer are still what an earlier checkpoint of the same moment holds, without reading them.

Every operation of torch that changes a tensor in place counts up its version, and one that replaces it changes its identity.
Only writing around torch, through `.data` or a numpy array, is not seen.
"""

from __future__ import annotations

__all__ = ("Marks", "are_equal", "marks_of")

import weakref
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch


class _Mark(NamedTuple):
    """What tells one content of a tensor from any other."""

    tensor: weakref.ref[torch.Tensor]
    address: int
    version: int


Marks = Mapping[tuple[Any, ...], _Mark]
"""The marks of all tensors by their paths."""


def marks_of(model: torch.nn.Module, checkpoint: Mapping[str, Any]) -> Marks | None:
    """Return the marks of the weights and of the optimizer in a checkpoint; None where they do not tell whether they change.

    That is so for what was computed for the checkpoint: averaged weights, or entries that a hook put in their place.
    """
    if "averaged" in checkpoint:
        return None
    own = model.state_dict(keep_vars=True)
    tensors = dict(_tensors(checkpoint.get("optimizer"), ("optimizer",)))
    for name, tensor in _tensors(checkpoint.get("state_dict"), ()):
        live = own.get(name[0]) if len(name) == 1 else None
        if not isinstance(live, torch.Tensor) or not _is_same_memory(live, tensor):
            return None
        tensors["state_dict", *name] = live
    if any(tensor.is_inference() for tensor in tensors.values()):
        return None  # nothing counts their changes
    return {path: _Mark(weakref.ref(tensor), tensor.data_ptr(), tensor._version) for path, tensor in tensors.items()}


def are_equal(left: Marks, right: Marks) -> bool:
    """Return whether the tensors are the same and have the same contents; those that are gone equal no others."""
    return left.keys() == right.keys() and all(_is_same(mark, right[path]) for path, mark in left.items())


def _is_same(left: _Mark, right: _Mark) -> bool:
    return left[1:] == right[1:] and left.tensor() is right.tensor() is not None


def _is_same_memory(left: torch.Tensor, right: torch.Tensor) -> bool:
    places = [(tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) for tensor in (left, right)]
    return places[0] == places[1]


def _tensors(entry: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], torch.Tensor]]:
    if isinstance(entry, torch.Tensor):
        yield path, entry
    elif isinstance(entry, Mapping):
        for key, item in entry.items():
            yield from _tensors(item, (*path, key))
    elif isinstance(entry, list | tuple):
        for index, item in enumerate(entry):
            yield from _tensors(item, (*path, index))

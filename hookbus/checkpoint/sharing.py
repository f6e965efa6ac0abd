"""Collects the tensors of a state so that tensors which share memory are stored once and come back sharing it.

- The same view under several paths is stored once and comes back as one tensor.
- Different views that overlap are stored as the one stretch of memory they cover, and come back as views of it.
- Layouts without gaps (contiguous, transposed, channels-last, expanded) come back with their strides. A view with gaps is
  stored as its values alone and comes back contiguous, unless other views fill the gaps.
- Sharing between views of different dtypes, and between arrays, is not kept; the values are.

Tensors are detached and staged on the CPU. A CPU tensor is not copied: the state must not change until it is written.
"""

from __future__ import annotations

__all__ = ("TensorCollector", "check_tensor", "is_tensor")

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, TypeGuard

import torch

from hookbus.checkpoint.statepath import StatePath, spell_path
from hookbus.checkpoint.tensor_file import TENSOR_DTYPES
from hookbus.errors import StateEncodingError


@dataclass(slots=True)
class _View:
    """One occurrence of a tensor: where it lies in memory, and the node of the document that will name it."""

    name: str
    tensor: torch.Tensor
    node: dict[str, Any] = field(default_factory=dict)

    @property
    def memory(self) -> tuple[Any, ...]:
        if self.tensor.numel() == 0:
            return ("empty", 0, "", self.name)
        return (str(self.tensor.device), self.tensor.untyped_storage().data_ptr(), str(self.tensor.dtype), "")

    @property
    def layout(self) -> tuple[Any, ...]:
        return (self.start, tuple(self.tensor.shape), self.tensor.stride())

    @property
    def start(self) -> int:
        return int(self.tensor.storage_offset())

    @property
    def stop(self) -> int:
        steps = zip(self.tensor.shape, self.tensor.stride(), strict=True)
        return self.start + sum((size - 1) * stride for size, stride in steps) + 1


class TensorCollector:
    """Takes tensors one by one while a state is walked, and stores them all at the end."""

    def __init__(self) -> None:
        self._tensors: dict[str, torch.Tensor] = {}
        self._views: list[_View] = []
        self._names: set[str] = set()

    def add(self, tensor: torch.Tensor, path: StatePath) -> dict[str, Any]:
        """Return the node that stands for the tensor in the document; `store` completes it.

        Raises:
            StateEncodingError: if a safetensors file cannot hold the tensor.
        """
        check_tensor(tensor, path)
        view = _View(self._new_name(path), tensor.detach().resolve_conj().resolve_neg())
        self._views.append(view)
        return view.node

    def add_values(self, tensor: torch.Tensor, path: StatePath) -> str:
        """Store a tensor of our own that shares memory with nothing in the state, and return its name."""
        name = self._new_name(path)
        self._tensors[name] = tensor
        return name

    def store(self) -> dict[str, torch.Tensor]:
        """Complete all nodes and return what is to be written, by name."""
        for views in _overlapping(self._views):
            self._store_together(views)
        return self._tensors

    def _new_name(self, path: StatePath) -> str:
        spelled = spell_path(path)
        name, count = spelled, 1
        while name in self._names:  # two NaN keys in one dict spell the same
            count += 1
            name = f"{spelled}#{count}"
        self._names.add(name)
        return name

    def _store_together(self, views: list[_View]) -> None:
        by_layout: dict[tuple[Any, ...], list[_View]] = {}
        for view in views:
            by_layout.setdefault(view.layout, []).append(view)
        firsts = [same[0] for same in by_layout.values()]
        if len(firsts) == 1 and firsts[0].tensor.is_contiguous():
            self._store_plain(views)
        elif _has_no_gaps(firsts):
            self._store_base(views)
        else:
            for same in by_layout.values():
                self._store_plain(same)

    def _store_plain(self, views: list[_View]) -> None:
        first = views[0]
        stored = self._keep(first.name, first.tensor)
        for view in views:
            view.node.update(stored)

    def _store_base(self, views: list[_View]) -> None:
        first, start, stop = views[0], min(view.start for view in views), max(view.stop for view in views)
        stored = self._keep(first.name, first.tensor.as_strided((stop - start,), (1,), start))
        for view in views:
            shape, stride = list(view.tensor.shape), list(view.tensor.stride())
            view.node.update(stored, shape=shape, stride=stride, offset=view.start - start)

    def _keep(self, name: str, tensor: torch.Tensor) -> dict[str, Any]:
        staged = tensor.cpu().contiguous()
        if staged.dtype is torch.complex128:  # safetensors knows complex64 only
            self._tensors[name] = torch.view_as_real(staged)
            return {"$tensor": name, "dtype": "complex128"}
        self._tensors[name] = staged
        return {"$tensor": name}


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Say whether the value is a tensor of any kind."""
    return isinstance(value, torch.Tensor)


def check_tensor(tensor: torch.Tensor, path: StatePath) -> None:
    """Raise unless the values of the tensor can be stored exactly.

    Raises:
        StateEncodingError: for a subclass, a sparse, quantized or meta tensor, or a dtype that safetensors does not know.
    """
    problem = _problem(tensor)
    if problem:
        message = f"{spell_path(path)} is {problem}, which a checkpoint cannot hold"
        raise StateEncodingError(message)


def _problem(tensor: torch.Tensor) -> str | None:
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return f"a {type(tensor).__module__}.{type(tensor).__qualname__} (allowed: torch.Tensor and torch.nn.Parameter)"
    if tensor.layout is not torch.strided:
        return f"a sparse tensor of layout {tensor.layout} (allowed: dense tensors; see Tensor.to_dense)"
    if tensor.device.type == "meta":
        return "a tensor on the meta device, without values (allowed: tensors with values)"
    if tensor.dtype not in TENSOR_DTYPES and tensor.dtype is not torch.complex128:
        return f"a tensor of dtype {tensor.dtype} (allowed: {', '.join(str(dtype) for dtype in TENSOR_DTYPES)}, torch.complex128)"
    return None


def _overlapping(views: Iterable[_View]) -> Iterator[list[_View]]:
    """Yield the views in groups that share memory, each in the order they were added."""
    order = {id(view): number for number, view in enumerate(views)}
    for _, same_memory in groupby(sorted(views, key=lambda view: view.memory), key=lambda view: view.memory):
        for group in _touching(sorted(same_memory, key=lambda view: view.start)):
            yield sorted(group, key=lambda view: order[id(view)])


def _touching(ascending: list[_View]) -> Iterator[list[_View]]:
    group, reach = [ascending[0]], ascending[0].stop
    for view in ascending[1:]:
        if view.start >= reach:
            yield group
            group = []
        group.append(view)
        reach = max(reach, view.stop)
    yield group


def _has_no_gaps(views: list[_View]) -> bool:
    covered = max(view.stop for view in views) - min(view.start for view in views)
    return covered <= sum(view.tensor.numel() for view in views)

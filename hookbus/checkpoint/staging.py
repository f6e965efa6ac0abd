"""Copies of a state on the host, taken in one go, so that training may go on while they are written.

The copy is what the encoder makes the same checkpoint of: tensors that share memory share it in the copy, too, and a view with
gaps is copied as its values alone. What no checkpoint can hold is left as it is, for the encoder to refuse with its path.
"""

from __future__ import annotations

__all__ = ("StagedState", "StagingArea")

import copy
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch

from hookbus.checkpoint.statepath import MAX_DEPTH
from hookbus.checkpoint.tensor_file import TENSOR_DTYPES

_DTYPES = frozenset((*TENSOR_DTYPES, torch.complex128))

_ALIGNMENT = 64
"""Bytes at whose multiples each copy begins: any dtype may begin there, and copying is fast."""


class StagedState(NamedTuple):
    """A copy of a state whose tensors lie in the memory of a staging area."""

    state: Any
    arrivals: Sequence[torch.Event]
    """What is to be waited for before the copy is read: devices still send what they were told to."""

    def wait(self) -> Any:
        """Return the copy once everything has arrived; may be called on another thread than the one that copied."""
        for arrival in self.arrivals:
            arrival.synchronize()
        return self.state


class StagingArea:
    """Memory on the host that takes the copy of one state at a time.

    It is made when the first state is copied and used again for the next ones: making it costs more than a copy. Where
    there are tensors of a CUDA device it is pinned, so that these travel while the host goes on.
    """

    def __init__(self) -> None:
        self._memory: torch.Tensor | None = None
        self._plan: _Plan | None = None

    @property
    def size(self) -> int:
        """How many bytes it holds on to."""
        return 0 if self._memory is None else self._memory.numel()

    def stage(self, state: Any) -> StagedState:
        """Copy a state as it is now; the copy before must not be in use any more."""
        tensors: list[torch.Tensor] = []
        _Walk(tensors.append, _keep).copy(state)
        with torch.no_grad():
            sources = [tensor.resolve_conj().resolve_neg() for tensor in tensors]
            plan = self._plan_for(sources)
            for place, number, window in plan.transfers:
                values = sources[number] if window is None else _window(sources[number], window)
                place.copy_(values, non_blocking=values.is_cuda)
        devices = {source.device for source in sources if source.is_cuda}
        arrivals = [torch.cuda.current_stream(device).record_event() for device in devices]
        targets = iter(plan.targets)
        return StagedState(_Walk(lambda _: next(targets), np.ndarray.copy).copy(state), arrivals)

    def release(self) -> None:
        """Give the memory back."""
        self._memory = self._plan = None

    def _plan_for(self, sources: Sequence[torch.Tensor]) -> _Plan:
        layouts = _layouts(sources)
        if self._plan is None or self._plan.layouts != layouts:
            self._plan = None  # it refers to the memory, and there must not be two of them
            stretches = list(_stretches(sources, layouts))
            room = self._room(sum(map(_room_of, stretches)), pinned=any(source.is_cuda for source in sources))
            self._plan = _make_plan(layouts, stretches, room)
        return self._plan

    def _room(self, needed: int, *, pinned: bool) -> torch.Tensor:
        if self._memory is None or self._memory.numel() < needed or (pinned and not self._memory.is_pinned()):
            self._memory = None
            self._memory = torch.empty(needed, dtype=torch.uint8, device="cpu", pin_memory=pinned)
        return self._memory


# --- where each tensor goes -------------------------------------------------------------------------------------------


class _Layout(NamedTuple):
    """How a tensor lies in memory, wherever that is."""

    memory: int
    """The number of its memory among those of the state: tensors that share it have the same."""
    start: int
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def stop(self) -> int:
        return self.start + sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True)) + 1


class _Stretch(NamedTuple):
    """Values that are copied together, and the numbers of the tensors that show them."""

    values: torch.Tensor
    window: tuple[int, int] | None
    """From where to where they reach in their memory; None where each tensor shows all of them."""
    indexes: list[int]


class _Transfer(NamedTuple):
    """One copy: to where, from which tensor, and from which part of its memory where that is not the tensor alone."""

    place: torch.Tensor
    number: int
    window: tuple[int, int] | None


class _Plan(NamedTuple):
    """What is to be copied to where, for all states whose tensors have the same layouts."""

    layouts: list[_Layout]
    transfers: list[_Transfer]
    targets: list[torch.Tensor]
    """Of each tensor, the one in the copy."""


def _layouts(sources: Iterable[torch.Tensor]) -> list[_Layout]:
    numbers: dict[int, int] = {}
    layouts = []
    for source in sources:
        start = int(source.storage_offset())
        number = numbers.setdefault(source.data_ptr() - start * source.itemsize, len(numbers))
        layouts.append(_Layout(number, start, source.shape, source.stride(), source.dtype, source.device))
    return layouts


def _stretches(sources: Sequence[torch.Tensor], layouts: Sequence[_Layout]) -> Iterator[_Stretch]:
    filled = [index for index, layout in enumerate(layouts) if layout.numel]

    def memory(index: int) -> tuple[int, str]:
        return (layouts[index].memory, str(layouts[index].dtype))

    filled.sort(key=lambda index: (memory(index), layouts[index].start))
    for _, same_memory in groupby(filled, key=memory):
        for touching in _touching(same_memory, layouts):
            yield from _stretches_of(touching, sources, layouts)


def _touching(ascending: Iterator[int], layouts: Sequence[_Layout]) -> Iterator[list[int]]:
    group = [next(ascending)]
    reach = layouts[group[0]].stop
    for index in ascending:
        if layouts[index].start >= reach:
            yield group
            group = []
        group.append(index)
        reach = max(reach, layouts[index].stop)
    yield group


def _stretches_of(touching: list[int], sources: Sequence[torch.Tensor], layouts: Sequence[_Layout]) -> Iterator[_Stretch]:
    by_layout: dict[_Layout, list[int]] = {}
    for index in touching:
        by_layout.setdefault(layouts[index], []).append(index)
    first = sources[touching[0]]
    if len(by_layout) == 1 and first.is_contiguous():
        yield _Stretch(first, None, touching)
        return
    window = (min(layout.start for layout in by_layout), max(layout.stop for layout in by_layout))
    if window[1] - window[0] <= sum(layout.numel for layout in by_layout):
        yield _Stretch(_window(first, window), window, touching)
    else:
        yield from (_Stretch(sources[same[0]], None, same) for same in by_layout.values())


def _window(source: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    start, stop = window
    return source.as_strided((stop - start,), (1,), start)


def _room_of(stretch: _Stretch) -> int:
    return math.ceil(stretch.values.nbytes / _ALIGNMENT) * _ALIGNMENT


def _make_plan(layouts: list[_Layout], stretches: Iterable[_Stretch], room: torch.Tensor) -> _Plan:
    transfers = []
    targets = [torch.empty(0 if layout.numel else layout.shape, dtype=layout.dtype, device="cpu") for layout in layouts]
    for stretch in stretches:
        values, window, indexes = stretch
        place = room[: values.nbytes].view(values.dtype).view(values.shape)
        room = room[_room_of(stretch) :]
        transfers.append(_Transfer(place, indexes[0], window))
        for index in indexes:
            targets[index] = place if window is None else _shown(place, layouts[index], window[0])
    return _Plan(layouts, transfers, targets)


def _shown(place: torch.Tensor, layout: _Layout, begin: int) -> torch.Tensor:
    return place.as_strided(layout.shape, layout.stride, int(place.storage_offset()) + layout.start - begin)


# --- everything else --------------------------------------------------------------------------------------------------


def _keep(array: Any) -> Any:
    return array


_FIXED = frozenset((bool, int, float, complex, str, bytes, type(None)))


class _Walk:
    """Goes through a state and copies its containers, with something else in the place of each tensor and array."""

    def __init__(self, take_tensor: Callable[[torch.Tensor], Any], take_array: Callable[[Any], Any]) -> None:
        self._take_tensor = take_tensor
        self._take_array = take_array
        self._open: set[int] = set()

    def copy(self, value: Any) -> Any:
        kind = type(value)
        if kind in _FIXED:
            return value
        if kind in _CONTAINERS:
            return self._copy_container(kind, value)
        if kind in (torch.Tensor, torch.nn.Parameter):
            return self._take_tensor(value) if _has_exact_form(value) else value
        return self._take_array(value) if kind is np.ndarray else value

    def _copy_container(self, kind: type, value: Any) -> Any:
        if id(value) in self._open or len(self._open) >= MAX_DEPTH:
            return value
        self._open.add(id(value))
        try:
            return _CONTAINERS[kind](self, value)
        finally:
            self._open.discard(id(value))

    def copy_mapping(self, value: Any) -> Any:
        clone = copy.copy(value)
        for key, item in value.items():
            clone[key] = self.copy(item)
        if hasattr(value, "_metadata"):  # module versions, which torch hangs on the state dict of a module
            clone._metadata = self.copy(value._metadata)
        return clone


def _has_exact_form(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_meta and tensor.dtype in _DTYPES


_CONTAINERS: dict[type, Callable[[_Walk, Any], Any]] = {
    dict: lambda walk, value: {key: walk.copy(item) for key, item in value.items()},
    list: lambda walk, value: [walk.copy(item) for item in value],
    tuple: lambda walk, value: tuple([walk.copy(item) for item in value]),
    deque: lambda walk, value: deque([walk.copy(item) for item in value], value.maxlen),
    set: lambda walk, value: set(value),
    **dict.fromkeys((OrderedDict, defaultdict, Counter), _Walk.copy_mapping),
}

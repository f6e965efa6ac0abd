"""The way of a batch to its device; torch's `meta` device stands in for an accelerator."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from hookbus.device import mover

META = torch.device("meta")


class Point(NamedTuple):
    """A named tuple."""

    x: Any
    name: str


@dataclasses.dataclass
class Sample:
    """A dataclass with a field that its constructor does not take."""

    image: torch.Tensor
    name: str = "a"
    extra: Any = dataclasses.field(init=False, default=None)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    """One that cannot be changed."""

    image: torch.Tensor


def ones() -> torch.Tensor:
    """Return a host tensor."""
    return torch.ones(2)


def with_extra() -> Sample:
    """Return a sample with a tensor in the field that the constructor does not take."""
    sample = Sample(ones())
    sample.extra = ones()
    return sample


BATCHES: list[tuple[Callable[[], Any], Callable[[Any], list[torch.Tensor]]]] = [
    (ones, lambda b: [b]),
    (lambda: (ones(), "text", 3), lambda b: [b[0]]),
    (lambda: [ones(), None, [ones()]], lambda b: [b[0], b[2][0]]),
    (lambda: {"a": ones(), "b": {"c": [ones()]}}, lambda b: [b["a"], b["b"]["c"][0]]),
    (lambda: OrderedDict(a=ones()), lambda b: [b["a"]]),
    (lambda: defaultdict(list, a=ones()), lambda b: [b["a"]]),
    (lambda: UserDict(a=ones()), lambda b: [b["a"]]),
    (lambda: MappingProxyType({"a": ones()}), lambda b: [b["a"]]),
    (lambda: Point(ones(), "a"), lambda b: [b.x]),
    (with_extra, lambda b: [b.image, b.extra]),
    (lambda: Frozen(ones()), lambda b: [b.image]),
    (lambda: (Sample(ones()), {"p": Point([ones()], "b")}), lambda b: [b[0].image, b[1]["p"].x[0]]),
]


@pytest.mark.parametrize(("make", "tensors"), BATCHES, ids=range(len(BATCHES)))
def test_every_tensor_of_a_nested_batch_is_moved(make: Callable[[], Any], tensors: Callable[[Any], list[torch.Tensor]]) -> None:
    """Containers keep their type, everything else is left alone, and the original is not changed."""
    original = make()
    moved = mover(META)(original)
    assert {tensor.device for tensor in tensors(moved)} == {META}
    assert {tensor.device.type for tensor in tensors(original)} == {"cpu"}
    if not isinstance(original, MappingProxyType):
        assert type(moved) is type(original)


def test_what_is_no_tensor_stays_as_it_is() -> None:
    """Texts, numbers, classes, and objects that nobody knows."""
    thing = object()
    assert mover(META)(("text", 3, None, Sample, thing)) == ("text", 3, None, Sample, thing)


def test_a_packed_sequence_is_moved_by_its_own_rules() -> None:
    """Its batch sizes have to stay in host memory."""
    packed = pack_sequence([torch.ones(3), torch.ones(2)])
    moved = mover(META)({"packed": packed})["packed"]
    assert isinstance(moved, PackedSequence)
    assert (moved.data.device, moved.batch_sizes.device.type) == (META, "cpu")


def test_nothing_is_touched_where_the_model_lives_in_host_memory() -> None:
    """Dataloaders give host tensors."""
    batch = {"a": ones()}
    assert mover(torch.device("cpu"))(batch) is batch

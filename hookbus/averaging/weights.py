"""The average of the weights of one model: its memory, its updates, and its exchange with the model's own.

An update is a few kernels for all tensors of one dtype and device, and never waits for the device. Averages of weights of less
than 32 bits are kept in float32: in bfloat16 most updates would be lost in rounding. The exchange writes into the memory of
the model's own tensors, so optimizers, compiled code and captured graphs go on with what they hold. Meanwhile the memory of
the average holds the weights; only of those of less than 32 bits a copy is made.
"""

from __future__ import annotations

__all__ = ("AveragedWeights", "named_as")

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from hookbus._bare import bare, inner_name
from hookbus.averaging.averagers import Averager
from hookbus.errors import CheckpointError

PART_BYTES = 1 << 26
"""How much is exchanged at once, where single tensors are not larger."""


class AveragedWeights:
    """The average of the weights of one model, on its device.

    Until the first update the average *follows*: it is what the model is, and an exchange does nothing.

    Args:
        model: the model, compiled or not; tensors that several modules share are averaged once.
        averager: the formula.
    """

    def __init__(self, model: torch.nn.Module, averager: Averager) -> None:
        self.model = bare(model)
        self.steps = 0
        """How many updates it was told of."""
        self.follows = True
        """Whether the average is what the model is."""
        self._averager = averager
        self._groups = _groups(self.model, averager.update_buffers)
        self.layout = [group.layout() for group in self._groups]
        """Tells the tensors of this model from any others that may take their places."""
        self._exchanged: list[_Exchanged] = []

    @property
    def is_exchanged(self) -> bool:
        """Whether the tensors of the model hold the average."""
        return bool(self._exchanged)

    def allocate(self) -> None:
        """Take the memory now, so that a lack of it shows before training."""
        for group in self._groups:
            group.allocate()

    # --- averaging ----------------------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Be what the model is; the next update is the first one."""
        self.steps, self.follows = 0, True

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now, if it is their turn."""
        steps = self.steps
        if steps % self._averager.interval == 0:
            for group in self._groups:
                group.average(self._averager, steps)
        self.steps, self.follows = steps + 1, False

    # --- the exchange -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def exchange(self) -> None:
        """Have the model compute with the average, until `restore`."""
        if self.follows or self.is_exchanged:
            return
        for group in self._groups:
            for indexes in group.parts:
                kept = group.exchange(indexes, keep=not group.has_model_dtype)
                self._exchanged.append(_Exchanged(group, indexes, kept))

    @torch.no_grad()
    def restore(self) -> None:
        """Give the model its own weights back, bit for bit; harmless where it has them."""
        while self._exchanged:
            group, indexes, kept = self._exchanged[-1]
            if kept is None:
                group.exchange(indexes, keep=False)
            else:
                torch._foreach_copy_(_at(group.own(), indexes), kept)
            self._exchanged.pop()

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged weights, and whatever else the model has, under the names of its own `state_dict`."""
        averages = {} if self.follows else self._averages()
        state: dict[str, Any] = {}
        for name, value in self.model.state_dict(keep_vars=True).items():
            average = averages.get(id(value), value)
            state[name] = average.detach() if isinstance(average, torch.Tensor) else average
        return state

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over averaged weights; of those that are not given, the average is what the model is.

        Raises:
            CheckpointError: one has another shape than the weight it belongs to.
        """
        self.restore()
        self.allocate()
        given, averages = named_as(self.model, state_dict), self._averages()
        by_name = [(name, own) for name, own in self.model.state_dict(keep_vars=True).items() if id(own) in averages]
        sources = {id(own): own for _, own in by_name}
        for name, own in by_name:
            sources[id(own)] = _source(name, given[name], own) if name in given else sources[id(own)]
        for key, source in sources.items():
            averages[key].copy_(source)
        self.follows = False

    def _averages(self) -> dict[int, torch.Tensor]:
        """Return the average of each tensor by its identity, wherever it is now."""
        is_in_model = self.is_exchanged
        return {
            id(own): own if is_in_model and group.has_model_dtype else average
            for group in self._groups
            for own, average in zip(group.own(), group.averaged, strict=True)
        }


def named_as(model: torch.nn.Module, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return weights under the names of a model, which may have been wrapped in another way when they were saved."""
    own = bare(model).state_dict(keep_vars=True)
    by_inner_name = {inner_name(name): name for name in own}
    return {name if name in own else by_inner_name.get(inner_name(name), name): weight for name, weight in weights.items()}


def _source(name: str, weight: Any, own: torch.Tensor) -> torch.Tensor:
    if not isinstance(weight, torch.Tensor) or weight.shape != own.shape:
        msg = f"the averaged weight {name} is {tuple(getattr(weight, 'shape', ()))}, expected {tuple(own.shape)}"
        raise CheckpointError(msg)
    return weight


# --- tensors of one dtype and device ----------------------------------------------------------------------------------


class _Exchanged(NamedTuple):
    """Tensors of the model that hold the average; `kept` is what they held, where the average has not taken that over."""

    group: _Group
    indexes: list[int]
    kept: list[torch.Tensor] | None


class _Place(NamedTuple):
    """Where a module holds a tensor, which may be another object later on."""

    tensors: Mapping[str, torch.Tensor | None]
    name: str


class _Group:
    """Tensors of one dtype and device; whole numbers are copied instead of averaged."""

    def __init__(self, places: Sequence[_Place]) -> None:
        self._places = places
        first = self.own()[0]
        is_short = first.is_floating_point() and first.itemsize < 4
        self._dtype = torch.float32 if is_short else first.dtype
        self._is_averaged = first.is_floating_point() or first.is_complex()
        self.has_model_dtype = not is_short
        """Whether the average has the dtype of the model, so that either can hold what the other does."""
        self.averaged: list[torch.Tensor] = []
        self.parts: list[list[int]] = []
        """The indexes of the tensors, in parts that are of limited size."""

    def own(self) -> list[torch.Tensor]:
        """Return the tensors of the model."""
        return [tensors[name] for tensors, name in self._places]  # type: ignore[misc]

    def layout(self) -> list[Any]:
        """Return where the tensors are, and of which kind."""
        tensors = zip(self._places, self.own(), strict=True)
        return [(id(place.tensors), place.name, own.device, own.dtype, own.shape) for place, own in tensors]

    def allocate(self) -> None:
        """Take memory for the average, once."""
        if not self.averaged:
            own = self.own()
            self.averaged = [torch.empty_like(tensor, dtype=self._dtype, requires_grad=False) for tensor in own]
            self.parts = list(_parts(own))

    def average(self, averager: Averager, steps: int) -> None:
        """Take in the tensors as they are now; the first time, and where nothing can be averaged, by copying them."""
        if steps == 0 or not self._is_averaged:
            self.allocate()
            torch._foreach_copy_(self.averaged, self.own())
        elif self.has_model_dtype:
            averager.average(self.averaged, self.own(), steps)
        else:
            for indexes in self.parts:
                averaged = _at(self.averaged, indexes)
                averager.average(averaged, _copies(_at(self.own(), indexes), like=averaged), steps)

    def exchange(self, indexes: list[int], *, keep: bool) -> list[torch.Tensor] | None:
        """Write the average into the model's tensors; return what they held, or have the average take it over.

        Everything is read before anything is written, because some of the tensors may share memory.
        """
        own, averaged = _at(self.own(), indexes), _at(self.averaged, indexes)
        held = _copies(own, like=own)
        torch._foreach_copy_(own, averaged)
        if keep:
            return held
        torch._foreach_copy_(averaged, held)
        return None


def _groups(model: torch.nn.Module, update_buffers: bool) -> list[_Group]:
    """Return the tensors that a checkpoint keeps of a model; the buffers only where they are averaged, too."""
    saved = {id(value) for value in model.state_dict(keep_vars=True).values()}
    groups: dict[Any, dict[int, _Place]] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers) if update_buffers else (module._parameters,):
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) in saved:
                    groups.setdefault((tensor.device, tensor.dtype), {}).setdefault(id(tensor), _Place(tensors, name))
    return [_Group(list(places.values())) for places in groups.values()]


def _parts(tensors: Sequence[torch.Tensor]) -> Iterator[list[int]]:
    """Yield the indexes of tensors in parts of limited size; those that share memory are in the same one."""
    addresses = [tensor.untyped_storage().data_ptr() for tensor in tensors]
    part: list[int] = []
    size = 0
    for index in sorted(range(len(tensors)), key=addresses.__getitem__):
        if size >= PART_BYTES and addresses[index] != addresses[part[-1]]:
            yield part
            part, size = [], 0
        part.append(index)
        size += tensors[index].nbytes
    yield part


def _at(tensors: Sequence[torch.Tensor], indexes: Sequence[int]) -> list[torch.Tensor]:
    return [tensors[index] for index in indexes]


def _copies(tensors: list[torch.Tensor], *, like: list[torch.Tensor]) -> list[torch.Tensor]:
    copies = [torch.empty_like(tensor, requires_grad=False) for tensor in like]
    torch._foreach_copy_(copies, tensors)
    return copies

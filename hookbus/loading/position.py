"""Where a pass over a dataloader stands, so that training goes on at the very next batch, also in another process.

A loader with `state_dict` and `load_state_dict` knows it itself. For torch's own, the position is the state of the random
generators at the moment when its sampler began, and the number of batches since: to go on, the sampler begins again from
that state, its first indices are passed over without loading anything, and the generators are put back to where training
had them. What else can be iterated begins again, and its first batches are dropped.
"""

from __future__ import annotations

__all__ = ("LoaderPosition",)

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from hookbus.loading.seeding import NumberedBatch, seed_of
from hookbus.random_state import restore_rng_state, rng_state

_BEGIN_AT_ONCE = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler, DistributedSampler, range, list)
"""What asks the global generators when it begins, or never, and not while it goes on."""


class LoaderPosition:
    """Follows the passes over one dataloader."""

    def __init__(self) -> None:
        self.done = 0
        """Batches of the running pass that have been worked on."""
        self.number = (0, 0)
        """The seed of the run and the number of the pass."""
        self.passes = 0
        """Completed passes."""
        self._is_loaded = False
        self._began: dict[str, Any] | None = None
        self._now: dict[str, Any] | None = None
        self._sampler: _FollowedSampler | None = None

    @contextmanager
    def following(self, loader: Any, seed: int, number: int) -> Iterator[None]:
        """Have the pass that begins inside start where this position is; `number` tells it from other passes.

        The loader is as before when the block ends.
        """
        self.number = (seed, number)
        if _keeps_state(loader):
            if self.done and not self._is_loaded:  # stopped in the middle of a pass, and now to go on
                loader.load_state_dict(loader.state_dict())
            self._is_loaded = False
            yield
            return
        self._now = rng_state() if self.done else None
        if not _is_followed(loader):
            self.begin(_generators(loader))
            yield
            return
        name = "batch_sampler" if loader.batch_sampler is not None else "sampler"
        inner = getattr(loader, name)
        if self._sampler is None or self._sampler.inner is not inner:
            self._sampler = _FollowedSampler(self, inner, _generators(loader))
        # The loader forbids to change these; its iterator takes them over when it is made.
        replaced: dict[str, Any] = {name: self._sampler}
        if loader.num_workers and loader.generator is None:
            replaced["generator"] = torch.Generator().manual_seed(seed_of(self.number))
        before = {key: getattr(loader, key) for key in replaced}
        try:
            for key, value in replaced.items():
                object.__setattr__(loader, key, value)
            yield
        finally:
            for key, value in before.items():
                object.__setattr__(loader, key, value)

    def skip(self, loader: Any, batches: Iterator[Any]) -> Iterator[Any]:
        """Return the batches from this position on; a sampler that is followed has passed over the others already."""
        if self._now is None or _is_followed(loader):
            return batches
        for _ in islice(batches, self.done):
            pass
        self.settle()
        return batches

    def settle(self) -> None:
        """Put the generators back to where training had them before the pass was begun again."""
        if self._now is not None:
            restore_rng_state(self._now)
            self._now = None

    def finish(self) -> None:
        """Count the pass as complete; the next one begins at its first batch."""
        self.done = 0
        self.passes += 1
        self._began = self._now = None

    def begin(self, generators: list[torch.Generator]) -> None:
        """Note where the random generators stand as the sampler begins, or put them back there."""
        if self._began is None or not self.done:
            self._began = {"rng": rng_state(), "generators": [generator.get_state() for generator in generators]}
            return
        restore_rng_state(self._began["rng"])
        for generator, state in zip(generators, self._began["generators"], strict=False):
            generator.set_state(state)

    def state_dict(self, loader: Any) -> dict[str, Any]:
        """Return the position, as of a moment when all batches that were handed out have been worked on."""
        counts = {"done": self.done, "passes": self.passes}
        if _keeps_state(loader):
            return counts | {"loader": loader.state_dict()}
        generators = [generator.get_state() for generator in _generators(loader)]
        return counts | {"began": self._began if self.done else None, "generators": generators}

    def load_state_dict(self, state_dict: Mapping[str, Any], loader: Any) -> None:
        """Go on from a saved position."""
        self.done, self.passes = state_dict["done"], state_dict["passes"]
        self._began = state_dict.get("began")
        for generator, state in zip(_generators(loader), state_dict.get("generators", ()), strict=False):
            generator.set_state(state)
        if _keeps_state(loader) and "loader" in state_dict:
            loader.load_state_dict(state_dict["loader"])
            self._is_loaded = True

    def doubts(self, loader: Any) -> Iterator[str]:
        """Yield what may keep the batches from being those of the uninterrupted run, where a pass is begun again."""
        if _keeps_state(loader) or not self.done:
            return
        if not isinstance(loader, DataLoader):
            if not isinstance(loader, list | tuple):
                yield f"{type(loader).__name__} has no state_dict: its first {self.done} batches are loaded again and dropped"
        elif not _is_followed(loader):
            dataset = type(loader.dataset).__name__
            yield f"{dataset} is iterable and has no state_dict: its first {self.done} batches are loaded again and dropped"
        else:
            sampler = _innermost(loader.batch_sampler if loader.batch_sampler is not None else loader.sampler)
            if type(sampler) not in _BEGIN_AT_ONCE:
                yield f"{type(sampler).__name__} may draw from the global random generators while it goes on"


class _FollowedSampler:
    """The sampler of a loader, whose beginning is noted, and whose first batches are passed over where training goes on."""

    def __init__(self, position: LoaderPosition, inner: Iterable[Any], generators: list[torch.Generator]) -> None:
        self.inner = inner
        self._position = position
        self._generators = generators

    def __len__(self) -> int:
        return len(self.inner)  # type: ignore[arg-type]  # asked only where the loader knows its length

    def __iter__(self) -> Iterator[Any]:
        """Yield the indices of batches; a generator, because a loader with workers asks for an iterator it never uses."""
        position = self._position
        position.begin(self._generators)
        first = position.done
        indices = iter(self.inner)
        for _ in islice(indices, first):
            pass
        following = next(indices, None)  # samplers begin when they are first asked
        position.settle()
        number = first
        while following is not None:
            yield self._numbered(following, number)
            number += 1
            following = next(indices, None)

    def _numbered(self, indices: Any, number: int) -> Any:
        if not isinstance(indices, list):
            return indices
        batch = NumberedBatch(indices)
        batch.place = (*self._position.number, number)
        return batch


def _keeps_state(loader: Any) -> bool:
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def _is_followed(loader: Any) -> bool:
    """Return whether a loader asks a sampler for indices."""
    return isinstance(loader, DataLoader) and not _keeps_state(loader) and not isinstance(loader.dataset, IterableDataset)


def _innermost(sampler: Any) -> Any:
    """Return the sampler that a batch sampler of torch's own draws from."""
    return _innermost(sampler.sampler) if type(sampler) is BatchSampler else sampler


def _generators(loader: Any) -> list[torch.Generator]:
    """Return the generators of its own that a loader and its samplers draw from, each once."""
    holders = [loader, *(getattr(loader, name, None) for name in ("sampler", "batch_sampler"))]
    found = [getattr(holder, "generator", None) for holder in holders]
    return list({id(generator): generator for generator in found if isinstance(generator, torch.Generator)}.values())

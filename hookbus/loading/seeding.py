"""Seeding in workers: what random augmentation draws for a batch depends on the batch alone.

Workers are seeded anew for every batch, from the seed of the run, the pass and the number of the batch. So it does not
matter which worker loads it, nor what that worker loaded before, and a resumed run augments as the uninterrupted one.
"""

from __future__ import annotations

__all__ = ("NumberedBatch", "SeededDataset", "ShowDataset", "seed_of")

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import get_worker_info

from hookbus.random_state import seed_all


class NumberedBatch(list[Any]):
    """The indices of one batch, and its place: the seed of the run, the number of the pass, and its own number in it."""

    place: tuple[int, int, int]


class SeededDataset:
    """Stands for a dataset in workers: seeds the random generators for each batch before it is loaded."""

    def __init__(self, dataset: Any) -> None:
        self.__dict__["dataset"] = dataset

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not there yet: a copy of this is being made
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.dataset, name, value)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return self.dataset[index]

    def __getitems__(self, indices: Sequence[Any]) -> Any:
        """Load one batch."""
        if isinstance(indices, NumberedBatch):
            seed_all(seed_of(indices.place))
        load_together = getattr(self.dataset, "__getitems__", None)
        return load_together(indices) if load_together is not None else [self.dataset[index] for index in indices]


class ShowDataset:
    """Shows a worker the dataset itself and not what stands for it, then calls what the user gave for its start."""

    def __init__(self, then: Callable[[int], object] | None) -> None:
        self._then = then

    def __call__(self, worker_id: int) -> None:
        """Prepare the worker."""
        worker: Any = get_worker_info()
        if isinstance(worker.dataset, SeededDataset):
            object.__setattr__(worker, "dataset", worker.dataset.dataset)  # it forbids to change it
        if self._then is not None:
            self._then(worker_id)


def seed_of(place: tuple[int, ...]) -> int:
    """Return a seed that any change of the place changes altogether; the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=8).digest(), "little") >> 1

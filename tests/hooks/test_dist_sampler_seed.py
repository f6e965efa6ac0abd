"""DistSamplerSeedHook makes a distributed sampler shuffle anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, Sampler

from hookbus.events import BeforeTrainIter
from tests.runner.builders import make_data, make_runner


class Told(Sampler[int]):
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def __len__(self) -> int:
        return 12

    def __iter__(self) -> Iterator[int]:
        return iter(range(12))

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


def test_the_sampler_is_told_each_epoch(tmp_path: Path) -> None:
    """Counted from zero."""
    sampler = Told()
    make_runner(tmp_path, train_dataloader=DataLoader(make_data(12), batch_size=4, sampler=sampler)).train()
    assert sampler.epochs == [0, 1]


def test_the_sampler_behind_a_batch_sampler_is_told(tmp_path: Path) -> None:
    """The loader's own sampler does not want to know."""
    sampler = Told()
    loader: DataLoader[Any] = DataLoader(make_data(12), batch_sampler=BatchSampler(sampler, 4, drop_last=False))
    make_runner(tmp_path, train_dataloader=loader).train()
    assert sampler.epochs == [0, 1]


def test_a_batch_sampler_that_wants_to_know_is_told(tmp_path: Path) -> None:
    """One of a user's own, without a sampler inside."""

    class Batches(Told):
        def __iter__(self) -> Iterator[Any]:
            return iter([[0, 1], [2, 3]])

    sampler = Batches()
    make_runner(tmp_path, train_dataloader=DataLoader(make_data(12), batch_sampler=sampler)).train()
    assert sampler.epochs == [0, 1]


def test_a_distributed_sampler_gives_another_order_in_each_epoch(tmp_path: Path) -> None:
    """Without the hook it would be the same order for ever."""

    def orders(part: str, **changes: Any) -> list[Any]:
        sampler: DistributedSampler[Any] = DistributedSampler(make_data(12), num_replicas=1, rank=0, shuffle=True, seed=3)
        runner = make_runner(
            tmp_path / part, train_dataloader=DataLoader(make_data(12), batch_size=12, sampler=sampler), **changes
        )
        seen: list[Any] = []
        runner.bus.subscribe(BeforeTrainIter, lambda data_batch: seen.append(data_batch[0].tolist()))
        runner.train()
        return seen

    first, second = orders("with")
    assert first != second
    first, second = orders("without", default_hooks=dict(sampler_seed=None))
    assert first == second


def test_loaders_without_samplers_are_left_alone(tmp_path: Path) -> None:
    """A list of batches is a dataloader, too."""
    batches = [tuple(batch) for batch in DataLoader(make_data(12), batch_size=4)]
    runner = make_runner(tmp_path, train_dataloader=batches)
    runner.train()
    assert runner.iter == 6

"""Training by iterations: data that begins anew or never ends, and validations in between."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from hookbus.errors import EmptyDataLoader
from hookbus.events import AfterTrainEpoch, AfterTrainIter, BeforeTrainEpoch, BeforeVal
from hookbus.runner import Runner
from tests.runner.builders import checkpoints, make_data, make_loader, make_runner, record, same, weights


class Stream(IterableDataset[Any]):
    """Samples without end, and without a length."""

    def __iter__(self) -> Iterator[Any]:
        samples = [make_data(16)[index] for index in range(16)]
        return itertools.cycle(samples)


def by_iterations(number: int, **options: Any) -> dict[str, Any]:
    """Return the config of a training by iterations."""
    return dict(by_epoch=False, max_iters=number, **options)


def batches_seen(runner: Runner) -> list[torch.Tensor]:
    """Return a list that fills with the inputs that are trained on."""
    seen: list[torch.Tensor] = []
    runner.bus.subscribe(AfterTrainIter, lambda data_batch: seen.append(data_batch[0].clone()))
    return seen


@pytest.mark.parametrize("loader", [make_loader(12), DataLoader(Stream(), batch_size=4)], ids=["with a length", "without"])
def test_it_trains_the_number_of_iterations_asked_for(loader: Any, tmp_path: Path) -> None:
    """Neither the end of the data nor its absence matters."""
    runner = make_runner(tmp_path, train_dataloader=loader, train_cfg=by_iterations(7))
    runner.train()
    assert (runner.iter, runner.max_iters, runner.epoch, runner.max_epochs) == (7, 7, 0, 1)
    assert runner.train_loop.epoch_length == 7


def test_training_by_epochs_needs_no_length_either(tmp_path: Path) -> None:
    """A pass ends where the data does; how many iterations that will be is not known before."""
    stream = [batch for batch, _ in zip(DataLoader(Stream(), batch_size=4), range(3), strict=False)]
    runner = make_runner(tmp_path, train_dataloader=Unsized(stream), train_cfg=dict(max_epochs=2))
    runner.train()
    assert (runner.epoch, runner.iter, runner.max_iters) == (2, 6, None)


class Unsized:
    """Batches that do not say how many they are."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)


def test_the_data_begins_anew_where_it_ends_and_is_shuffled_again(tmp_path: Path) -> None:
    """Each pass sees every sample once, in another order."""
    runner = make_runner(tmp_path, train_dataloader=make_loader(12, shuffle=True), train_cfg=by_iterations(6))
    seen = batches_seen(runner)
    runner.train()
    passes = [torch.cat(seen[:3]), torch.cat(seen[3:])]
    assert not torch.equal(*passes)
    assert all(torch.equal(rows.sort(dim=0).values, make_data(12).tensors[0].sort(dim=0).values) for rows in passes)


def test_a_distributed_sampler_is_told_of_every_pass(tmp_path: Path) -> None:
    """Otherwise each pass would have the order of the first one."""
    sampler: DistributedSampler[Any] = DistributedSampler(make_data(12), num_replicas=1, rank=0)
    told: list[int] = []
    sampler.set_epoch = told.append  # type: ignore[method-assign,assignment]
    loader = DataLoader(make_data(12), batch_size=4, sampler=sampler)
    make_runner(tmp_path, train_dataloader=loader, train_cfg=by_iterations(7)).train()
    assert told == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "validated"),
    [
        ({}, [10]),
        (dict(val_interval=3), [3, 6, 9, 10]),
        (dict(val_interval=5), [5, 10]),
        (dict(val_interval=2, val_begin=5), [6, 8, 10]),
        (dict(val_interval=4, dynamic_intervals=[(7, 1)]), [4, 6, 7, 8, 9, 10]),
        (dict(val_interval=5, dynamic_intervals=[(3, 2), (8, 10)]), [2, 4, 6, 10]),
        (dict(val_begin=11), []),
    ],
)
def test_validations_come_when_they_are_due(options: dict[str, Any], validated: list[int], tmp_path: Path) -> None:
    """Every `val_interval` iterations from `val_begin` on, and after the last one; the coming iteration's milestone counts."""
    runner = make_runner(tmp_path, train_cfg=by_iterations(10, **options))
    seen = record(runner.bus, BeforeVal)
    runner.train()
    assert [event.iter for event in seen if isinstance(event, BeforeVal)] == validated


@pytest.mark.parametrize(
    ("options", "validated"),
    [
        (dict(val_interval=3, dynamic_intervals=[(5, 1)]), [3, 4, 5, 6, 7]),
        (dict(val_interval=1, dynamic_intervals=[(4, 3)]), [1, 2, 3, 6, 7]),
        (dict(val_interval=4, dynamic_intervals=[[3, 2]]), [2, 4, 6, 7]),
    ],
)
def test_milestones_change_the_interval_between_epochs_as_well(
    options: dict[str, Any], validated: list[int], tmp_path: Path
) -> None:
    """The interval in force is that of the last milestone not above the coming epoch."""
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=7, **options))
    seen = record(runner.bus, BeforeVal)
    runner.train()
    assert [event.epoch for event in seen if isinstance(event, BeforeVal)] == validated


def test_the_model_is_in_training_mode_after_each_validation(tmp_path: Path) -> None:
    """A validation puts it into evaluation mode and back."""
    runner = make_runner(tmp_path, train_cfg=by_iterations(4, val_interval=1))
    modes: list[bool] = []
    runner.bus.subscribe(AfterTrainIter, lambda runner: modes.append(runner.model.training))
    runner.train()
    assert modes == [True] * 4


def test_the_run_is_one_epoch(tmp_path: Path) -> None:
    """Which begins and ends once."""
    runner = make_runner(tmp_path, train_cfg=by_iterations(5))
    begun, ended = record(runner.bus, BeforeTrainEpoch), record(runner.bus, AfterTrainEpoch)
    runner.train()
    assert len(begun) == len(ended) == 1


def test_raising_the_maximum_trains_on(tmp_path: Path) -> None:
    """What came before counts; at the maximum nothing happens at all."""
    runner = make_runner(tmp_path, train_cfg=by_iterations(4))
    runner.train()
    before = weights(runner.model)
    runner.train()
    assert runner.iter == 4
    assert same(before, weights(runner.model))
    runner.train_loop.max_iters = 6
    runner.train()
    assert runner.iter == 6
    assert not same(before, weights(runner.model))


def test_both_loops_train_the_same_on_the_same_batches(tmp_path: Path) -> None:
    """Two epochs of three batches are six iterations, to the last bit."""
    epochs = make_runner(tmp_path / "epochs", train_cfg=dict(max_epochs=2))
    iterations = make_runner(tmp_path / "iterations", train_cfg=by_iterations(6))
    epochs.train()
    iterations.train()
    assert same(weights(epochs.model), weights(iterations.model))


def test_a_hook_may_end_it_between_two_iterations(tmp_path: Path) -> None:
    """`stop_training` is a natural end: the epoch ends and the last checkpoint is taken."""
    runner = make_runner(tmp_path, train_cfg=by_iterations(9))

    def stop(runner: Runner, iter: int) -> None:
        runner.train_loop.stop_training = iter == 3

    runner.bus.subscribe(AfterTrainIter, stop)
    ended = record(runner.bus, AfterTrainEpoch)
    runner.train()
    assert runner.iter == 4
    assert len(ended) == 1
    assert checkpoints(tmp_path) == ["epoch_1"]


def test_data_without_a_single_batch_is_an_error(tmp_path: Path) -> None:
    """And no endless loop."""
    runner = make_runner(tmp_path, train_dataloader=make_loader(3, drop_last=True), train_cfg=by_iterations(4))
    with pytest.raises(EmptyDataLoader, match=r"training dataloader yielded no batch.*3"):
        runner.train()

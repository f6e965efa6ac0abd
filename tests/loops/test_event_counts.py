"""How often each event fires: a table per loop, and the counters that are to be seen at each of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hookbus.events import MountPoint
from hookbus.hub import MessageHub
from hookbus.runner import Runner
from tests.runner.builders import make_runner, names, record

TRAIN = ("BeforeTrain", "AfterTrain")
EPOCH = ("BeforeTrainEpoch", "AfterTrainEpoch")
STEP = ("BeforeTrainIter", "AfterBackward", "BeforeOptimizerStep", "AfterOptimizerStep", "AfterTrainIter")
VAL = ("BeforeVal", "BeforeValEpoch", "AfterValEpoch", "AfterVal")
VAL_ITER = ("BeforeValIter", "AfterValIter")
TEST = ("BeforeTest", "BeforeTestEpoch", "BeforeTestIter", "AfterTestIter", "AfterTestEpoch", "AfterTest")
RUN = ("BeforeRun", "AfterRun")


def counted(*groups: tuple[tuple[str, ...], int]) -> Counter[str]:
    """Return how often each event is expected."""
    return Counter({name: number for group, number in groups for name in group if number})


# Three batches to train on, two to validate on, one for the test; a checkpoint per epoch, or at the end.
TABLE: list[tuple[str, str, dict[str, Any], Counter[str]]] = [
    (
        "two epochs",
        "train",
        dict(max_epochs=2),
        counted((RUN, 1), (TRAIN, 1), (EPOCH, 2), (STEP, 6), (VAL, 2), (VAL_ITER, 4), (("BeforeSaveCheckpoint",), 2)),
    ),
    (
        "five epochs, validation every other",
        "train",
        dict(max_epochs=5, val_interval=2),
        counted((RUN, 1), (TRAIN, 1), (EPOCH, 5), (STEP, 15), (VAL, 3), (VAL_ITER, 6), (("BeforeSaveCheckpoint",), 5)),
    ),
    (
        "seven iterations",
        "train",
        dict(by_epoch=False, max_iters=7),
        counted((RUN, 1), (TRAIN, 1), (EPOCH, 1), (STEP, 7), (VAL, 1), (VAL_ITER, 2), (("BeforeSaveCheckpoint",), 1)),
    ),
    (
        "seven iterations, validation every three",
        "train",
        dict(by_epoch=False, max_iters=7, val_interval=3),
        counted((RUN, 1), (TRAIN, 1), (EPOCH, 1), (STEP, 7), (VAL, 3), (VAL_ITER, 6), (("BeforeSaveCheckpoint",), 1)),
    ),
    ("a validation", "val", dict(max_epochs=1), counted((RUN, 1), (VAL, 1), (VAL_ITER, 2))),
    ("a test", "test", dict(max_epochs=1), counted((RUN, 1), (TEST, 1))),
]


@pytest.mark.parametrize(("call", "train_cfg", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_each_loop_publishes_each_event_as_often_as_it_should(
    call: str, train_cfg: dict[str, Any], expected: Counter[str], tmp_path: Path
) -> None:
    """Every event of the run is counted, so one too many shows as well as one too few."""
    runner = make_runner(tmp_path, train_cfg=train_cfg)
    seen = record(runner.bus)
    getattr(runner, call)()
    assert Counter(names(seen)) == expected


def test_training_then_test_and_training_again_publish_what_each_call_does_alone(tmp_path: Path) -> None:
    """Every call is bracketed by its own `BeforeRun` and `AfterRun`; the one-time events of training come per call."""
    runner = make_runner(tmp_path)
    seen = record(runner.bus)
    runner.train()
    runner.test()
    runner.train_loop.max_epochs = 3
    runner.train()
    training = counted((TRAIN, 2), (EPOCH, 3), (STEP, 9), (VAL, 3), (VAL_ITER, 6), (("BeforeSaveCheckpoint",), 3))
    assert Counter(names(seen)) == training + counted((RUN, 3), (TEST, 1))


def watched(runner: Runner, *wanted: str) -> dict[str, list[tuple[int, ...]]]:
    """Return lists that fill with epoch, iteration and batch as the event, the runner and the hub have them."""
    rows: dict[str, list[tuple[int, ...]]] = {name: [] for name in wanted}

    def note(event: MountPoint, runner: Runner, hub: MessageHub) -> None:
        name = type(event).__name__
        if name in rows:
            assert (event.epoch, event.iter) == (runner.epoch, runner.iter), name
            assert (hub.get_info("epoch"), hub.get_info("iter")) == (runner.epoch, runner.iter), f"the hub is stale at {name}"
            rows[name].append((event.epoch, event.iter, getattr(event, "batch_idx", -1)))

    runner.bus.subscribe(MountPoint, note, priority="HIGH")
    return rows


def test_the_counters_in_training_by_epochs(tmp_path: Path) -> None:
    """While something runs it is not counted; a validation sees what is completed."""
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=2))
    rows = watched(runner, "BeforeTrainIter", "AfterTrainIter", "BeforeValIter", "AfterVal", "AfterTrain")
    runner.train()
    steps = [(0, 0, 0), (0, 1, 1), (0, 2, 2), (1, 3, 0), (1, 4, 1), (1, 5, 2)]
    assert rows["BeforeTrainIter"] == rows["AfterTrainIter"] == steps
    assert rows["BeforeValIter"] == [(1, 3, 0), (1, 3, 1), (2, 6, 0), (2, 6, 1)]
    assert rows["AfterVal"] == [(1, 3, -1), (2, 6, -1)]
    assert rows["AfterTrain"] == [(2, 6, -1)]


def test_the_counters_in_training_by_iterations(tmp_path: Path) -> None:
    """The run is one epoch, number 0; the batch is the iteration and does not begin anew with the data."""
    runner = make_runner(tmp_path, train_cfg=dict(by_epoch=False, max_iters=5, val_interval=2))
    rows = watched(runner, "BeforeTrainIter", "AfterTrainIter", "BeforeValIter", "AfterVal", "AfterTrainEpoch", "AfterTrain")
    runner.train()
    assert rows["BeforeTrainIter"] == rows["AfterTrainIter"] == [(0, i, i) for i in range(5)]
    assert rows["BeforeValIter"] == [(0, 2, 0), (0, 2, 1), (0, 4, 0), (0, 4, 1), (0, 5, 0), (0, 5, 1)]
    assert rows["AfterVal"] == [(0, 2, -1), (0, 4, -1), (0, 5, -1)]
    assert rows["AfterTrainEpoch"] == rows["AfterTrain"] == [(0, 5, -1)]

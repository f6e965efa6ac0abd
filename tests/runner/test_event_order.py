"""In which order the loops publish their events, and which counters are to be seen at each of them."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hookbus.bus import EventBus
from hookbus.errors import Skip
from hookbus.events import (
    AfterBackward,
    AfterOptimizerStep,
    AfterTrainIter,
    BeforeOptimizerStep,
    BeforeSaveCheckpoint,
    BeforeTrainIter,
    BeforeVal,
    Event,
    MountPoint,
)
from hookbus.hub import MessageHub
from hookbus.optim import OptimWrapper
from hookbus.runner import Runner
from tests.runner.builders import (
    ITER,
    TEST_BATCHES,
    TRAIN_BATCHES,
    VAL_BATCHES,
    VALIDATION,
    checkpoints,
    make_loader,
    make_runner,
    names,
    record,
    same,
    weights,
)

EPOCH = ("BeforeTrainEpoch", *(ITER * TRAIN_BATCHES), "AfterTrainEpoch", "BeforeSaveCheckpoint")
TEST = ("BeforeTest", "BeforeTestEpoch", *(("BeforeTestIter", "AfterTestIter") * TEST_BATCHES), "AfterTestEpoch", "AfterTest")
CALLS: dict[str, tuple[str, ...]] = {
    "train": ("BeforeRun", "BeforeTrain", *EPOCH, *VALIDATION, *EPOCH, *VALIDATION, "AfterTrain", "AfterRun"),
    "val": ("BeforeRun", *VALIDATION, "AfterRun"),
    "test": ("BeforeRun", *TEST, "AfterRun"),
}

Row = tuple[str, int | None, int, int, int, int, int | None, int | None]


def veto(bus: EventBus, event_type: type[Event], **options: Any) -> None:
    """Subscribe a handler that skips what the event announces."""

    def skip() -> None:
        raise Skip("not now")

    bus.subscribe(event_type, skip, **options)


def watch_counters(runner: Runner) -> list[Row]:
    """Return a list that fills with what a handler behind RuntimeInfoHook sees at each event."""
    rows: list[Row] = []

    def note(event: MountPoint, runner: Runner, hub: MessageHub) -> None:
        seen = (runner.epoch, runner.iter, hub.get_info("epoch"), hub.get_info("iter"))
        rows.append((type(event).__name__, getattr(event, "batch_idx", None), event.epoch, event.iter, *seen))

    runner.bus.subscribe(MountPoint, note, priority="HIGH")
    return rows


@pytest.mark.parametrize("call", ["train", "val", "test"])
def test_each_call_publishes_its_events_in_the_order_of_the_loop_map(call: str, tmp_path: Path) -> None:
    """Two epochs with validation, a validation, and a test."""
    runner = make_runner(tmp_path)
    seen = record(runner.bus)
    getattr(runner, call)()
    assert tuple(names(seen)) == CALLS[call]
    assert Counter(names(seen)) == Counter(CALLS[call])


@pytest.mark.parametrize("call", ["train", "val", "test"])
def test_awaited_handlers_see_the_same_order(call: str, tmp_path: Path) -> None:
    """A coroutine function hears the same events, one after the other."""
    runner = make_runner(tmp_path)
    seen: list[Event] = []

    async def note(event: MountPoint) -> None:
        seen.append(event)

    runner.bus.subscribe(MountPoint, note)
    getattr(runner, call)()
    assert tuple(names(seen)) == CALLS[call]


@pytest.mark.parametrize(
    ("train_cfg", "validated"),
    [
        (dict(max_epochs=4), [1, 2, 3, 4]),
        (dict(max_epochs=4, val_interval=2), [2, 4]),
        (dict(max_epochs=5, val_interval=2), [2, 4, 5]),
        (dict(max_epochs=5, val_interval=2, val_begin=3), [4, 5]),
        (dict(max_epochs=3, val_interval=10), [3]),
        (dict(max_epochs=3, val_begin=4), []),
        (dict(max_epochs=1), [1]),
    ],
)
def test_validations_come_when_they_are_due(train_cfg: dict[str, int], validated: list[int], tmp_path: Path) -> None:
    """Every `val_interval` epochs from `val_begin` on, and after the last one."""
    runner = make_runner(tmp_path, train_cfg=train_cfg)
    seen = record(runner.bus, BeforeVal)
    runner.train()
    assert [event.epoch for event in seen if isinstance(event, BeforeVal)] == validated


def test_the_counters_are_right_at_every_event_of_a_training(tmp_path: Path) -> None:
    """Event, runner and hub agree; nobody sees the counters of an iteration ago."""
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=2))
    rows = watch_counters(runner)
    runner.train()

    def epoch_rows(epoch: int) -> list[Row]:
        first, after = epoch * TRAIN_BATCHES, (epoch + 1) * TRAIN_BATCHES
        rows: list[Row] = [("BeforeTrainEpoch", None, epoch, first, epoch, first, epoch, max(0, first))]
        for batch in range(TRAIN_BATCHES):
            rows += [(name, batch, epoch, first + batch, epoch, first + batch, epoch, first + batch) for name in ITER]
        rows.append(("AfterTrainEpoch", None, epoch, after, epoch, after, epoch, after))
        batch_of = {"BeforeValIter": iter(range(VAL_BATCHES)), "AfterValIter": iter(range(VAL_BATCHES))}
        for name in VALIDATION:
            place = next(batch_of[name]) if name in batch_of else None
            rows.append((name, place, epoch + 1, after, epoch + 1, after, epoch + 1, after))
        return rows

    end = (2, 2 * TRAIN_BATCHES)
    expected: list[Row] = [("BeforeRun", None, 0, 0, 0, 0, None, None), ("BeforeTrain", None, 0, 0, 0, 0, 0, 0)]
    expected += [*epoch_rows(0), *epoch_rows(1)]
    expected += [("AfterTrain", None, *end, *end, *end), ("AfterRun", None, *end, *end, *end)]
    assert [row for row in rows if row[0] != "BeforeSaveCheckpoint"] == expected
    saves = [row[:6] for row in rows if row[0] == "BeforeSaveCheckpoint"]
    assert saves == [
        ("BeforeSaveCheckpoint", None, epoch, epoch * TRAIN_BATCHES, epoch, epoch * TRAIN_BATCHES) for epoch in (1, 2)
    ]


def test_a_validation_after_training_sees_the_final_counters(tmp_path: Path) -> None:
    """The calls `val` and `test` go on with the counters of the runner."""
    runner = make_runner(tmp_path)
    runner.train()
    rows = watch_counters(runner)
    runner.val()
    runner.test()
    assert {row[2:6] for row in rows} == {(2, 6, 2, 6)}
    assert {row[6:] for row in rows} == {(2, 6)}


def test_the_inner_points_stand_around_the_optimizer_step(tmp_path: Path) -> None:
    """Gradients are there before the step, weights move in it, and gradients are gone after it."""
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=1))
    model = runner.model
    before = weights(model)
    facts: list[tuple[str, bool, bool]] = []

    def look(event: MountPoint) -> None:
        has_gradients = any(parameter.grad is not None for parameter in model.parameters())
        facts.append((type(event).__name__, has_gradients, same(before, weights(model))))

    for event_type in (BeforeTrainIter, AfterBackward, BeforeOptimizerStep, AfterOptimizerStep, AfterTrainIter):
        runner.bus.subscribe(event_type, look, when=lambda event: event.iter == 0)
    runner.train()
    assert facts == [
        ("BeforeTrainIter", False, True),
        ("AfterBackward", True, True),
        ("BeforeOptimizerStep", True, True),
        ("AfterOptimizerStep", False, False),
        ("AfterTrainIter", False, False),
    ]


def test_a_skipped_optimizer_step_leaves_weights_alone_and_says_so(tmp_path: Path) -> None:
    """Only the update is left out: gradients are cleared, the iteration goes on and counts."""
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=1))
    veto(runner.bus, BeforeOptimizerStep, when=lambda event: event.iter != 1)
    steps = record(runner.bus, AfterOptimizerStep)
    seen_weights = [weights(runner.model)]
    runner.bus.subscribe(AfterTrainIter, lambda: seen_weights.append(weights(runner.model)))
    runner.train()
    assert [event.skipped for event in steps if isinstance(event, AfterOptimizerStep)] == [True, False, True]
    moved = [not same(before, after) for before, after in itertools.pairwise(seen_weights)]
    assert moved == [False, True, False]
    assert runner.iter == 3


def test_iteration_schedules_step_once_per_update(tmp_path: Path) -> None:
    """A skipped update does not count for a schedule by iterations, not even as the first one."""
    scheduler = dict(type="StepLR", step_size=1, gamma=0.5, by_epoch=False)
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=1), param_scheduler=scheduler)
    veto(runner.bus, BeforeOptimizerStep, when=lambda event: event.iter in (0, 2))
    rates: list[float] = []
    wrapper = runner.optim_wrapper
    assert isinstance(wrapper, OptimWrapper)
    runner.bus.subscribe(AfterTrainIter, lambda: rates.append(wrapper.param_groups[0]["lr"]), priority="LOWEST")
    runner.train()
    assert rates == [0.1, 0.05, 0.05]


def test_a_skipped_validation_leaves_out_everything_up_to_after_val(tmp_path: Path) -> None:
    """Training goes on as if none had been due, and the metrics of the last one that took place are returned."""
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=3))
    veto(runner.bus, BeforeVal, when=lambda event: event.epoch != 2)
    seen = record(runner.bus)
    stages: list[Any] = []
    runner.bus.subscribe(BeforeTrainIter, lambda hub: stages.append(hub.get_info("loop_stage")))
    metrics = runner.train()
    counts = Counter(names(seen))
    assert (counts["BeforeVal"], counts["BeforeValEpoch"], counts["AfterVal"]) == (3, 1, 1)
    assert list(metrics) == ["loss"]
    assert set(stages) == {"train"}
    assert runner.message_hub.get_info("loop_stage") is None


def test_a_skipped_validation_call_returns_no_metrics(tmp_path: Path) -> None:
    """It still begins and ends as a run does, and the hub does not go on saying that a validation is going on."""
    runner = make_runner(tmp_path)
    veto(runner.bus, BeforeVal)
    seen = record(runner.bus)
    assert runner.val() == {}
    assert names(seen) == ["BeforeRun", "BeforeVal", "AfterRun"]
    assert runner.message_hub.get_info("loop_stage") is None


def test_a_skipped_save_leaves_no_checkpoint_and_training_goes_on(tmp_path: Path) -> None:
    """Only the vetoed one is missing."""
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=3))
    veto(runner.bus, BeforeSaveCheckpoint, when=lambda event: event.name == "epoch_2")
    runner.train()
    assert checkpoints(tmp_path) == ["epoch_1", "epoch_3"]


def test_inner_points_count_from_the_first_batch_after_a_stop_in_mid_epoch(tmp_path: Path) -> None:
    """The batch numbers of all points of an iteration agree, also when training is taken up again."""
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=1))
    runner.bus.subscribe(AfterTrainIter, lambda: runner.stop(), once=True)
    runner.train()
    seen = record(runner.bus)
    runner.train()
    by_iter: dict[int, set[int]] = {}
    for event in seen:
        if hasattr(event, "batch_idx") and "Val" not in type(event).__name__:
            by_iter.setdefault(event.iter, set()).add(event.batch_idx)  # type: ignore[attr-defined]
    assert by_iter
    assert all(len(batches) == 1 for batches in by_iter.values())


def test_a_loader_without_a_length_trains_epoch_after_epoch(tmp_path: Path) -> None:
    """The number of batches is simply unknown; a bare iterable is a dataloader, too."""
    batches = [tuple(batch) for batch in make_loader(12)]

    class Endless:
        def __iter__(self) -> Any:
            return iter(batches)

    runner = make_runner(tmp_path, train_dataloader=Endless(), val_dataloader=Endless())
    assert runner.max_iters is None
    seen = record(runner.bus)
    runner.train()
    assert Counter(names(seen))["AfterTrainIter"] == 6
    assert Counter(names(seen))["AfterValIter"] == 6


def test_a_dataloader_of_an_iterable_dataset_has_no_length(tmp_path: Path) -> None:
    """Torch's dataloader has `__len__` and refuses to answer; that is no reason to fail."""
    from torch.utils.data import DataLoader, IterableDataset

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([sample for batch in make_loader(12, batch_size=1) for sample in [(batch[0][0], batch[1][0])]])

    loader: DataLoader[Any] = DataLoader(Stream(), batch_size=4)
    runner = make_runner(tmp_path, train_dataloader=loader, val_dataloader=loader)
    runner.train()
    assert runner.iter == 6
    assert runner.train_loop.num_batches is None

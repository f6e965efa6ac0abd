"""A run that fails: what is published, what is closed, and what stays on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hookbus.bus import EventBus
from hookbus.checkpoint import load_checkpoint
from hookbus.errors import CheckpointError, StateEncodingError
from hookbus.events import (
    MOUNT_POINTS,
    AfterRun,
    AfterTrain,
    AfterTrainIter,
    AfterValEpoch,
    BeforeRun,
    BeforeSaveCheckpoint,
    BeforeTrain,
    BeforeTrainIter,
    BeforeValIter,
    Event,
    MountPoint,
    RunFailed,
)
from hookbus.hooks import Hook
from hookbus.runner import Runner
from hookbus.writers import Record, Writer
from tests.runner.builders import at_iter, checkpoints, make_runner, names, record

DURING_TRAINING = [
    name for name in MOUNT_POINTS if name not in ("after_load_checkpoint", "run_failed", "after_run") and "test" not in name
]


class Broken(Exception):
    """What a failing handler raises."""


class Mute(Exception):
    """An error that cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def fail() -> None:
    """Fail."""
    raise Broken("on purpose")


async def fail_later() -> None:
    """Fail as a coroutine function."""
    raise Broken("on purpose")


class KeepingWriter(Writer):
    """Keeps records, and counts how often it was closed."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.closed = 0

    def write(self, record: Record) -> None:
        self.records.append(record)

    def close(self) -> None:
        self.closed += 1


class UnclosableWriter(KeepingWriter):
    """Fails when it is closed."""

    def close(self) -> None:
        super().close()
        raise Broken("the disk is gone")


def is_idle(runner: Runner) -> bool:
    """Return whether nothing of a run is left on the runner: handlers of its logger, its thread, its place as the live run."""
    return not runner.logger.handlers and not runner.is_training and "live" not in repr(runner.message_hub)


def open_files(directory: Path) -> list[str]:
    """Return the files below a directory that this process has open."""
    links = (os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd"))
    return [path for path in links if path.startswith(str(directory))]


@pytest.mark.parametrize("handler", [fail, fail_later])
@pytest.mark.parametrize("mount_point", DURING_TRAINING)
def test_a_failure_anywhere_publishes_run_failed_and_after_run(
    mount_point: str, handler: Callable[..., Any], tmp_path: Path
) -> None:
    """The error arrives as itself, with a note, and everything is closed behind it."""
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=1))
    seen = record(runner.bus)
    event_type = MOUNT_POINTS[mount_point]
    runner.bus.subscribe(event_type, handler, name="the culprit")
    with pytest.raises(Broken, match="on purpose") as caught:
        runner.train()
    assert type(caught.value) is Broken
    assert any(note.startswith(f"while the culprit handled {event_type.__name__}") for note in caught.value.__notes__)
    assert names(seen)[-2:] == ["RunFailed", "AfterRun"]
    assert names(seen).count("RunFailed") == names(seen).count("AfterRun") == 1
    failed = seen[-2]
    assert isinstance(failed, RunFailed)
    assert (failed.error_type, failed.message, failed.handler) == ("Broken", "Broken: on purpose", "the culprit")
    assert is_idle(runner)
    assert open_files(tmp_path) == []


@pytest.mark.parametrize("call", ["val", "test"])
def test_a_failing_validation_or_test_closes_its_run_too(call: str, tmp_path: Path) -> None:
    """`RunFailed` and `AfterRun` bracket these calls as they do training."""
    runner = make_runner(tmp_path)
    seen = record(runner.bus)
    runner.bus.subscribe(MOUNT_POINTS[f"after_{call}_iter"], fail)
    with pytest.raises(Broken):
        getattr(runner, call)()
    assert names(seen)[-2:] == ["RunFailed", "AfterRun"]
    assert isinstance(seen[-1], AfterRun)
    assert seen[-1].loop == call
    assert is_idle(runner)


def test_lower_priorities_do_not_run_after_a_failure_but_all_of_them_hear_the_end(tmp_path: Path) -> None:
    """A guard that fails stops what stands behind it at that event; the closing events reach everybody, async too."""
    heard: list[str] = []

    class Behind(Hook):
        priority = "LOWEST"

        def after_train_iter(self) -> None:
            heard.append("after_train_iter")

        def run_failed(self, error_type: str) -> None:
            heard.append(f"run_failed {error_type}")

        async def after_run(self) -> None:
            heard.append("after_run")

    runner = make_runner(tmp_path, custom_hooks=[Behind()])
    runner.bus.subscribe(AfterTrainIter, fail, priority="HIGHEST")
    with pytest.raises(Broken):
        runner.train()
    assert heard == ["run_failed Broken", "after_run"]


def test_the_model_is_where_the_failure_left_it_and_the_same_runner_can_run_again(tmp_path: Path) -> None:
    """A failed run does not use up its runner."""
    runner = make_runner(tmp_path)
    failing = runner.bus.subscribe(AfterTrainIter, at_iter(4, fail))
    with pytest.raises(Broken):
        runner.train()
    assert (runner.epoch, runner.iter) == (1, 4)
    failing.cancel()
    metrics = runner.train()
    assert "loss" in metrics
    assert runner.epoch == 2


def test_an_error_outside_of_handlers_names_no_handler(tmp_path: Path) -> None:
    """The model itself fails; a note of its own that looks nearly like ours is not taken for a handler."""

    def broken_loss(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        error = Broken("in the model")
        error.add_note("while computing the loss")
        raise error

    runner = make_runner(tmp_path, loss_fn=broken_loss)
    seen = record(runner.bus, RunFailed)
    with pytest.raises(Broken, match="in the model"):
        runner.train()
    (failed,) = seen
    assert isinstance(failed, RunFailed)
    assert failed.handler == ""


def test_every_complete_checkpoint_survives_a_failure(tmp_path: Path) -> None:
    """What was saved before the failure still loads, every byte verified."""
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=4))
    runner.bus.subscribe(AfterTrainIter, at_iter(7, fail))
    with pytest.raises(Broken):
        runner.train()
    assert checkpoints(tmp_path) == ["epoch_1", "epoch_2"]
    for name in checkpoints(tmp_path):
        assert load_checkpoint(tmp_path / "checkpoints" / name)["meta"]["iter"] == 3 * int(name[-1])


def test_writers_are_closed_when_a_run_fails(tmp_path: Path) -> None:
    """Each of them once, and what was logged before is there."""
    writers = [KeepingWriter(), KeepingWriter()]
    runner = make_runner(tmp_path, default_hooks=dict(logger=dict(interval=1, writers=writers)))
    runner.bus.subscribe(AfterTrainIter, at_iter(2, fail), priority="LOWEST")
    with pytest.raises(Broken):
        runner.train()
    assert [writer.closed for writer in writers] == [1, 1]
    assert [len(writer.records) for writer in writers] == [3, 3]


def test_a_writer_that_cannot_be_closed_does_not_keep_the_others_open(tmp_path: Path) -> None:
    """Its error is in the log; a destination never ends a run."""
    writers = [UnclosableWriter(), KeepingWriter()]
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=1), default_hooks=dict(logger=dict(writers=writers)))
    runner.train()
    assert "UnclosableWriter failed" in (runner.log_dir / "train.log").read_text()
    assert "disk is gone" in (runner.log_dir / "train.log").read_text()
    assert [writer.closed for writer in writers] == [1, 1]


def test_the_metrics_file_is_closed_and_complete_after_a_failure(tmp_path: Path) -> None:
    """No line is cut off."""
    runner = make_runner(tmp_path, default_hooks=dict(logger=dict(interval=1)))
    runner.bus.subscribe(AfterTrainIter, at_iter(2, fail), priority="LOWEST")
    with pytest.raises(Broken):
        runner.train()
    assert (runner.log_dir / "metrics.jsonl").read_text().count("\n") == 3
    assert open_files(tmp_path) == []


@pytest.mark.parametrize("failing", [fail, fail_later])
def test_a_failing_after_run_handler_becomes_a_note_on_the_first_error(failing: Callable[..., Any], tmp_path: Path) -> None:
    """The first error is what arrives; later ones are noted on it, with their handlers."""

    def first() -> None:
        raise ZeroDivisionError("first")

    runner = make_runner(tmp_path)
    runner.bus.subscribe(AfterTrainIter, first)
    runner.bus.subscribe(RunFailed, failing, name="mourner")
    runner.bus.subscribe(AfterRun, failing, name="undertaker")
    with pytest.raises(ZeroDivisionError, match="first") as caught:
        runner.train()
    notes = "\n".join(caught.value.__notes__)
    assert "and at RunFailed: Broken: on purpose" in notes
    assert "and at AfterRun: Broken: on purpose" in notes
    assert "while mourner handled RunFailed" in notes
    assert "while undertaker handled AfterRun" in notes


def test_a_failing_after_run_handler_fails_an_otherwise_good_run(tmp_path: Path) -> None:
    """There is no `RunFailed` any more then, but the error is not lost, and later handlers run."""
    runner = make_runner(tmp_path)
    runner.bus.subscribe(AfterRun, fail, priority="HIGHEST")
    seen = record(runner.bus)
    with pytest.raises(Broken):
        runner.train()
    assert names(seen)[-1] == "AfterRun"
    assert runner.epoch == 2
    assert is_idle(runner)


def test_a_save_that_fails_ends_the_run_and_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    """What cannot be encoded is refused with its path; nothing half-written stays."""
    runner = make_runner(tmp_path, default_hooks=dict(checkpoint=dict(max_keep_ckpts=1)))

    def spoil(checkpoint: dict[str, Any], name: str) -> None:
        if name == "epoch_2":
            checkpoint["mine"] = {"socket": object()}

    runner.bus.subscribe(BeforeSaveCheckpoint, spoil)
    with pytest.raises(StateEncodingError, match=r"mine.*socket"):
        runner.train()
    assert checkpoints(tmp_path) == ["epoch_1"]
    load_checkpoint(tmp_path / "checkpoints" / "epoch_1")


def test_a_name_that_is_taken_ends_the_run_and_nothing_is_overwritten(tmp_path: Path) -> None:
    """Something that is not a checkpoint stands where one should go."""
    runner = make_runner(tmp_path, default_hooks=dict(checkpoint=dict(max_keep_ckpts=1)))
    obstacle = tmp_path / "checkpoints" / "epoch_2"
    seen = record(runner.bus, RunFailed)
    runner.bus.subscribe(AfterTrainIter, at_iter(4, lambda: obstacle.write_text("mine")))
    with pytest.raises(CheckpointError, match="epoch_2"):
        runner.train()
    assert len(seen) == 1
    assert obstacle.read_text() == "mine"
    assert checkpoints(tmp_path) == ["epoch_1", "epoch_2"]


def test_a_failed_save_answers_the_one_who_asked_for_it(tmp_path: Path) -> None:
    """The error goes both ways: to the run, and to who waits for the acknowledgement."""
    runner = make_runner(tmp_path, default_hooks=dict(checkpoint=None))
    runner.bus.subscribe(BeforeSaveCheckpoint, fail)
    asked: list[Any] = []
    runner.bus.subscribe(AfterTrainIter, lambda runner: asked.append(runner.save_checkpoint("mine")), once=True)
    with pytest.raises(Broken):
        runner.train()
    with pytest.raises(Broken):
        asked[0].result(0)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_hook_passes_untouched_and_the_run_is_closed(error: type[BaseException], tmp_path: Path) -> None:
    """It carries no note, and `RunFailed` and `AfterRun` are published all the same."""
    raised = error()

    def interrupt() -> None:
        raise raised

    runner = make_runner(tmp_path)
    seen = record(runner.bus)
    runner.bus.subscribe(BeforeTrainIter, interrupt)
    with pytest.raises(error) as caught:
        runner.train()
    assert caught.value is raised
    assert not getattr(raised, "__notes__", ())
    assert names(seen)[-2:] == ["RunFailed", "AfterRun"]
    assert is_idle(runner)


def test_an_interrupt_in_an_awaited_handler_passes_untouched(tmp_path: Path) -> None:
    """It crosses from the thread of the event loop to the one that trains."""

    async def interrupt() -> None:
        raise KeyboardInterrupt

    runner = make_runner(tmp_path)
    seen = record(runner.bus)
    runner.bus.subscribe(BeforeTrainIter, interrupt)
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    assert names(seen)[-2:] == ["RunFailed", "AfterRun"]
    assert is_idle(runner)


def test_an_error_that_cannot_speak_is_reported_all_the_same(tmp_path: Path) -> None:
    """A broken `__str__` must not hide the error it belongs to."""

    def fail_mutely() -> None:
        raise Mute

    runner = make_runner(tmp_path)
    seen = record(runner.bus, RunFailed)
    runner.bus.subscribe(AfterTrainIter, fail_mutely)
    with pytest.raises(Mute):
        runner.train()
    (failed,) = seen
    assert isinstance(failed, RunFailed)
    assert failed.error_type == "Mute"


def test_hooks_with_the_log_policy_go_on_and_are_reported_at_the_end(tmp_path: Path) -> None:
    """The failure is logged once while it happens, counted, and named when the run is over."""
    runner = make_runner(tmp_path)
    runner.bus.subscribe(AfterTrainIter, fail, on_error="log", name="flaky")
    runner.train()
    assert runner.epoch == 2
    lines = [line for line in (runner.log_dir / "train.log").read_text().splitlines() if " - flaky failed " in line]
    assert len(lines) == 2
    assert "Broken: on purpose" in lines[0]
    assert "flaky failed 6 of 6 times on AfterTrainIter" in lines[1]


def test_a_failure_in_the_middle_of_a_validation_leaves_the_model_in_training_mode(tmp_path: Path) -> None:
    """The mode is put back whatever happens."""
    runner = make_runner(tmp_path)
    runner.bus.subscribe(BeforeValIter, fail)
    with pytest.raises(Broken):
        runner.train()
    assert runner.model.training


def test_the_hub_does_not_go_on_saying_that_a_failed_run_trains(tmp_path: Path) -> None:
    """A later validation does not go back to a training that is no longer there."""
    runner = make_runner(tmp_path)
    subscription = runner.bus.subscribe(AfterTrainIter, fail)
    with pytest.raises(Broken):
        runner.train()
    assert runner.message_hub.get_info("loop_stage") is None
    subscription.cancel()
    runner.val()
    assert runner.message_hub.get_info("loop_stage") is None


def test_a_log_directory_that_cannot_be_made_leaves_the_runner_as_it_was(tmp_path: Path) -> None:
    """What fails before `BeforeRun` fails cleanly; once the obstacle is gone, the same runner trains."""
    obstacle = tmp_path / "work"
    obstacle.write_text("a file")
    runner = make_runner(obstacle)
    with pytest.raises(OSError, match="work"):
        runner.train()
    assert is_idle(runner)
    assert runner.bus.plan(AfterRun) == ()
    obstacle.unlink()
    seen = record(runner.bus)
    runner.train()
    assert names(seen).count("AfterRun") == 1
    assert checkpoints(obstacle) == ["epoch_1", "epoch_2"]


def test_an_error_is_raised_again_in_a_second_run(tmp_path: Path) -> None:
    """Two failing runs of one runner do not mix their notes."""
    runner = make_runner(tmp_path)
    runner.bus.subscribe(BeforeTrain, fail)
    for _ in range(2):
        with pytest.raises(Broken) as caught:
            runner.train()
        assert len(caught.value.__notes__) == 1


@pytest.mark.parametrize("event_type", [BeforeRun, AfterTrain, AfterValEpoch])
def test_hooks_hear_after_run_once_whatever_failed(event_type: type[Event], tmp_path: Path) -> None:
    """Counted over a run that fails early, late, or in a validation."""
    runner = make_runner(tmp_path)
    runner.bus.subscribe(event_type, fail, priority="HIGHEST")
    seen = record(runner.bus, MountPoint)
    with pytest.raises(Broken):
        runner.train()
    assert names(seen).count("AfterRun") == 1


def test_a_broken_bus_of_another_run_is_not_touched(tmp_path: Path) -> None:
    """A runner whose bus is in use by a `with` block is refused, and the block goes on."""
    with EventBus("shared") as bus:
        runner = make_runner(tmp_path, bus=bus)
        with pytest.raises(RuntimeError, match=r"'shared' is in use"):
            runner.train()
        assert is_idle(runner)
        bus.emit(AfterRun(epoch=0, iter=0, loop="train"), {"runner": runner})

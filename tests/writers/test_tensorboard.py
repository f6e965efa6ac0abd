"""TensorboardWriter: what TensorBoard reads out of its files."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchmetrics.classification import MulticlassConfusionMatrix

from hookbus.events import AfterTrainIter
from hookbus.runner import Runner
from hookbus.types import Mode
from hookbus.writers import Record, RunPlace, TensorboardWriter
from tests.runner.builders import at_iter, make_runner, read_records
from tests.writers.event_files import Point, curves, event_files, is_single, purges, read_events
from tests.writers.waiting import comes_true

LOGGER = logging.getLogger("tests.writers")


def place(log_dir: Path, first_iter: int = 1) -> RunPlace:
    """Return where a run logs to."""
    return RunPlace(logger=LOGGER, log_dir=log_dir, first_iter=first_iter)


def line(iteration: int, mode: Mode = "train", **values: Any) -> Record:
    """Return a record of these values."""
    return Record(mode=mode, epoch=1, iter=iteration, values=values, text="")


def make_watched_runner(tmp_path: Path, **changes: Any) -> Runner:
    """Return a runner that writes every iteration for TensorBoard and for programs."""
    logger = dict(interval=1, writers=["jsonl", "tensorboard"])
    return make_runner(tmp_path, **changes, default_hooks=dict(logger=logger, checkpoint=None))


def test_training_and_validation_are_different_curves_over_one_axis(tmp_path: Path) -> None:
    """Each value of each record is there, under its mode, at the number of completed iterations."""
    runner = make_watched_runner(tmp_path)
    runner.train()
    runner.test()
    found = curves(runner.log_dir)
    records = read_records(runner)
    for mode, steps in {"train": [1, 2, 3, 4, 5, 6], "val": [3, 6], "test": [6]}.items():
        points = found[f"{mode}/loss"]
        losses = [record["loss"] for record in records if record["mode"] == mode]
        assert [point.step for point in points] == steps
        assert all(is_single(point.value, loss) for point, loss in zip(points, losses, strict=True))
    assert {tag.split("/")[0] for tag in found} == {"train", "val", "test", "_hparams_"}
    assert {"train/lr", "train/time", "train/data_time", "val/time"} <= found.keys()


def test_a_line_is_one_event_of_its_moment(tmp_path: Path) -> None:
    """All of its values stand in one summary, with the time at which it was written."""
    writer = TensorboardWriter()
    writer.open(place(tmp_path))
    before = time.time()
    writer.write(line(7, loss=0.5, lr=0.1, time=0.25, data_time=0.125))
    writer.close()
    (path,) = event_files(tmp_path)
    version, start, event = read_events(path)
    assert (version.file_version, start.session_log.status, start.step) == ("brain.Event:2", start.session_log.START, 1)
    assert event.step == 7
    assert before <= event.wall_time <= time.time()
    assert [value.tag for value in event.summary.value] == ["train/loss", "train/lr", "train/time", "train/data_time"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.5, 1.5),
        (3, 3.0),
        (True, 1.0),
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.int64(4), 4.0),
        (math.nan, math.nan),
        (math.inf, math.inf),
        (-math.inf, -math.inf),
        (1e300, math.inf),
        ([1.0, 2.0], None),
        ({"a": 1.0}, None),
        ("text", None),
        (None, None),
        (np.ones(2), None),
    ],
    ids=repr,
)
def test_numbers_are_written_and_everything_else_is_left_to_other_writers(
    value: Any, shown: float | None, tmp_path: Path
) -> None:
    """NaN and infinities, too: TensorBoard marks them."""
    writer = TensorboardWriter()
    writer.open(place(tmp_path))
    writer.write(line(1, value=value, loss=0.5))
    writer.close()
    found = curves(tmp_path)
    assert found["train/loss"] == [Point(1, 0.5)]
    if shown is None:
        assert "train/value" not in found
    else:
        np.testing.assert_equal(found["train/value"][0].value, shown)


def test_metrics_that_are_no_scalars_do_not_disturb_the_others(tmp_path: Path) -> None:
    """A confusion matrix is in the metrics file only."""
    runner = make_watched_runner(tmp_path, val_evaluator=MulticlassConfusionMatrix(3))
    runner.val()
    assert "val/confusion_matrix" not in curves(runner.log_dir)
    assert len(read_records(runner)[0]["confusion_matrix"]) == 3


def test_names_that_have_their_mode_already_get_no_second_one(tmp_path: Path) -> None:
    """As `log_with_hierarchy` gives them; a name that only begins like a mode does."""
    writer = TensorboardWriter()
    writer.open(place(tmp_path))
    writer.write(line(1, mode="val", **{"val/loss": 1.0, "value": 2.0, "train/loss": 3.0}))
    writer.close()
    assert set(curves(tmp_path)) == {"val/loss", "val/value", "val/train/loss"}


def test_training_that_goes_on_continues_its_curves(tmp_path: Path) -> None:
    """A second file in the same directory; nothing before its first iteration is out of date."""
    runner = make_watched_runner(tmp_path, train_cfg=dict(max_epochs=3))
    subscription = runner.bus.subscribe(AfterTrainIter, at_iter(3, runner.stop))
    runner.train()
    subscription.cancel()
    reached = runner.iter
    runner.train()
    assert purges(runner.log_dir) == [1, reached + 1]
    steps = [point.step for point in curves(runner.log_dir)["train/loss"]]
    assert steps == list(range(1, runner.iter + 1))
    assert reached < runner.iter


def test_iterations_that_are_trained_again_replace_their_former_values(tmp_path: Path) -> None:
    """What the earlier run recorded beyond the iteration that training goes on from is gone from the curves."""
    writer = TensorboardWriter()
    writer.open(place(tmp_path))
    for iteration in range(1, 7):
        writer.write(line(iteration, loss=float(iteration)))
    writer.write(line(3, mode="val", loss=33.0))
    writer.write(line(6, mode="val", loss=66.0))
    writer.close()
    writer.open(place(tmp_path, first_iter=4))
    for iteration in (4, 5):
        writer.write(line(iteration, loss=10.0 * iteration))
    writer.close()
    found = curves(tmp_path)
    assert found["train/loss"] == [Point(1, 1), Point(2, 2), Point(3, 3), Point(4, 40), Point(5, 50)]
    assert found["val/loss"] == [Point(3, 33)]


def test_a_closed_writer_may_be_closed_again_and_goes_on_with_the_next_record(tmp_path: Path) -> None:
    """In a further file, which puts nothing of the first out of date."""
    writer = TensorboardWriter()
    writer.close()
    writer.flush()
    writer.open(place(tmp_path))
    writer.write(line(1, loss=1.0))
    writer.close()
    writer.close()
    writer.write(line(2, loss=2.0))
    writer.write(line(1, mode="val", loss=3.0))
    writer.close()
    assert len(event_files(tmp_path)) == 2
    assert purges(tmp_path) == [1]
    assert curves(tmp_path) == {"train/loss": [Point(1, 1), Point(2, 2)], "val/loss": [Point(1, 3)]}


def test_many_starts_within_one_second_have_files_of_their_own(tmp_path: Path) -> None:
    """Read in the order in which they were written."""
    writer = TensorboardWriter()
    for number in range(1, 13):
        writer.open(place(tmp_path, first_iter=number))
        writer.write(line(number, loss=float(number)))
    writer.close()
    assert len(event_files(tmp_path)) == 12
    assert curves(tmp_path)["train/loss"] == [Point(number, number) for number in range(1, 13)]


def test_without_a_record_there_is_no_file(tmp_path: Path) -> None:
    """Opening is not yet writing."""
    writer = TensorboardWriter()
    writer.open(place(tmp_path))
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_what_was_written_is_there_after_a_validation(tmp_path: Path) -> None:
    """A TensorBoard that watches need not wait for the end of the run."""
    runner = make_watched_runner(tmp_path)
    found: list[bool] = []

    def is_there() -> bool:
        directory = runner.log_dir / "tensorboard"
        return directory.exists() and [point.step for point in curves(runner.log_dir).get("train/loss", ())][:3] == [1, 2, 3]

    runner.bus.subscribe(AfterTrainIter, at_iter(4, lambda: found.append(comes_true(is_there))))
    runner.train()
    assert found == [True]


def test_tensorboard_is_imported_by_the_first_record_only() -> None:
    """Its package takes a second to import, which nobody else should wait for."""
    code = "import sys, hookbus.writers; sys.exit('tensorboardX' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""TensorboardWriter: what TensorBoard reads out of its files."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import math
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from torchmetrics.classification import MulticlassConfusionMatrix

from hookbus.errors import ConfigError
from hookbus.events import AfterTrainIter, BeforeOptimizerStep, ImagesDrawn
from hookbus.runner import Runner
from hookbus.types import Mode
from hookbus.writers import Record, RunPlace, TensorboardWriter
from hookbus.writers._histograms import _on_host, _row
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


# --- beyond curves ----------------------------------------------------------------------------------------------------


def all_values(log_dir: Path) -> dict[str, list[Any]]:
    """Return every value by tag, with its step."""
    found: dict[str, list[Any]] = {}
    for path in event_files(log_dir):
        for event in read_events(path):
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value))
    return found


def test_what_the_run_was_started_with_is_in_the_table_of_hyperparameters(tmp_path: Path) -> None:
    """What the runner knows, and what the user adds."""
    logger = dict(interval=1, writers=["tensorboard"], hyperparameters={"augmentation": "flip", "depth": 3})
    runner = make_runner(tmp_path, default_hooks=dict(logger=logger, checkpoint=None))
    runner.train()
    ((_, value),) = all_values(runner.log_dir)["_hparams_/session_start_info"]
    content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
    found = {name: getattr(value, value.WhichOneof("kind")) for name, value in content.session_start_info.hparams.items()}
    assert {
        "model": "Linear",
        "parameters": 15,
        "seed": 0,
        "max_epochs": 2,
        "batch_size": 4,
        "optimizer": "SGD",
        "optimizer.lr": 0.1,
        "optimizer.momentum": 0.9,
        "augmentation": "flip",
        "depth": 3,
    }.items() <= found.items()


def test_histograms_count_weights_and_gradients(tmp_path: Path) -> None:
    """Before the optimizer step, at the iteration whose gradients they are."""
    gradients: list[torch.Tensor] = []
    logger = dict(interval=1, writers=[dict(type="tensorboard", histograms=2)])
    runner = make_runner(tmp_path, default_hooks=dict(logger=logger, checkpoint=None))
    runner.bus.subscribe(BeforeOptimizerStep, lambda runner: gradients.append(runner.model.weight.grad.clone()))
    runner.train()
    found = all_values(runner.log_dir)
    assert {tag for tag in found if "/" in tag and tag.split("/")[0] in ("weights", "gradients")} == {
        f"{what}/{name}" for what in ("weights", "gradients") for name in ("weight", "bias")
    }
    assert [step for step, _ in found["gradients/weight"]] == [2, 4, 6]
    for step, value in found["gradients/weight"]:
        grad, histo = gradients[step - 1], value.histo
        assert (histo.min, histo.max) == pytest.approx((grad.min().item(), grad.max().item()))
        assert histo.num == grad.numel() == sum(histo.bucket)
        assert histo.sum == pytest.approx(grad.sum().item(), abs=1e-6)
        edges = torch.tensor([-math.inf, *histo.bucket_limit])
        expected = [int(((grad > low) & (grad <= high)).sum()) for low, high in itertools.pairwise(edges)]
        assert list(histo.bucket) == expected


@pytest.mark.parametrize(
    ("values", "not_finite"),
    [([0.0, 1.0, -1.0], 0), ([math.nan, 2.0, math.inf], 2), ([math.nan], 1), ([1e30, -1e30, 1e-30], 0)],
)
def test_a_histogram_counts_every_value(values: list[float], not_finite: int) -> None:
    """Also those that no bucket has room for."""
    histogram = _on_host({"x": _row(torch.tensor(values))})["x"]
    assert histogram.not_finite == not_finite
    assert sum(histogram.counts) == len(values) - not_finite
    assert len(histogram.limits) == len(histogram.counts)
    assert not histogram.counts or histogram.limits[-1] >= histogram.max


def test_without_histograms_nobody_listens_inside_a_step(tmp_path: Path) -> None:
    """So they cost nothing."""
    runner = make_watched_runner(tmp_path)
    heard: list[bool] = []
    runner.bus.subscribe(AfterTrainIter, at_iter(2, lambda: heard.append(runner.bus.has_subscribers(BeforeOptimizerStep))))
    runner.train()
    assert heard == [False]


def test_images_that_were_drawn_are_shown(tmp_path: Path) -> None:
    """With their size and caption, at their step."""
    image = tmp_path / "one.png"
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 7, 5)
    image.write_bytes(header)
    writer = TensorboardWriter()
    writer.open(place(tmp_path))
    writer.write_images(ImagesDrawn(mode="val", epoch=1, iter=9, paths=[str(image)], captions=["true 3, predicted 8"]))
    writer.close()
    ((step, value),) = all_values(tmp_path)["val/images/0"]
    assert (step, value.image.width, value.image.height) == (9, 7, 5)
    assert value.image.encoded_image_string == header
    assert value.metadata.summary_description == "true 3, predicted 8"


@pytest.mark.parametrize("histograms", [0, -1, 2.5, "often"])
def test_histograms_need_an_interval(histograms: Any) -> None:
    """Of at least one iteration."""
    with pytest.raises(ConfigError, match="histograms must be at least 1"):
        TensorboardWriter(histograms=histograms)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="tensorboard is installed here")
def test_a_graph_needs_an_extra() -> None:
    """Which the error names."""
    with pytest.raises(ConfigError, match=r"pip install 'hookbus\[tensorboard\]'"):
        TensorboardWriter(graph=True)


def test_the_graph_of_the_model_is_written_and_training_is_the_same(tmp_path: Path) -> None:
    """Once, by tracing it with the first batch."""
    pytest.importorskip("tensorboard")
    weights = []
    for graph in (False, True):
        logger = dict(interval=1, writers=[dict(type="tensorboard", graph=graph)])
        runner = make_runner(tmp_path / str(graph), default_hooks=dict(logger=logger, checkpoint=None))
        runner.train()
        weights.append(runner.model.state_dict()["weight"])
    assert torch.equal(*weights)
    events = [event for path in event_files(runner.log_dir) for event in read_events(path)]
    assert sum(bool(event.graph_def) for event in events) == 1


def test_a_late_record_stands_at_its_own_step(tmp_path: Path) -> None:
    """Whatever was written before."""
    writer = TensorboardWriter()
    writer.open(place(tmp_path))
    for iteration in (1, 3, 2):
        writer.write(line(iteration, loss=float(iteration)))
    writer.close()
    assert curves(tmp_path)["train/loss"] == [Point(1, 1), Point(3, 3), Point(2, 2)]

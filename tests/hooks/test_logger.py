"""LoggerHook: which lines, with which values, to which destinations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hookbus.events import AfterTrainIter
from hookbus.registry import WRITERS
from hookbus.runner import Runner
from hookbus.writers import JsonlWriter, Record, Writer
from tests.runner.builders import make_loader, make_runner, read_records


class KeepingWriter(Writer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def write(self, record: Record) -> None:
        self.records.append(record)


def train_with(tmp_path: Path, batches: int = 5, epochs: int = 2, **logger: Any) -> Runner:
    """Train a runner whose logger has these options."""
    changes: dict[str, Any] = dict(train_dataloader=make_loader(4 * batches), train_cfg=dict(max_epochs=epochs))
    runner = make_runner(tmp_path, **changes, default_hooks=dict(logger=logger, checkpoint=None))
    runner.train()
    return runner


@pytest.mark.parametrize(
    ("interval", "ignore_last", "logged"),
    [
        (1, True, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (2, True, [2, 4, 7, 9]),
        (2, False, [2, 4, 5, 7, 9, 10]),
        (5, True, [5, 10]),
        (5, False, [5, 10]),
        (10, True, [5, 10]),
        (10, False, [5, 10]),
    ],
)
def test_iterations_are_logged_at_intervals_of_an_epoch(
    interval: int, ignore_last: bool, logged: list[int], tmp_path: Path
) -> None:
    """Counted anew in each; an epoch shorter than the interval is logged at its end."""
    runner = train_with(tmp_path, interval=interval, ignore_last=ignore_last)
    assert [line["iter"] for line in read_records(runner) if line["mode"] == "train"] == logged


def test_a_line_of_the_metrics_file_has_all_values_of_its_moment(tmp_path: Path) -> None:
    """Mode and counters first, then what the hub holds; the loss is a mean over the window."""
    runner = train_with(tmp_path, interval=5)
    train, val = read_records(runner)[:2]
    assert list(train)[:3] == ["mode", "epoch", "iter"]
    assert set(train) == {"mode", "epoch", "iter", "lr", "eta", "time", "data_time", "loss"}
    assert (train["mode"], train["epoch"], train["iter"], train["lr"]) == ("train", 1, 5, 0.1)
    assert train["loss"] == pytest.approx(sum(runner.message_hub.get_scalar("train/loss").data[0][:5]) / 5)
    assert (val["mode"], val["epoch"], val["iter"]) == ("val", 1, 5)
    assert set(val) == {"mode", "epoch", "iter", "loss", "time", "data_time"}


def test_numbers_that_json_does_not_know_are_null(tmp_path: Path) -> None:
    """NaN and infinities, so that every line is JSON that any program reads."""
    values = iter([math.nan, math.inf, -math.inf, 1.0])

    def step(model: torch.nn.Module, batch: Any) -> dict[str, Any]:
        return {"loss": model(batch[0]).square().mean(), "odd": next(values)}

    changes: dict[str, Any] = dict(train_dataloader=make_loader(16), train_cfg=dict(max_epochs=1))
    runner = make_runner(tmp_path, **changes, train_step=step, default_hooks=dict(logger=dict(interval=1)))
    runner.train()
    lines = [line for line in (runner.log_dir / "metrics.jsonl").read_text().splitlines() if '"train"' in line]
    assert ["NaN" in line or "Infinity" in line for line in lines] == [False] * 4
    assert [line["odd"] for line in read_records(runner) if line["mode"] == "train"] == [None, None, None, 1.0]


def test_lines_for_people_say_where_training_is(tmp_path: Path) -> None:
    """Aligned, with the same digits, in `train.log` as on the terminal."""
    runner = train_with(tmp_path, batches=12, interval=10)
    lines = [line.rpartition(" - ")[2] for line in (runner.log_dir / "train.log").read_text().splitlines()]
    (first,) = [line for line in lines if line.startswith("Epoch(train)  [1]")]
    assert first.startswith("Epoch(train)  [1][10/12]  lr: 1.0000e-01  eta: 0:00:0")
    (validated,) = [line for line in lines if line.startswith("Epoch(val)  [2]")]
    assert validated.startswith("Epoch(val)  [2][2/2]  loss: ")


def test_a_validation_of_its_own_names_no_epoch(tmp_path: Path) -> None:
    """Nor does a test; both show their metrics and are written to the metrics file."""
    runner = make_runner(tmp_path, default_hooks=dict(logger=dict(interval=1)))
    runner.val()
    runner.test()
    text = (runner.log_dir / "train.log").read_text()
    assert "Epoch(val)  [1/2]" in text
    assert "Epoch(val)  [2/2]  loss:" in text
    assert "Epoch(test)  [1/1]  loss:" in text
    assert [line["mode"] for line in read_records(runner)] == ["val", "test"]


def test_a_loader_without_a_length_is_logged_all_the_same(tmp_path: Path) -> None:
    """A question mark stands for what nobody knows."""
    batches = make_loader(12)

    class Stream:
        def __iter__(self) -> Any:
            return iter(batches)

    runner = make_runner(
        tmp_path, train_dataloader=Stream(), val_dataloader=Stream(), default_hooks=dict(logger=dict(interval=1))
    )
    runner.train()
    text = (runner.log_dir / "train.log").read_text()
    assert "Epoch(train)  [1][1/?]" in text
    assert "Epoch(val)  [1][3/?]  loss:" in text


def test_writers_are_given_by_name_by_config_or_as_objects(tmp_path: Path) -> None:
    """A user's own is registered like any other."""
    kept = KeepingWriter()

    @WRITERS.register_module("counting", force=True)
    class CountingWriter(KeepingWriter):
        def __init__(self, start: int = 0) -> None:
            super().__init__()
            counters.append(self)

    counters: list[KeepingWriter] = []
    runner = train_with(tmp_path, interval=5, writers=[kept, "counting", dict(type="counting", start=3)])
    assert len(kept.records) == 4
    assert [writer.records for writer in counters] == [kept.records, kept.records]
    assert not (runner.log_dir / "metrics.jsonl").exists()


def test_without_writers_nothing_is_written(tmp_path: Path) -> None:
    """An empty list is a choice."""
    runner = train_with(tmp_path, writers=[])
    assert not (runner.log_dir / "metrics.jsonl").exists()
    assert "Epoch(train)" not in (runner.log_dir / "train.log").read_text()


def test_the_metrics_file_can_be_read_while_training_goes_on(tmp_path: Path) -> None:
    """Each record is there as soon as it is written."""
    runner = make_runner(tmp_path, default_hooks=dict(logger=dict(interval=1)))
    lengths: list[int] = []
    runner.bus.subscribe(AfterTrainIter, lambda runner: lengths.append(len(read_records(runner))), priority="LOWEST")
    runner.train()
    assert lengths == [1, 2, 3, 5, 6, 7]


def test_a_second_run_appends_to_the_files_of_the_first(tmp_path: Path) -> None:
    """A test after training belongs to the same start."""
    runner = train_with(tmp_path, interval=5)
    before = len(read_records(runner))
    runner.test()
    assert len(read_records(runner)) == before + 1


def test_a_closed_writer_may_be_closed_again(tmp_path: Path) -> None:
    """Also one that never wrote."""
    writer = JsonlWriter()
    writer.close()
    train_with(tmp_path, interval=5, writers=[writer])
    writer.close()


def test_the_log_processor_is_told_window_and_digits(tmp_path: Path) -> None:
    """As a dict of its options."""
    options = dict(window_size=1, num_digits=2)
    kept = KeepingWriter()
    hooks = dict(logger=dict(interval=3, writers=[kept]))
    runner = make_runner(tmp_path, log_processor=options, default_hooks=hooks, train_cfg=dict(max_epochs=1))
    runner.train()
    losses = runner.message_hub.get_scalar("train/loss").data[0]
    assert kept.records[0].values["loss"] == losses[2]
    assert f"loss: {losses[2]:.2f}" in kept.records[0].text
    assert "lr: 1.00e-01" in kept.records[0].text

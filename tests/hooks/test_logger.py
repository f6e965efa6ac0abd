"""LoggerHook: which lines, with which values, to which destinations."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing._internal.distributed.fake_pg import FakeStore

from hookbus.errors import ConfigError, RunError
from hookbus.events import AfterTrainIter
from hookbus.hooks import LoggerHook
from hookbus.registry import WRITERS
from hookbus.runner import Runner
from hookbus.testing import make_runner
from hookbus.writers import JsonlWriter, Record, RunPlace, Writer
from tests.runner.builders import at_iter, make_loader, read_records
from tests.writers.waiting import comes_true


class KeepingWriter(Writer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.places: list[RunPlace] = []
        self.records: list[Record] = []
        self.shown: list[Record] = []
        self.flushed_after: list[int] = []

    def open(self, place: RunPlace) -> None:
        self.places.append(place)

    def write(self, record: Record) -> None:
        self.records.append(record)

    def show(self, record: Record) -> None:
        self.shown.append(record)

    def flush(self) -> None:
        self.flushed_after.append(len(self.records))


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


@pytest.mark.parametrize(
    ("interval", "ignore_last", "logged"),
    [(1, True, [1, 2, 3, 4, 5]), (2, True, [2, 4]), (2, False, [2, 4, 5]), (5, True, [5]), (10, True, [5]), (10, False, [5])],
)
def test_where_iterations_count_the_whole_run_is_the_epoch(
    interval: int, ignore_last: bool, logged: list[int], tmp_path: Path
) -> None:
    """Its end is that of the run, however often the data began anew."""
    kept = KeepingWriter()
    logger = dict(interval=interval, ignore_last=ignore_last, writers=[kept])
    changes: dict[str, Any] = dict(train_dataloader=make_loader(8), train_cfg=dict(by_epoch=False, max_iters=5, val_interval=3))
    runner = make_runner(tmp_path, **changes, default_hooks=dict(logger=logger, checkpoint=None))
    runner.train()
    assert [record.iter for record in kept.records if record.mode == "train"] == logged
    assert [record.iter for record in kept.records if record.mode == "val"] == [3, 5]


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
    """Each record is there soon after it was made, without waiting for the next."""
    runner = make_runner(tmp_path, default_hooks=dict(logger=dict(interval=1)))
    path = runner.log_dir / "metrics.jsonl"
    expected = iter([1, 2, 3, 5, 6, 7])
    found: list[bool] = []

    def look() -> None:
        length = next(expected)
        found.append(comes_true(lambda: path.exists() and len(read_records(runner)) == length))

    runner.bus.subscribe(AfterTrainIter, look, priority="LOWEST")
    runner.train()
    assert found == [True] * 6


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


def test_progress_is_shown_to_people_and_kept_by_nobody(tmp_path: Path) -> None:
    """The lines inside of a validation or test are no records."""
    kept = KeepingWriter()
    runner = make_runner(tmp_path, val_dataloader=make_loader(20), default_hooks=dict(logger=dict(interval=2, writers=[kept])))
    runner.val()
    assert [record.text.partition("]")[0] for record in kept.shown] == ["Epoch(val)  [2/5", "Epoch(val)  [4/5"]
    assert [record.mode for record in kept.records] == ["val"]
    assert "Epoch(val)" not in (runner.log_dir / "train.log").read_text()  # no writer for people was asked for


def test_writers_are_flushed_after_every_validation_and_test(tmp_path: Path) -> None:
    """So that what they hold back can be seen."""
    kept = KeepingWriter()
    runner = train_with(tmp_path, interval=5, writers=[kept])
    runner.test()
    assert kept.flushed_after == [2, 4, 5]


def test_writers_learn_from_where_on_a_run_records(tmp_path: Path) -> None:
    """The first iteration to come: when training begins, when it goes on, and in a test."""
    kept = KeepingWriter()
    runner = make_runner(tmp_path, default_hooks=dict(logger=dict(interval=1, writers=[kept])))
    stopping = runner.bus.subscribe(AfterTrainIter, at_iter(2, runner.stop))
    runner.train()
    stopping.cancel()
    reached = runner.iter
    runner.train()
    runner.test()
    assert [place.first_iter for place in kept.places] == [1, reached + 1, runner.iter + 1]
    assert {place.log_dir for place in kept.places} == {runner.log_dir}


class NotQuiteMetrics:
    """Metrics that JSON cannot spell."""

    def update(self, predictions: Any, targets: Any) -> None:
        """Nothing counts."""

    def compute(self) -> dict[str, Any]:
        """Return what it always returns."""
        return {"acc": torch.tensor(math.nan), "cm": torch.tensor([[1.0, math.inf], [2.0, 3.0]])}

    def reset(self) -> None:
        """Nothing to forget."""


def test_the_metrics_of_a_test_have_a_file_of_their_own(tmp_path: Path) -> None:
    """One object, that of the newest test; numbers that JSON does not know are null in it."""
    step = lambda model, batch: (model(batch[0]), batch[1])  # noqa: E731
    runner = make_runner(tmp_path, val_step=step, test_evaluator=NotQuiteMetrics(), default_hooks=dict(logger=dict(writers=[])))
    for _ in range(2):
        runner.test()
    text = (runner.log_dir / "test_metrics.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {"acc": None, "cm": [[1.0, None], [2.0, 3.0]]}


@pytest.fixture
def second_of_two_processes() -> Iterator[None]:
    """Make this process the second of two that do not talk to each other."""
    torch.distributed.init_process_group(backend="fake", rank=1, world_size=2, store=FakeStore())
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("second_of_two_processes")
def test_only_the_main_process_writes(tmp_path: Path) -> None:
    """The others leave no file and open no writer."""
    kept = KeepingWriter()
    logger = LoggerHook(interval=1, writers=[kept, "terminal", "jsonl", "tensorboard"], out_dir=tmp_path / "copies")
    runner = make_runner(tmp_path / "run", default_hooks=dict(logger=logger, checkpoint=None))
    runner.train()
    runner.test()
    assert (kept.places, kept.records, kept.shown) == ([], [], [])
    assert not runner.log_dir.exists()
    assert not (tmp_path / "copies").exists()


# --- a second place for the files -------------------------------------------------------------------------------------


def files_below(directory: Path) -> dict[str, bytes]:
    """Return the content of every file."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def make_copying_runner(tmp_path: Path, **logger: Any) -> Runner:
    """Return a runner that brings its logs to `copies/run/`."""
    options = dict(interval=1, writers=["terminal", "jsonl", "tensorboard"], out_dir=tmp_path / "copies") | logger
    return make_runner(tmp_path / "run", default_hooks=dict(logger=options, checkpoint=None))


def test_log_files_are_copied_to_a_second_place(tmp_path: Path) -> None:
    """Below the name of the work directory and of the start; each run of it brings the copies up to date."""
    runner = make_copying_runner(tmp_path)
    runner.train()
    runner.test()
    local, copies = files_below(runner.log_dir), files_below(tmp_path / "copies")
    assert copies == {f"run/{runner.timestamp}/{name}": content for name, content in local.items()}
    assert {"train.log", "metrics.jsonl", "test_metrics.json", "run.json"} < local.keys()
    assert sum(name.startswith("tensorboard/") for name in local) == 2


def test_log_files_that_are_not_kept_are_all_at_the_second_place(tmp_path: Path) -> None:
    """What a later run of the same start logs goes behind what was moved before."""
    runner = make_copying_runner(tmp_path, keep_local=False)
    runner.train()
    assert files_below(tmp_path / "run") == {}
    runner.test()
    assert files_below(tmp_path / "run") == {}
    copies = tmp_path / "copies" / "run" / runner.timestamp
    records = [json.loads(line) for line in (copies / "metrics.jsonl").read_text().splitlines()]
    assert [record["mode"] for record in records] == ["train"] * 3 + ["val"] + ["train"] * 3 + ["val", "test"]
    text = (copies / "train.log").read_text()
    assert all(words in text for words in ("Epoch(train)  [1][1/3]", "Epoch(train)  [2][3/3]", "Epoch(test)"))
    assert sum(name.startswith("tensorboard/") for name in files_below(copies)) == 2


def test_a_failed_run_is_copied_too(tmp_path: Path) -> None:
    """Its log is the one that is wanted most."""
    runner = make_copying_runner(tmp_path)

    def fail() -> None:
        msg = "the disk is on fire"
        raise OSError(msg)

    runner.bus.subscribe(AfterTrainIter, at_iter(2, fail), priority="LOWEST")
    with pytest.raises(OSError, match="on fire"):
        runner.train()
    copies = tmp_path / "copies" / "run" / runner.timestamp
    assert len((copies / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("keep_local", [True, False])
def test_a_copy_that_fails_is_an_error_and_deletes_nothing(keep_local: bool, tmp_path: Path) -> None:
    """It names both places; the writers are closed all the same."""
    runner = make_copying_runner(tmp_path, keep_local=keep_local)
    in_the_way = tmp_path / "copies" / "run" / runner.timestamp / "run.json"
    (in_the_way / "a directory").mkdir(parents=True)
    with pytest.raises(RunError) as caught:
        runner.train()
    assert str(runner.log_dir / "run.json") in str(caught.value)
    assert str(in_the_way) in str(caught.value)
    assert {"train.log", "metrics.jsonl", "run.json"} < files_below(runner.log_dir).keys()
    assert len(read_records(runner)) == 8


@pytest.mark.parametrize("inside", ["", "run/{timestamp}/copies"])
def test_a_second_place_inside_of_the_first_is_refused(inside: str, tmp_path: Path) -> None:
    """Before anything is trained, with both places."""
    runner = make_copying_runner(tmp_path)
    out_dir = tmp_path / inside.format(timestamp=runner.timestamp)
    runner.register_hook(LoggerHook(writers=[], out_dir=out_dir, keep_local=False))
    with pytest.raises(ConfigError, match="into itself") as caught:
        runner.train()
    assert str(out_dir) in str(caught.value)
    assert runner.iter == 0
    assert (runner.log_dir / "train.log").exists()


@WRITERS.register_module("logger_test_no_writer")
class NoWriter:
    """Has what a writer has, and is none."""

    def write(self, record: Record) -> None:
        """Take a record."""


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: LoggerHook(writers="terminal"), ["LoggerHook.writers = 'terminal'", "a list"]),
        (lambda: LoggerHook(writers=JsonlWriter()), ["LoggerHook.writers", "a list"]),  # type: ignore[arg-type]
        (lambda: LoggerHook(writers=["logger_test_no_writer"]), ["writers[0]", "NoWriter", "no hookbus.Writer"]),
        (lambda: LoggerHook(writers=["tensorbord"]), ["'tensorbord'", "did you mean 'tensorboard'?"]),
        (lambda: LoggerHook(keep_local=False), ["keep_local", "out_dir"]),
        (lambda: LoggerHook(interval=0, keep_local=False), ["2 problems", "interval", "keep_local"]),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(build: Callable[[], object], words: list[str]) -> None:
    """All of them, when the hook is made."""
    with pytest.raises(ConfigError) as caught:
        build()
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def test_two_writers_of_one_kind_are_refused() -> None:
    """They would write into the same file; writers of the user's own may be as many as wanted."""
    with pytest.raises(ConfigError, match=r"writers\[2\]: JsonlWriter writes where writers\[0\] does"):
        LoggerHook(writers=["jsonl", "terminal", "jsonl"])
    LoggerHook(writers=[KeepingWriter(), KeepingWriter()])

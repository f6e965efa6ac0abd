"""LogProcessor: which values stand in a line, taken over which window, and how they are written."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hookbus.errors import ConfigError
from hookbus.history import HistoryBuffer
from hookbus.log_processor import LogProcessor
from hookbus.runner import Runner
from tests.runner.builders import make_loader, make_runner


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Let torch compute on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@HistoryBuffer.register_statistics
def log_processor_quantile(buffer: HistoryBuffer, q: float, window_size: int | None = None) -> float:
    """Return the value below which the share `q` of the newest values lies."""
    return sorted(buffer.newest(window_size)[0])[int(q * (len(buffer.newest(window_size)[0]) - 1))]


@HistoryBuffer.register_statistics
def log_processor_scaled(buffer: HistoryBuffer, **options: float) -> float:
    """Return the newest value times the product of the options."""
    return buffer.current() * math.prod(options.values())


def record_losses(runner: Runner, values: Mapping[int, float], key: str = "train/loss") -> None:
    """Record a value for each of these steps, and leave the run in the last of them."""
    for step, value in values.items():
        runner.message_hub.step = step
        runner.message_hub.update_scalar(key, value)
    runner.progress.iter = runner.message_hub.step - 1


def lines(runner: Runner, start: str) -> list[str]:
    """Return the lines of the log that begin so, with the numbers that depend on the machine replaced by a sign."""
    text = (runner.log_dir / "train.log").read_text(encoding="utf-8")
    messages = [line.split(" - INFO - ", 1)[-1] for line in text.splitlines()]
    unsteady = re.compile(r"(?<=time: )\d+\.\d+|(?<=eta: )\d+:\d\d:\d\d")
    return [unsteady.sub("#", message) for message in messages if message.startswith(start)]


def steady_step(model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
    """Return a loss that is the same on every machine."""
    loss = 0.0 * model(batch[0]).sum() + 0.3459
    return {"loss": loss, "loss_a": loss}


class SteadyMetrics:
    """Two metrics, one of which is no scalar."""

    def update(self, predictions: Any, targets: Any) -> None:
        """Nothing counts."""

    def compute(self) -> dict[str, Any]:
        """Return what it always returns."""
        return {"acc": 0.1, "cm": [1, 2]}

    def reset(self) -> None:
        """Nothing to forget."""


BY_ITERS = dict(by_epoch=False, max_iters=6, val_interval=3)
TIMES = "time: #  data_time: #"
RATE_AND_TIMES = f"lr: 1.0000e-01  eta: #  {TIMES}"


@pytest.mark.parametrize(
    ("train_cfg", "options", "call", "start", "expected"),
    [
        pytest.param(
            dict(max_epochs=2),
            {},
            "train",
            "Epoch(train)",
            f"Epoch(train)  [1][2/3]  {RATE_AND_TIMES}  loss: 0.3459  loss_a: 0.3459",
            id="training by epochs: epoch, batch of its length, rate, time left, times, losses",
        ),
        pytest.param(
            dict(max_epochs=12),
            {},
            "train",
            "Epoch(train)  [ 2]",
            f"Epoch(train)  [ 2][2/3]  {RATE_AND_TIMES}  loss: 0.3459  loss_a: 0.3459",
            id="numbers are as wide as their maxima",
        ),
        pytest.param(
            BY_ITERS,
            {},
            "train",
            "Iter(train)",
            f"Iter(train)  [2/6]  {RATE_AND_TIMES}  loss: 0.3459  loss_a: 0.3459",
            id="training by iterations: iteration of all",
        ),
        pytest.param(
            dict(max_epochs=2),
            dict(by_epoch=False),
            "train",
            "Iter(train)",
            f"Iter(train)  [2/6]  {RATE_AND_TIMES}  loss: 0.3459  loss_a: 0.3459",
            id="iterations counted in training by epochs, as asked for",
        ),
        pytest.param(
            BY_ITERS,
            dict(by_epoch=True),
            "train",
            "Epoch(train)",
            f"Epoch(train)  [1][2/6]  {RATE_AND_TIMES}  loss: 0.3459  loss_a: 0.3459",
            id="epochs counted in training by iterations: one, as long as the run",
        ),
        pytest.param(
            dict(max_epochs=2),
            dict(num_digits=2),
            "train",
            "Epoch(train)",
            f"Epoch(train)  [1][2/3]  lr: 1.00e-01  eta: #  {TIMES}  loss: 0.35  loss_a: 0.35",
            id="digits as asked for",
        ),
        pytest.param(
            dict(max_epochs=2),
            {},
            "train",
            "Epoch(val)  [1][2/2]  acc",
            f"Epoch(val)  [1][2/2]  acc: 0.1000  cm: [1, 2]  {TIMES}",
            id="metrics of a validation in training by epochs, those that are no scalars too, then mean times",
        ),
        pytest.param(
            BY_ITERS,
            {},
            "train",
            "Iter(val)  [2/2]  acc",
            f"Iter(val)  [2/2]  acc: 0.1000  cm: [1, 2]  {TIMES}",
            id="metrics of a validation in training by iterations",
        ),
        pytest.param(
            dict(max_epochs=2),
            {},
            "val",
            "Epoch(val)  [2/2]  acc",
            f"Epoch(val)  [2/2]  acc: 0.1000  cm: [1, 2]  {TIMES}",
            id="metrics of a validation of its own: no epoch",
        ),
        pytest.param(
            dict(max_epochs=2),
            {},
            "test",
            "Epoch(test)  [1/1]  acc",
            f"Epoch(test)  [1/1]  acc: 0.1000  cm: [1, 2]  {TIMES}",
            id="metrics of a test",
        ),
        pytest.param(
            BY_ITERS, {}, "test", "Iter(test)  [1/1]  eta", f"Iter(test)  [1/1]  eta: #  {TIMES}", id="progress of a test"
        ),
        pytest.param(
            dict(max_epochs=2),
            {},
            "val",
            "Epoch(val)  [2/2]  eta",
            f"Epoch(val)  [2/2]  eta: #  {TIMES}",
            id="progress of a validation: the time left in it, and times alone",
        ),
    ],
)
def test_log_line_shapes(
    train_cfg: dict[str, Any], options: dict[str, Any], call: str, start: str, expected: str, tmp_path: Path
) -> None:
    """The familiar lines, two spaces between their parts."""
    runner = make_runner(
        tmp_path,
        train_cfg=train_cfg,
        train_step=steady_step,
        val_step=lambda model, batch: (model(batch[0]), batch[1]),
        val_evaluator=SteadyMetrics(),
        log_processor=options,
        default_hooks=dict(logger=dict(interval=2 if call == "train" else 1), checkpoint=None),
    )
    getattr(runner, call)()
    assert lines(runner, start)[0] == expected


def test_the_peak_of_memory_is_shown_where_there_is_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In MB, behind the times, as the allocator of this process counts it; nothing is reset for it."""
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 512 * 2**20 + 5)
    runner = make_runner(tmp_path)
    record_losses(runner, {1: 0.5})
    record_losses(runner, {1: 0.25}, "train/time")
    processor = LogProcessor()
    assert "memory" not in processor.after_iter(runner, 0, "train").values
    runner.device = torch.device("cuda")
    record = processor.after_iter(runner, 0, "train")
    assert record.values["memory"] == 512
    assert record.text == "Epoch(train)  [1][1/3]  time: 0.2500  memory: 512  loss: 0.5000"


STEADY = {step: float(step) for step in range(1, 9)}
SPARSE = {step: float(step) for step in range(2, 9, 2)}


@pytest.mark.parametrize(
    ("entry", "values", "expected"),
    [
        (dict(method_name="mean", window_size=3), STEADY, 7.0),
        (dict(method_name="mean", window_size=100), STEADY, 4.5),
        (dict(method_name="mean"), STEADY, 4.5),
        (dict(method_name="mean", window_size="epoch"), STEADY, 7.0),
        (dict(method_name="min", window_size="epoch"), STEADY, 6.0),
        (dict(method_name="mean", window_size="epoch"), SPARSE, 7.0),
        (dict(method_name="min", window_size="global"), STEADY, 1.0),
        (dict(method_name="max"), STEADY, 8.0),
        (dict(method_name="current"), STEADY, 8.0),
        (dict(method_name="log_processor_quantile", q=0.5), STEADY, 4.0),
        (dict(method_name="log_processor_quantile", q=0.0, window_size=2), STEADY, 7.0),
        (dict(method_name="log_processor_quantile", q=1.0, window_size="epoch"), STEADY, 8.0),
        (dict(method_name="log_processor_scaled", by=2.0, and_by=3.0), STEADY, 48.0),
    ],
    ids=repr,
)
def test_custom_statistics(entry: dict[str, Any], values: dict[int, float], expected: float, tmp_path: Path) -> None:
    """Taken in iteration 8, the third of the second epoch of five; under the name of the value, or one of their own."""
    runner = make_runner(tmp_path, train_dataloader=make_loader(20))
    record_losses(runner, values)
    replacing = LogProcessor(custom_cfg=[dict(data_src="loss", **entry)])
    assert replacing.after_iter(runner, 2, "train").values == {"loss": expected}
    adding = LogProcessor(window_size=1, custom_cfg=[dict(data_src="loss", log_name="special", **entry)])
    assert adding.after_iter(runner, 2, "train").values == {"loss": 8.0, "special": expected}


def test_a_value_that_nobody_recorded_yet_is_left_out(tmp_path: Path) -> None:
    """It may come later, or never."""
    runner = make_runner(tmp_path)
    record_losses(runner, {1: 0.5})
    processor = LogProcessor(custom_cfg=[dict(data_src="grad_norm", method_name="max", log_name="steepest")])
    assert processor.after_iter(runner, 0, "train").values == {"loss": 0.5}
    record_losses(runner, {2: 3.0}, "train/grad_norm")
    assert processor.after_iter(runner, 1, "train").values["steepest"] == 3.0


def test_custom_statistics_of_metrics_stand_beside_them(tmp_path: Path) -> None:
    """The best one so far is one entry away; a metric itself is never replaced."""
    runner = make_runner(tmp_path)
    record_losses(runner, {3: 0.9, 6: 0.7}, "val/accuracy")
    cfg: list[dict[str, Any]] = [
        dict(data_src="accuracy", method_name="max", log_name="best_accuracy"),
        dict(data_src="accuracy", method_name="mean", window_size="epoch", log_name="accuracy_of_this_pass"),
        dict(data_src="accuracy", method_name="mean"),
    ]
    record = LogProcessor(custom_cfg=cfg).after_epoch(runner, {"accuracy": 0.7}, 2, "val")
    assert record.values == {"accuracy": 0.7, "best_accuracy": 0.9, "accuracy_of_this_pass": 0.7}


def test_what_hooks_record_in_a_validation_is_shown_with_its_metrics(tmp_path: Path) -> None:
    """Means of this pass where the pattern says so; values of an earlier validation are not."""
    runner = make_runner(tmp_path)
    record_losses(runner, {3: 5.0}, "val/own")
    record_losses(runner, {3: 5.0}, "val/old")
    for value in (1.0, 2.0):
        record_losses(runner, {6: value}, "val/own_loss")
        record_losses(runner, {6: value}, "val/own")
    assert LogProcessor().after_epoch(runner, {"a": 1.0}, 2, "val").values == {"a": 1.0, "own_loss": 1.5, "own": 2.0}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (None, {"loss": 1.5, "grad_norm": 1.5, "accuracy": 2.0}),
        (r"acc.*|loss", {"loss": 1.5, "grad_norm": 2.0, "accuracy": 1.5}),
        (r"$^", {"loss": 2.0, "grad_norm": 2.0, "accuracy": 2.0}),
    ],
)
def test_keys_that_match_are_averaged(pattern: str | None, expected: dict[str, float], tmp_path: Path) -> None:
    """The others are shown as they are now."""
    runner = make_runner(tmp_path)
    for key in expected:
        record_losses(runner, {1: 1.0, 2: 2.0}, f"train/{key}")
    processor = LogProcessor() if pattern is None else LogProcessor(mean_pattern=pattern)
    assert processor.after_iter(runner, 1, "train").values == expected


def test_hierarchy_keeps_the_modes_in_the_names_of_a_record(tmp_path: Path) -> None:
    """In all modes, for every value; the text names the mode once already."""
    runner = make_runner(tmp_path)
    for key in ("train/loss", "train/lr", "val/time"):
        record_losses(runner, {1: 0.5}, key)
    runner.message_hub.update_info("eta", 60.0)
    processor = LogProcessor(log_with_hierarchy=True)
    training = processor.after_iter(runner, 0, "train")
    assert training.values == {"train/lr": 0.5, "train/eta": 60.0, "train/loss": 0.5}
    assert training.text == "Epoch(train)  [1][1/3]  lr: 5.0000e-01  eta: 0:01:00  loss: 0.5000"
    assert processor.after_epoch(runner, {"acc": 1.0}, 1, "val").values == {"val/acc": 1.0, "val/time": 0.5}
    assert processor.after_epoch(runner, {"acc": 1.0}, 1, "test").values == {"test/acc": 1.0}


def test_keys_that_only_begin_like_a_mode_belong_to_none(tmp_path: Path) -> None:
    """The slash makes the mode."""
    runner = make_runner(tmp_path)
    for key in ("validator", "trainer/loss", "training", "valid/loss"):
        record_losses(runner, {1: 0.5}, key)
        runner.message_hub.update_info(f"{key}_info", 1)
    assert LogProcessor().after_iter(runner, 0, "train").values == {}
    assert LogProcessor().after_epoch(runner, {}, 1, "val").values == {}


def test_the_time_left_in_a_validation_is_that_of_its_own_batches(tmp_path: Path) -> None:
    """At the pace so far; where nobody knows how many there are, none is shown."""
    runner = make_runner(tmp_path, val_dataloader=make_loader(40))
    for _ in range(2):
        record_losses(runner, {1: 30.0}, "val/time")
    runner.message_hub.update_info("eta", 7.0)
    assert LogProcessor().after_iter(runner, 1, "val").text == "Epoch(val)  [ 2/10]  eta: 0:04:00  time: 30.0000"
    endless = make_runner(tmp_path, val_dataloader=(batch for batch in make_loader(40)))
    record_losses(endless, {1: 30.0}, "val/time")
    assert LogProcessor().after_iter(endless, 0, "val").text == "Epoch(val)  [1/?]  time: 30.0000"


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("loss", 0.123456, "0.1235"),
        ("loss", math.nan, "nan"),
        ("loss", np.float32(0.5), "0.5000"),
        ("lr", 0.00012345, "1.2345e-04"),
        ("base_lr", 1.0, "1.0000e+00"),
        ("generator.lr", 0.5, "5.0000e-01"),
        ("slr", 0.5, "0.5000"),
        ("eta", 86_461.7, "1 day, 0:01:01"),
        ("eta", math.nan, "nan"),
        ("eta", 1e300, "1e+300"),
        ("count", 12, "12"),
        ("cm", [[1, 2.0], [math.inf]], "[[1, 2.0000], [inf]]"),
        ("by_class", {"cat": 0.5, "dog": None}, "{cat: 0.5000, dog: None}"),
        ("word", "text", "text"),
    ],
)
def test_values_in_words(key: str, value: Any, word: str, tmp_path: Path) -> None:
    """Rates with exponents, durations as such, floats with fixed digits, inside of lists and dicts as well."""
    record = LogProcessor().after_epoch(make_runner(tmp_path), {key: value}, 1, "test")
    assert record.text == f"Epoch(test)  [1/1]  {key}: {word}"


GOOD = dict(data_src="loss", method_name="mean")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(custom_cfg=GOOD), ["log_processor.custom_cfg = ", "a list of dicts"]),
        (dict(custom_cfg=["loss"]), ["custom_cfg[0] = 'loss'", "data_src, method_name"]),
        (dict(custom_cfg=[dict(data_src="loss")]), ["custom_cfg[0].method_name is missing"]),
        (dict(custom_cfg=[dict(method_name="mean")]), ["custom_cfg[0].data_src is missing"]),
        (dict(custom_cfg=[GOOD | dict(data_src=3)]), ["custom_cfg[0].data_src = 3"]),
        (dict(custom_cfg=[GOOD | dict(log_name="")]), ["custom_cfg[0].log_name = ''"]),
        (dict(custom_cfg=[GOOD | dict(data_src="train/loss")]), ["'train/loss'", "without its mode, 'loss'"]),
        (dict(custom_cfg=[GOOD | dict(method_name="meen")]), ["method_name = 'meen'", "did you mean 'mean'?"]),
        (dict(custom_cfg=[GOOD | dict(method_name=[])]), ["method_name = []", "mean"]),
        (dict(custom_cfg=[GOOD | dict(windowsize=3)]), ["'windowsize'", "did you mean 'window_size'?"]),
        (dict(custom_cfg=[GOOD | dict(window=3)]), ["'window'", "did you mean 'window_size'?"]),
        (dict(custom_cfg=[GOOD | dict(window_size=0)]), ["window_size = 0", "at least 1"]),
        (dict(custom_cfg=[GOOD | dict(window_size=True)]), ["window_size = True"]),
        (dict(custom_cfg=[GOOD | dict(window_size=1.5)]), ["window_size = 1.5"]),
        (dict(custom_cfg=[GOOD | dict(window_size="epochs")]), ["window_size = 'epochs'", "did you mean 'epoch'?"]),
        (dict(by_epoch=False, custom_cfg=[GOOD | dict(window_size="epoch")]), ["'epoch'", "by_epoch is False"]),
        (dict(custom_cfg=[GOOD | dict(method_name="current", window_size=3)]), ["window_size = 3", "'current'", "no window"]),
        (dict(custom_cfg=[GOOD | dict(method_name="log_processor_quantile")]), ["custom_cfg[0].q is missing"]),
        (dict(custom_cfg=[GOOD, GOOD | dict(window_size=5)]), ["2 entries are shown as 'loss'"]),
        (dict(custom_cfg=[GOOD | dict(log_name="a"), GOOD | dict(log_name="a")]), ["2 entries are shown as 'a'"]),
        (dict(mean_pattern="(loss"), ["mean_pattern = '(loss'", "not a regular expression", "unterminated"]),
        (dict(mean_pattern=3), ["mean_pattern = 3"]),
        (dict(window_size=0, num_digits=0, custom_cfg=[{}], mean_pattern="("), ["5 problems", "window_size", "num_digits"]),
    ],
    ids=repr,
)
def test_options_that_make_no_sense_are_refused_at_once(options: dict[str, Any], words: Sequence[str]) -> None:
    """All of them in one error, before anything is trained."""
    with pytest.raises(ConfigError) as caught:
        LogProcessor(**options)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)

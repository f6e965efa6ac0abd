"""read_metrics: every start of a run as one, whatever state its files are in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hookbus.cli.metrics_reading import Metrics, read_metrics
from tests.cli.runs import make_start, train_record, val_record


def losses(metrics: Metrics, mode: str = "train") -> dict[int, float]:
    """Return the losses by iteration."""
    points = metrics.curves[mode, "loss"].points()
    return dict(zip(points.iters.tolist(), points.mean.tolist(), strict=True))


def records(first: int, last: int, loss: float, step: int = 10) -> list[dict[str, Any]]:
    """Return records of training from iteration `first` to `last`."""
    return [train_record(iteration, loss) for iteration in range(first, last + 1, step)]


def test_a_resumed_start_goes_on_where_it_began(tmp_path: Path) -> None:
    """What the first start did beyond the checkpoint counts as the second one says."""
    first = make_start(tmp_path, [*records(10, 50, 1.0), val_record(50, loss=9.0)], name="20260101_000000")
    second = make_start(tmp_path, records(30, 60, 2.0), name="20260102_000000")

    metrics = read_metrics([first, second])

    assert losses(metrics) == {10: 1.0, 20: 1.0, 30: 2.0, 40: 2.0, 50: 2.0, 60: 2.0}
    assert losses(metrics, "val") == {}


def test_a_fresh_start_in_the_same_place_replaces_the_earlier_one(tmp_path: Path) -> None:
    """Also where the earlier one logged before the first record of the new one."""
    first = make_start(tmp_path, records(5, 50, 1.0, step=5), name="20260101_000000")
    second = make_start(tmp_path, records(10, 20, 2.0), name="20260102_000000")

    assert losses(read_metrics([first, second])) == {10: 2.0, 20: 2.0}


def test_a_rollback_within_a_start_is_read_as_it_went(tmp_path: Path) -> None:
    """Iterations that are done again count once."""
    start = make_start(tmp_path, [*records(10, 40, 1.0), *records(20, 30, 3.0)])

    assert losses(read_metrics([start])) == {10: 1.0, 20: 3.0, 30: 3.0}


def test_a_half_written_last_line_is_told_and_left_out(tmp_path: Path) -> None:
    """A run may be writing at this moment."""
    start = make_start(tmp_path, records(10, 20, 1.0))
    with (start / "metrics.jsonl").open("a") as file:
        file.write('{"mode":"train","epoch":1,"iter":30,"lo')

    metrics = read_metrics([start])

    assert (losses(metrics), metrics.is_half_written, metrics.unreadable) == ({10: 1.0, 20: 1.0}, True, 0)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "no JSON",
        "[]",
        "null",
        '{"mode":"train","epoch":1}',
        '{"mode":"other","epoch":1,"iter":1,"loss":1}',
        '{"mode":["train"],"epoch":1,"iter":1,"loss":1}',
        '{"mode":"train","epoch":1,"iter":-5,"loss":1}',
        '{"mode":"train","epoch":1,"iter":1e400,"loss":1}',
        '{"mode":"train","epoch":1,"iter":true,"loss":1}',
        '{"mode":"train","epoch":1,"iter":99999999999999999999999,"loss":1}',
        "[" * 100_000,
        "x" * 3_000_000,
        "\x00\xff",
    ],
    ids=range(14),
)
def test_a_line_that_is_no_record_is_counted_and_left_out(tmp_path: Path, line: str) -> None:
    """The records around it are read."""
    start = make_start(tmp_path, records(10, 10, 1.0))
    with (start / "metrics.jsonl").open("a", encoding="latin-1") as file:
        file.write(f'{line}\n{{"mode":"train","epoch":1,"iter":20,"loss":2.0}}\n')

    metrics = read_metrics([start])

    assert (losses(metrics), metrics.unreadable) == ({10: 1.0, 20: 2.0}, 1)


def test_values_that_are_not_finite_are_gaps(tmp_path: Path) -> None:
    """However they are spelt: null as the writer does, NaN as other programs do, or a number beyond all bounds."""
    start = make_start(tmp_path, [train_record(10, 1.0), train_record(20, None), train_record(30, float("nan"))])
    with (start / "metrics.jsonl").open("a") as file:
        file.write('{"mode":"train","epoch":1,"iter":40,"loss":%s}\n' % ("9" * 400))

    points = read_metrics([start]).curves["train", "loss"].points()

    assert (np.isfinite(points.mean).tolist(), points.missing) == ([True, False, False, False], 3)


def test_values_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    """Lists, texts and truth values are not drawn."""
    start = make_start(tmp_path, [val_record(1, per_class=[1, 2], note="x", done=True, accuracy=0.5)])

    metrics = read_metrics([start])

    assert (set(metrics.curves), metrics.not_drawn) == ({("val", "accuracy")}, {"per_class", "note", "done"})


def test_the_mode_before_a_name_is_dropped(tmp_path: Path) -> None:
    """With `log_with_hierarchy` the names carry it."""
    start = make_start(tmp_path, [{"mode": "val", "epoch": 1, "iter": 1, "val/accuracy": 0.5}])

    assert set(read_metrics([start]).curves) == {("val", "accuracy")}


def test_names_without_end_do_not_fill_the_memory(tmp_path: Path) -> None:
    """So many names get a curve and no more."""
    start = make_start(tmp_path, [val_record(1, **{f"name{number}": 1.0}) for number in range(2000)])

    assert len(read_metrics([start]).curves) == 256

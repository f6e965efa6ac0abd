"""CSVWriter: one row per record, and no value lost when columns come later."""

from __future__ import annotations

import csv
import logging
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbus.writers import CSVWriter, Record, RunPlace
from tests.runner.builders import make_runner


def place(log_dir: Path) -> RunPlace:
    """Return where a run logs to."""
    return RunPlace(logger=logging.getLogger("tests.writers"), log_dir=log_dir)


def write(log_dir: Path, *values: dict[str, Any], first: int = 1) -> None:
    """Write records of training."""
    writer = CSVWriter()
    writer.open(place(log_dir))
    for number, each in enumerate(values, first):
        writer.write(Record(mode="train", epoch=1, iter=number, values=each, text=""))
    writer.close()


def rows(log_dir: Path) -> list[dict[str, str]]:
    """Return the rows by column."""
    with (log_dir / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_is_a_table(tmp_path: Path) -> None:
    """Training and validation in the order in which they took place."""
    runner = make_runner(tmp_path, default_hooks=dict(logger=dict(interval=1, writers=["csv"]), checkpoint=None))
    runner.train()
    runner.test()
    found = rows(runner.log_dir)
    assert [row["mode"] for row in found] == [*(["train"] * 3 + ["val"]) * 2, "test"]
    assert [row["iter"] for row in found if row["mode"] == "train"] == ["1", "2", "3", "4", "5", "6"]
    assert found[3]["lr"] == ""
    assert float(found[0]["loss"]) > 0


def test_a_new_name_is_a_new_column_at_the_end(tmp_path: Path) -> None:
    """Rows before it have nothing in it."""
    write(tmp_path, {"loss": 0.5}, {"loss": 0.25, "accuracy": 1.0}, {"lr": 0.1})
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "mode,epoch,iter,loss,accuracy,lr",
        "train,1,1,0.5,,",
        "train,1,2,0.25,1.0,",
        "train,1,3,,,0.1",
    ]
    assert list(tmp_path.iterdir()) == [tmp_path / "metrics.csv"]


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (0.1 + 0.2, "0.30000000000000004"),
        (3, "3"),
        (True, "True"),
        (None, ""),
        ('a, "b"', 'a, "b"'),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        ([[1, 2], [3, 4]], "[[1,2],[3,4]]"),
        ({"a": 1}, '{"a":1}'),
    ],
    ids=repr,
)
def test_any_value_has_a_cell(value: Any, cell: str, tmp_path: Path) -> None:
    """Numbers with all of their digits."""
    write(tmp_path, {"value": value})
    assert rows(tmp_path)[0]["value"] == cell


def test_a_later_run_of_the_same_start_goes_on(tmp_path: Path) -> None:
    """With the columns that are there, and its own behind them; a row that was torn off costs no other."""
    write(tmp_path, {"loss": 1.0})
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("train,1,2,0.")
    write(tmp_path, {"loss": 3.0, "lr": 0.5}, first=3)
    assert [(row["iter"], row["loss"], row["lr"]) for row in rows(tmp_path)] == [
        ("1", "1.0", ""),
        ("2", "0.", ""),
        ("3", "3.0", "0.5"),
    ]


@given(st.lists(st.dictionaries(st.sampled_from("abcdef"), st.floats(allow_nan=False)), max_size=12))
@settings(max_examples=40, deadline=None)
def test_every_value_is_in_the_table(records: list[dict[str, float]]) -> None:
    """In whatever order columns appear."""
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory), *records)
        found = rows(Path(directory)) if records else []
    read = [{key: float(cell) for key, cell in row.items() if len(key) == 1 and cell} for row in found]
    assert read == records

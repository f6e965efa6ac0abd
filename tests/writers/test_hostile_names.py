"""Names and texts that somebody else chose cannot fake a line in any log."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from hookbus.runner.logs import RunLogger
from hookbus.writers import CSVWriter, JsonlWriter, Record, RunPlace, TensorboardWriter, TerminalWriter, Writer
from tests.writers.event_files import curves

ANY_TEXT = st.text(st.characters(), min_size=1, max_size=40)
FORGED = "loss\n2026/11/23 10:00:00 - INFO - Epoch(val)  [1][2/2]  accuracy: 1.0000\r\x1b[2K\u2028\x85"


@contextmanager
def one_record(writer: Writer, name: str) -> Iterator[Path]:
    """Give the directory into which a writer wrote two records with a value of this name."""
    with tempfile.TemporaryDirectory() as directory:
        logger = RunLogger("hostile", "INFO")
        logger.open(Path(directory))
        try:
            writer.open(RunPlace(logger=logger, log_dir=Path(directory)))
            for iteration in (1, 2):
                values = {name: 0.5}
                writer.write(Record(mode="train", epoch=1, iter=iteration, values=values, text=f"line  {name}: 0.5000"))
            writer.close()
        finally:
            logger.close()
        yield Path(directory)


def spelt(name: str) -> str:
    """Return the name with what UTF-8 cannot spell written out."""
    return name.encode("utf-8", "backslashreplace").decode()


@given(ANY_TEXT)
@example(FORGED)
@settings(max_examples=60, deadline=None)
def test_a_record_is_one_line_of_the_log_file(name: str) -> None:
    """Control characters are written out, so a terminal obeys none of them."""
    with one_record(TerminalWriter(), name) as log_dir:
        text = (log_dir / "train.log").read_bytes().decode()
    assert text.count("\n") == 2
    assert text.replace("\n", "").isprintable()
    assert all(" - INFO - line  " in line for line in text.splitlines())


@given(ANY_TEXT)
@example(FORGED)
@example("\ud800")
@settings(max_examples=100, deadline=None)
def test_a_record_is_one_object_of_the_metrics_file(name: str) -> None:
    """It is read back under the name it had."""
    with one_record(JsonlWriter(), name) as log_dir:
        data = (log_dir / "metrics.jsonl").read_bytes()
    assert data.count(b"\n") == 2
    for line in data.splitlines():
        read = json.loads(line)
        assert len(read) == 4
        assert read[spelt(name) if name not in ("mode", "epoch", "iter") else f"train/{name}"] == 0.5


@given(ANY_TEXT)
@example(FORGED)
@example("\ud800")
@settings(max_examples=60, deadline=None)
def test_a_record_is_one_row_of_the_table(name: str) -> None:
    """Each row is one line, and the value stands in its column."""
    with one_record(CSVWriter(), name) as log_dir:
        text = (log_dir / "metrics.csv").read_bytes().decode()
    assert len(text.splitlines()) == text.count("\n") == 3
    head, *rows = csv.reader(text.splitlines())
    assert len(head) == 4
    assert [row[3] for row in rows] == ["0.5", "0.5"]


@given(ANY_TEXT)
@example(FORGED)
@example("\ud800")
@settings(max_examples=60, deadline=None)
def test_a_name_is_one_curve(name: str) -> None:
    """With both of its points."""
    with one_record(TensorboardWriter(), name) as log_dir:
        ((tag, points),) = curves(log_dir).items()
    assert tag in (f"train/{spelt(name)}", spelt(name))
    assert [point.step for point in points] == [1, 2]

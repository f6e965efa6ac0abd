"""What has become of a run, told from what it left behind."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

import pytest

from hookbus.cli.metrics_reading import read_metrics
from hookbus.cli.run_state import read_start, state_of
from tests.cli.runs import FACTS, LINE, make_start, train_record

NOW = datetime.datetime(2026, 1, 2, 4, 0, 0)


def state(log_dir: Path, *, silent: float) -> tuple[str, str]:
    """Return the state of a start whose files were last written to so many seconds ago."""
    for path in log_dir.iterdir():
        os.utime(path, (NOW.timestamp() - silent,) * 2)
    return tuple(state_of(read_start(log_dir), read_metrics([log_dir]), NOW))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("silent", "last", "expected"),
    [
        (5, {"eta": 60.0}, "running"),
        (299, {"eta": 60.0}, "running"),
        (4000, {"eta": 60.0}, "silent"),
        (5, {"eta": 0.0}, "finished"),
        (4000, {"eta": 0.0}, "finished"),
        (4000, {"eta": 0.3}, "finished"),  # less than passes between two records
        (4000, {"eta": 2.6}, "silent"),
        (4000, {"eta": None}, "silent"),
    ],
)
def test_the_state_follows_from_time_left_and_silence(tmp_path: Path, silent: float, last: dict[str, Any], expected: str) -> None:
    """A run is at its end, lives, or has fallen silent without either an end or an error."""
    start = make_start(tmp_path, [train_record(10), train_record(20) | last])

    assert state(start, silent=silent)[0] == expected


def test_a_run_that_wrote_its_costs_is_over(tmp_path: Path) -> None:
    """They are written at the end, whatever ended it."""
    start = make_start(tmp_path, [train_record(10), train_record(20)])
    (start / "handler_costs.json").write_text("[]")

    assert state(start, silent=5)[0] == "ended"


def test_slow_runs_may_be_silent_for_longer(tmp_path: Path) -> None:
    """A run with a record every ten minutes is not given up after five."""
    log = [LINE.format(minute=4, level="INFO", text="begin"), "2026/01/02 03:40:05 - INFO - a record"]
    start = make_start(tmp_path, [train_record(10), train_record(20), train_record(30), train_record(40)], log=log)

    assert state(start, silent=1200)[0] == "running"


def test_an_error_at_the_end_of_the_log_is_the_end_of_the_run(tmp_path: Path) -> None:
    """Its text is the reason."""
    log = [LINE.format(minute=4, level="INFO", text="begin"), LINE.format(minute=5, level="ERROR", text="InvalidLoss: NaN")]

    assert state(make_start(tmp_path, [train_record(10)], log=log), silent=5) == ("failed", "InvalidLoss: NaN")


@pytest.mark.parametrize("word", ["finished", "failed", "stopped"])
def test_what_the_run_says_itself_counts_first(tmp_path: Path, word: str) -> None:
    """`run.json` may name state and error."""
    facts = FACTS | {"state": word, "error": "ValueError: no\nroom"}

    assert state(make_start(tmp_path, [train_record(10)], facts=facts), silent=5) == (word, "ValueError: no\\nroom")


@pytest.mark.parametrize("text", ["", "[1]", '{"seed": ', "[" * 100_000])
def test_facts_that_cannot_be_read_are_none(tmp_path: Path, text: str) -> None:
    """A half-written `run.json` does not spoil a report."""
    start = make_start(tmp_path)
    (start / "run.json").write_text(text)

    assert read_start(start).facts == {}


def test_duration_is_from_the_start_to_the_newest_line(tmp_path: Path) -> None:
    """Lines that are not the logger's own, such as tracebacks, carry no time."""
    log = [LINE.format(minute=4, level="INFO", text="begin"), LINE.format(minute=6, level="INFO", text="end"), "  more text"]
    start = read_start(make_start(tmp_path, log=log))

    assert (start.began, start.seconds, start.tail[-1]) == (datetime.datetime(2026, 1, 2, 3, 4, 5), 120.0, "  more text")


def test_of_a_long_log_only_the_end_is_read(tmp_path: Path) -> None:
    """The first line of the tail is a whole one, whatever the length of the file."""
    start = make_start(tmp_path, log=[f"{number:08}" for number in range(50_000)])

    assert read_start(start).tail == tuple(f"{number:08}" for number in range(49_986, 50_000))


def test_control_characters_stay_out_of_the_report(tmp_path: Path) -> None:
    """A log line cannot move the cursor, nor spoil the XML of a picture."""
    start = make_start(tmp_path, log=["a\x1b[2Jb\x00", json.dumps("ok")])

    assert read_start(start).tail == ("a\\x1b[2Jb\\x00", '"ok"')

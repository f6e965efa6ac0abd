"""Files of writers: a record is there completely or not at all, and no file vanishes unnoticed."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hookbus.writers import CSVWriter, JsonlWriter, Record, RunPlace, TensorboardWriter, Writer
from hookbus.writers._appending import AppendedFile
from tests.writers.event_files import curves

MAKERS = [JsonlWriter, CSVWriter, TensorboardWriter]


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let no file grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def opened(writer: Writer, log_dir: Path) -> Writer:
    """Return a writer that knows where to write."""
    writer.open(RunPlace(logger=logging.getLogger("tests.writers"), log_dir=log_dir))
    return writer


def record(number: int) -> Record:
    """Return a record."""
    return Record(mode="train", epoch=1, iter=number, values={"loss": float(number)}, text="")


def steps(writer: Writer, log_dir: Path) -> list[int]:
    """Return the steps that readers find."""
    if isinstance(writer, TensorboardWriter):
        return [point.step for point in curves(log_dir).get("train/loss", [])]
    if isinstance(writer, CSVWriter):
        return [int(line.split(",")[2]) for line in (log_dir / "metrics.csv").read_text().splitlines()[1:]]
    return [json.loads(line)["iter"] for line in (log_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_piece_for_which_there_is_no_room_leaves_nothing_behind(tmp_path: Path) -> None:
    """The pieces before and after it are complete."""
    file = AppendedFile(tmp_path / "file")
    file.append(b"first\n")
    with room_for(10), pytest.raises(OSError, match="too large"):
        file.append(b"second\n")
    file.append(b"third\n")
    file.close()
    assert (tmp_path / "file").read_bytes() == b"first\nthird\n"


@pytest.mark.parametrize("make", MAKERS)
def test_a_full_disk_costs_the_records_of_that_time_and_no_others(make: type[Writer], tmp_path: Path) -> None:
    """Each of them is an error; when there is room again, writing goes on."""
    writer = opened(make(), tmp_path)
    writer.write(record(1))
    size = max(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    with room_for(size + 3):
        for number in (2, 3):
            with pytest.raises(OSError, match="too large"):
                writer.write(record(number))
    writer.write(record(4))
    writer.close()
    assert steps(writer, tmp_path) == [1, 4]


@pytest.mark.parametrize("make", MAKERS)
def test_a_file_that_somebody_deletes_is_made_anew(make: type[Writer], tmp_path: Path) -> None:
    """Instead of writing to where nobody looks."""
    writer = opened(make(), tmp_path)
    writer.write(record(1))
    for path in list(tmp_path.rglob("*")):
        if path.is_file():
            path.unlink()
    writer.write(record(2))
    writer.close()
    assert steps(writer, tmp_path) == [2]


@pytest.mark.parametrize("make", MAKERS)
def test_a_directory_that_is_gone_is_an_error_until_it_is_back(make: type[Writer], tmp_path: Path) -> None:
    """Every record is tried."""
    log_dir = tmp_path / "logs"
    writer = opened(make(), log_dir)
    log_dir.write_text("in the way")
    for number in (1, 2):
        with pytest.raises(OSError, match=r"logs"):
            writer.write(record(number))
    log_dir.unlink()
    log_dir.mkdir()
    writer.write(record(3))
    writer.close()
    assert steps(writer, log_dir) == [3]


def test_a_line_that_was_torn_off_does_not_spoil_the_next(tmp_path: Path) -> None:
    """By the end of a process in the middle of it."""
    (tmp_path / "metrics.jsonl").write_text('{"iter": 1}\n{"it')
    writer = opened(JsonlWriter(), tmp_path)
    writer.write(record(2))
    writer.close()
    first, torn, second = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert (json.loads(first)["iter"], torn, json.loads(second)["iter"]) == (1, '{"it', 2)


def test_descriptors_are_closed(tmp_path: Path) -> None:
    """However often a file is lost and made anew."""
    writer = opened(JsonlWriter(), tmp_path)
    writer.write(record(1))
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for number in range(2, 20):
        (tmp_path / "metrics.jsonl").unlink()
        writer.write(record(number))
    assert (len(os.listdir("/proc/self/fd")) if before else 0) == before
    writer.close()

"""What a log line costs its writers: a record with four values, written to a file on this machine."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hookbus.writers import JsonlWriter, Record, RunPlace, TensorboardWriter, Writer
from tests.benchmarks.measure import Row, timed

LINES = 1_000
ROUNDS = 25
VALUES = {"lr": 0.1, "time": 0.0042, "data_time": 0.0003, "loss": 0.2137}


def rows() -> Iterator[Row]:
    """Measure the writers whose destination is a file of their own."""
    yield _row("a TensorBoard line of 4 values", TensorboardWriter(), limit=60.0)
    yield _row("a line of `metrics.jsonl` of 4 values", JsonlWriter(), limit=None)


def _row(what: str, writer: Writer, limit: float | None) -> Row:
    records = [Record(mode="train", epoch=1, iter=number, values=VALUES, text="") for number in range(1, LINES + 1)]

    def write() -> None:
        for record in records:
            writer.write(record)

    with tempfile.TemporaryDirectory() as directory:
        writer.open(RunPlace(logger=logging.getLogger(__name__), log_dir=Path(directory)))
        write()
        rounds = [timed(write) for _ in range(ROUNDS)]
        writer.close()
    microseconds = min(rounds) / LINES * 1e6  # the quietest round: nothing is compared, so nothing evens out the noise
    if limit is None:
        return Row(what, f"{microseconds:.1f} us", "none, for information", met=True)
    return Row(what, f"{microseconds:.1f} us", f"{limit:g} us", microseconds <= limit)

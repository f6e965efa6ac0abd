"""What logging costs: the writers their threads, and all of them together the training thread.

A record with four values is written to a file on this machine. The loop is that of `tests/benchmarks/loop.py`, with the
terminal, JSON lines and TensorBoard as destinations and a line every 50 iterations.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from hookbus.writers import CSVWriter, JsonlWriter, Record, RunPlace, TensorboardWriter, Writer
from tests.benchmarks.loop import bare_loop, hooked_loop
from tests.benchmarks.measure import Row, compare, timed

LINES = 1_000
ROUNDS = 25
ITERATIONS, LOOP_ROUNDS = 5_000, 7
VALUES = {"lr": 0.1, "time": 0.0042, "data_time": 0.0003, "loss": 0.2137}
EVERYTHING = ("terminal", "jsonl", "tensorboard")


class DeadTensorboard(TensorboardWriter):
    """One whose directory cannot be made."""

    def open(self, place: RunPlace) -> None:
        """Write below a file."""
        in_the_way = place.log_dir / "in_the_way"
        in_the_way.touch()
        super().open(RunPlace(logger=place.logger, log_dir=in_the_way))


def rows() -> Iterator[Row]:
    """Measure the writers by themselves, then what training has to do with them."""
    torch.set_num_threads(1)
    yield _row("a TensorBoard line of 4 values", TensorboardWriter(), limit=60.0)
    yield _row("a line of `metrics.jsonl` of 4 values", JsonlWriter(), limit=None)
    yield _row("a row of `metrics.csv` of 4 values", CSVWriter(), limit=None)
    pair = compare(lambda: _with(EVERYTHING), lambda: bare_loop(ITERATIONS), repetitions=ITERATIONS, rounds=LOOP_ROUNDS)
    added = pair.difference * 1e6
    measured = f"+{added:.1f} us (bare {pair.other * 1e6:.1f} us, {pair.ratio:.2f}x)"
    yield Row("six default hooks with three writers", measured, "+15 us or 1.17x", added <= 15 or pair.ratio <= 1.17)
    dead = compare(
        lambda: _with(("jsonl", DeadTensorboard())), lambda: _with(("jsonl",)), repetitions=ITERATIONS, rounds=LOOP_ROUNDS
    )
    yield Row("a dead TensorBoard directory, beside none", f"{dead.ratio:.3f}x", "1.03x", dead.ratio <= 1.03)


def _with(writers: Sequence[Any]) -> float:
    return hooked_loop(ITERATIONS, writers)


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

"""Reads `metrics.jsonl` of all starts of a run into curves, line by line, whatever state the file is in."""

from __future__ import annotations

__all__ = ("Metrics", "read_metrics")

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from hookbus.cli.run_directory import METRICS_FILE
from hookbus.cli.series import Series

_MODES = ("train", "val", "test")
_COUNTERS = ("mode", "epoch", "iter")
_LONGEST_LINE = 1 << 20
"""Bytes of a line that is still read as a record."""
_MOST_SERIES = 256
"""How many names get a curve; a run that logs more is read as far as this."""
_LARGEST = 2**53


@dataclass(slots=True)
class Metrics:
    """What the records of a run say."""

    curves: dict[tuple[str, str], Series] = field(default_factory=dict)
    """By mode and name."""
    test: dict[str, Any] = field(default_factory=dict)
    """The values of the newest test."""
    test_iter: int = 0
    epoch: int = 0
    iter: int = 0
    """Completed training iterations, as far as they were logged."""
    eta: float | None = None
    """Seconds that training had left when the newest record was written."""
    interval: int = 0
    """Iterations between the two newest records of training."""
    records: int = 0
    unreadable: int = 0
    is_half_written: bool = False
    """Whether the file of the newest start ends in the middle of a line."""
    not_drawn: set[str] = field(default_factory=set)
    """Names whose values are no numbers, or one name too many."""

    def cut(self, first: int) -> None:
        """Forget what was recorded from an iteration on."""
        for series in self.curves.values():
            series.cut(first)
        if self.test_iter >= first:
            self.test, self.test_iter = {}, 0

    def take(self, record: dict[str, Any]) -> None:
        """Add one record."""
        self.records += 1
        mode, iteration = record["mode"], record["iter"]
        if mode == "train":
            if 0 < iteration <= self.iter:
                self.cut(iteration)
            self.interval = iteration - self.iter if iteration > self.iter else self.interval
            self.epoch, self.iter = record["epoch"], iteration
        values = {name: value for name, value in record.items() if name not in _COUNTERS}
        if mode == "train" and "eta" in values:
            eta = _number(values.pop("eta"))
            self.eta = None if eta != eta else eta
        if mode == "test":
            self.test, self.test_iter = {_bare(mode, name): value for name, value in values.items()}, iteration
            return
        curves = self.curves
        for name, value in values.items():
            series = curves.get((mode, name))
            if series is not None and type(value) is float:  # nearly always, and a long run has millions
                series.append(iteration, value)
            else:
                self._add(mode, _bare(mode, name), iteration, value)

    def _add(self, mode: str, name: str, iteration: int, value: Any) -> None:
        number = _number(value)
        series = self.curves.get((mode, name))
        if number is None or (series is None and len(self.curves) >= _MOST_SERIES):
            if len(self.not_drawn) < _MOST_SERIES:
                self.not_drawn.add(name)
            return
        if series is None:
            series = self.curves[mode, name] = Series()
        series.append(iteration, number)


def read_metrics(starts: Sequence[Path]) -> Metrics:
    """Return what the starts of a run recorded, as one run: what a later start did again counts as the later one says."""
    metrics = Metrics()
    for log_dir in starts:
        path = log_dir / METRICS_FILE
        if not path.is_file():
            continue
        first = _first_iteration(path)
        if first is not None:
            metrics.cut(first)
            metrics.iter = min(metrics.iter, first - 1)
        for line, is_complete in _lines(path):
            record = _decoded(line)
            metrics.is_half_written = not is_complete
            if record is not None:
                metrics.take(record)
            elif is_complete:
                metrics.unreadable += 1
    return metrics


def _first_iteration(path: Path) -> int | None:
    """Return the iteration a start began with: as far before its first record of training as the second one is behind it."""
    found: list[int] = []
    for line, _ in _lines(path):
        record = _decoded(line)
        if record is not None and record["mode"] == "train":
            found.append(record["iter"])
        if len(found) == 2:
            break
    if not found:
        return None
    return found[0] if len(found) == 1 else max(1, found[0] - max(0, found[1] - found[0]) + 1)


def _lines(path: Path) -> Iterator[tuple[bytes, bool]]:
    """Yield the lines of a file, each with whether it is complete; of one that is too long, only the beginning."""
    with path.open("rb") as file:
        while line := file.readline(_LONGEST_LINE):
            is_complete = line.endswith(b"\n")
            rest = line
            while not is_complete and len(rest) == _LONGEST_LINE:
                rest = file.readline(_LONGEST_LINE)
                is_complete = rest.endswith(b"\n")
            yield line, is_complete


def _decoded(line: bytes) -> dict[str, Any] | None:
    """Return a record, or None where the line is none."""
    try:
        record = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError):
        record = _leniently_decoded(line)
    is_record = isinstance(record, dict) and record.get("mode") in _MODES and _counts(record, "epoch") and _counts(record, "iter")
    return record if is_record else None


def _leniently_decoded(line: bytes) -> Any:
    """Decode what strict JSON is not: other programs write NaN."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _counts(record: dict[str, Any], key: str) -> bool:
    return type(record.get(key)) is int and 0 <= record[key] < _LARGEST


def _bare(mode: str, name: str) -> str:
    """Return a name without its mode, which `log_with_hierarchy` puts before it."""
    return name.removeprefix(f"{mode}/")


def _number(value: Any) -> float | None:
    """Return a value to draw; NaN for null, which is how NaN and infinities are written; None for what is no number."""
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return float("inf")

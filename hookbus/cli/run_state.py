"""What is known about a start besides its metrics: its facts, its log, and whether it still lives."""

from __future__ import annotations

__all__ = ("RunState", "Start", "read_start", "state_of")

import datetime
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hookbus.cli.handler_costs import COSTS_FILE
from hookbus.cli.metrics_reading import Metrics
from hookbus.cli.run_directory import LOG_FILE, METRICS_FILE, RUN_FILE, began_at
from hookbus.cli.words import shortened, span_in_words

_TAIL_BYTES = 1 << 16
_TAIL_LINES = 14
_LONGEST_LINE = 400
_MOST_FACTS = 1 << 20
"""Bytes of a `run.json` that is still read."""

_LOG_LINE = re.compile(r"(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) - ([A-Z]+) - (.*)")
_SERIOUS = ("ERROR", "CRITICAL")
_SILENCE = 300.0
"""Seconds without a sign of life after which a run no longer counts as running, if its records come faster than that."""
_RECORDS_MISSED = 10
"""How many records a living run may be late by."""


class RunState(NamedTuple):
    """What has become of a run, in one word and in one sentence."""

    word: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start of a run."""

    log_dir: Path
    facts: dict[str, Any]
    """What `run.json` says."""
    began: datetime.datetime | None
    last_sign: datetime.datetime | None
    """When the newest line was logged, or else when a file was written to."""
    tail: tuple[str, ...]
    """The last lines of the log."""

    @property
    def seconds(self) -> float:
        """How long it lasted, or has lasted so far."""
        if self.began is None or self.last_sign is None:
            return 0.0
        return max(0.0, (self.last_sign - self.began).total_seconds())


def read_start(log_dir: Path) -> Start:
    """Read what is small in a log directory."""
    tail = _tail(log_dir / LOG_FILE)
    return Start(
        log_dir=log_dir,
        facts=_facts(log_dir / RUN_FILE),
        began=began_at(log_dir) or _first_logged(log_dir / LOG_FILE),
        last_sign=next((time for line in reversed(tail) if (time := _time_of(line))), None) or _written_at(log_dir),
        tail=tuple(shortened(line, _LONGEST_LINE) for line in tail[-_TAIL_LINES:]),
    )


def state_of(newest: Start, metrics: Metrics, now: datetime.datetime) -> RunState:
    """Say what has become of a run.

    What `run.json` says of the end counts first, then an error in the log, then whether the newest record was one of the last
    of the run, whether the end of a run has left its file, and how long nothing has been written.
    """
    declared, reason = newest.facts.get("state"), newest.facts.get("error")
    if declared in ("finished", "failed", "stopped"):
        return RunState(declared, shortened(str(reason), 200) if reason else "")
    found = _LOG_LINE.fullmatch(newest.tail[-1]) if newest.tail else None
    if found is not None and found[2] in _SERIOUS:
        return RunState("failed", shortened(found[3], 200))
    written = _written_at(newest.log_dir)
    silence = max(0.0, (now - written).total_seconds()) if written else float("inf")
    if _is_at_its_end(metrics):
        return RunState("finished", "the newest record is the last one of training")
    if _has_ended(newest.log_dir):
        return RunState("ended", "the run is over; whether by an error is not on record")
    if silence < _patience(metrics, newest):
        return RunState("running", f"last written to {span_in_words(silence)} ago")
    if silence == float("inf"):
        return RunState("silent", "nothing was ever written")
    return RunState("silent", f"no sign of life for {span_in_words(silence)}, and neither an end nor an error on record")


def _is_at_its_end(metrics: Metrics) -> bool:
    """Say whether less time is left than passes between two records."""
    if metrics.eta is None or not metrics.records:
        return False
    times = metrics.curves.get(("train", "time"))
    last = times.points().last if times is not None else None
    return metrics.eta <= 0 or (last is not None and metrics.eta < 0.999 * metrics.interval * last)


def _has_ended(log_dir: Path) -> bool:
    """Say whether what the end of a run writes is newer than its records."""
    last, records = log_dir / COSTS_FILE, log_dir / METRICS_FILE
    return last.is_file() and (not records.is_file() or last.stat().st_mtime >= records.stat().st_mtime)


def _patience(metrics: Metrics, start: Start) -> float:
    """Return how many seconds a living run may be silent."""
    between = start.seconds / metrics.records if metrics.records else 0.0
    return max(_SILENCE, _RECORDS_MISSED * between)


def _facts(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_MOST_FACTS))
    except (OSError, ValueError, RecursionError):  # it is not there yet, or half-written: the report shows what it has
        return {}
    return found if isinstance(found, dict) else {}


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read(_TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return []
    lines = [line for line in text.split("\n") if line.strip()]
    return lines[1:] if size > _TAIL_BYTES and len(lines) > 1 else lines


def _first_logged(path: Path) -> datetime.datetime | None:
    try:
        with path.open("rb") as file:
            return _time_of(file.readline(_LONGEST_LINE).decode("utf-8", "replace"))
    except OSError:
        return None


def _time_of(line: str) -> datetime.datetime | None:
    found = _LOG_LINE.match(line)
    try:
        return datetime.datetime.strptime(found[1], "%Y/%m/%d %H:%M:%S") if found else None
    except ValueError:
        return None


def _written_at(log_dir: Path) -> datetime.datetime | None:
    """Return when one of the files was last written to."""
    paths = [log_dir / name for name in (METRICS_FILE, LOG_FILE, RUN_FILE)]
    times = [path.stat().st_mtime for path in paths if path.is_file()]
    return datetime.datetime.fromtimestamp(max(times)) if times else None

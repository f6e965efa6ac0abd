"""Everything a report shows, gathered from the files of a run."""

from __future__ import annotations

__all__ = ("RunSummary", "gather", "header_facts")

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hookbus.cli.checkpoint_list import CheckpointListing, find_checkpoints
from hookbus.cli.handler_costs import HandlerCosts, read_handler_costs
from hookbus.cli.metrics_reading import Metrics, read_metrics
from hookbus.cli.run_directory import METRICS_FILE, RUN_FILE, find_run
from hookbus.cli.run_state import RunState, Start, read_start, state_of
from hookbus.cli.words import number_in_words, shortened, span_in_words, value_in_words

_TIMES = ("time", "data_time", "eta")
_MOST_TESTED = 3
"""How many values of the newest test stand above the curves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """A run as its files describe it."""

    name: str
    starts: tuple[Start, ...]
    """In the order of time."""
    state: RunState
    metrics: Metrics
    costs: HandlerCosts
    checkpoints: CheckpointListing
    made_at: datetime.datetime
    remarks: tuple[str, ...]
    """What is missing or could not be read."""

    @property
    def facts(self) -> dict[str, Any]:
        """What `run.json` of the newest start says."""
        return self.starts[-1].facts if self.starts else {}

    @property
    def tail(self) -> tuple[str, ...]:
        """The last log lines."""
        return self.starts[-1].tail if self.starts else ()


def gather(path: Path, checkpoint_directory: Path | None, now: datetime.datetime) -> RunSummary:
    """Read the run in a directory.

    Raises:
        ConfigError: there is no run.
    """
    run = find_run(path)
    starts = tuple(read_start(log_dir) for log_dir in run.starts)
    metrics = read_metrics(run.starts)
    facts = starts[-1].facts if starts else {}
    return RunSummary(
        name=shortened(str(facts.get("experiment_name") or run.work_dir.absolute().name), 100),
        starts=starts,
        state=state_of(starts[-1], metrics, now) if starts else RunState("empty", "no start of this run left a log"),
        metrics=metrics,
        costs=read_handler_costs(run.starts),
        checkpoints=find_checkpoints(checkpoint_directory or run.checkpoint_directory),
        made_at=now,
        remarks=tuple(_remarks(starts, metrics)),
    )


def header_facts(summary: RunSummary) -> list[tuple[str, str]]:
    """Return what stands above the curves: names and values as text."""
    facts, metrics, starts = summary.facts, summary.metrics, summary.starts
    began = starts[0].began if starts else None
    reached = f"{number_in_words(metrics.iter)} (epoch {number_in_words(metrics.epoch)})" if metrics.iter else None
    running_on = metrics.eta if summary.state.word == "running" else None
    versions = [
        f"{name} {facts[key]}" for name, key in (("hookbus", "hookbus_version"), ("torch", "torch_version")) if key in facts
    ]
    processes = facts.get("world_size")
    test = [(f"test {shortened(name, 24)}", value_in_words(value)) for name, value in metrics.test.items() if name not in _TIMES]
    found = [
        *test[:_MOST_TESTED],
        ("started", began.strftime("%Y-%m-%d %H:%M:%S") if began else None),
        ("duration", span_in_words(sum(start.seconds for start in starts)) if began else None),
        ("starts", str(len(starts)) if len(starts) > 1 else None),
        ("iterations", reached),
        ("time left", span_in_words(running_on) if running_on is not None else None),
        ("device", facts.get("device")),
        ("processes", processes if processes != 1 else None),
        ("seed", str(facts["seed"]) if "seed" in facts else None),
        ("versions", ", ".join(versions) or None),
    ]
    return [(name, shortened(value if isinstance(value, str) else value_in_words(value), 60)) for name, value in found if value]


def _remarks(starts: tuple[Start, ...], metrics: Metrics) -> list[str]:
    remarks = []
    if not starts:
        remarks.append("There is no log directory, only checkpoints.")
    elif not starts[-1].facts:
        remarks.append(
            f"{RUN_FILE} of the newest start is missing or cannot be read, so device, seed and versions are not known."
        )
    if starts and not metrics.records:
        remarks.append(f"{METRICS_FILE} holds no record yet, so there are no curves.")
    elif metrics.records and not any(mode == "val" for mode, _ in metrics.curves):
        remarks.append("No validation is on record.")
    if metrics.unreadable:
        remarks.append(f"{metrics.unreadable} of the lines in {METRICS_FILE} are no records and were left out.")
    if metrics.is_half_written:
        remarks.append(f"The last line of {METRICS_FILE} is half-written: the run was writing, or was killed while it did.")
    if metrics.not_drawn:
        names = sorted(metrics.not_drawn)
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        remarks.append(f"Not drawn, as they are no numbers: {', '.join(shortened(name, 40) for name in names[:8])}{more}.")
    return remarks

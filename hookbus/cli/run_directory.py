"""Finds the parts of a run on disk: the log directory of each start, and the checkpoints."""

from __future__ import annotations

__all__ = ("LOG_FILE", "METRICS_FILE", "RUN_FILE", "RunFiles", "began_at", "find_run")

import datetime
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hookbus.errors import ConfigError, nearest

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
LOG_FILE = "train.log"

_START = re.compile(r"(?P<time>\d{8}_\d{6})(?:_(?P<number>\d{1,9}))?")
"""What the runner calls the log directory of a start: its second, and a number where that was taken."""

_MOST_LOOKED_AT = 2000
"""How many directories a search for runs looks into, at most."""

_MOST_NAMED = 5
"""How many runs an error message names."""


class RunFiles(NamedTuple):
    """Where the parts of a run lie."""

    work_dir: Path
    starts: tuple[Path, ...]
    """The log directories, in the order of time."""

    @property
    def checkpoint_directory(self) -> Path:
        """Where the checkpoints of a run lie unless it was told otherwise."""
        return self.work_dir / "checkpoints"


def find_run(path: Path) -> RunFiles:
    """Return the parts of the run in a work directory, or of the one start whose log directory is given.

    Raises:
        ConfigError: there is no run; names the nearest ones.
    """
    path = Path(path)
    if _is_start(path):
        return RunFiles(path.absolute().parent, (path,))
    starts = _starts_in(path)
    if starts or (path / "checkpoints").is_dir():
        return RunFiles(path, starts)
    what = "it holds no log directory and no checkpoints" if path.is_dir() else "there is no such directory"
    msg = f"{path} is not a run: {what}{_hint(path)}"
    raise ConfigError(msg)


def began_at(log_dir: Path) -> datetime.datetime | None:
    """Return the local time of a start, told from the name of its log directory."""
    found = _START.fullmatch(log_dir.absolute().name)
    if found is None:
        return None
    try:
        return datetime.datetime.strptime(found["time"], "%Y%m%d_%H%M%S")
    except ValueError:
        return None


def _is_start(path: Path) -> bool:
    return any((path / name).is_file() for name in (RUN_FILE, METRICS_FILE, LOG_FILE))


def _starts_in(path: Path) -> tuple[Path, ...]:
    named = [(found, child) for child in _directories(path) if (found := _START.fullmatch(child.name))]
    in_order = sorted(named, key=lambda entry: (entry[0]["time"], int(entry[0]["number"] or 1)))
    return tuple(child for _, child in in_order if _is_start(child))


def _directories(path: Path) -> list[Path]:
    """Return the directories in a directory, in the order of their names; none where it cannot be read."""
    try:
        return sorted(child for child in path.iterdir() if child.is_dir())
    except OSError:
        return []


def _hint(path: Path) -> str:
    """Return the end of an error message: the runs that lie nearest, those of a similar name first."""
    existing = next((parent for parent in (path, *path.absolute().parents) if parent.is_dir()), Path())
    starts = _starts_in(existing)
    runs = [existing, *starts] if starts else list(_runs_below(existing))
    if not runs:
        return f"; no run was found in {existing} either"
    close = nearest(path.name, [run.name for run in runs])
    named = [str(run) for run in sorted(runs, key=lambda run: run.name != close)]
    more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    return f"; runs nearby: {', '.join(named[:_MOST_NAMED])}{more}"


def _runs_below(path: Path, depth: int = 3) -> Iterator[Path]:
    """Yield the work directories below a directory, the nearest first."""
    level, looked_at = [path], 0
    for _ in range(depth):
        below: list[Path] = []
        for directory in level:
            children = [child for child in _directories(directory) if not child.name.startswith(".")]
            looked_at += len(children)
            if looked_at > _MOST_LOOKED_AT:
                return
            yield from (child for child in children if _starts_in(child))
            below += children
        level = below

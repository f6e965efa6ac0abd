"""What every drill shares: a scratch directory, a time limit, checks that count, and one line of JSON in the end."""

from __future__ import annotations

import itertools
import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

LEAST = 3
"""How many trials of a kind there are even where there is no time."""

SHOWN = 5
"""How many of the checks that failed a line shows."""


class Skipped(Exception):
    """Raised where the machine lacks what a drill needs."""


@dataclass
class Drill:
    """One run of one drill."""

    directory: Path
    """Empty at the beginning, and deleted in the end."""
    seed: int = 0
    seconds: float = 10.0
    """After so long it stops early, and says so."""
    is_long: bool = False
    """It runs in full, and more often; `seconds` does not count."""
    is_broken: bool = False
    """The twin is on trial, and has to be caught, however long that takes."""
    checked: int = 0
    wrong: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self._deadline = time.monotonic() + self.seconds
        self._places = itertools.count()

    def check(self, holds: object, problem: str) -> bool:
        """Count one check; remember the problem where it does not hold."""
        self.checked += 1
        if not holds:
            self.wrong.append(problem)
        return bool(holds)

    def within(self, items: Iterable[T], share: float = 1.0) -> Iterator[T]:
        """Yield the items as long as there is time, or this share of all time that is left."""
        now = time.monotonic()
        deadline = now + (self._deadline - now) * share
        for number, item in enumerate(items):
            if not (self.is_long or self.is_broken) and number >= LEAST and time.monotonic() > deadline:
                self.facts["cut_short"] = True
                return
            yield item
            if self.is_broken and self.wrong:
                return  # caught

    def shuffled(self, items: Iterable[T]) -> list[T]:
        """Return the items in an order that depends on the seed, so that a run that stops early has tried some of each kind."""
        mixed = list(items)
        self.random.shuffle(mixed)
        return mixed

    def times(self, number: int) -> range:
        """Return the numbers up to so many, or ten times as many in a long run."""
        return range(number * 10 if self.is_long else number)

    def fresh(self) -> Path:
        """Return a new empty directory."""
        path = self.directory / f"{next(self._places)}"
        path.mkdir()
        return path

    def drop(self, path: Path) -> None:
        """Delete what a part of the drill is done with."""
        shutil.rmtree(path, ignore_errors=True)

    def leave_out(self, part: str, reason: str) -> None:
        """Say that a part of the drill could not run here."""
        self.facts.setdefault("left_out", {})[part] = reason


@dataclass(frozen=True)
class Spec:
    """What a drill is: its number, the promise it guards, and how it runs."""

    number: int
    name: str
    promise: str
    expected: str
    twin: str
    """What the broken twin does."""
    run: Callable[[Drill], None]
    weight: float = 1.0
    """Its share of the time of all drills."""

    def conduct(self, *, seed: int = 0, seconds: float = 10.0, is_long: bool = False, is_broken: bool = False) -> dict[str, Any]:
        """Run it, and return what its line says."""
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"drill-{self.number}-", dir=scratch()) as directory:
            drill = Drill(Path(directory), seed, seconds, is_long, is_broken)
            try:
                self.run(drill)
            except Skipped as reason:
                drill.facts["skipped"] = str(reason)
            except Exception:  # noqa: BLE001  whatever it is, the drill has failed, and the other ones are still to run
                drill.wrong.append(traceback.format_exc())
        return self._line(drill, time.monotonic() - started)

    def _line(self, drill: Drill, seconds: float) -> dict[str, Any]:
        was_skipped = "skipped" in drill.facts
        line: dict[str, Any] = {"drill": self.number, "name": self.name, "promise": self.promise}
        if drill.is_broken:
            line |= {"twin": self.twin, "ok": was_skipped or bool(drill.wrong), "caught": drill.wrong[:1]}
        else:
            is_good = not drill.wrong and drill.checked > 0
            line |= {"expected": self.expected, "ok": was_skipped or is_good, "wrong": drill.wrong[:SHOWN]}
            line["failures"] = len(drill.wrong)
        return line | {"checked": drill.checked, "seconds": round(seconds, 1), "seed": drill.seed} | drill.facts


def scratch() -> str | None:
    """Return where drills work, in memory if possible: a killed process takes with it nothing that the system already has."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > 1 << 28 else None

"""The drills, each for a short time: what they guard holds, and each of them catches the twin that lacks it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.drills.__main__ import find

SECONDS = 15
"""What all drills together may take, besides what the shortest possible run of each takes."""


def run(*options: str) -> list[dict[str, Any]]:
    """Run all drills in a process of their own, because they fork, and return their lines."""
    command = [sys.executable, "-m", "tests.drills", f"--seconds={SECONDS}", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(find()), done.stderr
    return lines


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="most drills need fork and limits of Linux")
@pytest.mark.parametrize("options", [(), ("--broken",)], ids=["sound", "broken"])
def test_every_drill_passes_and_catches_its_twin(options: tuple[str, ...]) -> None:
    """A sound run has nothing wrong; of a broken one each drill says what it caught."""
    assert [line for line in run(*options) if not line["ok"]] == []


def test_every_drill_says_what_it_guards() -> None:
    """Numbers agree with the names of the files; promise, expectation and twin are there."""
    specs = find()
    files = sorted(int(path.name.split("_")[1]) for path in (Path(__file__).parent / "drills").glob("drill_*.py"))
    assert list(specs) == files
    assert all(spec.promise and spec.expected and spec.twin for spec in specs.values())

"""Loading never runs what is in a file, and never takes more memory than the file has bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.hostile import FOREIGN, NATIVE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

DAMAGED = ("a path that leaves the archive", "2^60 bytes, early format", "cut in the middle", "a stack of opcodes")
"""Foreign files that are broken rather than dangerous: what torch makes of them is torch's affair."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Load everything hostile in a process that is watched, and return what was seen."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.checkpoint.hostile", str(tmp_path_factory.mktemp("hostile"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_hostile_file_was_loaded(outcomes: list[dict[str, Any]]) -> None:
    """None is passed over."""
    expected = [*(f"native: {name}" for name in NATIVE), *(f"foreign: {name}" for name in FOREIGN)]
    assert [outcome["name"] for outcome in outcomes] == expected


def test_nothing_in_a_hostile_file_is_run(outcomes: list[dict[str, Any]]) -> None:
    """No marker appears, and the interpreter reports no import, no call and no file but the one that is read."""
    assert [outcome for outcome in outcomes if outcome["marker"] or outcome["seen"]] == []


def test_every_hostile_file_is_refused_by_name(outcomes: list[dict[str, Any]]) -> None:
    """A checkpoint of ours is corrupt; what another program wrote is unsafe, or damaged."""
    for outcome in outcomes:
        kind, _, name = outcome["name"].partition(": ")
        if kind == "native":
            assert outcome["error"] == "CheckpointCorrupt", outcome
        elif name in DAMAGED:
            assert outcome["error"] in ("CheckpointCorrupt", "UnsafeCheckpoint"), outcome
        else:
            assert outcome["error"] == "UnsafeCheckpoint", outcome


def test_no_hostile_file_takes_memory_that_it_only_claims(outcomes: list[dict[str, Any]]) -> None:
    """Sizes are compared before anything is allocated."""
    assert [outcome for outcome in outcomes if outcome["grown"] > 50] == []

"""The shim under the drill of `kill -9` finds what it is there for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.drills.drill import Drill, Skipped
from tests.drills.preload import build, cross_check


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("is_broken", [False, True])
def test_a_process_that_dies_at_a_system_call_loses_nothing_but_under_a_twin(is_broken: bool, tmp_path: Path) -> None:
    """The twin renames by copying file by file."""
    drill = Drill(tmp_path, is_broken=is_broken)
    cross_check(drill, seconds=0.0)
    if "left_out" in drill.facts:
        pytest.skip(str(drill.facts))
    assert drill.checked > 0
    assert bool(drill.wrong) is is_broken


def test_a_machine_without_a_compiler_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part is named among what was left out, with the reason."""
    monkeypatch.setitem(os.environ, "PATH", str(tmp_path))
    with pytest.raises(Skipped, match="compiler"):
        build(tmp_path)
    drill = Drill(tmp_path)
    cross_check(drill, seconds=1.0)
    assert list(drill.facts["left_out"]) == ["through the real system calls"]

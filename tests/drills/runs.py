"""Whole training runs, small ones, for children to run and to die in."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hookbus.checkpoint import load_checkpoint
from hookbus.errors import CheckpointError
from hookbus.hooks import Hook
from hookbus.runner import Runner
from tests.drills.drill import scratch
from tests.runner.builders import make_runner


class Acknowledging(Hook):
    """Writes one byte for each checkpoint that a run has taken."""

    def __init__(self, told: int) -> None:
        self._told = told
        self._last: str | None = None

    def before_train(self, runner: Runner) -> None:
        """What a resumed run finds in its hub was taken by the one before."""
        self._last = self._saved(runner)

    def before_train_iter(self, runner: Runner) -> None:
        """By now the save at the boundary before has returned."""
        saved = self._saved(runner)
        if saved != self._last:
            self._last = saved
            os.write(self._told, b".")

    def _saved(self, runner: Runner) -> str:
        return str(runner.message_hub.get_info("last_ckpt", ""))


def make_run(work_dir: Path, iterations: int, hooks: Sequence[Hook] = (), **changes: Any) -> Runner:
    """Return a run of so many iterations that goes on from the newest checkpoint, saves after each one, and keeps two."""
    checkpoint = dict(by_epoch=False, interval=1, max_keep_ckpts=2) | changes.pop("checkpoint", {})
    options: dict[str, Any] = {
        "train_cfg": dict(by_epoch=False, max_iters=iterations),
        "default_hooks": dict(checkpoint=checkpoint),
        "val_dataloader": None,
        "custom_hooks": list(hooks),
        "resume": "auto",
    }
    return make_runner(work_dir, **options | changes)


def iterations_in(path: Path) -> int:
    """Load a checkpoint of a run or of a drill, every byte verified, and return the iterations it holds; -1 if it is damaged."""
    try:
        return int(load_checkpoint(path)["meta"]["iter"])
    except CheckpointError:
        return -1


@functools.cache
def warm_up() -> None:
    """Run once, so that children find everything imported."""
    nowhere = io.StringIO()
    with contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere), _place() as work_dir:
        make_run(Path(work_dir), iterations=2).train()


def _place() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(dir=scratch())

"""Saving: puts the whole state of a run together, has the store commit it, and lets superseded checkpoints go."""

from __future__ import annotations

__all__ = ("SaveRequest", "Saver")

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from hookbus._version import __version__
from hookbus.checkpoint import CheckpointStore, Retention, load_checkpoint, save_checkpoint
from hookbus.distributed import is_main_process
from hookbus.events import BeforeSaveCheckpoint
from hookbus.runner.randomness import rng_state

if TYPE_CHECKING:
    from hookbus.runner.runner import Runner


class SaveRequest(NamedTuple):
    """What is to be saved at the next step boundary."""

    name: str
    role: str = "periodic"
    max_keep: int = -1
    facts: Mapping[str, Any] = {}
    supersedes: tuple[str, ...] = ()
    """Checkpoints that go once this one is committed."""


class Saver:
    """Takes the checkpoints of one runner."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._has_saved = False
        self.store = CheckpointStore(runner.work_dir / "checkpoints", runner.work_dir / "last_checkpoint")

    def prepare(self) -> None:
        """Make room for a fresh run: clean up after a crash, and set aside the checkpoints of an earlier run."""
        directory = self.store.directory
        if self._has_saved or not is_main_process() or not directory.exists():
            return
        for line in self.store.clean():
            self._runner.logger.warning(line)
        if any(directory.iterdir()):
            aside = directory.with_name(f"checkpoints_before_{self._runner.timestamp}")
            directory.rename(aside)
            self._runner.logger.warning("the checkpoints of an earlier run were moved to %s", aside)

    def save(self, request: SaveRequest) -> Path | None:
        """Save now; return None where a hook skipped it, or another process is the one that saves."""
        runner = self._runner
        runner.message_hub.update_info_dict({"epoch": runner.epoch, "iter": runner.iter})  # at a boundary they have moved
        checkpoint = self.assemble()
        event = BeforeSaveCheckpoint(name=request.name, epoch=runner.epoch, iter=runner.iter)
        if runner.bus.emit(event, {"runner": runner, "checkpoint": checkpoint}) is not None or not is_main_process():
            return None
        path = save_checkpoint(
            self.store,
            request.name,
            checkpoint,
            epoch=runner.epoch,
            iter=runner.iter,
            role=request.role,
            hookbus_version=__version__,
            facts=dict(request.facts),
            replace=True,
        )
        self._has_saved = True
        if request.role == "periodic":
            runner.message_hub.update_info("last_ckpt", str(path))
        self._let_go(request)
        runner.logger.info("saved %s", path)
        return path

    def _let_go(self, request: SaveRequest) -> None:
        committed = self.store.list()
        superseded = {info.name for info in committed}.intersection(request.supersedes)  # a hook may have skipped one
        if request.role == "periodic":
            superseded |= set(Retention(request.max_keep).superseded(committed, protected={request.name}))
        for name in superseded - {request.name}:
            self.store.remove(name)

    def assemble(self) -> dict[str, Any]:
        """Return the whole state of the run, as hooks may edit it."""
        runner = self._runner
        meta = {
            "epoch": runner.epoch,
            "iter": runner.iter,
            "experiment_name": runner.experiment_name,
            "seed": runner.seed,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "hookbus_version": __version__,
            "torch_version": str(torch.__version__),
        }
        checkpoint = {
            "meta": meta,
            "state_dict": runner.model.state_dict(),
            "param_schedulers": [scheduler.state_dict() for scheduler in runner.param_schedulers],
            "message_hub": _packed(runner.message_hub.state_dict()),
            "hooks": self._hook_states() | {"bus": runner.bus.state_dict()},
            "rng": rng_state(),
            "progress": runner.progress.state_dict(),
        }
        if runner.optim_wrapper is not None:
            checkpoint["optimizer"] = runner.optim_wrapper.state_dict()
        return checkpoint

    def _hook_states(self) -> dict[str, Any]:
        """Return the states of the hooks under keys that stay the same from start to start."""
        states: dict[str, Any] = {}
        for hook in self._runner.hooks:
            key = name = type(hook).__name__
            number = 1
            while key in states:
                number += 1
                key = f"{name}_{number}"
            states[key] = hook.state_dict() if hasattr(hook, "state_dict") else {}
        return {key: state for key, state in states.items() if state}

    def load(self, path: str | Path) -> dict[str, Any]:
        """Read a checkpoint, every byte verified."""
        return load_checkpoint(path)


def _packed(hub_state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a hub with each history as arrays, which take no time to write."""
    kinds = (np.float64, np.int64, np.int64)
    packed = {
        key: tuple(np.array(column, kind) for column, kind in zip(columns, kinds, strict=True))
        for key, columns in hub_state["log_scalars"].items()
    }
    return hub_state | {"log_scalars": packed}

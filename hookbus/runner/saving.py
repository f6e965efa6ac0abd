"""Saving: puts the whole state of a run together, has the store commit it, and lets superseded checkpoints go."""

from __future__ import annotations

__all__ = ("SaveRequest", "Saver")

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from hookbus._version import __version__
from hookbus.checkpoint import CheckpointStore, load_checkpoint, save_checkpoint
from hookbus.checkpoint.places import directory_of
from hookbus.checkpoint.retention import GROUPS, groups_of, superseded
from hookbus.distributed import is_main_process
from hookbus.events import BeforeSaveCheckpoint
from hookbus.random_state import rng_state

if TYPE_CHECKING:
    from hookbus.runner.runner import Runner
    from hookbus.types import HookLike


class SaveRequest(NamedTuple):
    """What is to be saved at the next step boundary."""

    name: str
    role: str = "periodic"
    """`periodic`, or another word for one that retention does not count."""
    max_keep: int = -1
    """How many periodic checkpoints of its owner stay, the newest; -1 for all."""
    facts: Mapping[str, Any] = {}
    """Plain values to keep in its manifest."""
    supersedes: tuple[str, ...] = ()
    """Checkpoints that go once this one is committed."""
    owner: HookLike | None = None
    """The hook whose checkpoint it is; None where somebody asks by hand."""
    directory: Path | None = None
    """Where it goes instead of `checkpoints/` in the work directory."""
    leave_out: tuple[str, ...] = ()
    """Entries that it does not hold."""


class Saver:
    """Takes the checkpoints of one runner."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._is_prepared = False
        self.store = CheckpointStore(directory_of(runner.work_dir), runner.work_dir / "last_checkpoint")
        self._limits: dict[str | None, int] = {}

    def stores(self) -> list[CheckpointStore]:
        """Return every place where checkpoints of this run may lie: that of the work directory, then those that hooks name."""
        placing = [hook for hook in self._runner.hooks if hasattr(hook, "checkpoint_directory")]
        named = [hook.checkpoint_directory(self._runner.work_dir) for hook in placing]
        stores = [self.store, *(self.store_for(directory) for directory in named)]
        return list({store.directory.resolve(): store for store in stores}.values())

    def store_for(self, directory: Path | None) -> CheckpointStore:
        """Return the store of a directory; None means that of the work directory."""
        return self.store if directory is None else CheckpointStore(directory, self.store.last_checkpoint_path)

    def prepare(self, completed: int) -> None:
        """Clean up after a crash, and set aside what lies ahead of this run: checkpoints of more iterations, or damaged ones.

        A fresh run has completed 0, so the checkpoints of an earlier run go aside as a whole.
        """
        if self._is_prepared or not is_main_process():
            return
        self._is_prepared = True
        for store in self.stores():
            for line in store.clean():
                self._runner.logger.warning(line)
            ahead = [info.name for info in store.list() if info.iter > completed or completed == 0]
            self._set_aside(store, [*ahead, *store.damaged()])

    def _set_aside(self, store: CheckpointStore, names: list[str]) -> None:
        aside = store.directory.with_name(f"{store.directory.name}_before_{self._runner.timestamp}")
        for name in names:
            aside.mkdir(exist_ok=True)
            (store.directory / name).rename(aside / name)
        if names:
            self._runner.logger.warning("checkpoints of an earlier run were moved to %s: %s", aside, ", ".join(names))

    def save(self, request: SaveRequest) -> Path | None:
        """Save now; return None where a hook skipped it, or another process is the one that saves."""
        self._is_prepared = True  # what is saved before training begins is not of an earlier run
        runner = self._runner
        runner.message_hub.update_info_dict({"epoch": runner.epoch, "iter": runner.iter})  # at a boundary they have moved
        checkpoint = self.assemble(request.leave_out)
        event = BeforeSaveCheckpoint(name=request.name, epoch=runner.epoch, iter=runner.iter)
        if runner.bus.emit(event, {"runner": runner, "checkpoint": checkpoint}) is not None or not is_main_process():
            return None
        store = self.store_for(request.directory)
        path = save_checkpoint(
            store,
            request.name,
            checkpoint,
            epoch=runner.epoch,
            iter=runner.iter,
            role=request.role,
            hookbus_version=__version__,
            facts=self._facts(request, store),
            replace=True,
        )
        if request.role == "periodic":
            runner.message_hub.update_info("last_ckpt", str(path))
        self._let_go(request, store)
        runner.logger.info("saved %s", path)
        return path

    def _facts(self, request: SaveRequest, store: CheckpointStore) -> dict[str, Any]:
        """Return what goes into the manifest; one that several hooks ask for at the same moment belongs to all of them."""
        if request.role != "periodic":
            return dict(request.facts)
        here = [info for info in store.list() if (info.name, info.iter) == (request.name, self._runner.iter)]
        groups = {self._group(request.owner), *(group for info in here for group in groups_of(info))} - {None}
        return {**request.facts, GROUPS: sorted(groups)} if groups else dict(request.facts)

    def _group(self, owner: HookLike | None) -> str | None:
        """Return what the checkpoints of a hook are counted under; it stays the same from start to start."""
        if owner is None:
            return None
        unlisted = f"{type(owner).__name__}_0"  # put on the bus by hand
        return next((key for key, hook in self.keyed_hooks().items() if hook is owner), unlisted)

    def _let_go(self, request: SaveRequest, store: CheckpointStore) -> None:
        committed = store.list()
        going = {info.name for info in committed}.intersection(request.supersedes)  # a hook may have skipped one
        if request.role == "periodic":
            group = self._group(request.owner)
            self._limits[group] = request.max_keep
            going |= set(superseded(committed, group, self._limits, protected={request.name}))
        for name in going - {request.name}:
            store.remove(name)

    def assemble(self, leave_out: Collection[str] = ()) -> dict[str, Any]:
        """Return the whole state of the run but for the entries left out, as hooks may edit it."""
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
        return {key: entry for key, entry in checkpoint.items() if key not in leave_out}

    def _hook_states(self) -> dict[str, Any]:
        states = {key: hook.state_dict() for key, hook in self.keyed_hooks().items()}
        return {key: state for key, state in states.items() if state}

    def keyed_hooks(self) -> dict[str, Any]:
        """Return the hooks that have a state, under keys that stay the same from start to start."""
        keyed: dict[str, Any] = {}
        for hook in self._runner.hooks:
            key = name = type(hook).__name__
            number = 1
            while key in keyed:
                number += 1
                key = f"{name}_{number}"
            keyed[key] = hook
        return {key: hook for key, hook in keyed.items() if hasattr(hook, "state_dict") and hasattr(hook, "load_state_dict")}

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

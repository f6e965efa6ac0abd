"""Saving: puts the whole state of a run together and has it committed, at once or while training goes on."""

from __future__ import annotations

__all__ = ("Saver",)

import dataclasses
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from hookbus._bare import bare
from hookbus._version import __version__
from hookbus.checkpoint import CheckpointStore, load_checkpoint
from hookbus.checkpoint.locking import DirectoryLocks
from hookbus.checkpoint.places import directory_of
from hookbus.checkpoint.staging import StagingArea
from hookbus.distributed import is_main_process
from hookbus.errors import describe_error
from hookbus.events import BeforeSaveCheckpoint, CheckpointCommitted, CheckpointFailed, CheckpointStaged
from hookbus.mailbox import Acknowledgement
from hookbus.random_state import rng_state
from hookbus.runner.async_saving import BackgroundWriter, Write
from hookbus.runner.committing import Commit, Committer, SaveRequest
from hookbus.runner.sameness import Marks, are_equal, marks_of
from hookbus.runner.settings import settings_of

if TYPE_CHECKING:
    from hookbus.runner.runner import Runner
    from hookbus.training_thread import TrainingThread
    from hookbus.types import HookLike


class _Taken(NamedTuple):
    """A state that was saved."""

    step: tuple[int, int]
    marks: Marks | None
    path: Path | None = None


class Saver:
    """Takes the checkpoints of one runner."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._is_prepared = False
        self.store = CheckpointStore(directory_of(runner.work_dir), runner.work_dir / "last_checkpoint")
        self.host: TrainingThread | None = None
        """The training thread, while a run is live."""
        self._committer = Committer()
        self._writer = BackgroundWriter(runner.logger, runner.experiment_name)
        self._staging = StagingArea()
        self._locks = DirectoryLocks(runner.logger.warning)
        self._newest: _Taken | None = None

    def stores(self) -> list[CheckpointStore]:
        """Return every place where checkpoints of this run may lie: that of the work directory, then those that hooks name.

        What is being written is finished first.
        """
        self.wait("looking for checkpoints")
        placing = [hook for hook in self._runner.hooks if hasattr(hook, "checkpoint_directory")]
        named = [hook.checkpoint_directory(self._runner.work_dir) for hook in placing]
        stores = [self.store, *(self.store_for(directory) for directory in named)]
        return list({store.directory.resolve(): store for store in stores}.values())

    def store_for(self, directory: Path | None) -> CheckpointStore:
        """Return the store of a directory; None means that of the work directory."""
        if directory is None:
            return self.store
        return CheckpointStore(directory, self.store.last_checkpoint_path, files=self.store.files)

    def prepare(self, completed: int) -> None:
        """Keep other runs out, and before the first run also make room: see `_make_room`.

        Raises:
            CheckpointWriteError: checkpoints could not be written, as a trial shows.
            CheckpointsInUse: another live run writes there.
            CheckpointReadError: one that is there could not be read, so that nobody knows whether it is sound.
        """
        if not is_main_process():
            return
        stores = self.stores()
        with self._kept_to_itself(stores):
            if not self._is_prepared:
                self._make_room(stores, completed)

    @contextmanager
    def _kept_to_itself(self, stores: Collection[CheckpointStore]) -> Iterator[None]:
        """Lock directories: until `release` where a run is live, else for the moment."""
        self._locks.take([store.directory for store in stores], self.store.files)
        try:
            if not self._is_prepared:
                for store in stores:
                    store.probe()
            yield
        finally:
            if self.host is None:
                self._locks.release()

    def release(self) -> None:
        """Let other runs write where this one did; while something is still being written there, only after that."""
        self._writer.afterwards(self._locks.release)

    def _make_room(self, stores: Collection[CheckpointStore], completed: int) -> None:
        """Clean up after a crash, and set aside what lies ahead of this run: checkpoints of more iterations, or damaged ones.

        A fresh run has completed 0, so the checkpoints of an earlier run go aside as a whole.
        """
        self._is_prepared = True
        for store in stores:
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

    def save(self, request: SaveRequest) -> Path | Acknowledgement[Path | None] | None:
        """Save now; return None where a hook skipped it, or another process is the one that saves.

        An asynchronous request gets its answer later, once the checkpoint is written; outside of a run it is not asynchronous.
        """
        started = perf_counter()
        self._is_prepared = True  # what is saved before training begins is not of an earlier run
        self.wait(f"saving {request.name}")
        runner = self._runner
        runner.message_hub.update_info_dict({"epoch": runner.epoch, "iter": runner.iter})  # at a boundary they have moved
        self._settle_hooks()
        checkpoint = self.assemble(request.leave_out)
        event = BeforeSaveCheckpoint(name=request.name, epoch=runner.epoch, iter=runner.iter)
        if runner.bus.emit(event, {"runner": runner, "checkpoint": checkpoint}) is not None or not is_main_process():
            return None
        taken = _Taken((runner.epoch, runner.iter), marks_of(bare(runner.model), checkpoint))
        commit = self._commit_of(request, taken)
        if request.asynchronous and self.host is not None:
            return self._write_in_background(commit, taken, checkpoint, started)
        try:
            with self._kept_to_itself([commit.store]):
                path = self._committer.commit(commit, checkpoint)
        except Exception as error:
            self._failed(commit, error)
            raise
        self._committed(commit, taken, path, perf_counter() - started)
        return path

    def _settle_hooks(self) -> None:
        """Wait for background handlers of hooks whose state is about to be saved."""
        stateful = set(map(id, self.keyed_hooks().values()))
        self._runner.bus.drain(of=lambda subscription: id(getattr(subscription.handler, "__self__", None)) in stateful)

    def _commit_of(self, request: SaveRequest, taken: _Taken) -> Commit:
        commit = Commit(request, self.store_for(request.directory), *taken.step, self._group(request.owner))
        before = self._newest
        if before is None or before.path is None or before.step != taken.step:
            return commit
        if before.marks is None or taken.marks is None:
            return dataclasses.replace(commit, link_from=before.path)  # their digests are compared
        is_unchanged = are_equal(before.marks, taken.marks)
        return dataclasses.replace(commit, link_from=before.path, is_unchanged=True) if is_unchanged else commit

    def _write_in_background(
        self, commit: Commit, taken: _Taken, checkpoint: Mapping[str, Any], started: float
    ) -> Acknowledgement[Path | None]:
        assert self.host is not None
        answer: Acknowledgement[Path | None] = Acknowledgement(f"writing {commit.request.name}")
        try:
            self._locks.take([commit.store.directory], commit.store.files)
            staged = self._staging.stage(checkpoint)
            write = Write(
                name=commit.request.name,
                write=lambda: self._committer.commit(commit, staged.wait()),
                committed=lambda path, finished: self._committed(commit, taken, path, finished - started),
                failed=lambda error: self._failed(commit, error),
                answer=answer,
                written=lambda: commit.store.files.written,
                stall_timeout=commit.request.stall_timeout,
            )
            self._writer.begin(self.host, write)
        except Exception as error:
            self._failed(commit, error)
            raise
        self._announce(CheckpointStaged, commit, seconds=perf_counter() - started)
        return answer

    def _committed(self, commit: Commit, taken: _Taken, path: Path, seconds: float) -> None:
        self._newest = taken._replace(path=path)
        if commit.is_periodic:
            self._runner.message_hub.update_info("last_ckpt", str(path))
        self._runner.logger.info("saved %s", path)
        self._announce(CheckpointCommitted, commit, path=str(path), seconds=seconds)

    def _failed(self, commit: Commit, error: BaseException) -> None:
        """Tell listeners; what goes wrong there is noted on the error, which goes on."""
        try:
            self._announce(CheckpointFailed, commit, error_type=type(error).__name__, message=describe_error(error))
        except Exception as another:  # noqa: BLE001  it must not take the place of the first
            error.add_note(f"and at CheckpointFailed: {describe_error(another)}")

    def _announce(self, event_type: Any, commit: Commit, **facts: Any) -> None:
        bus = self._runner.bus
        if bus.has_subscribers(event_type):
            event = event_type(name=commit.request.name, epoch=commit.epoch, iter=commit.iter, **facts)
            bus.emit(event, {"runner": self._runner})

    def wait(self, what: str) -> None:
        """Return when nothing is being written any more; an error of that is raised here."""
        self._writer.wait(self.host, what)

    def finish(self) -> None:
        """Bring what is being written to an end, as the end of a run has to."""
        try:
            if self.host is not None:
                self._writer.finish(self.host)
        finally:
            self._staging.release()

    def _group(self, owner: HookLike | None) -> str | None:
        """Return what the checkpoints of a hook are counted under; it stays the same from start to start."""
        if owner is None:
            return None
        unlisted = f"{type(owner).__name__}_0"  # put on the bus by hand
        return next((key for key, hook in self.keyed_hooks().items() if hook is owner), unlisted)

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
            "settings": settings_of(runner),
        }
        checkpoint = {
            "meta": meta,
            "state_dict": bare(runner.model).state_dict(),
            "param_schedulers": [scheduler.state_dict() for scheduler in runner.param_schedulers],
            "message_hub": _packed(runner.message_hub.state_dict()),
            "hooks": self._hook_states() | {"bus": runner.bus.state_dict()},
            "rng": rng_state(),
            "progress": runner.progress.state_dict(),
        }
        if runner.train_loop is not None:
            checkpoint["loader"] = runner.train_loop.state_dict()
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
        """Read a checkpoint, every byte verified; one that is being written is finished first."""
        self.wait(f"loading {path}")
        return load_checkpoint(path, files=self.store.files)


def _packed(hub_state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a hub with each history as arrays, which take no time to write."""
    kinds = (np.float64, np.int64, np.int64)
    packed = {
        key: tuple(np.array(column, kind) for column, kind in zip(columns, kinds, strict=True))
        for key, columns in hub_state["log_scalars"].items()
    }
    return hub_state | {"log_scalars": packed}

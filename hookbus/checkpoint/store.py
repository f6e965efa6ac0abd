"""The checkpoints of one run on disk: each appears by one atomic rename or not at all.

- The files are written under a hidden temporary name and made durable, the manifest last; then the directory is renamed and its
  parent made durable. After `save` has returned, a crash or a power loss cannot lose the checkpoint (given an honest fsync).
- A checkpoint is never written over. `replace=True` moves the old one aside, renames the new one in and then deletes the old
  one, so at every instant one of the two is complete; after a crash between the two renames `clean` moves the old one back.
- Whatever fails before the commit leaves the earlier checkpoints as they were and nothing of its own.
- Only what is proven to be the store's own is ever deleted. One process writes to a directory at a time; runs see to that with
  `DirectoryLocks`.
"""

from __future__ import annotations

__all__ = ("CheckpointStore",)

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hookbus.checkpoint.files import Files
from hookbus.checkpoint.leftovers import clean_directory, clean_file, discard_directory, hidden_path
from hookbus.checkpoint.manifest import (
    FILE_NAME,
    MANIFEST_FILE,
    STATE_FILE,
    CheckpointInfo,
    check_name,
    read_errors,
    read_manifest,
    render_manifest,
    verify_files,
)
from hookbus.checkpoint.probing import probe_directory, probe_file
from hookbus.checkpoint.writing import Content, make_directories, write_errors, write_file, write_files
from hookbus.errors import CheckpointError, CheckpointReadError, InvalidName, choices


class CheckpointStore:
    """The committed checkpoints in `directory`, and the file that names the newest one."""

    def __init__(self, directory: Path, last_checkpoint_path: Path | None = None, *, files: Files | None = None) -> None:
        self.directory = Path(directory)
        self.last_checkpoint_path = Path(last_checkpoint_path or self.directory.parent / "last_checkpoint")
        self.files = files or Files()
        """The operations of the file system."""

    def save(
        self,
        name: str,
        contents: Mapping[str, Content],
        *,
        epoch: int,
        iter: int,
        role: str = "periodic",
        hookbus_version: str = "",
        facts: Mapping[str, Any] | None = None,
        replace: bool = False,
    ) -> Path:
        """Commit the files under the name and return the directory of the checkpoint.

        `last_checkpoint` then names it, unless its role is "best": those come and go.

        Raises:
            InvalidName: if the name or the name of a file is not allowed.
            CheckpointError: if a checkpoint of that name exists and `replace` is false, or something else is in its place.
            CheckpointWriteError: if the file system refused; nothing was committed unless the message says so.
        """
        target = self.directory / check_name(name)
        _check_file_names(contents)
        with write_errors(f"the checkpoint {target} was not committed"):
            self._check_target(target, replace=replace)
        info = CheckpointInfo(
            name=name, path=target, epoch=epoch, iter=iter, role=role, hookbus_version=hookbus_version, facts=dict(facts or {})
        )
        render_manifest(info)  # refuses bad facts before anything is written
        with write_errors(f"the checkpoint {target} was not committed"):
            old = self._commit(info, contents)
        with write_errors(f"the checkpoint {target} is committed, but what follows a commit failed"):
            if old is not None:
                discard_directory(old, self.files)
            if role != "best":
                self._write_last(name)
        return target

    def list(self) -> Sequence[CheckpointInfo]:
        """Return the committed checkpoints, the newest (highest step) last. Their files are not read; see `verify`.

        A directory that was copied or renamed by hand is not the store's, and is left out.

        Raises:
            CheckpointReadError: if the file system does not let a manifest be read, which says nothing about what it holds.
        """
        return sorted(self._scan(), key=lambda info: info.step)

    def latest(self) -> CheckpointInfo | None:
        """Return the committed checkpoint of the highest step, or None."""
        return next(reversed(self.list()), None)

    def damaged(self) -> dict[str, CheckpointError]:
        """Return the directories that look like checkpoints and whose manifest is missing or not sound, with what is wrong.

        Raises:
            CheckpointReadError: like `list`.
        """
        problems: dict[str, CheckpointError] = {}
        list(self._scan(problems))
        return problems

    def get(self, name: str) -> CheckpointInfo:
        """Return what the manifest of the named checkpoint says.

        Raises:
            CheckpointError: if there is no such checkpoint; names the nearest one.
            CheckpointCorrupt: if its manifest is damaged.
        """
        path = self.directory / check_name(name)
        with read_errors(path):
            is_there = self.files.is_directory(path)
        if not is_there:
            message = f"there is no checkpoint {name!r} in {self.directory}; {choices(name, [info.name for info in self.list()])}"
            raise CheckpointError(message)
        return read_manifest(path, self.files)

    def verify(self, name: str) -> CheckpointInfo:
        """Compare every byte of the named checkpoint with its manifest; raises like `get`, CheckpointCorrupt for any damage."""
        info = self.get(name)
        verify_files(info, self.files)
        return info

    def remove(self, name: str) -> None:
        """Delete one checkpoint: it disappears by one rename, then its files go.

        Raises:
            CheckpointError: if there is none of that name, or its directory holds a file that is not its own.
            CheckpointCorrupt: if its manifest is damaged, so that nothing proves whose it is.
            CheckpointWriteError: if the file system refused.
        """
        info = self.get(name)
        with read_errors(info.path):
            foreign = set(self.files.list_names(info.path)) - set(info.files) - {MANIFEST_FILE}
        if info.name != name or foreign:
            reason = f"it holds {', '.join(sorted(foreign))}" if foreign else f"its manifest names {info.name!r}"
            message = f"{info.path} is not removed because {reason}, which this store did not write there"
            raise CheckpointError(message)
        aside = hidden_path(info.path, "tmp")
        with write_errors(f"the checkpoint {info.path} could not be removed"):
            self._move_aside(info.path, aside)
            discard_directory(aside, self.files)

    def clean(self) -> Sequence[str]:
        """Tidy up after a crash, and return what was done: call it once, before anything else writes here.

        A checkpoint that was moved aside while it was replaced is moved back if its successor never appeared; temporary
        directories and files go.

        Raises:
            CheckpointWriteError: if the file system refused.
        """
        with write_errors(f"the checkpoints in {self.directory} could not be cleaned up"):
            restored_or_removed = clean_directory(self.directory, self.files)
            removed = clean_file(self.last_checkpoint_path, self.files)
        return [*restored_or_removed, *removed]

    def probe(self) -> None:
        """Go through what saving takes, on a small scale, and leave nothing: call it before training, not at the first save.

        Raises:
            CheckpointWriteError: if the file system refuses; its `errno` says why.
        """
        with write_errors(f"checkpoints cannot be written to {self.directory}, as a trial shows"):
            probe_directory(self.directory, self.files)
            probe_file(self.last_checkpoint_path, self.files)

    def _scan(self, problems: dict[str, CheckpointError] | None = None) -> Iterator[CheckpointInfo]:
        for path in self._candidates():
            name = path.name
            try:
                info = read_manifest(path, self.files)
            except CheckpointReadError:
                raise
            except CheckpointError as error:
                if problems is not None:
                    problems[name] = error
            else:
                if info.name == name:
                    yield info

    def _candidates(self) -> Sequence[Path]:
        """Return the directories that look like checkpoints."""
        with read_errors(self.directory):
            visible = [self.directory / name for name in self.files.list_names(self.directory) if not name.startswith(".")]
            return [path for path in visible if self.files.is_directory(path) and self._looks_like_one(path)]

    def _looks_like_one(self, path: Path) -> bool:
        """Say whether there is a manifest, or the state of a checkpoint that has lost it."""
        return self.files.exists(path / MANIFEST_FILE) or self.files.exists(path / STATE_FILE)

    def _check_target(self, target: Path, *, replace: bool) -> None:
        if not self.files.exists(target):
            return
        if not self.files.is_directory(target) or not self.files.is_file(target / MANIFEST_FILE):
            message = f"{target} cannot be written: something that is not a checkpoint has this name"
            raise CheckpointError(message)
        if not replace:
            message = f"the checkpoint {target} exists already, and checkpoints are not overwritten; replace=True replaces it"
            raise CheckpointError(message)

    def _commit(self, info: CheckpointInfo, contents: Mapping[str, Content]) -> Path | None:
        """Write and rename; return where the checkpoint of the same name is now, if there was one."""
        make_directories(self.directory, self.files)
        temporary = hidden_path(info.path, "tmp")
        try:
            self._write_directory(temporary, info, contents)
            return self._rename_in(temporary, info.path)
        except BaseException:
            with contextlib.suppress(OSError):
                discard_directory(temporary, self.files)
            raise

    def _write_directory(self, path: Path, info: CheckpointInfo, contents: Mapping[str, Content]) -> None:
        self.files.make_directory(path)
        records = write_files(path, contents, self.files)
        write_file(path / MANIFEST_FILE, [render_manifest(dataclasses.replace(info, files=records))], self.files)
        self.files.sync_directory(path)

    def _rename_in(self, temporary: Path, target: Path) -> Path | None:
        old = hidden_path(target, "old") if self.files.exists(target) else None
        try:
            if old is not None:
                self.files.rename(target, old)
            self.files.rename(temporary, target)
            self.files.sync_directory(self.directory)
        except BaseException:
            self._undo_renames(temporary, target, old)
            raise
        return old

    def _move_aside(self, path: Path, aside: Path) -> None:
        """Rename durably: else a power loss could undo the rename and not what follows, and leave a part of a checkpoint."""
        self.files.rename(path, aside)
        try:
            self.files.sync_directory(self.directory)
        except BaseException:
            with contextlib.suppress(OSError):
                self.files.rename(aside, path)
            raise

    def _undo_renames(self, temporary: Path, target: Path, old: Path | None) -> None:
        with contextlib.suppress(OSError):  # where even this fails, `clean` finds one of the two complete
            if not self.files.exists(temporary):
                self.files.rename(target, temporary)
            if old is not None and self.files.exists(old):
                self.files.rename(old, target)

    def _write_last(self, name: str) -> None:
        path = self.last_checkpoint_path
        temporary = hidden_path(path, "tmp")
        try:
            write_file(temporary, [name.encode()], self.files)
            self.files.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                self.files.remove_file(temporary)
            raise
        self.files.sync_directory(path.parent)


def _check_file_names(contents: Mapping[str, Content]) -> None:
    for name in contents:
        if not FILE_NAME.fullmatch(name):
            message = (
                f"{name!r} cannot name a file in a checkpoint: expected lower-case letters and digits, then .safetensors or .json"
            )
            raise InvalidName(message)

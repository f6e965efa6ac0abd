"""The checkpoints of one run on disk: each appears by one atomic rename or not at all.

- The files are written under a hidden temporary name and made durable, the manifest last; then the directory is renamed and its
  parent made durable. After `save` has returned, a crash or a power loss cannot lose the checkpoint (given an honest fsync).
- A checkpoint is never written over. `replace=True` moves the old one aside, renames the new one in and then deletes the old
  one, so at every instant one of the two is complete; after a crash between the two renames `clean` moves the old one back.
- Whatever fails before the commit leaves the earlier checkpoints as they were and nothing of its own.
- Only what is proven to be the store's own is ever deleted. One process writes to a directory at a time.
"""

from __future__ import annotations

__all__ = ("CheckpointStore",)

import contextlib
import dataclasses
import hashlib
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hookbus.checkpoint.files import Files
from hookbus.checkpoint.manifest import (
    FILE_NAME,
    MANIFEST_FILE,
    CheckpointInfo,
    FileRecord,
    check_name,
    read_manifest,
    render_manifest,
    verify_files,
)
from hookbus.errors import CheckpointError, CheckpointWriteError, InvalidName, choices

Content = Iterable[bytes | memoryview]
"""What a file holds, in pieces."""

_LEFTOVER = re.compile(r"\.(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,99})\.(?P<kind>tmp|old)-[0-9a-f]{16}")


class CheckpointStore:
    """The committed checkpoints in `directory`, and the file that names the newest one."""

    def __init__(self, directory: Path, last_checkpoint_path: Path | None = None, *, files: Files | None = None) -> None:
        self.directory = Path(directory)
        self.last_checkpoint_path = Path(last_checkpoint_path or self.directory.parent / "last_checkpoint")
        self._files = files or Files()

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
        self._check_target(target, replace=replace)
        info = CheckpointInfo(
            name=name, path=target, epoch=epoch, iter=iter, role=role, hookbus_version=hookbus_version, facts=dict(facts or {})
        )
        render_manifest(info)  # refuses bad facts before anything is written
        with _write_errors(target, "was not committed"):
            old = self._commit(info, contents)
        with _write_errors(target, "is committed, but what follows a commit failed"):
            if old is not None:
                self._discard(old)
            if role != "best":
                self._write_last(name)
        return target

    def list(self) -> Sequence[CheckpointInfo]:
        """Return the committed checkpoints, the newest (highest step) last. Their files are not read; see `verify`.

        A directory that was copied or renamed by hand is not the store's, and is left out.
        """
        return sorted(self._scan(), key=lambda info: info.step)

    def latest(self) -> CheckpointInfo | None:
        """Return the committed checkpoint of the highest step, or None."""
        return next(reversed(self.list()), None)

    def damaged(self) -> dict[str, CheckpointError]:
        """Return the directories that look like checkpoints and whose manifest is not sound, with what is wrong."""
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
        if not self._files.is_directory(path):
            message = f"there is no checkpoint {name!r} in {self.directory}; {choices(name, [info.name for info in self.list()])}"
            raise CheckpointError(message)
        return read_manifest(path, self._files)

    def verify(self, name: str) -> CheckpointInfo:
        """Compare every byte of the named checkpoint with its manifest; raises like `get`, CheckpointCorrupt for any damage."""
        info = self.get(name)
        verify_files(info, self._files)
        return info

    def remove(self, name: str) -> None:
        """Delete one checkpoint: it disappears by one rename, then its files go.

        Raises:
            CheckpointError: if there is none of that name, or its directory holds a file that is not its own.
            CheckpointCorrupt: if its manifest is damaged, so that nothing proves whose it is.
            CheckpointWriteError: if the file system refused.
        """
        info = self.get(name)
        foreign = set(self._files.list_names(info.path)) - set(info.files) - {MANIFEST_FILE}
        if info.name != name or foreign:
            reason = f"it holds {', '.join(sorted(foreign))}" if foreign else f"its manifest names {info.name!r}"
            message = f"{info.path} is not removed because {reason}, which this store did not write there"
            raise CheckpointError(message)
        aside = self._hidden(name, "tmp")
        with _write_errors(info.path, "could not be removed"):
            self._files.rename(info.path, aside)
            self._discard(aside)
            self._files.sync_directory(self.directory)

    def clean(self) -> Sequence[str]:
        """Tidy up after a crash, and return what was done: call it once, before anything else writes here.

        A checkpoint that was moved aside while it was replaced is moved back if its successor never appeared; temporary
        directories go.

        Raises:
            CheckpointWriteError: if the file system refused.
        """
        with _write_errors(self.directory, "could not be cleaned up"):
            done = [self._clean_directory(found) for found in self._leftovers(self.directory)]
            for found in self._leftovers(self.last_checkpoint_path.parent):
                path = self.last_checkpoint_path.parent / found[0]
                if found["name"] == self.last_checkpoint_path.name and self._files.is_file(path):
                    self._files.remove_file(path)
                    done.append(f"removed {found[0]}")
        return [line for line in done if line]

    def _scan(self, problems: dict[str, CheckpointError] | None = None) -> Iterator[CheckpointInfo]:
        for name in self._files.list_names(self.directory):
            path = self.directory / name
            if name.startswith(".") or not self._files.is_directory(path) or not self._files.exists(path / MANIFEST_FILE):
                continue
            try:
                info = read_manifest(path, self._files)
            except CheckpointError as error:
                if problems is not None:
                    problems[name] = error
            else:
                if info.name == name:
                    yield info

    def _check_target(self, target: Path, *, replace: bool) -> None:
        if not self._files.exists(target):
            return
        if not self._files.is_directory(target) or not self._files.is_file(target / MANIFEST_FILE):
            message = f"{target} cannot be written: something that is not a checkpoint has this name"
            raise CheckpointError(message)
        if not replace:
            message = f"the checkpoint {target} exists already, and checkpoints are not overwritten; replace=True replaces it"
            raise CheckpointError(message)

    def _commit(self, info: CheckpointInfo, contents: Mapping[str, Content]) -> Path | None:
        """Write and rename; return where the checkpoint of the same name is now, if there was one."""
        self._make_directories(self.directory)
        temporary = self._hidden(info.name, "tmp")
        try:
            self._write_directory(temporary, info, contents)
            return self._rename_in(temporary, info.path)
        except BaseException:
            with contextlib.suppress(OSError):
                self._discard(temporary)
            raise

    def _write_directory(self, path: Path, info: CheckpointInfo, contents: Mapping[str, Content]) -> None:
        self._files.make_directory(path)
        records = {name: self._write_file(path / name, content) for name, content in contents.items()}
        self._write_file(path / MANIFEST_FILE, [render_manifest(dataclasses.replace(info, files=records))])
        self._files.sync_directory(path)

    def _write_file(self, path: Path, content: Content) -> FileRecord:
        digest, size = hashlib.sha256(), 0
        with self._files.create(path) as file:
            for chunk in content:
                self._files.write(file, chunk)
                digest.update(chunk)
                size += len(chunk)
            self._files.sync(file)
        return FileRecord(size=size, sha256=digest.hexdigest())

    def _rename_in(self, temporary: Path, target: Path) -> Path | None:
        old = self._hidden(target.name, "old") if self._files.exists(target) else None
        try:
            if old is not None:
                self._files.rename(target, old)
            self._files.rename(temporary, target)
            self._files.sync_directory(self.directory)
        except BaseException:
            self._undo_renames(temporary, target, old)
            raise
        return old

    def _undo_renames(self, temporary: Path, target: Path, old: Path | None) -> None:
        with contextlib.suppress(OSError):  # where even this fails, `clean` finds one of the two complete
            if not self._files.exists(temporary):
                self._files.rename(target, temporary)
            if old is not None and self._files.exists(old):
                self._files.rename(old, target)

    def _write_last(self, name: str) -> None:
        path = self.last_checkpoint_path
        temporary = path.parent / f".{path.name}.tmp-{secrets.token_hex(8)}"
        try:
            self._write_file(temporary, [name.encode()])
            self._files.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                self._files.remove_file(temporary)
            raise
        self._files.sync_directory(path.parent)

    def _make_directories(self, path: Path) -> None:
        if self._files.exists(path):
            return
        self._make_directories(path.parent)
        self._files.make_directory(path)
        self._files.sync_directory(path.parent)

    def _hidden(self, name: str, kind: str) -> Path:
        return self.directory / f".{name}.{kind}-{secrets.token_hex(8)}"

    def _leftovers(self, directory: Path) -> Sequence[re.Match[str]]:
        found = (_LEFTOVER.fullmatch(name) for name in self._files.list_names(directory))
        return [match for match in found if match is not None]

    def _clean_directory(self, found: re.Match[str]) -> str:
        path, target = self.directory / found[0], self.directory / found["name"]
        if not self._files.is_directory(path):
            return ""
        if found["kind"] == "old" and not self._files.exists(target):
            self._files.rename(path, target)
            self._files.sync_directory(self.directory)
            return f"restored {found['name']}"
        self._discard(path)
        return f"removed {found[0]}"

    def _discard(self, path: Path) -> None:
        """Delete a hidden directory of the store's own; files that cannot be its own stay, and the directory with them."""
        if not self._files.exists(path):
            return
        names = self._files.list_names(path)
        own = [name for name in names if name == MANIFEST_FILE or FILE_NAME.fullmatch(name)]
        for name in sorted(own, key=lambda name: name != MANIFEST_FILE):  # without a manifest the rest counts as nothing
            self._files.remove_file(path / name)
        if len(own) == len(names):
            self._files.remove_directory(path)


def _check_file_names(contents: Mapping[str, Content]) -> None:
    for name in contents:
        if not FILE_NAME.fullmatch(name):
            message = (
                f"{name!r} cannot name a file in a checkpoint: expected lower-case letters and digits, then .safetensors or .json"
            )
            raise InvalidName(message)


@contextlib.contextmanager
def _write_errors(path: Path, outcome: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        refused = CheckpointWriteError(f"the checkpoint {path} {outcome}: {error}")
        refused.errno = error.errno
        raise refused from error

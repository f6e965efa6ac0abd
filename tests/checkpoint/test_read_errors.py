"""What the file system refuses to read is not taken for damage: nobody knows whether it is sound."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from hookbus.checkpoint import CheckpointStore, Files, load_checkpoint, save_checkpoint, verify_checkpoint
from hookbus.checkpoint.manifest import MANIFEST_FILE
from hookbus.errors import CheckpointCorrupt, CheckpointError, CheckpointReadError
from hookbus.runner import Runner
from tests.checkpoint.builders import make_checkpoint, make_store
from tests.parameters import slow_unless
from tests.runner.builders import checkpoints, make_runner

REFUSALS = (errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT)
"""What a file system answers where it cannot say what a file holds."""

FREQUENT = (errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EIO)
"""Those of them that a run meets most often."""

DAMAGES = (errno.ENOENT, errno.ELOOP, errno.EISDIR, errno.ENOTDIR)
"""What it answers where there is no such file."""

FILES = (MANIFEST_FILE, "state.json", "model.safetensors", "optimizer.safetensors", "tensors.safetensors")


class Refusing(Files):
    """Refuses to open one file, or to read from it."""

    def __init__(self, file: str, code: int, operation: str = "open") -> None:
        self._file = file
        self._code = code
        self._operation = operation
        self._opened: dict[int, Path] = {}

    def _refuse(self, path: str | Path, operation: str) -> None:
        if operation == self._operation and Path(path).name == self._file:
            raise OSError(self._code, errno.errorcode[self._code], str(path))

    def open(self, path: Path) -> BinaryIO:
        """See `Files`."""
        self._refuse(path, "open")
        file = super().open(path)
        self._opened[id(file)] = path
        return file

    def read(self, path: Path) -> Iterator[bytes]:
        """See `Files`."""
        self._refuse(path, "read")
        return super().read(path)

    def read_into(self, file: BinaryIO, buffer: memoryview) -> int:
        """See `Files`."""
        self._refuse(self._opened[id(file)], "read")
        return super().read_into(file, buffer)

    def list_names(self, path: Path) -> list[str]:
        """See `Files`."""
        self._refuse(path, "list")
        return super().list_names(path)

    def exists(self, path: Path) -> bool:
        """See `Files`."""
        self._refuse(path, "look")
        return super().exists(path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound checkpoint, which no test changes."""
    return save_checkpoint(make_store(tmp_path_factory.mktemp("run")), "epoch_1", make_checkpoint(), epoch=1, iter=1)


@pytest.mark.parametrize("operation", ["open", "read", "look"])
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("code", REFUSALS, ids=errno.errorcode.get)
def test_a_refused_read_is_no_damage(code: int, file: str, operation: str, saved: Path) -> None:
    """Whichever file it is: the error names its path and carries the number, and is not `CheckpointCorrupt`."""
    for use in (load_checkpoint, verify_checkpoint):
        with pytest.raises(CheckpointReadError) as refused:
            use(saved, files=Refusing(file, code, operation))
        assert refused.value.errno == code
        assert not isinstance(refused.value, CheckpointCorrupt)
        assert str(saved / file) in str(refused.value)
        assert f"[Errno {code}] {errno.errorcode[code]}" in str(refused.value)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("code", DAMAGES, ids=errno.errorcode.get)
def test_a_file_that_is_not_there_is_damage(code: int, file: str, saved: Path) -> None:
    """Or something else that has its name."""
    with pytest.raises(CheckpointCorrupt, match=file):
        load_checkpoint(saved, files=Refusing(file, code))


@pytest.mark.parametrize("operation", ["open", "look"])
def test_a_store_does_not_call_it_damaged_either(operation: str, saved: Path) -> None:
    """Neither left out of the list nor listed as damaged: it is not known."""
    store = CheckpointStore(saved.parent, files=Refusing(MANIFEST_FILE, errno.EMFILE, operation))
    for look in (store.list, store.damaged, store.latest, lambda: store.get(saved.name), lambda: store.verify(saved.name)):
        with pytest.raises(CheckpointReadError) as refused:
            look()
        assert refused.value.errno == errno.EMFILE


@pytest.mark.parametrize("listed", ["checkpoints", "epoch_1"])
def test_a_directory_that_cannot_be_listed_is_no_damage(listed: str, saved: Path) -> None:
    """Listing takes a descriptor, too."""
    files = Refusing(listed, errno.ENFILE, "list")
    with pytest.raises(CheckpointReadError, match="ENFILE"):
        CheckpointStore(saved.parent, files=files).list() if listed == "checkpoints" else load_checkpoint(saved, files=files)


def make_run(work_dir: Path, epochs: int, files: Files, **options: object) -> Runner:
    """Return a runner that reads and writes its checkpoints with these operations."""
    runner = make_runner(work_dir, train_cfg=dict(max_epochs=epochs), **options)
    runner._saver.store = CheckpointStore(work_dir / "checkpoints", work_dir / "last_checkpoint", files=files)
    return runner


@pytest.mark.parametrize("file", [MANIFEST_FILE, "state.json", "model.safetensors"])
@pytest.mark.parametrize("code", slow_unless(lambda code: code == errno.EIO, FREQUENT), ids=errno.errorcode.get)
@pytest.mark.parametrize("resume", ["auto", True])
def test_resuming_ends_where_a_checkpoint_cannot_be_read(resume: object, code: int, file: str, tmp_path: Path) -> None:
    """It is not set aside, no older one takes its place, and once it can be read, the run goes on from it."""
    make_run(tmp_path, 2, Files()).train()
    assert checkpoints(tmp_path) == ["epoch_1", "epoch_2"]
    with pytest.raises(CheckpointError, match=errno.errorcode[code]) as refused:
        make_run(tmp_path, 3, Refusing(file, code), resume=resume).train()
    assert (type(refused.value), getattr(refused.value, "errno", None)) == (CheckpointReadError, code)
    assert checkpoints(tmp_path) == ["epoch_1", "epoch_2"]
    assert not list(tmp_path.glob("checkpoints_before_*"))
    resumed = make_run(tmp_path, 3, Files(), resume=resume)
    resumed.train()
    assert resumed.iter == 9
    assert checkpoints(tmp_path) == ["epoch_1", "epoch_2", "epoch_3"]


def test_a_fresh_run_does_not_set_aside_what_it_cannot_read(tmp_path: Path) -> None:
    """It may be the only sound one."""
    make_run(tmp_path, 1, Files()).train()
    with pytest.raises(CheckpointReadError, match="EIO"):
        make_run(tmp_path, 1, Refusing(MANIFEST_FILE, errno.EIO)).train()
    assert checkpoints(tmp_path) == ["epoch_1"]


def test_a_twin_that_calls_every_refusal_damage_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says of good checkpoints that they are damaged."""
    make_run(tmp_path, 2, Files()).train()
    monkeypatch.setattr("hookbus.checkpoint.manifest._NOT_AS_WRITTEN", frozenset(range(200)) | {None})
    with pytest.raises(CheckpointCorrupt):
        make_run(tmp_path, 3, Refusing("model.safetensors", errno.EMFILE), resume="auto").train()

"""One directory of checkpoints belongs to one live run, whichever process it is in."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import pytest

from hookbus.checkpoint import CheckpointStore, Files, Retention
from hookbus.checkpoint.locking import LOCK_FILE, DirectoryLocks
from hookbus.errors import CheckpointsInUse, CheckpointWriteError
from tests.checkpoint.builders import FaultyFiles, make_store, save_plain

HOLD = """
import sys
from pathlib import Path
from hookbus.checkpoint import Files
from hookbus.checkpoint.locking import DirectoryLocks
locks = DirectoryLocks(print)
locks.take([Path(sys.argv[1])], Files())
print("locked", flush=True)
sys.stdin.read()
"""


def make_locks() -> DirectoryLocks:
    """Return the locks of one run, which must not have to warn."""

    def warn(*words: object) -> None:
        raise AssertionError(words)

    return DirectoryLocks(warn)


@contextmanager
def other_process(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Have another process hold the lock."""
    command = [sys.executable, "-c", HOLD, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_run_is_refused(tmp_path: Path) -> None:
    """The error names the directory and the process, which is this one; once the first gives it back, the second gets it."""
    directory, first, second = tmp_path / "run" / "checkpoints", make_locks(), make_locks()
    first.take([directory], Files())
    with pytest.raises(CheckpointsInUse) as refused:
        second.take([directory], Files())
    assert f"{directory} is in use: another run of this process ({os.getpid()})" in str(refused.value)
    first.take([directory], Files())  # it has it already
    first.release()
    assert not (tmp_path / "run").exists()  # nothing was saved
    second.take([directory], Files())
    with pytest.raises(CheckpointsInUse):
        first.take([tmp_path / "run" / ".." / "run" / "checkpoints"], Files())
    second.release()


@pytest.mark.slow
def test_another_process_is_named_and_its_death_frees_the_directory(tmp_path: Path) -> None:
    """`kill -9` leaves the file behind, which locks nobody out."""
    with other_process(tmp_path) as process:
        with pytest.raises(CheckpointsInUse, match=rf"is in use: process {process.pid} writes checkpoints there"):
            make_locks().take([tmp_path], Files())
        process.kill()
        process.wait()
        assert (tmp_path / LOCK_FILE).exists()
        locks = make_locks()
        locks.take([tmp_path], Files())
        with pytest.raises(CheckpointsInUse, match=str(os.getpid())):
            make_locks().take([tmp_path], Files())
        locks.release()
    assert not (tmp_path / LOCK_FILE).exists()


@pytest.mark.parametrize("content", [b"", b"\xff" * 50, b"1 " + b"x" * 5000, b"someone"])
def test_who_holds_it_is_said_only_if_it_is_known(content: bytes, tmp_path: Path) -> None:
    """The file is text from outside."""
    locks = make_locks()
    locks.take([tmp_path], Files())
    (tmp_path / LOCK_FILE).write_bytes(content)
    with pytest.raises(CheckpointsInUse, match="is in use: another run writes checkpoints there"):
        make_locks().take([tmp_path], Files())
    locks.release()


def test_a_process_on_another_machine_is_said_to_be_there(tmp_path: Path) -> None:
    """Its number means nothing here."""
    locks = make_locks()
    locks.take([tmp_path], Files())
    (tmp_path / LOCK_FILE).write_bytes(b"17 elsewhere.example")
    with pytest.raises(CheckpointsInUse, match=r"process 17 on elsewhere\.example"):
        make_locks().take([tmp_path], Files())
    locks.release()


def test_a_forked_child_does_not_hold_it(tmp_path: Path) -> None:
    """Workers of a dataloader may outlive the run that they were forked from; nor does the child give it back."""
    locks = make_locks()
    locks.take([tmp_path], Files())
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        locks.release()
        os.close(writing)
        os.read(reading, 1)  # until the parent closes its end
        os._exit(0)
    os.close(reading)
    with pytest.raises(CheckpointsInUse):
        make_locks().take([tmp_path], Files())
    locks.release()
    again = make_locks()
    again.take([tmp_path], Files())
    again.release()
    os.close(writing)
    os.waitpid(child, 0)


def test_a_file_that_is_removed_while_it_is_being_locked_does_not_count(tmp_path: Path) -> None:
    """Else two runs would each hold a lock, on different files of one name."""
    locks, other = make_locks(), make_locks()
    looks: list[Path] = []

    class Late(Files):
        """Looks whether the file is still there only after somebody has removed it and somebody else has it."""

        def exists(self, path: Path) -> bool:
            if path.name == LOCK_FILE and not looks:
                looks.append(path)
                path.unlink()
                other.take([tmp_path], Files())
            return super().exists(path)

    with pytest.raises(CheckpointsInUse):
        locks.take([tmp_path], Late())
    assert looks
    other.release()


def test_cleaning_retention_and_listing_leave_the_lock_alone(tmp_path: Path) -> None:
    """It is neither a leftover nor a checkpoint."""
    store, locks = make_store(tmp_path), make_locks()
    locks.take([store.directory], Files())
    for number in (1, 2, 3):
        save_plain(store, f"epoch_{number}", number)
    store.probe()
    assert store.clean() == []
    assert store.damaged() == {}
    for name in Retention(1).superseded(store.list()):
        store.remove(name)
    assert [info.name for info in store.list()] == ["epoch_3"]
    assert (store.directory / LOCK_FILE).exists()
    with pytest.raises(CheckpointsInUse):
        make_locks().take([store.directory], Files())
    locks.release()
    assert [path.name for path in store.directory.iterdir()] == ["epoch_3"]


@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def test_where_nothing_can_be_locked_a_warning_says_so_once(code: int, tmp_path: Path) -> None:
    """And the run goes on, as unprotected as it was."""

    class NoLocks(Files):
        """A file system without locks."""

        def lock(self, path: Path) -> FileIO | None:
            raise OSError(code, "no locks here")

    said: list[str] = []
    locks = DirectoryLocks(lambda text, *values: said.append(text % values))
    for _ in range(2):
        locks.take([tmp_path], NoLocks())
        locks.release()
    assert said == [f"nothing keeps a second run out of {tmp_path}: files cannot be locked there"]


def test_a_system_without_such_locks_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has other ones."""
    monkeypatch.setattr("hookbus.checkpoint.files.fcntl", None)
    with pytest.raises(OSError, match="no locks") as refused:
        Files().lock(tmp_path / LOCK_FILE)
    assert refused.value.errno == errno.ENOTSUP


def test_a_directory_that_cannot_be_made_is_an_error_of_writing(tmp_path: Path) -> None:
    """With the number of the system."""
    with pytest.raises(CheckpointWriteError, match="checkpoints cannot be written to") as refused:
        make_locks().take([tmp_path / "checkpoints"], FaultyFiles(1, errno.EROFS))
    assert refused.value.errno == errno.EROFS


def test_a_symbolic_link_in_its_place_is_refused(tmp_path: Path) -> None:
    """Nothing outside of the run is opened for writing."""
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / LOCK_FILE).symlink_to(outside)
    with pytest.raises(CheckpointWriteError):
        make_locks().take([tmp_path / "checkpoints"], Files())
    assert outside.read_text() == "mine"
    assert CheckpointStore(tmp_path / "checkpoints").list() == []

"""Before training: the place is tried out, leftovers go, and what is no sound checkpoint of ours is told apart."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from hookbus.checkpoint import CheckpointStore
from hookbus.errors import CheckpointWriteError
from tests.checkpoint.builders import Crash, FaultyFiles, make_store, save_plain
from tests.checkpoint.test_store import hidden, names


def contents(work_dir: Path) -> list[Path]:
    """Return everything that lies in the run directory."""
    return sorted(work_dir.rglob("*"))


@pytest.mark.parametrize("is_new", [True, False])
def test_a_trial_leaves_everything_as_it_was(is_new: bool, tmp_path: Path) -> None:
    """Neither a new directory nor one with checkpoints in it changes, and `last_checkpoint` stays."""
    store = make_store(tmp_path)
    if not is_new:
        save_plain(store, "epoch_1", 1)
    before = contents(tmp_path)
    store.probe()
    assert contents(tmp_path) == before


def test_a_trial_makes_and_removes_what_is_missing_above(tmp_path: Path) -> None:
    """Checkpoints may go far away from the run."""
    CheckpointStore(tmp_path / "a" / "b" / "c", tmp_path / "run" / "last_checkpoint").probe()
    assert contents(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_trial_meets_what_a_save_would_meet(code: int, tmp_path: Path) -> None:
    """Whichever operation is refused, the error says where and carries the number, and nothing is left."""
    before = contents(prepared(tmp_path))
    counted = FaultyFiles()
    make_store(tmp_path, counted).probe()
    operations = {operation for operation, _ in counted.log}
    assert operations >= {"make_directory", "create", "write", "sync", "sync_directory", "rename", "remove_file"}
    for number in range(1, len(counted.log) + 1):
        with pytest.raises(CheckpointWriteError, match="checkpoints cannot be written to") as refused:
            make_store(tmp_path, FaultyFiles(number, code)).probe()
        assert refused.value.errno == code
        [*left] = set(contents(tmp_path)) - set(before)
        assert not left or counted.log[number - 1][0] == "remove_file"
        make_store(tmp_path).clean()
        assert contents(tmp_path) == before


def test_a_crash_during_a_trial_is_cleaned_up(tmp_path: Path) -> None:
    """Its names are those of unfinished work."""
    counted = FaultyFiles()
    make_store(prepared(tmp_path / "counted"), counted).probe()
    for number in range(1, len(counted.log) + 1):
        store = make_store(prepared(tmp_path / str(number)), FaultyFiles(number))
        with pytest.raises(Crash):
            store.probe()
        after = make_store(tmp_path / str(number))
        assert names(after) == ["epoch_1"]
        after.clean()
        assert hidden(tmp_path / str(number)) == []


def prepared(work_dir: Path) -> Path:
    """Make a run directory with a checkpoint."""
    save_plain(make_store(work_dir), "epoch_1", 1)
    return work_dir


def test_unfinished_published_files_go_and_finished_ones_stay(tmp_path: Path) -> None:
    """Only files of exactly the name that publishing gives them are touched."""
    store = make_store(prepared(tmp_path))
    digits = "0123456789abcdef"
    stays = [".notes.safetensors.tmp-" + digits, ".epoch_5-1a2b3c4d.safetensors.old-" + digits, "epoch_5-1a2b3c4d.safetensors"]
    goes = ".epoch_5-1a2b3c4d.safetensors.tmp-" + digits
    for name in (*stays, goes):
        (store.directory / name).touch()
    assert store.clean() == [f"removed {goes}"]
    assert sorted(path.name for path in store.directory.iterdir()) == sorted([*stays, "epoch_1"])


def _replace_by_link(manifest: Path) -> None:
    moved = manifest.rename(manifest.parents[2] / "moved")
    manifest.symlink_to(moved)


def _replace_by_directory(manifest: Path) -> None:
    manifest.unlink()
    manifest.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda manifest: manifest.write_bytes(b""),
    "missing": Path.unlink,
    "a link": _replace_by_link,
    "a directory": _replace_by_directory,
    "without digest": lambda manifest: manifest.write_bytes(b'{"format": "hookbus.checkpoint"}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_without_a_sound_manifest_is_damaged(damage: str, tmp_path: Path) -> None:
    """It is not listed, and it is named with what is wrong, so that it can be set aside before its name is needed again."""
    store = make_store(tmp_path)
    save_plain(store, "epoch_1", 1)
    DAMAGES[damage](save_plain(store, "epoch_2", 2) / "manifest.json")
    assert names(store) == ["epoch_1"]
    assert list(store.damaged()) == ["epoch_2"]
    assert "manifest.json" in str(store.damaged()["epoch_2"])


def test_what_was_never_a_checkpoint_is_neither_listed_nor_damaged(tmp_path: Path) -> None:
    """Directories of other programs, links, empty directories and files belong to the user."""
    store = make_store(prepared(tmp_path))
    (store.directory / "pretrained").mkdir()
    (store.directory / "pretrained" / "model.safetensors").touch()
    (store.directory / "pretrained" / "config.json").touch()
    (store.directory / "empty").mkdir()
    (store.directory / "latest").symlink_to("epoch_1")
    (store.directory / "nowhere").symlink_to("missing")
    (store.directory / "epoch_9-1a2b3c4d.safetensors").touch()
    assert names(store) == ["epoch_1"]
    assert store.damaged() == {}


def test_the_manifest_of_another_step_is_not_believed(tmp_path: Path) -> None:
    """With both names swapped, neither directory counts as what the other says it is."""
    store = make_store(tmp_path)
    one, two = save_plain(store, "epoch_1", 1), save_plain(store, "epoch_2", 2)
    (two / "manifest.json").write_bytes((one / "manifest.json").read_bytes())
    assert names(store) == ["epoch_1"]

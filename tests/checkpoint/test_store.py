"""The store: atomic commits, damage that is found, crashes and full disks at every operation."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hookbus.checkpoint import CheckpointStore, load_checkpoint, verify_checkpoint
from hookbus.checkpoint.manifest import MANIFEST_FILE
from hookbus.errors import CheckpointCorrupt, CheckpointError, CheckpointWriteError, InvalidName, StateEncodingError
from tests.checkpoint.builders import Crash, FaultyFiles, make_store, save_plain


def names(store: CheckpointStore) -> list[str]:
    """Return the names of the committed checkpoints, oldest first."""
    return [info.name for info in store.list()]


def hidden(work_dir: Path) -> list[str]:
    """Return what is left of unfinished work anywhere in the run directory."""
    return [path.name for path in work_dir.rglob(".*")]


def read_step(store: CheckpointStore, name: str) -> int:
    """Verify the checkpoint, and return the step its content says."""
    return int(json.loads((store.verify(name).path / "state.json").read_text())["step"])


def test_a_saved_checkpoint_is_listed_with_what_its_manifest_says(tmp_path: Path) -> None:
    """Counters, role, version, facts, sizes and digests are in the manifest, and the newest is named outside."""
    store = make_store(tmp_path)
    path = save_plain(store, "epoch_2", 2, role="periodic", hookbus_version="9.9", facts={"accuracy": 0.5, "steps": (1, 2)})
    info = store.list()[0]
    assert (info.name, info.path, info.epoch, info.iter, info.role) == ("epoch_2", path, 2, 20, "periodic")
    assert (info.hookbus_version, info.facts) == ("9.9", {"accuracy": 0.5, "steps": (1, 2)})
    assert info.size == sum(file.stat().st_size for file in path.iterdir() if file.name != MANIFEST_FILE)
    assert (tmp_path / "last_checkpoint").read_text() == "epoch_2"
    assert hidden(tmp_path) == []


def test_the_highest_step_is_the_latest_whatever_the_names_and_times(tmp_path: Path) -> None:
    """Iterations count first, then epochs; of two of one step the periodic one is the later."""
    store = make_store(tmp_path)
    assert store.latest() is None
    for name, step, role in [
        ("z", 1, "periodic"),
        ("epoch_10", 10, "periodic"),
        ("best_10", 10, "best"),
        ("epoch_9", 9, "periodic"),
    ]:
        save_plain(store, name, step, role=role)
    assert names(store) == ["z", "epoch_9", "best_10", "epoch_10"]
    latest = store.latest()
    assert latest is not None
    assert latest.name == "epoch_10"


def test_a_best_checkpoint_is_not_named_as_the_last(tmp_path: Path) -> None:
    """Best checkpoints come and go, so `last_checkpoint` never points at one."""
    store = make_store(tmp_path)
    save_plain(store, "epoch_1", 1)
    save_plain(store, "best_1", 1, role="best")
    assert (tmp_path / "last_checkpoint").read_text() == "epoch_1"


def test_a_committed_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    """A second save of the name is refused unless it says `replace=True`, and then the new content counts."""
    store = make_store(tmp_path)
    save_plain(store, "epoch_1", 1)
    with pytest.raises(CheckpointError, match="epoch_1 exists already"):
        save_plain(store, "epoch_1", 2)
    assert read_step(store, "epoch_1") == 1
    save_plain(store, "epoch_1", 3, replace=True)
    assert read_step(store, "epoch_1") == 3
    assert hidden(tmp_path) == []


@pytest.mark.parametrize(
    "make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("elsewhere")], ids=["file", "directory", "link"]
)
def test_what_is_no_checkpoint_is_not_replaced(make: Any, tmp_path: Path) -> None:
    """Something else of that name stays, whatever `replace` says."""
    store = make_store(tmp_path)
    store.directory.mkdir()
    make(store.directory / "epoch_1")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        save_plain(store, "epoch_1", 1, replace=True)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "../a", "/a", ".a", "-a", "a\0", "a\n", "a b", "a" * 101, "é", "\u202ea", "a\\b", "%2e%2e/x", 3, None],
)
def test_a_name_that_could_leave_the_directory_is_refused(name: Any, tmp_path: Path) -> None:
    """Names of checkpoints are checked by every method that takes one, and nothing is written."""
    store = make_store(tmp_path)
    for call in (
        lambda: save_plain(store, name, 1),
        lambda: store.get(name),
        lambda: store.verify(name),
        lambda: store.remove(name),
    ):
        with pytest.raises(InvalidName, match="cannot name a checkpoint"):
            call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../x.json", "manifest.json", "x.pkl", "X.json", "a/b.json", ".json"])
def test_a_file_name_of_another_kind_is_refused(name: str, tmp_path: Path) -> None:
    """A checkpoint holds safetensors and JSON files of plain names, and only the store writes the manifest."""
    with pytest.raises(InvalidName, match="cannot name a file"):
        make_store(tmp_path).save("epoch_1", {name: [b""]}, epoch=1, iter=1)


@pytest.mark.parametrize("facts", [{"x": object()}, {"x": torch.ones(1)}], ids=["object", "tensor"])
def test_facts_that_a_manifest_cannot_hold_are_refused_before_writing(facts: Any, tmp_path: Path) -> None:
    """Nothing is on disk when the facts are refused."""
    with pytest.raises(StateEncodingError):
        save_plain(make_store(tmp_path), "epoch_1", 1, facts=facts)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_checkpoint_is_reported_with_the_nearest_one(tmp_path: Path) -> None:
    """Asking for a name that does not exist lists those that do."""
    store = make_store(tmp_path)
    save_plain(store, "epoch_1", 1)
    for call in (
        lambda: store.get("epoch_2"),
        lambda: load_checkpoint(store.directory / "epoch_2"),
        lambda: store.remove("epoch_2"),
    ):
        with pytest.raises(CheckpointError, match="did you mean 'epoch_1'"):
            call()


def test_removing_takes_the_whole_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    """A directory with a foreign file in it stays as it is, and so does one whose manifest is damaged."""
    store = make_store(tmp_path)
    for step in (1, 2, 3):
        save_plain(store, f"epoch_{step}", step)
    (store.directory / "epoch_2" / "notes.txt").touch()
    (store.directory / "epoch_3" / MANIFEST_FILE).write_text("{}")
    store.remove("epoch_1")
    with pytest.raises(CheckpointError, match=r"notes\.txt"):
        store.remove("epoch_2")
    with pytest.raises(CheckpointCorrupt, match="digest"):
        store.remove("epoch_3")
    assert sorted(path.name for path in store.directory.iterdir()) == ["epoch_2", "epoch_3"]
    assert list(store.damaged()) == ["epoch_3"]


def test_copies_and_strangers_are_not_listed(tmp_path: Path) -> None:
    """A copied or renamed directory loads by its path, but belongs to the user; links and other directories do not count."""
    store = make_store(tmp_path)
    path = save_plain(store, "epoch_1", 1)
    shutil.copytree(path, store.directory / "keep_me")
    (store.directory / "link").symlink_to(path)
    (store.directory / "empty").mkdir()
    (store.directory / "file").touch()
    assert names(store) == ["epoch_1"]
    assert verify_checkpoint(store.directory / "keep_me").name == "epoch_1"
    with pytest.raises(CheckpointError, match="epoch_1"):
        store.remove("keep_me")


def damaged_copies(path: Path, scratch: Path) -> list[tuple[str, Path]]:
    """Return copies of the checkpoint, each with one damage, and what was done to it."""
    made: list[tuple[str, Path]] = []
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        step = max(1, len(content) // 12)
        flips = [(f"bit of byte {at}", _flip(content, at)) for at in range(0, len(content), step)]
        cuts = [(f"cut at {at}", content[:at]) for at in range(0, len(content), step)]
        for what, damaged in [*flips, *cuts, ("longer", content + b"\n")]:
            copied = Path(shutil.copytree(path, scratch / str(len(made)), copy_function=os.link))
            (copied / file.name).unlink()
            (copied / file.name).write_bytes(damaged)
            made.append((f"{file.name}: {what}", copied))
    return made


def _flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :]


def test_every_damaged_byte_is_found(tmp_path: Path) -> None:
    """A flipped bit, a cut or an added byte anywhere in any file, the manifest included, is refused and the file named."""
    path = save_plain(make_store(tmp_path), "epoch_1", 1)
    for what, damaged in damaged_copies(path, tmp_path / "copies"):
        with pytest.raises(CheckpointCorrupt) as refused:
            verify_checkpoint(damaged)
        assert what.split(":")[0] in str(refused.value), what


def test_every_byte_of_the_manifest_counts(tmp_path: Path) -> None:
    """The manifest protects itself: a flipped bit in whichever byte is noticed."""
    path = save_plain(make_store(tmp_path), "epoch_1", 1)
    content = (path / MANIFEST_FILE).read_bytes()
    for at in range(len(content)):
        (path / MANIFEST_FILE).write_bytes(_flip(content, at))
        with pytest.raises(CheckpointCorrupt):
            verify_checkpoint(path)


@pytest.mark.parametrize("file", ["state.json", "tensors.safetensors", MANIFEST_FILE])
def test_a_missing_swapped_or_linked_file_is_found(file: str, tmp_path: Path) -> None:
    """What is missing, taken from another checkpoint or reached through a link is refused, and so is a file too many."""
    store = make_store(tmp_path)
    path, other = save_plain(store, "epoch_1", 1), save_plain(store, "epoch_2", 2)
    (other / file).write_bytes((path / file).read_bytes())
    with pytest.raises(CheckpointCorrupt):
        verify_checkpoint(other)
    (path / file).rename(tmp_path / "moved")
    with pytest.raises(CheckpointCorrupt, match=f"{file} is missing"):
        verify_checkpoint(path)
    (path / file).symlink_to(tmp_path / "moved")
    with pytest.raises(CheckpointCorrupt, match="not a regular file"):
        verify_checkpoint(path)
    (path / file).unlink()
    (tmp_path / "moved").rename(path / file)
    verify_checkpoint(path)
    (path / "extra.json").touch()
    with pytest.raises(CheckpointCorrupt, match=r"extra\.json is not in the manifest"):
        verify_checkpoint(path)


def test_a_manifest_of_a_later_format_is_refused_by_name(tmp_path: Path) -> None:
    """A checkpoint of a later version is not damaged, and is not guessed at."""
    path = save_plain(make_store(tmp_path), "epoch_1", 1, hookbus_version="7.0")
    write_manifest(path, format_version=2)
    with pytest.raises(CheckpointError, match=r"format version 2, written by hookbus 7\.0") as refused:
        verify_checkpoint(path)
    assert not isinstance(refused.value, CheckpointCorrupt)


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {"../../secret.json": {"size": 1, "sha256": ""}}}, {"files": {"/etc/passwd": {"size": 1, "sha256": ""}}},
        {"files": {"state.json": 3}}, {"files": []}, {"files": {"state.json": {"size": "1", "sha256": ""}}}, {"name": "../x"},
        {"name": None}, {"epoch": "1"}, {"iter": True}, {"role": 1}, {"format": "other"}, {"format": None}, {"facts": 1},
        {"facts": {"$object": "os.system"}},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_a_hostile_manifest_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    """A manifest whose own digest fits still has to name plain files and hold values of the right types."""
    path = save_plain(make_store(tmp_path), "epoch_1", 1)
    write_manifest(path, **changes)
    with pytest.raises(CheckpointCorrupt, match="not a manifest"):
        verify_checkpoint(path)


def write_manifest(path: Path, **changes: Any) -> None:
    """Change entries of a manifest, and give it the digest that fits."""
    entries = json.loads((path / MANIFEST_FILE).read_text()) | changes | {"manifest_sha256": "0" * 64}
    text = json.dumps(entries, indent=2) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    (path / MANIFEST_FILE).write_text(text.replace(f'"manifest_sha256": "{"0" * 64}"', f'"manifest_sha256": "{digest}"'))


def prepared(work_dir: Path) -> Path:
    """Make a run directory with two committed checkpoints."""
    store = make_store(work_dir)
    save_plain(store, "epoch_1", 1)
    save_plain(store, "epoch_2", 2)
    return work_dir


ACTIONS: dict[str, Callable[[CheckpointStore], object]] = {
    "save": lambda store: save_plain(store, "epoch_3", 3),
    "replace": lambda store: save_plain(store, "epoch_2", 3, replace=True),
    "remove": lambda store: store.remove("epoch_1"),
}
ALLOWED = {
    "save": [{"epoch_1": 1, "epoch_2": 2}, {"epoch_1": 1, "epoch_2": 2, "epoch_3": 3}],
    "replace": [{"epoch_1": 1, "epoch_2": 2}, {"epoch_1": 1, "epoch_2": 3}],
    "remove": [{"epoch_1": 1, "epoch_2": 2}, {"epoch_2": 2}],
}


def count_operations(action: str, tmp_path: Path) -> int:
    """Return how many operations change the disk when nothing fails."""
    files = FaultyFiles()
    ACTIONS[action](make_store(prepared(tmp_path / "counted"), files))
    return len(files.log)


def steps(store: CheckpointStore) -> dict[str, int]:
    """Verify all committed checkpoints, and return the step that each holds."""
    return {info.name: read_step(store, info.name) for info in store.list()}


@pytest.mark.parametrize("action", ACTIONS)
def test_a_crash_at_any_operation_leaves_whole_checkpoints_only(action: str, tmp_path: Path) -> None:
    """After a crash and the clean-up of the next start there is the state before or the state after, and nothing in between."""
    for number in range(1, count_operations(action, tmp_path) + 1):
        work_dir = prepared(tmp_path / str(number))
        with pytest.raises(Crash):
            ACTIONS[action](make_store(work_dir, FaultyFiles(number)))
        after = make_store(work_dir)
        assert steps(after).items() <= ALLOWED[action][0].items() | ALLOWED[action][1].items()
        assert after.list()
        assert after.damaged() == {}
        after.clean()
        assert steps(after) in ALLOWED[action], number
        assert hidden(work_dir) == [], number
        assert after.clean() == []
        save_plain(after, "epoch_4", 4)


@pytest.mark.parametrize(("code", "for_ever"), [(errno.ENOSPC, False), (errno.ENOSPC, True), (errno.EIO, False)])
@pytest.mark.parametrize("action", ACTIONS)
def test_a_refused_operation_is_one_error_and_leaves_nothing_behind(
    action: str, code: int, for_ever: bool, tmp_path: Path
) -> None:
    """Whichever operation the disk refuses, the error carries its number, no half-written file stays, and saving works again."""
    for number in range(1, count_operations(action, tmp_path) + 1):
        work_dir = prepared(tmp_path / str(number))
        files = FaultyFiles(number, code, for_ever=for_ever)
        with pytest.raises(CheckpointWriteError, match="the checkpoint") as refused:
            ACTIONS[action](make_store(work_dir, files))
        assert refused.value.errno == code
        after = make_store(work_dir)
        assert steps(after) in (ALLOWED[action][:1] if "was not committed" in str(refused.value) else ALLOWED[action])
        removing = files.log[number - 1][0].startswith("remove")  # then what should go is what stays, until the next start
        assert hidden(work_dir) == [] or removing, files.log[number - 1]
        after.clean()
        assert hidden(work_dir) == []
        save_plain(after, "epoch_4", 4)


def test_everything_is_durable_before_the_commit(tmp_path: Path) -> None:
    """Each file is synced, the manifest last, then the directory; only then it is renamed, and the rename is synced as well."""
    files = FaultyFiles()
    store = make_store(tmp_path, files)
    store.directory.mkdir()
    save_plain(store, "epoch_1", 1)
    order = [(operation, name.split(".tmp-")[0]) for operation, name in files.log if operation != "write"]
    assert order == [
        ("make_directory", ".epoch_1"),
        ("create", "state.json"),
        ("sync", "state.json"),
        ("create", "tensors.safetensors"),
        ("sync", "tensors.safetensors"),
        ("create", MANIFEST_FILE),
        ("sync", MANIFEST_FILE),
        ("sync_directory", ".epoch_1"),
        ("rename", "epoch_1"),
        ("sync_directory", "checkpoints"),
        ("create", ".last_checkpoint"),
        ("sync", ".last_checkpoint"),
        ("rename", "last_checkpoint"),
        ("sync_directory", tmp_path.name),
    ]


def test_an_error_while_content_is_produced_leaves_nothing(tmp_path: Path) -> None:
    """What goes wrong outside the file system comes through as it is, and the temporary directory goes."""

    def content() -> Iterator[bytes]:
        yield b"half"
        raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError, match="the device is gone"):
        make_store(tmp_path).save("epoch_1", {"state.json": content()}, epoch=1, iter=1)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_cleaning_touches_only_what_is_its_own(tmp_path: Path) -> None:
    """Hidden names of other shapes, links, and foreign files inside leftovers stay."""
    store = make_store(prepared(tmp_path))
    foreign = store.directory / ".epoch_3.tmp-0123456789abcdef"
    foreign.mkdir()
    (foreign / "state.json").touch()
    (foreign / "notes.txt").touch()
    (store.directory / ".cache").mkdir()
    (store.directory / ".epoch_1.tmp-short").mkdir()
    (store.directory / ".epoch_4.tmp-0123456789abcdef").symlink_to(store.directory / "epoch_1")
    (tmp_path / ".last_checkpoint.tmp-0123456789abcdef").touch()
    (tmp_path / ".other.tmp-0123456789abcdef").touch()
    store.clean()
    left = [".cache", ".epoch_1.tmp-short", ".epoch_3.tmp-0123456789abcdef", ".epoch_4.tmp-0123456789abcdef"]
    assert sorted(hidden(tmp_path)) == [*left, ".other.tmp-0123456789abcdef"]
    assert [path.name for path in foreign.iterdir()] == ["notes.txt"]
    assert steps(store) == {"epoch_1": 1, "epoch_2": 2}

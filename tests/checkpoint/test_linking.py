"""A second checkpoint of the same step shares the large files of the first, and neither depends on the other."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from hookbus.checkpoint import CheckpointStore, Files, load_checkpoint, save_checkpoint
from hookbus.errors import CheckpointWriteError
from tests.checkpoint.builders import Crash, FaultyFiles, assert_same, make_checkpoint, make_store
from tests.checkpoint.test_store import hidden

LARGE = ["averaged.safetensors", "model.safetensors", "optimizer.safetensors"]


def save_first(work_dir: Path) -> Path:
    """Commit the periodic checkpoint of a step."""
    return save_checkpoint(make_store(work_dir), "epoch_1", make_checkpoint(), epoch=1, iter=10)


def save_best(
    store: CheckpointStore, link_from: Path, checkpoint: dict[str, Any] | None = None, *, iter: int = 10, **options: Any
) -> Path:
    """Commit the best checkpoint of the step, whose hooks know by now how good it is."""
    checkpoint = checkpoint or make_checkpoint() | {"hooks": {"score": 0.9}, "message_hub": {"loss": torch.ones(7)}}
    return save_checkpoint(store, "best_1", checkpoint, epoch=1, iter=iter, role="best", link_from=link_from, **options)


def shared(first: Path, second: Path) -> list[str]:
    """Return the names of the files that are one file on disk."""
    return [file.name for file in sorted(first.iterdir()) if (second / file.name).samefile(file)]


@pytest.mark.parametrize("is_unchanged", [False, True])
def test_the_large_files_are_linked_and_all_else_is_its_own(is_unchanged: bool, tmp_path: Path) -> None:
    """Weights and optimizer are one file on disk; the state and the small tensors are those of the second checkpoint."""
    first = save_first(tmp_path)
    second = save_best(make_store(tmp_path), first, is_unchanged=is_unchanged)
    assert shared(first, second) == LARGE
    assert_same(load_checkpoint(first), make_checkpoint())
    expected = make_checkpoint() | {"hooks": {"score": 0.9}, "message_hub": {"loss": torch.ones(7)}}
    assert_same(load_checkpoint(second), expected)


@pytest.mark.parametrize("gone", ["epoch_1", "best_1"])
def test_either_one_may_go(gone: str, tmp_path: Path) -> None:
    """Removing one of the two leaves the other whole."""
    store, first = make_store(tmp_path), save_first(tmp_path)
    save_best(store, first)
    store.remove(gone)
    [left] = store.list()
    assert store.verify(left.name).name != gone


def test_a_checkpoint_may_be_replaced_by_one_that_shares_its_files(tmp_path: Path) -> None:
    """The name is the same; the files survive the directory they were in."""
    store, first = make_store(tmp_path), save_first(tmp_path)
    save_checkpoint(store, "epoch_1", make_checkpoint(), epoch=1, iter=10, link_from=first, replace=True)
    assert_same(load_checkpoint(first), make_checkpoint())
    assert hidden(tmp_path) == []


def test_only_what_is_the_same_is_linked(tmp_path: Path) -> None:
    """One changed weight is found by its digest, and its file is written."""
    first, checkpoint = save_first(tmp_path), make_checkpoint()
    checkpoint["state_dict"]["0.bias"] += 1
    second = save_best(make_store(tmp_path), first, checkpoint)
    assert shared(first, second) == ["averaged.safetensors", "optimizer.safetensors"]
    assert_same(load_checkpoint(second), checkpoint)


@pytest.mark.parametrize("is_unchanged", [False, True])
def test_another_step_other_shapes_and_other_names_are_never_linked(is_unchanged: bool, tmp_path: Path) -> None:
    """Whatever the caller vouches for, what can be told from the headers is looked at."""
    store, first = make_store(tmp_path), save_first(tmp_path)
    assert shared(first, save_best(store, first, iter=11, is_unchanged=is_unchanged)) == []
    store.remove("best_1")
    wider = make_checkpoint() | {"state_dict": {"a": torch.ones(3)}, "averaged": {"b": torch.ones(1)}, "optimizer": {}}
    second = save_best(store, first, wider, is_unchanged=is_unchanged)
    assert not any((second / file).samefile(first / file) for file in LARGE[:2])
    assert_same(load_checkpoint(second), wider)


def test_a_source_that_is_gone_or_damaged_is_not_linked_to(tmp_path: Path) -> None:
    """Then everything is written: a cut file, a link, a broken manifest, no directory."""
    for number, damage in enumerate(("cut", "link", "manifest", "directory")):
        work_dir = tmp_path / str(number)
        first = save_first(work_dir)
        if damage == "cut":
            (first / "model.safetensors").write_bytes(b"short")
        elif damage == "link":
            (first / "model.safetensors").rename(work_dir / "moved")
            (first / "model.safetensors").symlink_to(work_dir / "moved")
        elif damage == "manifest":
            (first / "manifest.json").write_text("{}")
        else:
            first.rename(work_dir / "moved")
        second = save_best(make_store(work_dir), first, make_checkpoint(), is_unchanged=True)
        assert_same(load_checkpoint(second), make_checkpoint())


class Unlinkable(Files):
    """A file system that answers every link with one error."""

    def __init__(self, code: int) -> None:
        self.code = code

    def link(self, source: Path, target: Path) -> None:
        """See `Files`."""
        raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize("code", ["EXDEV", "EPERM", "EMLINK", "EOPNOTSUPP", "ENOSYS"])
def test_without_hard_links_the_files_are_written(code: str, tmp_path: Path) -> None:
    """Another file system, one that has no links, or a file with too many: the checkpoint is complete all the same."""
    first = save_first(tmp_path)
    second = save_best(make_store(tmp_path, Unlinkable(getattr(errno, code))), first, make_checkpoint(), is_unchanged=True)
    assert shared(first, second) == []
    assert_same(load_checkpoint(second), make_checkpoint())


@pytest.mark.parametrize("code", [errno.ENOSPC, None])
def test_a_linked_save_is_complete_or_not_there(code: int | None, tmp_path: Path) -> None:
    """Whichever operation is refused, and wherever the machine stops, the first checkpoint stays and nothing half is listed."""
    store, first = make_store(tmp_path), save_first(tmp_path)
    counted = FaultyFiles()
    save_best(make_store(tmp_path, counted), first, make_checkpoint(), is_unchanged=True)
    assert sorted(name for operation, name in counted.log if operation == "link") == LARGE
    for number in range(1, len(counted.log) + 1):
        if "best_1" in [info.name for info in store.list()]:
            store.remove("best_1")
        with pytest.raises(CheckpointWriteError if code else Crash):
            save_best(make_store(tmp_path, FaultyFiles(number, code)), first, make_checkpoint(), is_unchanged=True)
        store.clean()
        assert hidden(tmp_path) == []
        assert store.damaged() == {}
        assert {"epoch_1"} <= {store.verify(info.name).name for info in store.list()}

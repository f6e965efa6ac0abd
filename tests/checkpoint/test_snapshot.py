"""Whole checkpoints: what is saved is what is loaded, in files that other programs can read, and without pickle."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import hookbus.checkpoint
from hookbus.checkpoint import digest, load_checkpoint, save_checkpoint, snapshot, tensor_file, tensor_reading, writing
from hookbus.errors import CheckpointCorrupt, CheckpointError, CheckpointWriteError, StateEncodingError
from tests.checkpoint.builders import FaultyFiles, assert_same, make_checkpoint, make_model, make_store
from tests.checkpoint.test_store import damaged_copies, hidden


def save(work_dir: Path, checkpoint: dict[str, Any], name: str = "epoch_1") -> Path:
    """Commit a checkpoint in the run directory."""
    return save_checkpoint(make_store(work_dir), name, checkpoint, epoch=1, iter=10)


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    """Every entry, its order, types, bits and the module versions on the state dict are the same."""
    checkpoint = make_checkpoint()
    path = save(tmp_path, checkpoint)
    assert_same(load_checkpoint(path), checkpoint)
    assert_same(load_checkpoint(str(path)), checkpoint)
    assert sorted(file.name for file in path.iterdir()) == [
        "averaged.safetensors",
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "tensors.safetensors",
    ]


def test_the_weights_load_as_a_plain_state_dict(tmp_path: Path) -> None:
    """Raw and averaged weights need nothing but safetensors, and fit the model strictly."""
    checkpoint = make_checkpoint()
    path = save(tmp_path, checkpoint)
    for file in ("model.safetensors", "averaged.safetensors"):
        weights = safetensors.torch.load_file(path / file)
        make_model(5).load_state_dict(weights)
        assert_same(dict(sorted(weights.items())), dict(sorted(checkpoint["state_dict"].items())))


def test_tied_weights_stand_in_the_file_under_each_name_and_come_back_tied(tmp_path: Path) -> None:
    """Other programs find every name; our own loading finds the tie again."""
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(4, 3), "head": torch.nn.Linear(3, 4, bias=False)})
    model["head"].weight = model["embed"].weight
    path = save(tmp_path, {"state_dict": model.state_dict()})
    assert sorted(safetensors.torch.load_file(path / "model.safetensors")) == ["embed.weight", "head.weight"]
    loaded = load_checkpoint(path)["state_dict"]
    assert loaded["embed.weight"] is loaded["head.weight"]
    assert_same(loaded, model.state_dict())


def test_weights_of_any_layout_and_extra_state_are_kept(tmp_path: Path) -> None:
    """Channels-last, sliced, complex and empty weights, extra state and odd names all come back."""
    base = torch.arange(12.0).view(3, 4)
    state_dict = {
        "conv": torch.randn(2, 3, 2, 2).to(memory_format=torch.channels_last),
        "slice": base[:, 1],
        "all": base,
        "wide": torch.randn(2, dtype=torch.complex128),
        "empty": torch.empty(0, 2),
        "lstm._extra_state": {"version": (1, 2)},
        "__metadata__": torch.ones(1),
        "\ud800": torch.ones(1),
        "none": None,
    }
    checkpoint = {"state_dict": state_dict, "$odd": 1}
    path = save(tmp_path, checkpoint)
    assert_same(load_checkpoint(path), checkpoint)
    assert sorted(safetensors.torch.load_file(path / "model.safetensors")) == ["all", "conv", "empty", "slice"]


@pytest.mark.parametrize(
    "checkpoint", [{}, {"meta": {"a": 1}}, {"state_dict": {}}, {"state_dict": None, "averaged": None}], ids=repr
)
def test_entries_may_be_absent_or_empty(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    """A checkpoint has the entries it was given, and no others."""
    assert_same(load_checkpoint(save(tmp_path, checkpoint)), checkpoint)


def test_loaded_tensors_do_not_depend_on_the_files(tmp_path: Path) -> None:
    """Nothing stays mapped: overwriting and deleting the files leaves what was loaded."""
    checkpoint = make_checkpoint()
    path = save(tmp_path, checkpoint)
    loaded = load_checkpoint(path)
    for file in path.iterdir():
        file.write_bytes(bytes(file.stat().st_size))
    make_store(tmp_path).directory.rename(tmp_path / "gone")
    assert_same(loaded, checkpoint)


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    """Saving twice writes identical files, so checkpoints can be compared by their digests."""
    first, second = (save(tmp_path / name, make_checkpoint() | {"set": {"b", "a", "c"}}) for name in ("a", "b"))
    assert [file.read_bytes() for file in sorted(first.iterdir())] == [file.read_bytes() for file in sorted(second.iterdir())]


@pytest.mark.parametrize("entry", ["state_dict", "averaged", "hooks"])
def test_what_cannot_be_saved_is_refused_before_anything_is_written(entry: str, tmp_path: Path) -> None:
    """The error names the entry, and the disk is as it was."""
    checkpoint = make_checkpoint() | {entry: {"x": torch.ones(2).to_sparse()}}
    with pytest.raises(StateEncodingError, match=rf"{entry}\.x is a sparse tensor"):
        save(tmp_path, checkpoint)
    assert list(tmp_path.iterdir()) == []


def test_damage_in_any_file_is_found_before_it_is_parsed(tmp_path: Path) -> None:
    """Flipped bits and cuts in each of the five files end in one kind of error that names the file."""
    path = save(tmp_path, make_checkpoint())
    for what, damaged in damaged_copies(path, tmp_path / "copies"):
        with pytest.raises(CheckpointCorrupt, match=what.split(":")[0]):
            load_checkpoint(damaged)


def test_a_disk_that_is_full_stops_a_save_at_every_write(tmp_path: Path) -> None:
    """Real checkpoints have many writes; each refused one leaves the earlier checkpoint and nothing else."""
    first, checkpoint = make_checkpoint(1), make_checkpoint(2)
    path = save(tmp_path, first)
    counted = FaultyFiles()
    save_checkpoint(make_store(tmp_path / "counted", counted), "epoch_2", checkpoint, epoch=2, iter=20)
    committed = counted.log.index(("rename", "epoch_2")) - 3  # the first run also makes two directories and syncs their parents
    for number in range(1, committed, 3):
        store = make_store(tmp_path, FaultyFiles(number, 28, for_ever=True))
        with pytest.raises(CheckpointWriteError, match="ENOSPC"):
            save_checkpoint(store, "epoch_2", checkpoint, epoch=2, iter=20)
        assert [info.name for info in store.list()] == ["epoch_1"]
        assert hidden(tmp_path) == []
    assert_same(load_checkpoint(path), first)


def test_a_checkpoint_without_state_or_with_a_missing_tensor_file_is_refused(tmp_path: Path) -> None:
    """The manifest of a checkpoint that lists too little is not completed by guessing."""
    store = make_store(tmp_path)
    path = store.save("epoch_1", {"tensors.safetensors": [b""]}, epoch=1, iter=1)
    with pytest.raises(CheckpointCorrupt):
        load_checkpoint(path)
    path = store.save("epoch_2", {"state.json": [b'{"a": {"$tensor": "a"}}']}, epoch=1, iter=1)
    with pytest.raises(CheckpointCorrupt, match=r"state\.json: a refers to the tensor 'a'"):
        load_checkpoint(path)


def test_a_path_without_a_checkpoint_is_an_error_of_its_own(tmp_path: Path) -> None:
    """No directory is a mistake of the caller; a directory without a manifest is damage."""
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "missing")
    with pytest.raises(CheckpointCorrupt, match=r"manifest\.json is missing"):
        load_checkpoint(tmp_path)


def test_the_package_neither_pickles_nor_executes() -> None:
    """No module of the package imports a pickling library or calls anything that loads or runs code."""
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "importlib"}
    calls = {"eval", "exec", "compile", "__import__"}
    for source in Path(hookbus.checkpoint.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                assert forbidden.isdisjoint(alias.name.split(".")[0] for alias in node.names), source
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in forbidden, source
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in {*calls, "torch.load", "torch.save", "np.load", "np.save"}, source


def test_a_state_too_large_to_be_read_again_is_refused_at_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is the same on both sides, is looked at before anything is read, and the message says where the bulk is."""
    path = save(tmp_path, {"hooks": {"losses": [0.5] * 100}})
    monkeypatch.setattr(snapshot, "MAX_STATE_BYTES", 100)
    with pytest.raises(StateEncodingError, match=r"most of them in 'hooks'; expected at most 100: keep long lists"):
        save(tmp_path, {"meta": 1, "hooks": {"losses": [0.5] * 100}}, "epoch_2")
    with pytest.raises(CheckpointCorrupt, match=r"state\.json of \d+ bytes.*at most 100 bytes"):
        load_checkpoint(path)


def test_more_tensors_than_a_header_may_name_are_refused_at_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, too, what can be saved can be read."""
    monkeypatch.setattr(tensor_file, "MAX_HEADER_BYTES", 200)
    with pytest.raises(StateEncodingError, match="the names and shapes of 50 tensors take"):
        save(tmp_path, {"state_dict": {f"layer_{number}": torch.ones(1) for number in range(50)}})
    assert hidden(tmp_path) == []


def test_large_tensors_are_written_and_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that end inside an element, and hashing on threads, change nothing."""
    for module in (tensor_reading, writing):
        monkeypatch.setattr(module, "CHUNK_SIZE", 101)
    monkeypatch.setattr(digest, "_BATCH", 64)
    checkpoint = make_checkpoint()
    assert_same(load_checkpoint(save(tmp_path, checkpoint)), checkpoint)

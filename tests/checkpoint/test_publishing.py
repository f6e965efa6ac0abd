"""Weights to hand out: a plain file that says what is in it, complete or not there at all."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hookbus.checkpoint import CheckpointStore, save_checkpoint
from hookbus.checkpoint.publishing import publish_weights
from hookbus.errors import CheckpointCorrupt, CheckpointError, CheckpointWriteError
from tests.checkpoint.builders import Crash, FaultyFiles, make_checkpoint, make_store


def make_saved(work_dir: Path, name: str = "epoch_5") -> tuple[CheckpointStore, Path]:
    """Return a store with one checkpoint, and its directory."""
    store = make_store(work_dir)
    return store, save_checkpoint(store, name, make_checkpoint(), epoch=5, iter=50)


@pytest.mark.parametrize(("entry", "stem"), [("state_dict", "epoch_5-"), ("averaged", "epoch_5_averaged-")])
def test_a_published_file_holds_the_weights_alone(entry: str, stem: str, tmp_path: Path) -> None:
    """It lies beside the checkpoint, and its name ends with the first digits of its SHA-256."""
    store, checkpoint = make_saved(tmp_path)
    path = publish_weights(checkpoint, entry)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path == store.directory / f"{stem}{digest[:8]}.safetensors"
    expected = {name: tensor for name, tensor in make_checkpoint()[entry].items() if isinstance(tensor, torch.Tensor)}
    loaded = load_file(path)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_publishing_is_no_checkpoint_and_may_be_repeated(tmp_path: Path) -> None:
    """The store goes on as before."""
    store, checkpoint = make_saved(tmp_path)
    assert publish_weights(checkpoint) == publish_weights(checkpoint)
    assert [info.name for info in store.list()] == ["epoch_5"]
    assert store.damaged() == {}
    assert store.verify("epoch_5").epoch == 5


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    """With those that are."""
    store, _ = make_saved(tmp_path)
    bare = save_checkpoint(store, "bare", {"state_dict": {"w": torch.ones(1)}}, epoch=1, iter=1)
    with pytest.raises(CheckpointError, match=r"bare holds no weights 'averaged'.*valid choices: state_dict"):
        publish_weights(bare, "averaged")


def test_damaged_weights_are_not_published(tmp_path: Path) -> None:
    """What is handed out is what was saved."""
    store, checkpoint = make_saved(tmp_path)
    file = checkpoint / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointCorrupt, match=r"model\.safetensors has the SHA-256"):
        publish_weights(checkpoint)
    assert [path.name for path in store.directory.iterdir()] == ["epoch_5"]


def test_a_file_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    """Whichever operation is refused, and wherever the machine stops."""
    store, checkpoint = make_saved(tmp_path)
    counting = FaultyFiles()
    whole = publish_weights(checkpoint, files=counting)
    content = whole.read_bytes()
    for number in range(1, len(counting.log) + 1):
        for code in (errno.ENOSPC, None):
            whole.unlink(missing_ok=True)
            with pytest.raises(CheckpointWriteError if code else Crash):
                publish_weights(checkpoint, files=FaultyFiles(number, code))
            assert not whole.exists() or whole.read_bytes() == content
            left = list(store.directory.glob(".*"))
            assert code is None or not left
            for path in left:
                path.unlink()

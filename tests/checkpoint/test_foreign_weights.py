"""Weights from elsewhere: what files of other programs hold, under the names that a model expects."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import hookbus
from hookbus import import_weights
from hookbus.errors import CheckpointCorrupt, CheckpointError, UnsafeCheckpoint
from tests.checkpoint.builders import assert_same, make_model


def weights(prefix: str = "") -> dict[str, torch.Tensor]:
    """Return the state dict of a small model."""
    return {f"{prefix}{name}": tensor for name, tensor in make_model().state_dict().items()}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt"])
@pytest.mark.parametrize("is_early", [False, True])
def test_a_file_of_torch_is_read(suffix: str, is_early: bool, tmp_path: Path) -> None:
    """In today's format and in the one before torch 1.6."""
    path = tmp_path / f"w{suffix}"
    torch.save(make_model().state_dict(), path, _use_new_zipfile_serialization=not is_early)
    found = import_weights(path)
    assert_same(found, weights())
    make_model(3).load_state_dict(found)


def test_a_safetensors_file_is_read(tmp_path: Path) -> None:
    """As the library writes it, with metadata of its own."""
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(weights(), path, metadata={"from": "elsewhere"})
    found = import_weights(str(path))
    assert_same(dict(sorted(found.items())), dict(sorted(weights().items())))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda: {"state_dict": weights(), "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda: {"model": weights()},
        lambda: {"model": {"state_dict": weights(), "name": "x"}, "epoch": 1},
        lambda: {"state_dict": {"model": weights("module.")}},
        lambda: weights("module."),
    ],
    ids=["state_dict", "model", "state_dict in model", "model in state_dict", "prefix"],
)
def test_wrappers_and_the_prefix_of_parallel_training_go(wrap: Callable[[], Any], tmp_path: Path) -> None:
    """What is left are the names of the model."""
    torch.save(wrap(), tmp_path / "w.pth")
    assert_same(import_weights(tmp_path / "w.pth"), weights())


def test_a_prefix_that_only_some_names_have_stays(tmp_path: Path) -> None:
    """Then `module` is a part of the model."""
    mixed = {"module.a": torch.ones(1), "b": torch.ones(2)}
    torch.save(mixed, tmp_path / "w.pth")
    assert_same(import_weights(tmp_path / "w.pth"), mixed)


def test_parameters_come_back_as_plain_tensors(tmp_path: Path) -> None:
    """Without gradients, and parameters of a model that was elsewhere are on the CPU."""
    torch.save({"w": torch.nn.Parameter(torch.ones(2))}, tmp_path / "w.pth")
    found = import_weights(tmp_path / "w.pth")["w"]
    assert not found.requires_grad
    assert found.device.type == "cpu"


def test_what_needs_code_is_refused_with_a_way_out(tmp_path: Path) -> None:
    """The message names the file, what is in it, and what to do; a model saved as a whole is the usual case."""
    torch.save(make_model(), tmp_path / "whole.pth")
    with pytest.raises(
        UnsafeCheckpoint, match=r"whole\.pth holds more than weights.*container\.Sequential.*if you trust"
    ) as refused:
        import_weights(tmp_path / "whole.pth")
    assert isinstance(refused.value, CheckpointError)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.ones(1), "holds a Tensor, expected named tensors"),
        ([torch.ones(1)], "holds a list"),
        ({"w": torch.ones(1), "epoch": 3}, r"holds 'epoch' \(int\), expected nothing but"),
        ({"state_dict": {3: torch.ones(1)}}, r"holds 3 \(Tensor\)"),
    ],
    ids=["tensor", "list", "more", "numbers"],
)
def test_what_is_no_state_dict_is_refused_by_name(content: Any, words: str, tmp_path: Path) -> None:
    """Nothing is left out in silence."""
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=words):
        import_weights(tmp_path / "w.pth")


def test_other_kinds_of_path_are_refused(tmp_path: Path) -> None:
    """A missing file, a directory and another suffix each get an answer of their own."""
    (tmp_path / "dir.pt").mkdir()
    (tmp_path / "w.pht").touch()
    for name, words in (
        ("missing.pth", "there is no file"),
        ("dir.pt", "there is no file"),
        ("w.pht", "valid choices: .safetensors"),
    ):
        with pytest.raises(CheckpointError, match=words):
            import_weights(tmp_path / name)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_file_beyond_the_limit_is_not_read(name: str, tmp_path: Path) -> None:
    """The limit is an argument, and the message says so."""
    (safetensors.torch.save_file if name.endswith("s") else torch.save)(weights(), tmp_path / name)
    with pytest.raises(UnsafeCheckpoint, match=r"expected at most 100; max_bytes="):
        import_weights(tmp_path / name, max_bytes=100)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_cut_file_is_corrupt(name: str, tmp_path: Path) -> None:
    """Wherever it was cut, one kind of error names the file."""
    (safetensors.torch.save_file if name.endswith("s") else torch.save)(weights(), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    for length in range(16, len(content) - 1, max(1, len(content) // 20)):
        (tmp_path / name).write_bytes(content[:length])
        with pytest.raises(CheckpointCorrupt, match="is not a readable"):
            import_weights(tmp_path / name)


def test_there_is_one_door_and_it_opens_for_weights_only() -> None:
    """Nothing else in the whole package unpickles a file, and the one call says `weights_only=True`."""
    found = []
    for source in Path(hookbus.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "np.load"):
                found.append((source.name, [ast.unparse(option) for option in node.keywords]))
    [(file, options)] = found
    assert file == "foreign_weights.py"
    assert "weights_only=True" in [option.replace(" ", "") for option in options]

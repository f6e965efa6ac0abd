"""What the checkpoint tests share: exact comparison, a small run to save, and file systems that fail."""

from __future__ import annotations

import errno
import hashlib
import json
import struct
from collections import OrderedDict, defaultdict, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from hookbus.checkpoint import CheckpointStore, Files, decode_state, encode_state


def assert_same(found: Any, expected: Any, path: str = "state") -> None:
    """Compare types, values, bits and order of two state trees."""
    assert type(found) is type(expected), f"{path}: {type(found)} is not {type(expected)}"
    if isinstance(expected, torch.Tensor):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), path
        assert _bits(found) == _bits(expected), path
    elif isinstance(expected, np.ndarray | np.generic):
        assert (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes()), path
    elif isinstance(expected, dict):
        _assert_same_dict(found, expected, path)
    elif isinstance(expected, list | tuple | deque):
        assert len(found) == len(expected), path
        assert getattr(found, "maxlen", None) == getattr(expected, "maxlen", None), path
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{path}[{index}]")
    elif isinstance(expected, float):
        assert struct.pack(">d", found) == struct.pack(">d", expected), path
    elif isinstance(expected, complex):
        assert struct.pack(">dd", found.real, found.imag) == struct.pack(">dd", expected.real, expected.imag), path
    else:
        assert found == expected, path


def _assert_same_dict(found: dict[Any, Any], expected: dict[Any, Any], path: str) -> None:
    assert len(found) == len(expected), path
    for (key, value), (expected_key, expected_value) in zip(found.items(), expected.items(), strict=True):
        assert_same(key, expected_key, f"{path} key")
        assert_same(value, expected_value, f"{path}[{key!r}]")
    if isinstance(expected, defaultdict):
        assert found.default_factory is expected.default_factory, path  # type: ignore[attr-defined]
    if isinstance(expected, OrderedDict):
        assert_same(getattr(found, "_metadata", None), getattr(expected, "_metadata", None), f"{path}._metadata")


def _bits(tensor: torch.Tensor) -> bytes:
    return (
        bytes(tensor.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8).numpy().data) if tensor.numel() else b""
    )


def round_trip(tree: Any) -> Any:
    """Encode, pass through JSON text and copied tensors, decode."""
    encoded = encode_state(tree)
    assert all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in encoded.tensors.values())
    text = json.dumps(encoded.document, allow_nan=False)
    return decode_state(json.loads(text), {name: tensor.clone() for name, tensor in encoded.tensors.items()})


def make_model(seed: int = 0) -> torch.nn.Module:
    """Return a small model with buffers."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1, bias=False))


def make_checkpoint(seed: int = 0) -> dict[str, Any]:
    """Return what a run would save, small."""
    model = make_model(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    return {
        "meta": {"epoch": seed, "name": "digits", "seen": (1, 2)},
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "param_schedulers": [{"last_epoch": seed, "best": float("-inf")}],
        "message_hub": {"loss": np.arange(3, dtype=np.float32)},
        "averaged": {name: tensor.clone() for name, tensor in model.state_dict().items()} | {"steps": 3},
        "scaler": {},
        "hooks": {"ema": {"decay": 0.5}},
        "rng": {"torch": torch.get_rng_state()},
        "loader": None,
        "progress": {"iter": seed, "best": float("nan")},
    }


def make_store(work_dir: Path, files: Files | None = None) -> CheckpointStore:
    """Return the store of a run directory."""
    return CheckpointStore(work_dir / "checkpoints", work_dir / "last_checkpoint", files=files)


def save_plain(store: CheckpointStore, name: str, step: int, **options: Any) -> Path:
    """Commit a checkpoint of two tiny files that say which step they are from."""
    contents: Mapping[str, Any] = {
        "state.json": [b'{"step": ', str(step).encode(), b"}\n"],
        "tensors.safetensors": [bytes([step] * 8)],
    }
    return store.save(name, contents, epoch=step, iter=step * 10, **options)


def rewrite(path: Path, file: str, content: bytes) -> None:
    """Replace a file and make the manifest fit, as somebody who wants to harm the reader would."""
    (path / file).write_bytes(content)
    manifest = path / "manifest.json"
    entries = json.loads(manifest.read_text())
    entries["files"][file] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    text = json.dumps(entries | {"manifest_sha256": "0" * 64}, indent=2) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    manifest.write_text(text.replace(f'"manifest_sha256": "{"0" * 64}"', f'"manifest_sha256": "{digest}"'))


class Crash(BaseException):
    """The machine stopped: nothing of the program runs from here on."""


class FaultyFiles(Files):
    """Counts the operations that change the disk, and stops or fails at the one with the given number.

    With an error number it fails once, or `for_ever`: then all that needs room fails from there on. Without one it all stops.
    """

    def __init__(self, fail_at: int | None = None, code: int | None = None, *, for_ever: bool = False) -> None:
        self.log: list[tuple[str, str]] = []
        self._fail_at = fail_at
        self._code = code
        self._for_ever = for_ever

    def _step(self, operation: str, path: str | Path) -> bool:
        """Log the operation, and say whether it is to fail."""
        self.log.append((operation, Path(path).name))
        if self._fail_at is None:
            return False
        stays_broken = self._code is None or (
            self._for_ever and operation in ("make_directory", "create", "write", "sync", "link")
        )
        return len(self.log) == self._fail_at or (stays_broken and len(self.log) > self._fail_at)

    def _fail(self) -> None:
        if self._code is None:
            raise Crash
        raise OSError(self._code, errno.errorcode[self._code])

    def make_directory(self, path: Path) -> None:
        """See `Files`."""
        if self._step("make_directory", path):
            self._fail()
        super().make_directory(path)

    def create(self, path: Path) -> BinaryIO:
        """See `Files`."""
        if self._step("create", path):
            self._fail()
        return super().create(path)

    def write(self, file: BinaryIO, chunk: bytes | memoryview) -> None:
        """Write only half of the chunk when it is to fail."""
        if self._step("write", file.name):
            super().write(file, bytes(chunk)[: len(chunk) // 2])
            file.flush()
            self._fail()
        super().write(file, chunk)

    def sync(self, file: BinaryIO) -> None:
        """See `Files`."""
        if self._step("sync", file.name):
            self._fail()
        super().sync(file)

    def sync_directory(self, path: Path) -> None:
        """See `Files`."""
        if self._step("sync_directory", path):
            self._fail()
        super().sync_directory(path)

    def rename(self, source: Path, target: Path) -> None:
        """See `Files`."""
        if self._step("rename", target):
            self._fail()
        super().rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        """See `Files`."""
        if self._step("link", target):
            self._fail()
        super().link(source, target)

    def remove_file(self, path: Path) -> None:
        """See `Files`."""
        if self._step("remove_file", path):
            self._fail()
        super().remove_file(path)

    def remove_directory(self, path: Path) -> None:
        """See `Files`."""
        if self._step("remove_directory", path):
            self._fail()
        super().remove_directory(path)

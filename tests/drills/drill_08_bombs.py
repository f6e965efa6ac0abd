"""Drill 8: small files that claim a lot of memory, and files so large that they are no part of a checkpoint."""

from __future__ import annotations

import io
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from hookbus.checkpoint import CheckpointInfo, FileRecord, load_checkpoint
from hookbus.checkpoint.manifest import MANIFEST_FILE, render_manifest
from hookbus.errors import CheckpointError
from hookbus.foreign_weights import import_weights
from tests.checkpoint.builders import make_store
from tests.drills.children import forget_peak_memory, in_child, peak_memory
from tests.drills.drill import Drill, Spec

MEMORY = 50 << 20
SECONDS = 10.0
LARGE = 190 << 20
HUGE = 1 << 60

Bomb = tuple[str, Callable[[Path], object], Path]


def run(drill: Drill) -> None:
    """Read each in a process of its own, and look how much memory that took."""
    for title, read, path in drill.within(_bombs(drill.directory)):
        ended = in_child(lambda: _read(_twin if drill.is_broken else read, path))  # noqa: B023  it runs at once
        found = ended.value or {"memory": 1 << 62, "seconds": 0.0, "error": f"ended with {ended.code}: {ended.error}"}
        drill.check(found["memory"] < MEMORY, f"{title}: took {found['memory'] >> 20} MiB; {found['error']}")
        drill.check(found["seconds"] < SECONDS, f"{title}: took {found['seconds']:.1f} seconds")
        drill.check(found.get("is_typed"), f"{title}: {found['error'] or 'was read'}")


def _read(read: Callable[[Path], object], path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"error": "", "is_typed": False}
    forget_peak_memory()
    before, started = peak_memory(), time.monotonic()
    try:
        read(path)
    except CheckpointError as error:
        found |= {"error": f"{type(error).__name__}: {error}", "is_typed": True}
    return found | {"memory": peak_memory() - before, "seconds": time.monotonic() - started}


def _twin(path: Path) -> object:
    try:
        return torch.load(path, weights_only=True)
    except Exception as error:
        raise CheckpointError(str(error)) from error  # so that the twin is judged by what it takes, not by how it says so


def _bombs(directory: Path) -> Iterator[Bomb]:
    foreign = directory / "foreign"
    foreign.mkdir()
    yield from _checkpoints(directory / "run")
    yield from _foreign(foreign)


# --- files from elsewhere ---------------------------------------------------------------------------------------------


def _foreign(directory: Path) -> Iterator[Bomb]:
    contents = {
        "overlapping.pth": _overlapping(),
        "bytearray.pth": _pickled(_LongBytes()),
        "bytearray_early_format.pth": _pickled(_LongBytes(), _use_new_zipfile_serialization=False),
        "repeated.safetensors": _header({f"t{i}": _tensor([LARGE], 0, LARGE) for i in range(3)}, 64),
        "huge_header.safetensors": HUGE.to_bytes(8, "little") + b"{}",
        "long_header.safetensors": (1 << 40).to_bytes(8, "little") + b"{" * 64,
        "huge_tensor.safetensors": _header({"t": _tensor([HUGE], 0, HUGE)}, 64),
        "overflow.safetensors": _header({"t": _tensor([1 << 32, 1 << 32, 4], 0, 0)}, 0),
        "deep.safetensors": _framed(b'{"a":' * 100_000),
        "empty.safetensors": b"",
    }
    for name, content in contents.items():
        (directory / name).write_bytes(content)
        yield name, import_weights, directory / name
    (directory / "deflated.pth").write_bytes(_deflated())
    yield "deflated.pth", import_weights, directory / "deflated.pth"


class _LongBytes:
    """Becomes as many bytes as its pickle says, and torch makes them."""

    def __reduce__(self) -> Any:
        return (bytearray, (LARGE,))


def _pickled(content: object, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save({"weight": content}, stream, **options)
    return stream.getvalue()


def _deflated() -> bytes:
    """Return an archive as torch writes it, of 190 MiB of zeros, compressed to less than 200 KB."""
    stream, packed = io.BytesIO(), io.BytesIO()
    torch.save({"weight": torch.zeros(LARGE // 4)}, stream)
    with zipfile.ZipFile(stream) as plain, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in plain.infolist():
            archive.writestr(entry.filename, plain.read(entry))
    return packed.getvalue()


def _overlapping() -> bytes:
    """Return an archive whose directory claims far more than there is."""
    content = bytearray(_pickled(torch.zeros(64)))
    claimed = (LARGE).to_bytes(4, "little")
    start = content.rindex(b"PK\x01\x02", 0, content.rindex(b"data/0") if b"data/0" in content else len(content))
    content[start + 20 : start + 28] = claimed * 2
    return bytes(content)


def _tensor(shape: list[int], start: int, stop: int) -> dict[str, object]:
    return {"dtype": "U8", "shape": shape, "data_offsets": [start, stop]}


def _header(entries: dict[str, object], content: int) -> bytes:
    return _framed(json.dumps(entries).encode()) + bytes(content)


def _framed(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


# --- checkpoints whose manifest is in order ---------------------------------------------------------------------------


def _checkpoints(work_dir: Path) -> Iterator[Bomb]:
    store = make_store(work_dir)
    nodes: dict[str, Any] = {
        "a long number": {"$number": "S1000000000", "bytes": ""},
        "a large shape": {"$array": "x", "dtype": "float32", "shape": [HUGE]},
        "a view that is too large": {"$tensor": "x", "dtype": "float32", "shape": [HUGE], "stride": [0], "offset": 0},
        "a large queue": {"$deque": [], "maxlen": -HUGE},
    }
    for number, (title, node) in enumerate(nodes.items()):
        contents = {"state.json": [json.dumps({"meta": node}).encode()]}
        yield title, load_checkpoint, store.save(f"node_{number}", contents, epoch=0, iter=0)
    files = {
        "a header of 2^60 bytes": {"model.safetensors": [HUGE.to_bytes(8, "little") + b"{}"]},
        "a tensor of 2^60 bytes": {"model.safetensors": [_header({"t": _tensor([HUGE], 0, HUGE)}, 64)]},
        "a deep state": {"state.json": [b'{"a":' * 100_000]},
    }
    for number, (title, contents) in enumerate(files.items()):
        yield title, load_checkpoint, store.save(f"file_{number}", {"state.json": [b"{}"]} | contents, epoch=0, iter=0)
    yield "a state of 1 GiB", load_checkpoint, _with_hole(store.save("state", {"state.json": [b"{}"]}, epoch=0, iter=0))
    large = store.save("manifest", {"state.json": [b"{}"]}, epoch=0, iter=0)
    os.truncate(large / MANIFEST_FILE, 1 << 30)
    yield "a manifest of 1 GiB", load_checkpoint, large


def _with_hole(path: Path) -> Path:
    """Make the state a file of 1 GiB without content, and write it into the manifest."""
    os.truncate(path / "state.json", 1 << 30)
    info = CheckpointInfo(name=path.name, path=path, epoch=0, iter=0, files={"state.json": FileRecord(1 << 30, "0" * 64)})
    (path / MANIFEST_FILE).write_bytes(render_manifest(info))
    return path


SPEC = Spec(
    number=8,
    name="checkpoint bombs",
    promise="P29",
    expected="a typed error before the memory is taken",
    twin="torch.load with weights_only=True",
    run=run,
    weight=1.2,
)

"""Checkpoints and files of weights that try to run code or to fill the memory, and a program that loads each of them.

`python -m tests.checkpoint.hostile DIRECTORY` makes them below the directory and prints one line of JSON for each: the error it
ended in, what it was seen doing, and how much memory it took. It is a process of its own because an audit hook cannot be removed.
"""

from __future__ import annotations

__all__ = ("FOREIGN", "NATIVE", "main")

import io
import json
import os
import pickle
import shutil
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hookbus import import_weights
from hookbus.checkpoint import load_checkpoint, save_checkpoint
from hookbus.errors import CheckpointError
from tests.checkpoint.builders import make_checkpoint, make_store, rewrite

MIB = 1 << 20
COMMAND = "touch MARKER"
FORBIDDEN = ("exec", "compile", "import", "pickle.find_class", "marshal.", "code.__new__", "ctypes.", "socket.", "subprocess.")
FORBIDDEN_OF_OS = tuple(
    f"os.{call}" for call in ("system", "exec", "posix_spawn", "spawn", "fork", "remove", "rename", "mkdir", "link", "symlink")
)


class Call:
    """Calls something with arguments when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


def _tensor_file(header: Any, content: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def _one(**fields: Any) -> bytes:
    described = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | fields
    return _tensor_file({"w": described}, bytes(4))


NATIVE: dict[str, tuple[str, bytes]] = {
    "a tag that names a function": ("state.json", b'{"a": {"$object": "os.system", "args": ["touch MARKER"]}}'),
    "a factory that is a function": ("state.json", b'{"a": {"$default_dict": [], "factory": "os.getcwd"}}'),
    "jsonpickle": ("state.json", b'{"py/reduce": [{"py/function": "os.system"}, {"py/tuple": ["touch MARKER"]}]}'),
    "a pickle for a state": ("state.json", pickle.dumps(Call(os.system, COMMAND))),
    "brackets without end": ("state.json", b"[" * 100_000),
    "a number of a million digits": ("state.json", b'{"a": ' + b"9" * 1_000_000 + b"}"),
    "a key twice": ("state.json", b'{"a": 1, "a": 2}'),
    "a file elsewhere": ("state.json", b'{"a": {"$weight": "w", "file": "../../secret.safetensors"}}'),
    "an array of objects": ("state.json", b'{"a": {"$array": "w", "dtype": "O"}}'),
    "an array of another size": ("state.json", b'{"a": {"$array": "rng.torch", "dtype": "<c16", "shape": [1073741824]}}'),
    "a view beyond its tensor": (
        "state.json",
        b'{"a": {"$tensor": "rng.torch", "shape": [1073741824], "stride": [1], "offset": 0}}',
    ),
    "a deque without end": ("state.json", b'{"a": {"$deque": [], "maxlen": 100000000000000000000}}'),
    "a pickle for tensors": ("tensors.safetensors", pickle.dumps(Call(os.system, COMMAND))),
    "a header of 2^60 bytes": ("tensors.safetensors", (1 << 60).to_bytes(8, "little") + b"{}"),
    "a header that is negative": ("tensors.safetensors", b"\xff" * 8 + b"{}"),
    "a header that is a list": ("tensors.safetensors", _tensor_file([])),
    "a tensor of 2^60 bytes": ("tensors.safetensors", _one(shape=[1 << 58], data_offsets=[0, 1 << 60])),
    "a small file that claims 190 MiB": ("model.safetensors", _one(shape=[190 * MIB // 4], data_offsets=[0, 190 * MIB])),
    "a shape that overflows": ("model.safetensors", _one(shape=[1 << 32, 1 << 32, 1 << 32])),
    "a shape that overflows beside 0": ("model.safetensors", _one(shape=[0, 1 << 62, 1 << 62], data_offsets=[0, 0])),
    "a shape of a million dimensions": ("model.safetensors", _one(shape=[1] * 1_000_000)),
    "a shape of floats": ("model.safetensors", _one(shape=[1.0])),
    "tensors that overlap": (
        "model.safetensors",
        _tensor_file({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, bytes(4)),
    ),
    "a hole between tensors": ("model.safetensors", _one(data_offsets=[4, 8])),
    "offsets that run backwards": ("model.safetensors", _one(data_offsets=[4, 0])),
    "an unknown dtype": ("model.safetensors", _one(dtype="os.system")),
    "a torch archive": ("model.safetensors", b"PK\x03\x04" + bytes(40)),
    "an empty file": ("model.safetensors", b""),
}
"""Files inside a checkpoint whose manifest fits them: the attacker wrote it too."""


def _archive(content: bytes, *, compression: int = zipfile.ZIP_STORED, more: Mapping[str, bytes] = {}) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        for name, data in more.items():
            archive.writestr(name, data)
    return file.getvalue()


def _saved(tree: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(tree, file, **options)
    return file.getvalue()


def _compressed(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in source.infolist():
            archive.writestr(entry.filename, source.read(entry))
    return file.getvalue()


def _tar() -> bytes:
    file, payload = io.BytesIO(), pickle.dumps(Call(os.system, COMMAND))
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo("pickle")
        entry.size = len(payload)
        archive.addfile(entry, io.BytesIO(payload))
    return file.getvalue()


def _legacy_with_size(size: int) -> bytes:
    """Return a file of an early torch whose one storage claims so many bytes."""
    content = _saved({"w": torch.zeros(4)}, _use_new_zipfile_serialization=False)
    return content.replace(struct.pack("<q", 4) + bytes(16), struct.pack("<q", size) + bytes(16))


FOREIGN: dict[str, Callable[[], bytes]] = {
    "os.system": lambda: _saved({"w": Call(os.system, COMMAND)}),
    "os.system, early format": lambda: _saved({"w": Call(os.system, COMMAND)}, _use_new_zipfile_serialization=False),
    "os.system, a plain pickle": lambda: pickle.dumps(Call(os.system, COMMAND)),
    "os.system, nested": lambda: _saved({"state_dict": {"w": torch.ones(1), "x": [(Call(os.system, COMMAND),)]}}),
    "eval": lambda: _saved({"w": Call(eval, f"__import__('os').system({COMMAND!r})")}),
    "exec": lambda: _saved({"w": Call(exec, "open('MARKER', 'w')")}),
    "open": lambda: _saved({"w": Call(open, "MARKER", "w")}),
    "getattr": lambda: _saved({"w": Call(getattr, dict, "fromkeys")}),
    "a class of the program": lambda: _saved(torch.nn.Linear(1, 1)),
    "torch.hub": lambda: _archive(b"ctorch.hub\nload\n(S'somebody/something'\nS'model'\ntR."),
    "torch.load again": lambda: _archive(b"ctorch\nload\n(S'other.pth'\ntR."),
    "a pickle in a storage": lambda: _archive(pickle.dumps(Call(os.system, COMMAND)), more={"archive/data/0": b"x"}),
    "a stack of opcodes": lambda: _archive(b"(" * 250_000 + b"."),
    "a path that leaves the archive": lambda: _archive(b"}.", more={"../../MARKER": b"x"}),
    "190 MiB deflated to 195 KB": lambda: _compressed(_saved({"w": torch.zeros(190 * MIB // 4)})),
    "a deflated pickle of 19 MiB": lambda: _archive(b"}" + b"0}" * (9 * MIB) + b".", compression=zipfile.ZIP_DEFLATED),
    "2^60 bytes, early format": lambda: _legacy_with_size(1 << 58),
    "a tar archive": _tar,
    "garbage": lambda: bytes(range(256)) * 16,
    "nothing": lambda: b"",
    "cut in the middle": lambda: _saved({"w": torch.ones(1000)})[:2000],
}
"""What `import_weights` is given as a `.pth` file."""


class Watch(NamedTuple):
    """What an audit hook saw while it was switched on."""

    events: list[str]
    allowed: list[str]

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note what loading must not do, and files that are opened elsewhere or for writing."""
        if not self.allowed:
            return
        if event.startswith(FORBIDDEN) or event.startswith(FORBIDDEN_OF_OS):
            self.events.append(f"{event} {str(arguments)[:80]}")
        elif event == "open" and isinstance(arguments[0], str | bytes):
            flags = arguments[2] or 0
            path = os.fsdecode(arguments[0])
            if not path.startswith(self.allowed[0]) or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.events.append(f"open {path}")


def _cases(directory: Path) -> Iterator[tuple[str, Callable[[], object], Path]]:
    sound = make_store(directory / "sound").get("epoch_1").path
    for number, (name, (file, content)) in enumerate(NATIVE.items()):
        path = Path(shutil.copytree(sound, directory / f"native_{number}"))
        rewrite(path, file, content)
        yield f"native: {name}", lambda path=path: load_checkpoint(path), path  # type: ignore[misc]
    for number, (name, make) in enumerate(FOREIGN.items()):
        path = directory / f"foreign_{number}.pth"
        path.write_bytes(make())
        yield f"foreign: {name}", lambda path=path: import_weights(path), path  # type: ignore[misc]


def _warm_up(directory: Path) -> None:
    """Let everything be imported that sound files need, too."""
    load_checkpoint(save_checkpoint(make_store(directory / "sound"), "epoch_1", make_checkpoint(), epoch=1, iter=1))
    for number, options in enumerate(({}, {"_use_new_zipfile_serialization": False})):
        (directory / f"sound_{number}.pth").write_bytes(_saved({"w": torch.ones(2)}, **options))
        assert import_weights(directory / f"sound_{number}.pth").keys() == {"w"}
    for damaged in (_saved(Call(os.system, COMMAND)), _archive(b"}."), b""):
        (directory / "damaged.pth").write_bytes(damaged)
        try:
            import_weights(directory / "damaged.pth")
        except CheckpointError:
            continue


def main(directory: Path) -> None:
    """Load everything hostile, watched, and print what came of it."""
    directory = directory.resolve()
    _warm_up(directory)
    cases = list(_cases(directory))
    os.chdir(directory)
    watch = Watch([], [])
    sys.addaudithook(watch.hear)
    for name, load, path in cases:
        before = _peak(reset=True)
        watch.allowed.append(str(path))
        try:
            load()
            error = ""
        except CheckpointError as refused:
            error = type(refused).__name__
        watch.allowed.clear()
        seen, watch.events[:] = list(watch.events), []
        marker = any(directory.rglob("MARKER"))
        print(json.dumps({"name": name, "error": error, "seen": seen, "marker": marker, "grown": round(_peak() - before, 1)}))


def _peak(*, reset: bool = False) -> float:
    """Return the most memory that this process has had resident, in MiB, since that was reset; 0 where there is no Linux."""
    if not sys.platform.startswith("linux"):
        return 0.0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]))

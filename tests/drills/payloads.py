"""Files that would create a marker if a careless program read them; `tests.checkpoint.hostile` has more, of other kinds."""

from __future__ import annotations

import builtins
import collections
import functools
import io
import operator
import os
import pickle
import runpy
import subprocess
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from hookbus.checkpoint import load_checkpoint, verify_checkpoint
from hookbus.checkpoint.manifest import MANIFEST_FILE
from hookbus.foreign_weights import import_weights
from tests.checkpoint.builders import make_store

Attack = tuple[str, Callable[[Path], object], Path]
"""What it is, the function that reads it, and the file or directory."""


class Calls:
    """An object whose pickle is a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


class Builds:
    """An object that is made of an empty one and the state that it is given then."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def __reduce__(self) -> Any:
        return (collections.OrderedDict, (), self._state)


class Fills:
    """An object whose pickle puts entries into a container."""

    def __init__(self, entries: list[Any]) -> None:
        self._entries = entries

    def __reduce__(self) -> Any:
        return (list, (), None, iter(self._entries))


def attacks(directory: Path, marker: Path) -> Iterator[Attack]:
    """Make every file in the directory, and yield how it is read."""
    directory.mkdir()
    calls = _calls(marker)
    for number, (title, call) in enumerate(calls.items()):
        suffix = (".pth", ".pt", ".bin", ".ckpt")[number % 4]
        path = directory / f"{number}{suffix}"
        torch.save({"state_dict": {"weight": torch.ones(2), "hidden": call}}, path)
        yield f"{title} in {suffix}", import_weights, path
    for title, content in _places(calls["open"]).items():
        path = directory / f"{title.replace(' ', '_')}.pth"
        path.write_bytes(content)
        yield title, import_weights, path
    yield from _misnamed(directory, pickle.dumps(calls["open"]))


def _calls(marker: Path) -> dict[str, Any]:
    """Return objects that create the marker when they are unpickled."""
    touch = Path(marker).touch
    script = f"open({str(marker)!r}, 'w')"
    program = marker.with_name("program.py")
    program.write_text(script)
    return {
        "os.system": Calls(os.system, f"touch {marker}"),
        "subprocess": Calls(subprocess.call, ["touch", str(marker)]),
        "exec": Calls(builtins.exec, script),
        "eval": Calls(builtins.eval, script),
        "open": Calls(builtins.open, str(marker), "w"),
        "a method": Calls(Path.touch, marker),
        "a partial": Calls(functools.partial(touch)),
        "a methodcaller": Calls(operator.methodcaller("touch"), marker),
        "runpy": Calls(runpy.run_path, str(program)),
        "os.mkdir": Calls(os.mkdir, str(marker)),
        "torch.save": Calls(torch.save, {}, str(marker)),
        "os.mknod": Calls(os.mknod, str(marker)),
    }


def _misnamed(directory: Path, pickled: bytes) -> Iterator[Attack]:
    for name in ("pickle.safetensors", "pickle.pt"):
        (directory / name).write_bytes(pickled)
        yield f"a pickle called {name}", import_weights, directory / name
    distributed = directory / "distributed.pt"
    distributed.mkdir()
    (distributed / ".metadata").write_bytes(pickled)
    yield "metadata of a distributed checkpoint", import_weights, distributed
    yield "such metadata in the place of a checkpoint", load_checkpoint, distributed
    store = make_store(directory / "run")
    added = store.save("added", {"state.json": [b"{}"]}, epoch=0, iter=0)
    (added / "data.pkl").write_bytes(pickled)
    yield "a pickle that is no part of a checkpoint", verify_checkpoint, added
    manifest = store.save("manifest", {"state.json": [b"{}"]}, epoch=0, iter=0)
    (manifest / MANIFEST_FILE).write_bytes(pickled)
    yield "a pickle in the place of a manifest", load_checkpoint, manifest


def _places(call: Calls) -> dict[str, bytes]:
    """Return files with a call in less usual places."""
    in_tensor = torch.ones(2)
    in_tensor.hidden = call  # type: ignore[attr-defined]
    return {
        "the file itself": _saved(call),
        "a key": _saved({call: torch.ones(1)}),
        "an attribute of a tensor": _saved({"weight": in_tensor}),
        "a state": _saved(Builds({"hidden": call})),
        "entries": _saved(Fills([call])),
        "the old format": _saved({"weight": call}, _use_new_zipfile_serialization=False),
        "protocol 0": pickle.dumps(call, protocol=0),
        "protocol 5": pickle.dumps({"weight": call}, protocol=5),
        "two pickles in a row": pickle.dumps({}) + pickle.dumps(call),
        "a second data.pkl": _with_entry(_saved({}), "archive/data.pkl", pickle.dumps(call)),
        "a way out of the archive": _with_entry(_saved({}), "../../../escaped", b"x"),
        "a pickle behind a tensor": _saved({"weight": torch.ones(2)}) + pickle.dumps(call),
        "a pickle before an archive": pickle.dumps(call) + _saved({"weight": torch.ones(2)}),
        "a pickle in a tensor": _saved({"weight": torch.frombuffer(bytearray(pickle.dumps(call)), dtype=torch.uint8)}),
    }


def _saved(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def _with_entry(archive: bytes, name: str, content: bytes) -> bytes:
    stream = io.BytesIO(archive)
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(stream, "a") as file:  # it warns of a name that is there twice
        file.writestr(zipfile.ZipInfo(name), content)
    return stream.getvalue()

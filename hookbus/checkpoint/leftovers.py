"""What a crash leaves behind: the hidden names under which things are made, and how they are tidied up.

A hidden name is `.<name>.tmp-<16 digits>` for what is not finished, or `.<name>.old-...` for a checkpoint that is being replaced.
"""

from __future__ import annotations

__all__ = ("clean_directory", "clean_file", "discard_directory", "hidden_path")

import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from hookbus.checkpoint.files import Files
from hookbus.checkpoint.manifest import FILE_NAME, MANIFEST_FILE

_HIDDEN = re.compile(r"\.(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\.(?P<kind>tmp|old)-[0-9a-f]{16}")
_PUBLISHED = re.compile(r".+-[0-9a-f]{8}\.safetensors")


def hidden_path(target: Path, kind: str) -> Path:
    """Return a new hidden name beside the one that is being made or replaced."""
    return target.with_name(f".{target.name}.{kind}-{secrets.token_hex(8)}")


def clean_directory(directory: Path, files: Files) -> Sequence[str]:
    """Restore what was moved aside and has no successor, remove all else that is unfinished, and return what was done."""
    done = [_clean(directory, found, files) for found in _leftovers(directory, files)]
    return [line for line in done if line]


def clean_file(target: Path, files: Files) -> Sequence[str]:
    """Remove unfinished versions of one file, and return what was done."""
    done = []
    for found in _leftovers(target.parent, files):
        path = target.parent / found[0]
        if found["name"] == target.name and files.is_file(path):
            files.remove_file(path)
            done.append(f"removed {found[0]}")
    return done


def discard_directory(path: Path, files: Files) -> None:
    """Delete a hidden directory of our own; files that cannot be ours stay, and the directory with them."""
    if not files.exists(path):
        return
    names = files.list_names(path)
    own = [name for name in names if name == MANIFEST_FILE or FILE_NAME.fullmatch(name)]
    for name in sorted(own, key=lambda name: name != MANIFEST_FILE):  # without a manifest the rest counts as nothing
        files.remove_file(path / name)
    if len(own) == len(names):
        files.remove_directory(path)


def _leftovers(directory: Path, files: Files) -> Sequence[re.Match[str]]:
    found = (_HIDDEN.fullmatch(name) for name in files.list_names(directory))
    return [match for match in found if match is not None]


def _clean(directory: Path, found: re.Match[str], files: Files) -> str:
    path, target = directory / found[0], directory / found["name"]
    if files.is_file(path) and found["kind"] == "tmp" and _PUBLISHED.fullmatch(found["name"]):
        files.remove_file(path)
    elif not files.is_directory(path):
        return ""
    elif found["kind"] == "old" and not files.exists(target):
        files.rename(path, target)
        files.sync_directory(directory)
        return f"restored {found['name']}"
    else:
        discard_directory(path, files)
    return f"removed {found[0]}"

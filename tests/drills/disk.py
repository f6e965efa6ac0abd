"""A disk in memory that knows what is durable, and every state in which a power failure may leave it.

What POSIX promises, and no more: the content of a file is durable once the file was synced, a name once its directory was
synced. Anything else may be lost or kept, each by itself, in any order: of a file that was not synced, nothing, half, all, or
its length full of zeros.
"""

from __future__ import annotations

import errno
import io
import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from hookbus.checkpoint import Files


@dataclass
class Node:
    """A file or a directory, whatever its names are."""

    is_directory: bool
    content: bytes = b""
    durable: bytes = b""
    is_synced: bool = True
    names: dict[str, Node] = field(default_factory=dict)
    kept: dict[str, Node] = field(default_factory=dict)
    """The names that are durable."""
    pending: list[Mapping[str, Node | None]] = field(default_factory=list)
    """The changes of names that are not: of each name, what it stands for then, or None where it goes."""

    def change(self, change: Mapping[str, Node | None]) -> None:
        """Give or take names, in one step."""
        self.pending.append(change)
        _apply(self.names, change)


def _apply(names: dict[str, Node], change: Mapping[str, Node | None]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _tree(node: Node) -> Any:
    return tuple((name, _tree(each)) for name, each in sorted(node.names.items())) if node.is_directory else node.content


class PowerFailure(BaseException):
    """Nothing runs from here on, no handler and no `finally`."""


class _Open:
    """A file open for writing."""

    def __init__(self, node: Node, path: Path) -> None:
        self.node = node
        self.name = str(path)

    def __enter__(self) -> _Open:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Disk(Files):
    """The operations of `Files` on a disk in memory."""

    def __init__(self, root: Node | None = None) -> None:
        self.root = root or Node(is_directory=True)
        self.log: list[str] = []
        self.power_for: int | None = None
        """After so many changes, counted from the first one, there is no power; None if it does not fail."""

    def _begin(self, operation: str, path: str | Path) -> None:
        if self.power_for is not None and len(self.log) >= self.power_for:
            raise PowerFailure
        self.log.append(f"{operation} {Path(path).name}")

    def tree(self) -> Any:
        """Return all that is on the disk, as one value that can be compared."""
        return _tree(self.root)

    # --- what changes the disk

    def make_directory(self, path: Path) -> None:
        """See `Files`."""
        self._begin("make_directory", path)
        self._refuse_existing(path)
        self._parent(path).change({path.name: Node(is_directory=True)})

    def create(self, path: Path) -> BinaryIO:
        """See `Files`."""
        self._begin("create", path)
        self._refuse_existing(path)
        node = Node(is_directory=False, is_synced=False)
        self._parent(path).change({path.name: node})
        return _Open(node, path)  # type: ignore[return-value]

    def write(self, file: BinaryIO, chunk: bytes | memoryview) -> None:
        """See `Files`."""
        self._begin("write", file.name)
        node = _node(file)
        node.content += bytes(chunk)
        node.is_synced = False

    def sync(self, file: BinaryIO) -> None:
        """See `Files`."""
        self._begin("sync", file.name)
        node = _node(file)
        node.durable, node.is_synced = node.content, True

    def sync_directory(self, path: Path) -> None:
        """See `Files`."""
        self._begin("sync_directory", path)
        node = self._find(path)
        node.kept, node.pending = dict(node.names), []

    def rename(self, source: Path, target: Path) -> None:
        """See `Files`; both in one directory."""
        self._begin("rename", target)
        assert source.parent == target.parent, "a rename across directories is not modelled"
        node = self._find(source)
        there = self._parent(target).names.get(target.name)
        if there is not None and there.is_directory and (there.names or not node.is_directory):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(target))
        self._parent(source).change({source.name: None, target.name: node})

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name."""
        self._begin("link", target)
        self._refuse_existing(target)
        self._parent(target).change({target.name: self._find(source)})

    def remove_file(self, path: Path) -> None:
        """See `Files`."""
        self._begin("remove_file", path)
        self._find(path)
        self._parent(path).change({path.name: None})

    def remove_directory(self, path: Path) -> None:
        """See `Files`."""
        self._begin("remove_directory", path)
        if self._find(path).names:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        self._parent(path).change({path.name: None})

    # --- what reads it

    def list_names(self, path: Path) -> list[str]:
        """See `Files`."""
        return sorted(self._find(path).names) if self.exists(path) else []

    def exists(self, path: Path) -> bool:
        """See `Files`."""
        try:
            self._find(path)
        except FileNotFoundError:
            return False
        return True

    def is_directory(self, path: Path) -> bool:
        """See `Files`."""
        return self.exists(path) and self._find(path).is_directory

    def is_file(self, path: Path) -> bool:
        """See `Files`."""
        return self.exists(path) and not self._find(path).is_directory

    def size(self, path: Path) -> int:
        """See `Files`."""
        return len(self._find(path).content)

    def open(self, path: Path) -> BinaryIO:
        """See `Files`."""
        return io.BytesIO(self._find(path).content)

    def read(self, path: Path) -> Iterator[bytes]:
        """See `Files`."""
        yield self._find(path).content

    def _parent(self, path: Path) -> Node:
        return self._find(path.parent)

    def _refuse_existing(self, path: Path) -> None:
        if self.exists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))

    def _find(self, path: Path) -> Node:
        node = self.root
        for name in path.parts[1:]:
            if name not in node.names:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            node = node.names[name]
        return node


def _node(file: object) -> Node:
    assert isinstance(file, _Open)
    return file.node


# --- after a power failure --------------------------------------------------------------------------------------------


def crash_states(disk: Disk, most: int) -> Iterator[Disk]:
    """Yield every state that a power failure may leave now; the disk itself stays as it is.

    Args:
        disk: as the program sees it.
        most: of more open questions than these, each lost or kept, the oldest are taken as settled: they were kept.
    """
    directories, files = _open_questions(disk.root)
    changes = [(id(node), index) for node in directories for index in range(len(node.pending))]
    settled, doubtful = set(changes[: max(0, len(changes) - most)]), changes[max(0, len(changes) - most) :]
    contents = [_possible_contents(node) for node in files]
    for keeps in itertools.product((False, True), repeat=len(doubtful)):
        kept = settled | {change for change, is_kept in zip(doubtful, keeps, strict=True) if is_kept}
        for choice in itertools.product(*contents):
            chosen = {id(node): content for node, content in zip(files, choice, strict=True)}
            yield Disk(_after(disk.root, kept, chosen, {}))


def _open_questions(root: Node) -> tuple[list[Node], list[Node]]:
    """Return the directories with changes that may be lost, and the files whose content may be."""
    seen: dict[int, Node] = {}
    todo = [root]
    while todo:
        node = todo.pop()
        if id(node) not in seen:
            seen[id(node)] = node
            todo += [*node.names.values(), *node.kept.values()]
            todo += [each for change in node.pending for each in change.values() if each is not None]
    nodes = list(seen.values())
    return [node for node in nodes if node.pending], [node for node in nodes if not node.is_directory and not node.is_synced]


def _possible_contents(node: Node) -> list[bytes]:
    whole = node.content
    return list(dict.fromkeys([node.durable, whole[: len(whole) // 2], whole, bytes(len(whole))]))


def _after(node: Node, kept: set[tuple[int, int]], contents: Mapping[int, bytes], done: dict[int, Node]) -> Node:
    """Return what is left of a node; one that has two names stays one."""
    if id(node) in done:
        return done[id(node)]
    content = contents.get(id(node), node.content)
    left = done[id(node)] = Node(node.is_directory, content, content)
    names = dict(node.kept)
    for index, change in enumerate(node.pending):
        if (id(node), index) in kept:
            _apply(names, change)
    left.names = {name: _after(each, kept, contents, done) for name, each in names.items()}
    left.kept = dict(left.names)
    return left

"""Which part of something cannot be sent to another process, found after sending it has failed."""

from __future__ import annotations

__all__ = ("Unsendable", "find_unsendable")

import copyreg
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import get_spawning_popen, set_spawning_popen
from multiprocessing.reduction import ForkingPickler
from types import FunctionType, MethodType
from typing import Any, NamedTuple, cast


class Unsendable(NamedTuple):
    """The innermost part that cannot be sent."""

    path: str
    """Where it lies, such as `dataset.transforms[1]`."""
    value: object
    error: Exception
    """What pickling it raised."""

    def __str__(self) -> str:
        kind = "function " + self.value.__qualname__ if isinstance(self.value, FunctionType) else type(self.value).__qualname__
        return f"{self.path} ({kind})"


def find_unsendable(parts: Mapping[str, object]) -> Unsendable | None:
    """Return the innermost part of the first of `parts` that cannot be sent, or None if all can.

    Each part is pickled as it would be on its way to a new process; nothing is started.
    """
    with _rehearsing():
        for path, value in parts.items():
            error = _failure(value)
            if error is not None:
                return _innermost(Unsendable(path, value, error), {id(value)})
    return None


class _Rehearsal:
    """In the place of a process that is being started: what is pickled for it may hold queues, locks and shared tensors."""

    DupFd = staticmethod(int)

    def duplicate_for_child(self, handle: int) -> int:
        """Return what stands for a descriptor among the pickled bytes."""
        return handle


@contextmanager
def _rehearsing() -> Iterator[None]:
    spawning = get_spawning_popen()
    set_spawning_popen(cast("Any", _Rehearsal()))
    try:
        yield
    finally:
        set_spawning_popen(spawning)


def _failure(value: object) -> Exception | None:
    try:
        ForkingPickler.dumps(value)
    except Exception as error:  # noqa: BLE001  whatever a class raises is the reason that is looked for
        return error
    return None


def _innermost(found: Unsendable, seen: set[int]) -> Unsendable:
    for path, value in _parts_of(found.value):
        if id(value) in seen:
            continue
        seen.add(id(value))
        error = _failure(value)
        if error is not None:
            return _innermost(Unsendable(f"{found.path}{path}", value, error), seen)
    return found


def _parts_of(value: object) -> Iterator[tuple[str, Any]]:
    """Yield the parts that pickle would go through, each with its path; a class that pickles in its own way keeps them."""
    if isinstance(value, partial):
        yield from ((".func", value.func), (".args", value.args), (".keywords", value.keywords))
    elif isinstance(value, MethodType):
        yield ".__self__", value.__self__
    elif isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    if _pickles_its_attributes(value):
        state = value.__getstate__()
        if isinstance(state, dict):
            yield from ((f".{name}", part) for name, part in state.items())


def _pickles_its_attributes(value: object) -> bool:
    kind = type(value)
    usual = kind.__reduce__ is object.__reduce__ and kind.__reduce_ex__ is object.__reduce_ex__
    return usual and kind not in copyreg.dispatch_table and not isinstance(value, (type, FunctionType))

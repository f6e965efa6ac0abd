"""What of a message hub goes to another process: what it knows, by pickle; there it can be read and nothing else."""

from __future__ import annotations

__all__ = ("HubState", "Unwritable")

import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, NoReturn

from hookbus._snapshot import Snapshot
from hookbus.errors import ReadOnlyHub
from hookbus.history import HistoryBuffer

HISTORY_IN_COPY = 1_000
"""Newest entries per key that a copy holds."""


class HubState(NamedTuple):
    """One version of a hub in a form that any process can unpickle."""

    name: str
    version: int
    info: Mapping[str, bytes]
    """Each piece of information pickled by itself, so that one which cannot be read there takes no other along."""
    scalars: Mapping[str, tuple[list[float], list[int], list[int]]]

    @classmethod
    def of(cls, name: str, snapshot: Snapshot, *, without: type) -> HubState:
        """Take what a version knows; information that cannot be pickled, lies on a device or holds a `without` is left out."""
        pickled = {key: _pickled(value, without) for key, value in snapshot.runtime_info.items()}
        scalars = {key: buffer.newest(HISTORY_IN_COPY) for key, buffer in snapshot.log_scalars.items()}
        return cls(name, snapshot.version, {key: data for key, data in pickled.items() if data is not None}, scalars)

    def restored(self) -> Snapshot:
        """Return the version; information whose class this process cannot import is left out."""
        info = {key: value for key, data in self.info.items() for value in _unpickled(data)}
        buffers = {key: _buffer(*columns) for key, columns in self.scalars.items()}
        return Snapshot(self.version, info, buffers, [], 0)


class _InfoPickler(pickle.Pickler):
    """Refuses tensors on a device, which would start that device in every worker, and hubs within hubs."""

    def __init__(self, file: io.BytesIO, without: type) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._without = without

    def reducer_override(self, value: Any) -> Any:
        """Refuse a value, or leave it to the usual way."""
        if getattr(value, "is_cpu", True) is False or isinstance(value, self._without):
            msg = f"a {type(value).__name__} stays in its process"
            raise pickle.PicklingError(msg)
        return NotImplemented


def _pickled(value: Any, without: type) -> bytes | None:
    file = io.BytesIO()
    try:
        _InfoPickler(file, without).dump(value)
    except Exception:  # noqa: BLE001  whatever its class raises, this value stays here, as `HubState.of` says
        return None
    return file.getvalue()


def _unpickled(data: bytes) -> Iterator[Any]:
    """Yield the value, or nothing where its class cannot be found in this process."""
    try:
        value = pickle.loads(data)
    except Exception:  # noqa: BLE001  whatever its class raises, as `HubState.restored` says
        return
    yield value


def _buffer(values: list[float], counts: list[int], steps: list[int]) -> HistoryBuffer:
    buffer = HistoryBuffer()
    buffer.extend(values, counts, steps)
    return buffer


def _refused(method: str, *, what: str = "written to") -> Callable[..., Any]:
    def refuse(self: Unwritable, *args: Any, **kwargs: Any) -> NoReturn:
        key = f"{args[0]!r}" if args and isinstance(args[0], str) else ""
        msg = (
            f"{method}({key}) on a copy of the message hub {self.name!r}: outside the process of its run, as in a worker of a "
            f"dataloader, a hub is a copy as of when the worker started, which can be read and not {what}; "
            f"return with the batch what the run should know"
        )
        raise ReadOnlyHub(msg)

    refuse.__name__ = method
    return refuse


_waited_for = partial(_refused, what="waited for, as it never changes")


class Unwritable:
    """What a copy of a hub refuses, each with an error that says why: whatever writes, and whatever waits for a write."""

    name: str

    update_scalar = _refused("update_scalar")
    update_scalars = _refused("update_scalars")
    update_info = _refused("update_info")
    update_info_dict = _refused("update_info_dict")
    pop_info = _refused("pop_info")
    update = _refused("update")
    load_state_dict = _refused("load_state_dict")
    begin_run = _refused("begin_run")
    end_run = _refused("end_run")
    commit = _refused("commit")
    flush = _refused("flush")
    take_landed = _refused("take_landed")
    wait_until = _waited_for("wait_until")
    watch = _waited_for("watch")
    wait_until_blocking = _waited_for("wait_until_blocking")

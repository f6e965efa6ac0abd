"""Finds handlers that read values of a device by accident, and so have training wait for it: on a device and on the CPU.

Reading one number - `loss.item()`, `if loss > 3`, `print(loss)` - waits until the device has done all that was asked of
it so far. In a handler of each iteration that can cost more than the training itself, and nothing tells who it was. A
watch on the bus of a run names handler, operation and line, also where the model lies in host memory and nothing waits.
Values that the message hub brings over in its own time are not meant.
"""

from __future__ import annotations

__all__ = ("DeviceRead", "DeviceReads", "find_device_reads")

import functools
import linecache
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

from hookbus import _scalars
from hookbus.bus import EventBus, Subscription
from hookbus.device import default_device
from hookbus.errors import BusError

_READS = {
    *("item", "tolist", "numpy", "cpu", "is_nonzero", "equal", "allclose"),
    *("nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount"),
    *("__bool__", "__int__", "__float__", "__complex__", "__index__", "__array__", "__contains__", "__format__", "__repr__"),
}
"""Functions and methods of torch whose answer, or the size of it, has to be known on the host."""

_TORCH = str(Path(torch.__file__).parent)
_DELIBERATE = (_scalars.__file__,)
"""Files whose reads are meant: the hub's, which happen when values have landed, or where a log line needs them."""


class DeviceRead(NamedTuple):
    """One place where a handler reads a value of a device."""

    handler: str
    event: str
    operation: str
    file: str
    line: int

    def __str__(self) -> str:
        code = linecache.getline(self.file, self.line).strip()
        return f"{self.handler} on {self.event} reads a value of a device ({self.operation}): {self.file}:{self.line}: {code}"


class DeviceReads:
    """What a watch has found, with how often each place read; see `find_device_reads`."""

    def __init__(self) -> None:
        self.counts: dict[DeviceRead, int] = {}
        """The places, in the order in which they first read."""

    def __len__(self) -> int:
        return len(self.counts)

    def __iter__(self) -> Iterator[DeviceRead]:
        return iter(list(self.counts))

    def __str__(self) -> str:
        lines = (f"{read} [{count} times]" for read, count in self.counts.items())
        return "\n".join(lines) or "no handler read a value of a device"

    @property
    def handlers(self) -> list[str]:
        """The names of the handlers that read, each once."""
        return list(dict.fromkeys(read.handler for read in self.counts))


@contextmanager
def find_device_reads(
    bus: EventBus,
    *,
    ignore: Sequence[str] = (),
    host_tensors: bool | None = None,
    logger: logging.Logger | None = None,
) -> Iterator[DeviceReads]:
    """Watch the inline and awaited handlers of a bus, and warn once about each that reads a value of a device.

    For development: every call of torch in a handler becomes slower meanwhile.

    Args:
        bus: `runner.bus`, for instance.
        ignore: names of handlers that may read, such as `"LoggerHook.*"`.
        host_tensors: take tensors in host memory for those of a device; by default where there is no accelerator.
        logger: where the warnings go; by default the logger `hookbus`.

    Raises:
        BusError: something else surrounds the handlers of this bus already.
    """
    if bus.around is not None:
        msg = f"the handlers of the event bus {bus.name!r} cannot be watched: its `around` is in use, by {bus.around!r}"
        raise BusError(msg)
    reads = DeviceReads()
    counts_host = default_device().type == "cpu" if host_tensors is None else host_tensors
    book = _Book(reads, tuple(ignore), counts_host=counts_host, logger=logger or logging.getLogger("hookbus"))
    bus.around = functools.cache(lambda subscription: _Watch(subscription, book))
    try:
        yield reads
    finally:
        bus.around = None


class _Book:
    """Writes down what the watches of a bus see."""

    def __init__(self, reads: DeviceReads, ignore: tuple[str, ...], *, counts_host: bool, logger: logging.Logger) -> None:
        self._reads = reads
        self._ignore = ignore
        self._counts_host = counts_host
        self._logger = logger
        self._lock = threading.Lock()
        self._warned: set[str] = set()

    def note(self, subscription: Subscription[Any], operation: str, tensor: torch.Tensor) -> None:
        """Note one read, unless it is meant or the host has the value."""
        if tensor.is_cpu and not self._counts_host:
            return
        if any(fnmatchcase(subscription.name, pattern) for pattern in self._ignore):
            return
        reader = _reader()
        if reader is None or reader.f_code.co_filename in _DELIBERATE:
            return
        event = subscription.event_type.__name__
        read = DeviceRead(subscription.name, event, operation, reader.f_code.co_filename, reader.f_lineno)
        with self._lock:
            self._reads.counts[read] = self._reads.counts.get(read, 0) + 1
            is_first = subscription.name not in self._warned
            self._warned.add(subscription.name)
        if is_first:
            self._logger.warning("%s; training waits for the device there: record it in the hub, or read it less often", read)


class _Watch(TorchFunctionMode):
    """Sees every call of torch in one handler."""

    def __init__(self, subscription: Subscription[Any], book: _Book) -> None:
        super().__init__()
        self._subscription = subscription
        self._book = book
        self._left_open: set[TorchFunctionMode] = set()
        """Modes in which coroutines of this handler wait."""

    def __enter__(self) -> _Watch:
        """Take a place on the stack of modes, below those that a coroutine has brought along from its last step."""
        brought = []
        while (stack := _get_current_function_mode_stack()) and stack[-1] in self._left_open:  # type: ignore[no-untyped-call]
            brought.append(_pop_mode())  # type: ignore[no-untyped-call]
        self._left_open.difference_update(brought)
        for mode in (self, *reversed(brought)):
            _push_mode(mode)  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the stack, from wherever in it: `with torch.device(...)`, for one, blindly takes off what is on top."""
        left = []
        while (mode := _pop_mode()) is not self:  # type: ignore[no-untyped-call]
            left.append(mode)
        for mode in reversed(left):
            _push_mode(mode)  # type: ignore[no-untyped-call]
        self._left_open.update(left)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _innermost.is_looking:  # the handler that reads publishes inside another one, which is not to blame
            return func(*args, **(kwargs or {}))
        tensor = _read_tensor(func, args, kwargs or {})
        if tensor is not None:
            self._book.note(self._subscription, func.__name__, tensor)
        _innermost.is_looking = True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            _innermost.is_looking = False


class _Innermost(threading.local):
    """Whether a watch further inside has this call already."""

    is_looking = False


_innermost = _Innermost()


def _read_tensor(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """Return the tensor that a call reads on the host; None where it reads none."""
    name = getattr(func, "__name__", "")
    tensor = next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)
    if name in ("tensor", "as_tensor") and args and isinstance(args[0], list | tuple):
        return next((value for value in args[0] if isinstance(value, torch.Tensor)), None)
    if tensor is None or name in _READS:
        return tensor
    if name == "to":
        return tensor if _goes_to_host(tensor, args[1:], kwargs) else None
    if name == "__getitem__":
        return next((index for index in _as_tuple(args[1]) if _is_mask(index)), None)
    if name == "where":
        return tensor if len(args) + len(kwargs) == 1 else None
    if name == "copy_":
        source = args[1] if len(args) > 1 else kwargs.get("src")
        is_blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        return source if is_blocking and tensor.is_cpu and isinstance(source, torch.Tensor) and not source.is_cpu else None
    return None


def _goes_to_host(tensor: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a tensor is brought to the host, and waited for.

    One that stands for a device's has to be sent there by name: `x.to(other.device)` would not go to the host there.
    """
    kinds = str if tensor.is_cpu else str | torch.device
    places = [value for value in (*args, kwargs.get("device")) if isinstance(value, kinds)]
    is_blocking = not (kwargs.get("non_blocking") or any(value is True for value in args))
    return is_blocking and any(torch.device(place).type == "cpu" for place in places)


def _as_tuple(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)


def _reader() -> FrameType | None:
    """Return the innermost frame that belongs neither to this file nor to torch."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (frame.f_code.co_filename == __file__ or frame.f_code.co_filename.startswith(_TORCH)):
        frame = frame.f_back
    return frame

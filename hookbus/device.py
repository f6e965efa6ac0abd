"""The main stream of a run, and the way of batches to their device.

The main stream is the one that was current when the run started. The training thread works on it, and so does each
step of an awaited handler's coroutine, although that runs on the thread of an event loop: stream, device and modes are
set before the step and put back after it, so that neither side ever sees the other's.
"""

from __future__ import annotations

__all__ = ("MainStream", "default_device", "mover")

import copy
import dataclasses
import types
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils._device import DeviceContext

T = TypeVar("T")

_AUTOCAST_DEVICES = ("cpu", "cuda")


def default_device() -> torch.device:
    """Return the accelerator of this machine, or the CPU where there is none."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator if accelerator is not None else torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class _Modes:
    """What torch keeps per thread and a coroutine may change between two waits."""

    grad: bool
    autocast: tuple[tuple[bool, torch.dtype], ...]
    functions: tuple[TorchFunctionMode, ...]
    """What `with torch.device(...)` and its like have put on a stack, outermost first."""

    @classmethod
    def current(cls) -> _Modes:
        autocast = tuple((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in _AUTOCAST_DEVICES)
        return cls(torch.is_grad_enabled(), autocast, _function_modes())

    def set(self) -> None:
        torch.set_grad_enabled(self.grad)
        for kind, (enabled, dtype) in zip(_AUTOCAST_DEVICES, self.autocast, strict=True):
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)
        _set_function_modes(self.functions)


def _function_modes() -> tuple[TorchFunctionMode, ...]:
    return tuple(_get_current_function_mode_stack())  # type: ignore[no-untyped-call]


def _set_function_modes(modes: tuple[TorchFunctionMode, ...]) -> None:
    for _ in _function_modes():
        _pop_mode()  # type: ignore[no-untyped-call]
    for mode in modes:
        _push_mode(mode)  # type: ignore[no-untyped-call]


class MainStream:
    """Device, stream and modes as they were when the run started."""

    def __init__(self) -> None:
        modes = _Modes.current()
        devices = tuple(mode for mode in modes.functions if isinstance(mode, DeviceContext))
        self._modes = dataclasses.replace(modes, functions=devices)  # other modes are meant for the caller's own code
        self._stream = torch.accelerator.current_stream() if torch.accelerator.is_available() else None

    @contextmanager
    def on_this_thread(self) -> Iterator[None]:
        """Take everything over on another thread, for the duration of a run."""
        before = _Modes.current()
        self._modes.set()
        try:
            with _on(self._stream):
                yield
        finally:
            before.set()

    async def drive(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
        """Run a coroutine function with each of its steps on the main stream."""
        return await self._stepwise(function(*arguments))

    @types.coroutine
    def _stepwise(self, coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        own, stream = self._modes, self._stream
        outside: torch.inference_mode | None = None
        resume: Callable[[], Any] = lambda: coroutine.send(None)  # noqa: E731  replaced at each step
        while True:
            loops = _Modes.current()
            if outside is not None:
                outside.__exit__(None, None, None)
            own.set()
            try:
                with _on(stream):
                    waits_for = resume()
                    if stream is not None:  # the handler may wait inside a block that works on another stream
                        stream = torch.accelerator.current_stream()
            except StopIteration as finished:
                return cast("T", finished.value)
            finally:
                own = _Modes.current()
                outside = torch.inference_mode(mode=False) if torch.is_inference_mode_enabled() else None
                if outside is not None:
                    outside.__enter__()  # nothing but leaving it again brings back the coroutine's own
                loops.set()
            try:
                sent = yield waits_for
            except BaseException as error:  # noqa: BLE001  whatever the loop throws belongs to the coroutine
                resume = _thrower(coroutine, error)
            else:
                resume = _sender(coroutine, sent)


@contextmanager
def _on(stream: torch.Stream | None) -> Iterator[None]:
    """Work on a stream, and so on its device; then go back to those before.

    A stream is a context manager, too, but keeps what to go back to in itself, so that two threads cannot enter the
    same one at once: the training thread is on the main stream for the whole of a run.
    """
    if stream is None:
        yield
        return
    here = torch.accelerator.current_stream()
    there = torch.accelerator.current_stream(stream.device)
    torch.accelerator.set_stream(stream)
    try:
        yield
    finally:
        torch.accelerator.set_stream(there)  # of that device, for when somebody turns to it
        torch.accelerator.set_stream(here)


def _sender(coroutine: Coroutine[Any, Any, Any], value: Any) -> Callable[[], Any]:
    return lambda: coroutine.send(value)


def _thrower(coroutine: Coroutine[Any, Any, Any], error: BaseException) -> Callable[[], Any]:
    return lambda: coroutine.throw(error)


def mover(device: torch.device) -> Callable[[Any], Any]:
    """Return the function that brings a batch to `device`, through nested containers and without waiting."""
    if device.type == "cpu":
        return lambda batch: batch  # dataloaders give host tensors

    def move(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device, non_blocking=True)
        if isinstance(value, PackedSequence):
            return value.to(device, non_blocking=True)  # type: ignore[arg-type]  # it takes what tensors take
        if type(value) is dict or (isinstance(value, Mapping) and not isinstance(value, MutableMapping)):
            return {key: move(item) for key, item in value.items()}
        if isinstance(value, MutableMapping):
            moved = copy.copy(value)  # constructors of mappings differ
            moved.update({key: move(item) for key, item in value.items()})
            return moved
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(move, value))
        if isinstance(value, list | tuple):
            return type(value)(map(move, value))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            clone = copy.copy(value)  # a constructor may not take every field
            for field in dataclasses.fields(value):
                object.__setattr__(clone, field.name, move(getattr(value, field.name)))
            return clone
        return value

    return move

"""A stand-in for an accelerator's streams, for machines that have none: it knows who is on which stream, and what ran there."""

from __future__ import annotations

__all__ = ("FakeAccelerator", "FakeStream", "Launch")

import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, NoReturn

import pytest
import torch

DEVICE_TYPE = "cuda"
"""What the devices of the stand-in are called; no tensor is ever made there."""


@dataclass(frozen=True)
class FakeStream:
    """A stream of one device; as with torch, it must not be entered twice at once, so nobody may enter it at all."""

    name: str
    index: int = 0

    @property
    def device(self) -> torch.device:
        """Return its device."""
        return torch.device(DEVICE_TYPE, self.index)

    def __enter__(self) -> NoReturn:
        msg = f"{self.name} was entered as a context manager, which two threads cannot do at once"
        raise AssertionError(msg)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Never comes."""


class Launch(NamedTuple):
    """Work that was put on a stream."""

    what: str
    stream: str
    thread: int


class _Current(threading.local):
    """Device and streams are a matter of each thread."""

    def __init__(self) -> None:
        self.index = 0
        self.streams: dict[int, FakeStream] = {}


@dataclass
class FakeAccelerator:
    """Takes the place of `torch.accelerator`, and records what is launched."""

    launches: list[Launch] = field(default_factory=list)
    switches: int = 0
    _current: _Current = field(default_factory=_Current)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeAccelerator:
        """Put it into the place of torch's."""
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "current_stream", self.current_stream)
        monkeypatch.setattr(torch.accelerator, "set_stream", self.set_stream)
        return self

    def current_stream(self, device: torch.device | None = None) -> FakeStream:
        """Return the calling thread's stream of a device, by default of its current one."""
        index = self._current.index if device is None or device.index is None else device.index
        return self._current.streams.get(index, FakeStream("default", index))

    def set_stream(self, stream: FakeStream) -> None:
        """Turn the calling thread to a stream and its device."""
        self.switches += 1
        self._current.index = stream.index
        self._current.streams[stream.index] = stream

    def launch(self, what: str) -> None:
        """Put work on the calling thread's stream."""
        stream = self.current_stream()
        self.launches.append(Launch(what, f"{stream.name} of {stream.index}", threading.get_ident()))

    def streams_of(self, what: str) -> set[str]:
        """Return the streams on which some work was launched."""
        return {launch.stream for launch in self.launches if launch.what == what}

"""Where the tests of this folder run: on a CUDA device, and on the CPU, which stands in for one as far as it can."""

from __future__ import annotations

__all__ = ("CPU", "CUDA", "PLACES", "Place")

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import pytest
import torch

from tests.test_device_scalars import no_reading

SPIN_CYCLES = 20_000_000
"""Some ten milliseconds of a device, in which the host gets far ahead."""


@dataclass(frozen=True)
class Place:
    """A kind of device, and what tests want of it."""

    kind: str

    @property
    def device(self) -> torch.device:
        """Return the device."""
        return torch.device(self.kind, 0) if self.kind == "cuda" else torch.device(self.kind)

    def current_stream(self) -> object:
        """Return the stream on which the calling thread works."""
        return torch.cuda.current_stream() if self.kind == "cuda" else "the only one"

    @contextmanager
    def on_chosen_stream(self) -> Iterator[object]:
        """Work on a stream other than the default one, as a user may before a run."""
        if self.kind == "cuda":
            with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
                yield torch.cuda.current_stream()
        else:
            yield self.current_stream()

    def spin(self) -> None:
        """Give the device something to do, so that work on another stream would overtake what follows."""
        if self.kind == "cuda":
            torch.cuda._sleep(SPIN_CYCLES)  # type: ignore[no-untyped-call]

    @contextmanager
    def without_syncs(self) -> Iterator[None]:
        """Fail whatever waits for the device; on the CPU, whatever reads a value."""
        if self.kind != "cuda":
            with no_reading():
                yield
            return
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)

    @contextmanager
    def with_device_scalars(self) -> Iterator[None]:
        """Have the hub take the tensors of this place for those of a device."""
        if self.kind == "cuda":
            yield
            return
        with mock.patch("hookbus.hub.on_device", lambda value: isinstance(value, torch.Tensor)):
            yield


CPU, CUDA = Place("cpu"), Place("cuda")

PLACES = [
    pytest.param(CPU, id="stand-in"),
    pytest.param(CUDA, id="cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")),
]

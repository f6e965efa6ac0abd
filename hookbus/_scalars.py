"""What may be recorded as a scalar, and how values that lie on a device reach the host without stopping it.

A value is copied when it is recorded, on the stream that is current there. Values gather until a batch of them is sent:
one transfer for each device, into a pinned buffer of a ring, with an event behind it that tells when it has landed. A
buffer whose values have been read is used again, so that a run allocates pinned memory, which may stop the device, only
until its ring is as large as the number of transfers that are ever under way at once.
"""

from __future__ import annotations

__all__ = ("DeviceScalars", "as_number", "on_device")

import functools
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from hookbus.errors import ConfigError

SEND_AFTER_UPDATES = 16
SEND_AFTER_SECONDS = 0.02
SMALLEST_BUFFER = 64
"""Values that the smallest buffer of a ring takes: those of a usual batch, so that no ring begins with many sizes."""


def on_device(value: Any) -> bool:
    """Return whether `value` is a tensor that does not lie in host memory."""
    return not getattr(value, "is_cpu", True)


def as_number(key: str, value: Any) -> float:
    """Return a host scalar as a float.

    Raises:
        ConfigError: it is not one number.
    """
    item = getattr(value, "item", None)
    try:
        number = value if item is None else item()
    except (RuntimeError, TypeError, ValueError) as error:  # asking for the number of elements first costs as much again
        raise ConfigError(_refusal(key, value)) from error
    if isinstance(number, (int, float)):  # a tuple is quicker than int | float
        return float(number)
    raise ConfigError(_refusal(key, value))


def _refusal(key: str, value: Any) -> str:
    return f"{key!r} must be recorded as a number or a tensor of one element, got {_describe(value)}"


def _describe(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__} of shape {tuple(shape)}" if shape is not None else f"{type(value).__name__} {value!r:.80}"


class _Column(NamedTuple):
    key: str
    samples: int
    step: int


class _Value(NamedTuple):
    """A copy of a recorded scalar, and the stream on which it was made."""

    copy: Any
    stream: Any


@functools.cache
def _has_streams(device_type: str) -> bool:
    import torch

    if not torch.accelerator.is_available():
        return False
    accelerator = torch.accelerator.current_accelerator()
    return accelerator is not None and accelerator.type == device_type


def _current_stream(device: Any) -> Any:
    """Return the stream on which the calling thread works on a device; None where it has none."""
    import torch

    return torch.accelerator.current_stream(device) if _has_streams(device.type) else None


def _record(event: Any, stream: Any) -> None:
    if stream is None:
        event.record()
    else:
        event.record(stream)  # otherwise the one of the current device is taken, which need not be the device of the values


def _precision(device: Any) -> Any:
    import torch

    return torch.float32 if device.type == "mps" else torch.float64


class _Slot:
    """A buffer of the host, pinned where a device can write to it by itself, and the event of the transfer into it."""

    def __init__(self, device: Any, size: int) -> None:
        import torch

        with torch.inference_mode(False):  # what is made inside could not be written to outside
            # The device is named because a default device would also decide where an empty tensor lies.
            is_pinned = device.type == "cuda"
            self.buffer = torch.empty(size, dtype=_precision(device), device="cpu", pin_memory=is_pinned)
        try:
            self.arrival: Any = torch.Event(device)
            _record(self.arrival, _current_stream(device))
        except RuntimeError:  # this device has no events, so its copies have to be waited for
            self.arrival = None


class _Ring:
    """The buffers of one device: each is taken for a transfer, given back when it has been read, and taken again."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self._free: deque[_Slot] = deque()

    def take(self, size: int) -> _Slot:
        """Return a buffer for so many values; a new one where all are under way, or the next is too small."""
        slot = self._free.popleft() if self._free else None
        if slot is None or len(slot.buffer) < size:
            slot = _Slot(self._device, max(SMALLEST_BUFFER, 1 << (size - 1).bit_length()))
        return slot

    def give_back(self, slot: _Slot) -> None:
        """Have a buffer used again."""
        self._free.append(slot)


class _Transfer:
    """Scalars of one device on their way to the host; makes the device start, and does not wait for it."""

    def __init__(self, ring: _Ring, values: Sequence[_Value]) -> None:
        import torch

        device = values[0].copy.device
        stream = _current_stream(device)
        for other in {value.stream for value in values} - {stream, None}:
            stream.wait_stream(other)  # some thread recorded there, and its copies come first
        self._values = values
        """Kept until they have landed: memory of another stream could be given away before the transfer reads it."""
        self._ring, self._slot = ring, ring.take(len(values))
        self._landing = self._slot.buffer[: len(values)]
        self._landing.copy_(torch.stack([value.copy for value in values]), non_blocking=self._slot.arrival is not None)
        if self._slot.arrival is not None:
            _record(self._slot.arrival, stream)

    def has_landed(self) -> bool:
        """Return whether the values can be read without waiting."""
        return self._slot.arrival is None or bool(self._slot.arrival.query())

    def read(self) -> list[float]:
        """Return the values, once; waits for them."""
        if self._slot.arrival is not None:
            self._slot.arrival.synchronize()
        values: list[float] = self._landing.tolist()
        self._ring.give_back(self._slot)
        return values


class _Batch(NamedTuple):
    columns: list[_Column]
    transfers: list[tuple[list[int], _Transfer]]
    """For each device the places of its values among the columns, and their way to the host."""


class DeviceScalars:
    """Device scalars on their way to the host: copied when recorded, sent in batches, read when they have landed.

    Any thread may add some; the rest is for one thread at a time. Nothing here waits for the device except
    `land(wait=True)`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gathered: list[tuple[_Column, _Value]] = []
        self._first_at = 0.0
        self._in_flight: deque[_Batch] = deque()
        self._rings: dict[Any, _Ring] = {}

    def __bool__(self) -> bool:
        return bool(self._gathered or self._in_flight)

    def add(self, key: str, value: Any, count: int, step: int) -> None:
        """Take a copy of a device scalar as it is now, on the current stream.

        Raises:
            ConfigError: it has more than one element.
        """
        if value.numel() != 1:
            raise ConfigError(_refusal(key, value))
        device = value.device
        copied = _Value(value.detach().reshape(()).to(_precision(device), copy=True), _current_stream(device))
        with self._lock:
            if not self._gathered:
                self._first_at = time.monotonic()
            self._gathered.append((_Column(key, count, step), copied))

    def is_due(self) -> bool:
        """Return whether enough has gathered, or waited long enough, to be sent."""
        if not self._gathered:
            return False
        (first, _), (last, _) = self._gathered[0], self._gathered[-1]
        return last.step - first.step >= SEND_AFTER_UPDATES or time.monotonic() - self._first_at >= SEND_AFTER_SECONDS

    def send(self) -> None:
        """Start the transfer of everything gathered; does not wait for it."""
        with self._lock:
            gathered, self._gathered = self._gathered, []
        places: dict[Any, list[int]] = {}
        for place, (_, value) in enumerate(gathered):
            places.setdefault(value.copy.device, []).append(place)
        transfers = []
        for device, those in places.items():
            ring = self._rings.get(device) or self._rings.setdefault(device, _Ring(device))
            transfers.append((those, _Transfer(ring, [gathered[place][1] for place in those])))
        if gathered:
            self._in_flight.append(_Batch([column for column, _ in gathered], transfers))

    def land(self, *, wait: bool = False) -> list[tuple[str, float, int, int]]:
        """Return key, value, count and step of what has reached the host, in order; `wait` for all of it."""
        landed: list[tuple[str, float, int, int]] = []
        while self._in_flight:
            columns, transfers = self._in_flight[0]
            if not wait and not all(transfer.has_landed() for _, transfer in transfers):
                break
            self._in_flight.popleft()
            values = dict(pair for places, transfer in transfers for pair in zip(places, transfer.read(), strict=True))
            landed += [(c.key, values[place], c.samples, c.step) for place, c in enumerate(columns)]
        return landed

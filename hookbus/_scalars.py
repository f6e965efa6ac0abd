"""What may be recorded as a scalar, and how values that lie on a device reach the host without stopping it."""

from __future__ import annotations

__all__ = ("DeviceScalars", "as_number", "on_device")

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from hookbus.errors import ConfigError

SEND_AFTER_UPDATES = 16
SEND_AFTER_SECONDS = 0.02


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


class _Transfer:
    """Scalars of one device on their way to the host; makes the device start, and does not wait for it."""

    def __init__(self, values: Sequence[Any]) -> None:
        import torch

        device = values[0].device
        precision = torch.float32 if device.type == "mps" else torch.float64
        gathered = torch.stack([value.to(precision) for value in values])
        # The device is named because a default device would also decide where an empty tensor lies.
        self._landing = torch.empty(gathered.shape, dtype=precision, device="cpu", pin_memory=device.type == "cuda")
        self._landing.copy_(gathered, non_blocking=True)
        self._arrival: Any = None
        try:
            arrival = torch.Event(device)
            arrival.record()
        except RuntimeError:  # this device has no events, so its copies have to be waited for
            self._landing.copy_(gathered)
        else:
            self._arrival = arrival

    def has_landed(self) -> bool:
        """Return whether the values can be read without waiting."""
        return self._arrival is None or bool(self._arrival.query())

    def read(self) -> list[float]:
        """Return the values; waits for them."""
        if self._arrival is not None:
            self._arrival.synchronize()
        values: list[float] = self._landing.tolist()
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
        self._gathered: list[tuple[_Column, Any]] = []
        self._first_at = 0.0
        self._in_flight: deque[_Batch] = deque()

    def __bool__(self) -> bool:
        return bool(self._gathered or self._in_flight)

    def add(self, key: str, value: Any, count: int, step: int) -> None:
        """Take a copy of a device scalar as it is now, on the current stream.

        Raises:
            ConfigError: it has more than one element.
        """
        if value.numel() != 1:
            raise ConfigError(_refusal(key, value))
        copied = value.detach().reshape(()).clone()
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
            places.setdefault(value.device, []).append(place)
        transfers = [(those, _Transfer([gathered[place][1] for place in those])) for those in places.values()]
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

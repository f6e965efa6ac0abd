"""What may be recorded as a scalar, and how values that lie on a device reach the host without stopping it."""

from __future__ import annotations

__all__ = ("DeviceScalars", "as_number", "on_device")

import time
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
    if isinstance(value, int | float):
        return float(value)
    if _number_of_elements(value) != 1:
        msg = f"{key!r} must be recorded as a number or a tensor of one element, got {_describe(value)}"
        raise ConfigError(msg)
    return float(value.item())


def _number_of_elements(value: Any) -> int:
    if not hasattr(value, "item"):
        return 0
    count = value.numel() if hasattr(value, "numel") else value.size
    return int(count)


def _describe(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__} of shape {tuple(shape)}" if shape is not None else f"{type(value).__name__} {value!r:.80}"


class _Column(NamedTuple):
    key: str
    samples: int
    step: int


class DeviceScalars:
    """Device scalars on their way to the host: copied when recorded, sent in batches, read when they have landed.

    Nothing here waits for the device except `land(wait=True)`.
    """

    def __init__(self) -> None:
        self._columns: list[_Column] = []
        self._values: list[Any] = []
        self._first_at = 0.0
        self._in_flight: list[tuple[list[_Column], Any, Any]] = []

    def __bool__(self) -> bool:
        return bool(self._columns or self._in_flight)

    def add(self, key: str, value: Any, count: int, step: int) -> None:
        """Take a copy of a device scalar as it is now, on the current stream.

        Raises:
            ConfigError: it has more than one element.
        """
        if value.numel() != 1:
            msg = f"{key!r} must be recorded as a number or a tensor of one element, got {_describe(value)}"
            raise ConfigError(msg)
        if not self._columns:
            self._first_at = time.monotonic()
        self._columns.append(_Column(key, count, step))
        self._values.append(value.detach().reshape(()).clone())

    def is_due(self) -> bool:
        """Return whether enough has gathered, or waited long enough, to be sent."""
        gathered = len(self._columns)
        return gathered > 0 and (
            self._columns[-1].step - self._columns[0].step >= SEND_AFTER_UPDATES
            or time.monotonic() - self._first_at >= SEND_AFTER_SECONDS
        )

    def send(self) -> None:
        """Start one transfer of everything gathered; does not wait for it."""
        import torch

        if not self._columns:
            return
        device = self._values[0].device
        precision = torch.float32 if device.type == "mps" else torch.float64
        gathered = torch.stack([value.to(precision) for value in self._values])
        landing = torch.empty(gathered.shape, dtype=precision, pin_memory=device.type == "cuda")
        landing.copy_(gathered, non_blocking=True)
        arrival = torch.Event(device)
        arrival.record()
        self._in_flight.append((self._columns, landing, arrival))
        self._columns, self._values = [], []

    def land(self, *, wait: bool = False) -> list[tuple[str, float, int, int]]:
        """Return key, value, count and step of what has reached the host, in order; `wait` for all of it."""
        landed: list[tuple[str, float, int, int]] = []
        while self._in_flight:
            columns, landing, arrival = self._in_flight[0]
            if wait:
                arrival.synchronize()
            elif not arrival.query():
                break
            self._in_flight.pop(0)
            values = landing.tolist()
            landed += [(c.key, value, c.samples, c.step) for c, value in zip(columns, values, strict=True)]
        return landed

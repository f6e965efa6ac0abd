"""Reads event files of TensorBoard back: framing, checksums, events."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c


class Point(NamedTuple):
    """One value of a curve."""

    step: int
    value: float


def event_files(log_dir: Path) -> list[Path]:
    """Return the event files of a start, in the order in which TensorBoard reads them."""
    return sorted((log_dir / "tensorboard").iterdir())


def read_events(path: Path) -> list[Any]:
    """Return the events of a file; a length or a checksum that does not hold is an error."""
    return list(_events(path.read_bytes()))


def _events(data: bytes) -> Iterator[Any]:
    place = 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        header, event = data[place : place + 8], data[place + 12 : place + 12 + length]
        sums = struct.unpack_from("<I", data, place + 8) + struct.unpack_from("<I", data, place + 12 + length)
        assert sums == (masked_crc32c(header), masked_crc32c(event))
        yield Event.FromString(event)
        place += 16 + length


def purges(log_dir: Path) -> list[int]:
    """Return the steps from which on the files of a start declare what stands before them out of date."""
    events = [event for path in event_files(log_dir) for event in read_events(path)]
    return [event.step for event in events if event.session_log.status == event.session_log.START]


def curves(log_dir: Path) -> dict[str, list[Point]]:
    """Return what TensorBoard shows: the points of each tag, without those that a restart declared out of date."""
    shown: dict[str, list[Point]] = {}
    for path in event_files(log_dir):
        for event in read_events(path):
            if event.session_log.status == event.session_log.START:
                shown = {tag: [point for point in points if point.step < event.step] for tag, points in shown.items()}
            for value in event.summary.value:
                shown.setdefault(value.tag, []).append(Point(event.step, value.simple_value))
    return {tag: points for tag, points in shown.items() if points}


def is_single(value: float, expected: float) -> bool:
    """Return whether a value is the expected one in the single precision of event files."""
    return math.isclose(value, expected, rel_tol=1e-6)

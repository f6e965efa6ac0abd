"""Event files for TensorBoard: one curve per scalar, in the protocol buffers of tensorboardX."""

from __future__ import annotations

__all__ = ("TensorboardWriter",)

import itertools
import os
import socket
import struct
import time
from numbers import Real
from pathlib import Path
from typing import Any, BinaryIO

from hookbus.types import Mode
from hookbus.writers._crc32c import Crc32c
from hookbus.writers.base import Record, RunPlace, Writer

FLUSH_AFTER_SECONDS = 10.0
"""How far a TensorBoard that watches a run may lag behind."""


class TensorboardWriter(Writer):
    """Writes the scalars of each record as one summary into `tensorboard/` of the log directory.

    Tags are `train/loss`, `val/loss` and the like, so training and validation are different curves; the step is the number
    of completed iterations for all of them. Values that are not one number are left to other writers.
    """

    def __init__(self) -> None:
        self._directory: Path | None = None
        self._first_iter: int | None = None
        self._file: _EventFile | None = None
        self._tags: dict[tuple[Mode, str], str] = {}

    def open(self, place: RunPlace) -> None:
        """Write below the directory of this start; an event file is made with the first record."""
        self.close()
        self._directory = place.log_dir / "tensorboard"
        self._first_iter = place.first_iter

    def write(self, record: Record) -> None:
        """Append one event."""
        file = self._file or self._start()
        event = file.event(step=record.iter)
        add, tags, mode = event.summary.value.add, self._tags, record.mode
        for key, value in record.values.items():
            if type(value) is float or isinstance(value, Real):  # asking the abstract class is slow, and most are floats
                add(tag=tags.get((mode, key)) or self._tag(mode, key), simple_value=value)
        file.append(event)

    def flush(self) -> None:
        """Let TensorBoard see what was written so far."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Close the event file; a later record begins another one."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _start(self) -> _EventFile:
        """Begin an event file; the first one of a run says from which iteration on older values are out of date."""
        assert self._directory is not None
        self._file = file = _EventFile(self._directory)
        if self._first_iter is not None:
            restart = file.event(step=self._first_iter)
            restart.session_log.status = restart.session_log.START
            file.append(restart)
            self._first_iter = None
        return file

    def _tag(self, mode: Mode, key: str) -> str:
        """Return `<mode>/<key>`, made once; the key may have its mode already, and any text that UTF-8 cannot spell."""
        tag = key if key.startswith(f"{mode}/") else f"{mode}/{key}"
        return self._tags.setdefault((mode, key), tag.encode("utf-8", "backslashreplace").decode())


class _EventFile:
    """A file of events, each framed by its length and by checksums; it is flushed every few seconds."""

    def __init__(self, directory: Path) -> None:
        from tensorboardX.proto.event_pb2 import Event  # importing it takes a second

        self._make_event = Event
        self._crc32c = Crc32c()
        self._headers: dict[int, bytes] = {}
        self._flushed = time.time()
        directory.mkdir(parents=True, exist_ok=True)
        self._file = _new_file(directory)
        self.append(self.event(file_version="brain.Event:2"))

    def event(self, **content: Any) -> Any:
        """Return an event of this moment."""
        return self._make_event(wall_time=time.time(), **content)

    def append(self, event: Any) -> None:
        """Write an event."""
        data = event.SerializeToString()
        header = self._headers.get(len(data)) or self._header(len(data))
        self._file.write(header + data + self._checksum(data))
        if event.wall_time - self._flushed > FLUSH_AFTER_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._flushed = time.time()
        self._file.flush()

    def close(self) -> None:
        """Flush, and let go of the file."""
        self._file.close()

    def _header(self, length: int) -> bytes:
        """Return a length with its checksum, made once; the events of a run have few lengths."""
        header = struct.pack("<Q", length)
        return self._headers.setdefault(length, header + self._checksum(header))

    def _checksum(self, data: bytes) -> bytes:
        return struct.pack("<I", self._crc32c.masked(data))


def _new_file(directory: Path) -> BinaryIO:
    """Open an event file of a name of its own; TensorBoard reads those of a directory in the order of their names."""
    name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{next(_numbers):06}"
    return (directory / name).open("xb")


_numbers = itertools.count()  # not asked of the directory: files may have been moved out of it

"""An event file of TensorBoard: protocol buffers of tensorboardX, each framed by its length and by checksums."""

from __future__ import annotations

__all__ = ("EventFile",)

import itertools
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

from hookbus.writers._appending import AppendedFile
from hookbus.writers._crc32c import Crc32c

VERSION = "brain.Event:2"


class EventFile:
    """A new file of events in a directory; each event is there for readers as soon as it is appended."""

    def __init__(self, directory: Path) -> None:
        from tensorboardX.proto.event_pb2 import Event  # importing it takes a second

        self._make_event = Event
        self._crc32c = Crc32c()
        self._headers: dict[int, bytes] = {}
        directory.mkdir(parents=True, exist_ok=True)
        self._file = AppendedFile(directory / _new_name(), is_new=True)
        self.append(self.event(file_version=VERSION))

    @property
    def is_deleted(self) -> bool:
        """Whether nobody would find what is appended."""
        return self._file.is_deleted

    def event(self, **content: Any) -> Any:
        """Return an event of this moment."""
        return self._make_event(wall_time=time.time(), **content)

    def append(self, event: Any) -> None:
        """Write an event, or nothing of it."""
        data = event.SerializeToString()
        header = self._headers.get(len(data)) or self._header(len(data))
        self._file.append(header + data + self._checksum(data))

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _header(self, length: int) -> bytes:
        """Return a length with its checksum, made once; the events of a run have few lengths."""
        header = struct.pack("<Q", length)
        return self._headers.setdefault(length, header + self._checksum(header))

    def _checksum(self, data: bytes) -> bytes:
        return struct.pack("<I", self._crc32c.masked(data))


def _new_name() -> str:
    """Return a name of its own; TensorBoard reads the event files of a directory in the order of their names."""
    return f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{next(_numbers):06}"


_numbers = itertools.count()  # not asked of the directory: files may have been moved out of it

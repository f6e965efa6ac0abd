"""SHA-256 of a stream, worked out on a thread of its own beside whoever reads or writes the stream.

Hashing takes about as long as writing, and neither needs the interpreter. A short stream is hashed where it is, without a thread.
"""

from __future__ import annotations

__all__ = ("StreamDigest",)

import hashlib
import queue
import threading
from types import TracebackType

_BATCH = 1 << 22
"""How many bytes are handed to the thread at a time."""

_Batch = list[bytes | memoryview]


class StreamDigest:
    """Takes a stream in pieces, which must stay as they are until `hexdigest` or the end of the `with` block.

    Args:
        ahead: how many batches may wait for the thread before whoever produces them waits for it, so that pieces that nobody else
            keeps take little memory; None for any number.
    """

    def __init__(self, ahead: int | None = 4) -> None:
        self.size = 0
        self._sha = hashlib.sha256()
        self._batch: _Batch = []
        self._batched = 0
        self._waiting: queue.Queue[_Batch | None] = queue.Queue(ahead or 0)
        self._thread: threading.Thread | None = None

    def __enter__(self) -> StreamDigest:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._join()

    def update(self, piece: bytes | memoryview) -> None:
        """Add the next piece."""
        self._batch.append(piece)
        self._batched += len(piece)
        self.size += len(piece)
        if self._batched >= _BATCH:
            self._hand_over()

    def hexdigest(self) -> str:
        """Return the digest of all that was added, which ends the stream."""
        self._join()
        self._hash(self._batch)
        self._batch = []
        return self._sha.hexdigest()

    def _hand_over(self) -> None:
        batch, self._batch, self._batched = self._batch, [], 0
        if self._thread is not None or self._started():
            self._waiting.put(batch)
        else:
            self._hash(batch)

    def _started(self) -> bool:
        thread = threading.Thread(target=self._work, name="hookbus-digest")
        try:
            thread.start()
        except RuntimeError:  # no more threads may start: then it takes longer
            return False
        self._thread = thread
        return True

    def _work(self) -> None:
        while (batch := self._waiting.get()) is not None:
            self._hash(batch)

    def _hash(self, batch: _Batch) -> None:
        for piece in batch:
            self._sha.update(piece)

    def _join(self) -> None:
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
            self._thread = None

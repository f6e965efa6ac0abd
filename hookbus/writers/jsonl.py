"""`metrics.jsonl`: one JSON object per record, for programs."""

from __future__ import annotations

__all__ = ("JsonlWriter",)

import logging
import math
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from hookbus.writers.base import Record, Writer


class JsonlWriter(Writer):
    """Appends `{"mode", "epoch", "iter", ...values}` per record; NaN and infinities are `null`, as JSON has neither."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: BinaryIO | None = None

    def open(self, logger: logging.Logger, log_dir: Path) -> None:
        """Write into the directory of this start; the file is made with the first record."""
        self._path = log_dir / "metrics.jsonl"

    def write(self, record: Record) -> None:
        """Append one line."""
        if self._file is None:
            assert self._path is not None
            self._file = self._path.open("ab")
        line = {"mode": record.mode, "epoch": record.epoch, "iter": record.iter}
        line |= {key: _finite(value) for key, value in record.values.items()}
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; a later record opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""`metrics.jsonl`: one JSON object per record, for programs."""

from __future__ import annotations

__all__ = ("JsonlWriter",)

from pathlib import Path
from typing import Any

from hookbus._strict_json import strict_json
from hookbus.writers._appending import AppendedFile
from hookbus.writers.base import Record, RunPlace, Writer


class JsonlWriter(Writer):
    """Appends `{"mode", "epoch", "iter", ...values}` per record; NaN and infinities are `null`, as JSON has neither."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: AppendedFile | None = None

    def open(self, place: RunPlace) -> None:
        """Write into the directory of this start; the file is made with the first record."""
        self.close()
        self._path = place.log_dir / "metrics.jsonl"

    def write(self, record: Record) -> None:
        """Append one line."""
        file = self._file
        if file is None or file.is_deleted:
            file = self._start()
        file.append(strict_json(_line(record)) + b"\n")

    def close(self) -> None:
        """Close the file; a later record opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _start(self) -> AppendedFile:
        assert self._path is not None
        self.close()
        file = self._file = AppendedFile(self._path)
        file.end_line()
        return file


def _line(record: Record) -> dict[str, Any]:
    """Return what a line holds; a value named like one of its counters gets its mode before its name."""
    place = {"mode": record.mode, "epoch": record.epoch, "iter": record.iter}
    return place | {f"{record.mode}/{key}" if key in place else key: value for key, value in record.values.items()}

"""`metrics.csv`: one row per record, for spreadsheets."""

from __future__ import annotations

__all__ = ("CSVWriter",)

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hookbus._strict_json import strict_json
from hookbus.writers._appending import AppendedFile
from hookbus.writers.base import Record, RunPlace, Writer

FIRST_COLUMNS = ("mode", "epoch", "iter")


class CSVWriter(Writer):
    """Appends one row per record to `metrics.csv`; a cell is empty where a record has no value of that name.

    When a record brings a new name, the file is written anew with one column more, and takes the place of the old one when
    it is complete. Numbers keep all their digits, NaN and infinities are `nan` and `inf`, what is no number or text is JSON.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: AppendedFile | None = None
        self._columns: list[str] = []

    def open(self, place: RunPlace) -> None:
        """Write into the directory of this start; the file is made with the first record."""
        self.close()
        self._path = place.log_dir / "metrics.csv"

    def write(self, record: Record) -> None:
        """Append one row."""
        if self._file is None or self._file.is_deleted:
            self._start()
        cells = _cells(record)
        new = [name for name in cells if name not in self._columns]
        if new:
            self._widen(new)
        assert self._file is not None
        self._file.append(_row([cells.get(name, "") for name in self._columns]))

    def close(self) -> None:
        """Close the file; a later record opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _start(self) -> None:
        """Go on with the file, if an earlier run of this start left one."""
        assert self._path is not None
        self.close()
        file = AppendedFile(self._path)
        file.end_line()
        with self._path.open(encoding="utf-8", newline="") as rows:
            self._columns = next(csv.reader(rows), [])
        if not self._columns:
            self._columns = list(FIRST_COLUMNS)
            file.append(_row(self._columns))
        self._file = file

    def _widen(self, new: Sequence[str]) -> None:
        """Write the file anew with further columns at the end; rows that end early have nothing in them."""
        assert self._path is not None
        columns = [*self._columns, *new]
        unfinished = self._path.with_name(f"{self._path.name}.part")
        with self._path.open(encoding="utf-8", newline="") as old, unfinished.open("w", encoding="utf-8", newline="") as file:
            rows = csv.reader(old)
            next(rows)
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows([*row, *[""] * (len(columns) - len(row))] for row in rows)
        self.close()
        unfinished.replace(self._path)
        self._file, self._columns = AppendedFile(self._path), columns


def _cells(record: Record) -> dict[str, str]:
    """Return the cells of a record by column; a value named like one of its counters gets its mode before its name."""
    place: dict[str, Any] = {"mode": record.mode, "epoch": record.epoch, "iter": record.iter}
    named = {f"{record.mode}/{key}" if key in place else key: value for key, value in record.values.items()}
    return {_spelt(key): _cell(value) for key, value in (place | named).items()}


def _cell(value: Any) -> str:
    if isinstance(value, bool | int | str):
        return _spelt(str(value))
    if isinstance(value, float):
        return repr(float(value))
    return "" if value is None else strict_json(value).decode()


def _spelt(text: str) -> str:
    """Return a text that UTF-8 can spell, which half a surrogate pair is not, on one line."""
    spelt = text.encode("utf-8", "backslashreplace").decode()
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in spelt)


def _row(cells: Iterable[str]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(cells)
    return text.getvalue().encode()

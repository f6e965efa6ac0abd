"""Writers that are broken, each in a way of its own."""

from __future__ import annotations

from typing import ClassVar

from hookbus.writers import JsonlWriter, Record, RunPlace, Writer
from tests.conformance.left_behind import files, start_a_thread


class MakesItsFileAtOnce(JsonlWriter):
    """Does not wait for the first record."""

    def open(self, place: RunPlace) -> None:
        """Make the file."""
        super().open(place)
        (place.log_dir / "metrics.jsonl").touch()


class KeepsItsFile(JsonlWriter):
    """Does not close what it opened."""

    def write(self, record: Record) -> None:
        """Open another file."""
        super().write(record)
        assert self._path is not None
        files.append(self._path.with_suffix(".more").open("a"))


class LosesTheTest(JsonlWriter):
    """Drops records of a mode that it does not know."""

    def write(self, record: Record) -> None:
        """Drop some."""
        if record.mode != "test":
            super().write(record)


class ClosesOnce(JsonlWriter):
    """Expects to be open when it is closed."""

    def close(self) -> None:
        """Insist."""
        if self._path is not None:
            assert self._file is not None
        super().close()


class BeginsAnew(JsonlWriter):
    """Deletes what an earlier run left."""

    def open(self, place: RunPlace) -> None:
        """Delete it."""
        super().open(place)
        (place.log_dir / "metrics.jsonl").unlink(missing_ok=True)


class ExpectsNumbers(JsonlWriter):
    """Takes every value for a number."""

    def write(self, record: Record) -> None:
        """Add them up."""
        assert sum(record.values.values()) is not None
        super().write(record)


class SaysNotWhere(JsonlWriter):
    """Hides which destination is gone."""

    def write(self, record: Record) -> None:
        """Hide it."""
        try:
            super().write(record)
        except OSError:
            raise OSError("something went wrong") from None


class SharesOneFile(Writer):
    """All of them write where the last one was opened."""

    _place: ClassVar[list[RunPlace]] = []

    def open(self, place: RunPlace) -> None:
        """Go there."""
        self._place[:] = [place]

    def write(self, record: Record) -> None:
        """Write there."""
        with (self._place[0].log_dir / "all.txt").open("a") as file:
            file.write(record.text)


class FailsAtTests(JsonlWriter):
    """Raises for what it does not know."""

    def write(self, record: Record) -> None:
        """Raise."""
        assert record.mode == "train"
        super().write(record)


class LeavesItsThread(JsonlWriter):
    """Starts a thread that nobody ends."""

    def write(self, record: Record) -> None:
        """Start it."""
        super().write(record)
        start_a_thread()

"""Brings log records to one writer, on the background lane: whatever becomes of its destination, training goes on.

Each record is tried, also after failures, so that a destination which comes back goes on from there. Nothing is lost
silently: published = written + failed + dropped + pending at any moment, what fails is reported when it first does, and
the end of a run says how much was lost.
"""

from __future__ import annotations

__all__ = ("Delivery", "DeliveryStats")

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from hookbus._troubles import Troubles
from hookbus.bus import Background, EventBus
from hookbus.events import Event, HistogramsTaken, ImagesDrawn, LogRecorded
from hookbus.writers.base import RunPlace, Writer

LANE = Background(maxsize=1024, overflow="drop_oldest")
GRACE = 1.0
"""Seconds that a writer has at the end of a run for the record it is at, when the bus does not wait for it any longer."""


class DeliveryStats(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the records for one writer; images and histograms count as records."""

    writer: str
    published: int
    written: int
    failed: int
    """Records whose writing raised."""
    dropped: int
    """Records that were not written, because more waited than may, or because the run ended before their turn."""
    pending: int
    """Records that wait or are being written; none once the run has ended."""


class Delivery:
    """One writer as a background subscriber; it lasts for one run.

    Args:
        writer: where the records go.
        bus: the bus that they are published on.
        place: where the run logs to.
        logger: whose records are for this writer, where a run has several loggers.
    """

    def __init__(self, writer: Writer, bus: EventBus, place: RunPlace, logger: str = "") -> None:
        self.name = type(writer).__name__
        self._logger = logger
        self._writer = writer
        self._place = place
        self._is_open = False
        self._troubles = Troubles(self.name, place.logger)
        self._busy = threading.RLock()
        """Held while the writer is called: images and records come on threads of their own."""
        self._failed = 0
        self._final: DeliveryStats | None = None
        self._is_closed = True
        self._is_stuck = False
        self._attempt(self._open, lost=0)
        self._intakes = [_Intake(bus, self.name, *wanted) for wanted in self._wanted()]
        self._hooks = [bus.add_hook(hook) for hook in writer.hooks()]

    def _wanted(self) -> Iterator[tuple[type[Event], Callable[[Any], bool], Callable[[Any], bool] | None]]:
        """Yield what the writer has a use for: an event, what takes it, and a filter."""
        writer, kind = self._writer, type(self._writer)
        shows = kind.show is not Writer.show
        yield LogRecorded, lambda event: self._deliver(self._write, event), self._kept_ones if not shows else self._own_ones
        if kind.write_images is not Writer.write_images:
            yield ImagesDrawn, lambda event: self._deliver(writer.write_images, event), None
        if kind.write_histograms is not Writer.write_histograms:
            yield HistogramsTaken, lambda event: self._deliver(writer.write_histograms, event), None

    def _own_ones(self, record: LogRecorded) -> bool:
        return record.logger == self._logger

    def _kept_ones(self, record: LogRecorded) -> bool:
        return not record.is_progress and record.logger == self._logger

    # --- on the threads of the writer ---------------------------------------------------------------------------------

    def _deliver(self, write: Callable[[Any], None], event: Event) -> bool:
        """Return whether an event was written."""
        with self._busy:
            if self._attempt(lambda: self._open_and(write, event), lost=self._failed):
                self._troubles.overcome(self._failed)
                return True
            self._failed += 1
            return False

    def _attempt(self, action: Callable[[], None], lost: int) -> bool:
        """Return whether an action succeeds; report it if not."""
        try:
            action()
        except Exception as error:  # noqa: BLE001  the trouble of a destination is not that of the run
            self._troubles.met(error, lost)
            return False
        return True

    def _open_and(self, write: Callable[[Any], None], event: Event) -> None:
        if not self._is_open:  # it failed when the run began
            self._open()
        write(event)

    def _open(self) -> None:
        self._writer.open(self._place)
        self._is_open = True

    def _write(self, record: LogRecorded) -> None:
        if record.is_progress:
            self._writer.show(record)
            return
        self._writer.write(record)
        if record.mode != "train":
            self._writer.flush()

    # --- the end ------------------------------------------------------------------------------------------------------

    def begin_closing(self, done: Callable[[], object]) -> None:
        """Return at once; elsewhere take nothing more, close the writer, and call `done`, also where that has to wait for long.

        The bus has waited for what was published, for as long as it does at the end of a run.
        """
        for hooks in self._hooks:
            hooks.cancel()
        name = f"hookbus-closing-{self.name}"
        self._is_closed = False
        threading.Thread(target=self._close, args=(done,), name=name, daemon=True).start()  # it may never end

    def _close(self, done: Callable[[], object]) -> None:
        deadline = time.monotonic() + GRACE
        for intake in self._intakes:
            intake.drain(deadline)
            intake.end()
        if not self._busy.acquire(timeout=max(0.0, deadline - time.monotonic())):
            self._is_stuck = True
            done()
            self._busy.acquire()
        try:
            self._attempt(self._writer.close, lost=self._failed)
        finally:
            self._busy.release()
        self._is_closed = True
        done()

    @property
    def is_closed(self) -> bool:
        """Whether the writer has let go of its destination, or hangs so that nobody should wait for that."""
        return self._is_closed or self._is_stuck

    def end(self) -> None:
        """Report what was lost; what is not written by now counts as dropped."""
        stats = self.stats()
        self._final = msgspec.structs.replace(stats, dropped=stats.dropped + stats.pending, pending=0)
        self._troubles.sum_up(stats.published, stats.failed, self._final.dropped)
        if not self._is_closed:
            self._place.logger.warning("%s still writes and is left behind; it may never come back", self.name)

    def stats(self) -> DeliveryStats:
        """Return what became of the records so far."""
        if self._final is not None:
            return self._final
        # In this order, so that what happens meanwhile makes more of the later ones.
        counts = [(intake.dropped, intake.failed, intake.settled, intake.published) for intake in self._intakes]
        dropped, failed, settled, published = (sum(column) for column in zip(*counts, strict=True))
        return DeliveryStats(
            writer=self.name,
            published=published,
            written=settled - failed,
            failed=failed,
            dropped=dropped,
            pending=published - settled - dropped,
        )


class _Intake:
    """The events of one type on their way to a writer, counted where they are published and where they are done with."""

    def __init__(
        self,
        bus: EventBus,
        name: str,
        event_type: type[Event],
        take: Callable[[Any], bool],
        when: Callable[[Any], bool] | None,
    ) -> None:
        self.published = self.settled = self.failed = 0
        self._newest: Event | None = None
        self._newest_settled: Event | None = None
        self._take = take
        self._progress = threading.Condition()
        self._counting = bus.subscribe(event_type, self._count, when=when, name=f"{name} counts", priority="HIGHEST")
        self._taking = bus.subscribe(event_type, self._settle, when=when, name=name, background=LANE, on_error="log")

    def _count(self, event: Event) -> None:
        self.published += 1
        self._newest = event

    def _settle(self, event: Event) -> None:
        is_written = self._take(event)
        with self._progress:
            self.failed += not is_written
            self.settled += 1
            self._newest_settled = event
            self._progress.notify_all()

    @property
    def dropped(self) -> int:
        """How many events had to make room for newer ones."""
        return self._taking.stats().dropped

    def drain(self, deadline: float) -> None:
        """Wait until everything is done with; the newest event is, when all before it are."""
        with self._progress:
            self._progress.wait_for(lambda: self._newest_settled is self._newest, max(0.0, deadline - time.monotonic()))

    def end(self) -> None:
        """Take nothing more."""
        self._counting.cancel()
        self._taking.cancel()

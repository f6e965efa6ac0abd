"""What one destination of the log says about its failures: the first of each kind, its recovery, and the sum at the end."""

from __future__ import annotations

__all__ = ("Troubles",)

import logging

from hookbus.errors import describe_error

MOST_REPORTS = 10
"""How many different failures of one destination are reported in a run; all of them are counted."""


class Troubles:
    """Reports the failures of one destination to the log of the run, each of them once.

    Args:
        name: what the destination is called.
        logger: where the reports go.
    """

    def __init__(self, name: str, logger: logging.Logger) -> None:
        self._name = name
        self._logger = logger
        self._reported: set[str] = set()
        self._last = ""
        self._lost_before: int | None = None
        """How many records had been lost before the failure that was reported last, while that lasts."""

    def met(self, error: Exception, lost: int) -> None:
        """Report a failure that looks like none before; `lost` counts what was lost before it."""
        self._last = describe_error(error)
        if self._last in self._reported or len(self._reported) == MOST_REPORTS:
            return
        self._reported.add(self._last)
        self._lost_before = lost if self._lost_before is None else self._lost_before
        message = "%s failed, training goes on and each record is tried (repeats are counted, not logged): %s"
        self._logger.warning(message, self._name, self._last)

    def overcome(self, lost: int) -> None:
        """Report that a record was written again after a failure that was reported; `lost` counts what was lost by now."""
        if self._lost_before is not None:
            self._logger.info("%s writes again; %d records were lost meanwhile", self._name, lost - self._lost_before)
            self._lost_before = None

    def sum_up(self, published: int, failed: int, dropped: int) -> None:
        """Report at the end of a run what was lost, where something was."""
        if not failed + dropped:
            return
        parts = [f"{failed} failed, the last with {self._last}"] if failed else []
        parts += [f"{dropped} came faster than they could be written"] if dropped else []
        message = "%s lost %d of %d records: %s"
        self._logger.warning(message, self._name, failed + dropped, published, "; ".join(parts))

"""Writing while training goes on: one thread, one checkpoint at a time, and its outcome brought back to the training thread."""

from __future__ import annotations

__all__ = ("BackgroundWriter", "Write")

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from hookbus.errors import CheckpointWriteError
from hookbus.mailbox import Acknowledgement

if TYPE_CHECKING:
    from hookbus.runner.logs import RunLogger
    from hookbus.training_thread import TrainingThread


@dataclass
class Write:
    """One checkpoint to be written; the first function runs on the writing thread, the others on the training thread."""

    name: str
    write: Callable[[], Path]
    committed: Callable[[Path, float], None]
    """Takes the path, and the time on the performance counter when it was done."""
    failed: Callable[[BaseException], None]
    answer: Acknowledgement[Path | None]
    """Told as soon as the outcome is known."""
    written: Callable[[], int]
    """Gives the bytes written so far; any thread may look."""
    stall_timeout: float
    """How many seconds the end of a run waits without a byte being written."""


@dataclass
class _Outcome:
    finished: float
    path: Path | None = None
    error: BaseException | None = None


@dataclass
class _Pending:
    """A checkpoint that is being written, or whose outcome the training thread has not looked at."""

    write: Write
    host: TrainingThread
    """Who is told when it is done; another one where a run ended before."""
    outcome: _Outcome | None = None
    afterwards: Callable[[], None] = lambda: None
    """What the writing thread does last."""

    def is_done(self) -> bool:
        return self.outcome is not None


class BackgroundWriter:
    """Writes checkpoints on a thread that lives as long as there is one to write; all its methods are for the training thread.

    Args:
        logger: is told where training has to wait.
        name: names the thread.
    """

    def __init__(self, logger: RunLogger, name: str) -> None:
        self.waits = 0
        """How many times something had to wait for a checkpoint to be written."""
        self._logger = logger
        self._name = name
        self._pending: _Pending | None = None
        self._thread: threading.Thread | None = None

    def begin(self, host: TrainingThread, write: Write) -> None:
        """Have something written; what was begun before must be settled.

        An error surfaces at a step boundary of the host; nobody needs to wait for the acknowledgement.
        """
        pending = _Pending(write, host)
        thread = threading.Thread(target=self._work, args=(pending,), name=f"hookbus-saving-{self._name}", daemon=False)
        thread.start()
        self._pending, self._thread = pending, thread

    def _work(self, pending: _Pending) -> None:
        write, answer = pending.write, pending.write.answer
        try:
            path = write.write()
        except BaseException as error:  # noqa: BLE001  it goes on at the next step boundary of the training thread
            pending.outcome = _Outcome(perf_counter(), error=error)
            answer.set_error(error)
            answer.forgive()
        else:
            pending.outcome = _Outcome(perf_counter(), path)
            answer.set_result(path)
        pending.host.request(self.settle, f"the outcome of saving {write.name}", outlasts_pauses=True)
        pending.afterwards()

    def afterwards(self, action: Callable[[], None]) -> None:
        """Do something once nothing is being written: now, or later on the writing thread; it may happen twice."""
        pending = self._pending
        if pending is not None:
            pending.afterwards = action  # before the look at the outcome: whichever comes second sees the other
        if pending is None or pending.is_done():
            action()

    def settle(self) -> None:
        """Look at what was written meanwhile; an error is raised here, as it came."""
        pending, thread = self._pending, self._thread
        if pending is None or thread is None or pending.outcome is None:
            return
        self._pending = self._thread = None
        thread.join()
        path, error = pending.outcome.path, pending.outcome.error
        if path is not None:
            pending.write.committed(path, pending.outcome.finished)
        if error is not None:
            try:
                pending.write.failed(error)
                raise error
            finally:
                error = pending.outcome = None  # the traceback holds this frame: do not close a cycle

    def wait(self, host: TrainingThread | None, what: str) -> None:
        """Return when nothing is being written; whatever waits meanwhile for the training thread has its turn."""
        pending = self._pending
        if pending is not None and not pending.is_done():
            self.waits += 1
            self._logger.info("%s waits for %s, which is still being written (wait %d)", what, pending.write.name, self.waits)
        self._await(host, timeout=None)
        self.settle()

    def finish(self, host: TrainingThread) -> None:
        """Wait at the end of a run for as long as there is progress.

        Raises:
            CheckpointWriteError: there was none for too long; the thread goes on, and the process waits for it.
        """
        pending = self._pending
        if pending is None:
            return
        if not pending.is_done():
            self._logger.info("the run ends when %s is written", pending.write.name)
        if not self._await_progress(host, pending.write):
            msg = (
                f"not a byte of {pending.write.name} was written for {pending.write.stall_timeout:g} s at the end of the run; "
                "it counts only once last_checkpoint names it, and the process waits for that"
            )
            raise CheckpointWriteError(msg)
        self.settle()

    def _await_progress(self, host: TrainingThread, write: Write) -> bool:
        """Wait for the outcome; return False where a whole span of `stall_timeout` brought no further byte."""
        before = -1
        while (now := write.written()) != before:
            before = now
            if self._await(host, write.stall_timeout):
                return True
        return False

    def _await(self, host: TrainingThread | None, timeout: float | None) -> bool:
        pending, thread = self._pending, self._thread
        if pending is None or thread is None:
            return True
        if host is not None:
            pending.host = host  # before the first look at the outcome: whichever comes second sees the other
            return host.mailbox.wait(pending.is_done, timeout)
        thread.join(timeout)  # left over from a run that is over
        return pending.is_done()

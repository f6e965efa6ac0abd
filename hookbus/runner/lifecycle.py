"""One call of `train`, `val` or `test`, from `BeforeRun` to `AfterRun`.

Whatever happens in between, `AfterRun` is published, to every handler, before the call ends; an error publishes
`RunFailed` first, a cancellation does not. The error itself goes on, unwrapped; what fails while closing is noted on it.
"""

from __future__ import annotations

__all__ = ("run_awaited", "run_here")

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from hookbus.bridge import CrossingCancelled
from hookbus.device import MainStream
from hookbus.device_reads import find_device_reads
from hookbus.errors import RunAlreadyLive, describe_error
from hookbus.events import AfterRun, BeforeRun, RunFailed
from hookbus.loading import check_main_guard
from hookbus.loop_threads import run_in_thread
from hookbus.runner.cost_report import report_costs
from hookbus.runner.run_facts import describe_end
from hookbus.runner.signals import SignalGuard
from hookbus.training_thread import TrainingThread

if TYPE_CHECKING:
    from hookbus.runner.runner import Runner
    from hookbus.types import Backend


AGAIN = 1.0
"""Seconds that background handlers get which were too late before."""


def run_here(runner: Runner, name: str, backend: Backend) -> dict[str, Any]:
    """Run a loop on the calling thread; awaited handlers get an event loop on a joined thread."""
    thread = TrainingThread(runner.message_hub, runner.progress, MainStream(), backend)
    with SignalGuard(thread, runner.logger.warning), runner.randomness.in_force(), thread.hosting(), _watching(runner):
        return _Run(runner, name, thread).conduct()


async def run_awaited(runner: Runner, name: str, *, handle_signals: bool = False) -> dict[str, Any]:
    """Run a loop on a thread of its own, joined at the end; awaited handlers run on the caller's event loop."""
    main_stream = MainStream()
    thread = TrainingThread(runner.message_hub, runner.progress, main_stream, backend=None)

    def body() -> dict[str, Any]:
        with main_stream.on_this_thread(), runner.randomness.in_force(), thread.hosting(), _watching(runner):
            return _Run(runner, name, thread).conduct()

    with SignalGuard(thread, runner.logger.warning, wanted=handle_signals):
        return await run_in_thread(thread.bridge, body, name=f"hookbus-{runner.experiment_name}", on_cancel=thread.cancel)


def _watching(runner: Runner) -> AbstractContextManager[object]:
    """Have handlers found that read device scalars by accident, where that was asked for."""
    return find_device_reads(runner.bus, logger=runner.logger) if runner.debug else nullcontext()


class _Run:
    """One run of one loop."""

    def __init__(self, runner: Runner, name: str, thread: TrainingThread) -> None:
        self._runner = runner
        self._name = name
        self._thread = thread
        self._is_drained = True
        self._began_at = runner.iter

    def conduct(self) -> dict[str, Any]:
        """Take possession of hub, bus and log, run, and give everything back."""
        runner = self._runner
        loop = runner.loop(self._name)
        if runner.running is not None:
            msg = f"{self._name}() of {runner.experiment_name!r} cannot begin: its {runner.running}() is going on"
            raise RunAlreadyLive(msg)
        check_main_guard()  # before anything is written, where workers import a script that has none
        runner.message_hub.begin_run(self._thread.thread_id)
        try:
            runner.bus.enter(self._thread)
            try:
                try:
                    runner.take_up(self._name, self._thread)
                    return self._run(loop)
                finally:
                    runner.lay_down()
            finally:
                runner.bus.leave()
        finally:
            runner.message_hub.end_run()

    def _run(self, loop: Any) -> dict[str, Any]:
        failure: BaseException | None = None
        metrics: dict[str, Any] = {}
        try:
            self._emit(BeforeRun, loop=self._name)
            self._runner.prepare()
            self._began_at = self._runner.iter
            metrics = loop.run()
        except BaseException as error:  # noqa: BLE001  it goes on below, once the run is closed
            failure = error
        failure = self._end(failure)
        try:
            if failure is not None:
                raise failure
        finally:
            failure = None  # the traceback holds this frame: do not close a cycle
        return metrics

    def _end(self, failure: BaseException | None) -> BaseException | None:
        """Publish what closes the run, wait for who is not done yet, and say what became of it all; return what failed."""
        runner = self._runner
        self._thread.refuse_requests()  # a background handler may wait for one, and is waited for itself
        failure = self._close(failure, "the last save", runner.finish)
        failure = self._close(failure, "the background handlers", self._drain)
        failure = self._close(failure, "the background handlers", runner.bus.raise_background_errors)
        if failure is not None and not isinstance(failure, CrossingCancelled):
            facts = self._describe(failure)
            failure = self._close(failure, "RunFailed", lambda: self._emit(RunFailed, **facts))
        failure = self._close(failure, "the costs", lambda: report_costs(runner, self._name, runner.iter - self._began_at))
        outcome = failure
        failure = self._close(failure, "run.json", lambda: describe_end(runner, outcome))
        failure = self._close(failure, "AfterRun", lambda: self._emit(AfterRun, loop=self._name))
        failure = self._close(failure, "the background handlers", self._drain)
        failure = self._close(failure, "the background handlers", runner.bus.raise_background_errors)
        if failure is not outcome:
            describe_end(runner, failure)
        self._report()
        return failure

    def _drain(self) -> None:
        """Let background handlers come to an end; who was too late once is not waited for as long again."""
        self._is_drained = self._runner.bus.drain(None if self._is_drained else AGAIN)

    def _close(self, failure: BaseException | None, what: str, action: Callable[[], object]) -> BaseException | None:
        """Do what closes a run; note on the failure what goes wrong meanwhile, or make it the failure."""
        try:
            action()
        except BaseException as error:  # noqa: BLE001  every closing event is published, and no error is lost
            if failure is None or isinstance(failure, CrossingCancelled):
                return error
            failure.add_note(f"and at {what}: {describe_error(error)}")
            for note in getattr(error, "__notes__", ()):
                failure.add_note(f"    {note}")
        return failure

    def _emit(self, event_type: Any, **facts: Any) -> None:
        runner = self._runner
        event = event_type(epoch=runner.epoch, iter=runner.iter, **facts)
        runner.bus.emit(event, {"runner": runner})

    def _describe(self, failure: BaseException) -> dict[str, str]:
        notes = [note.partition(" handled ") for note in getattr(failure, "__notes__", ()) if note.startswith("while ")]
        handler = next((before.removeprefix("while ") for before, found, _ in notes if found), "")
        return {"error_type": type(failure).__name__, "message": describe_error(failure), "handler": handler}

    def _report(self) -> None:
        """Say what failed and what was lost, so that nothing is swallowed."""
        warn = self._runner.logger.warning
        for stats in self._runner.bus.stats():
            if stats.failures:
                warn("%s failed %d of %d times on %s", stats.name, stats.failures, stats.calls, stats.event)
            if stats.dropped:
                warn("%s was too slow for %d of %d events of %s", stats.name, stats.dropped, stats.published, stats.event)

"""The thread that trains: runs the loop and all inline handlers, and is asked for things only through its mailbox.

There are three kinds of requests. Functions for the main stream run at the next safe point: between two mount points,
and whenever the thread waits. What needs the whole state - a save - waits for the step boundary: behind the last
handler of an iteration, an epoch or a validation, when the counters have moved. A stop and a pause take effect there,
and also between two batches of a validation or test, when data arrives that was waited for, and in a pause. The thread
has one way to wait, `Mailbox.wait`, and that serves the mailbox.
"""

from __future__ import annotations

__all__ = ("TookEffect", "TrainingThread")

import logging
from _thread import get_ident
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

from hookbus._current import current_hub, current_writing
from hookbus.bridge import LOOP_ENDED, Bridge
from hookbus.bus.host import Posts, as_handler
from hookbus.bus.outbox import Outbox
from hookbus.bus.pump import Pump
from hookbus.device import MainStream
from hookbus.errors import RunEnded, WouldDeadlock
from hookbus.hub import MessageHub
from hookbus.loop_lag import measure_lag
from hookbus.loop_threads import LoopThread
from hookbus.mailbox import Acknowledgement, Mailbox
from hookbus.progress import Progress
from hookbus.step_requests import StepRequest, StepRequests
from hookbus.types import Backend

T = TypeVar("T")

_logger = logging.getLogger("hookbus")


AFTER_CANCEL = 5.0
"""Seconds that background handlers get once the run was cancelled."""


def _wake_up() -> None:
    """Make a thread that waits look again."""


class TookEffect(NamedTuple):
    """When a request took effect: completed epochs and iterations at that step boundary."""

    epoch: int
    iter: int


class TrainingThread:
    """Hosts the bus of a run: emits on this thread, awaits on the home loop.

    Args:
        hub: the hub of the run.
        progress: its counters.
        main_stream: where its work on a device goes.
        backend: the loop to start where awaited handlers need one; None where the run lives on a caller's loop.
    """

    on_own_loop = False

    def __init__(self, hub: MessageHub, progress: Progress, main_stream: MainStream, backend: Backend | None) -> None:
        self.thread_id = get_ident()
        self.mailbox = Mailbox()
        self.pump = Pump()
        in_service = () if backend is not None else (partial(measure_lag, hub),)
        self.bridge = Bridge(self.mailbox, services=(self.pump.run, *in_service))
        self.stop_requested = False
        """Whether a stop has taken effect; the loops leave at once."""
        self.is_paused = False
        self._is_inside = False
        """Whether it is at a control point, and not at a step boundary."""
        self._pauses_inside = False
        """Whether it waits in a pause between two boundaries, where nothing can be saved."""
        self._hub = hub
        self._progress = progress
        self._main_stream = main_stream
        self._backend = backend
        self._loop_thread: LoopThread | None = None
        self._is_cancelled = False
        self._is_over = False
        """Whether nothing can be done on this thread any more."""
        self._requests = StepRequests()
        self._at_boundary, self._controls = self._requests.at_boundary, self._requests.controls  # for the hot path
        self._posts = Posts(self.mailbox, hub)

    # --- on the training thread ---------------------------------------------------------------------------------------

    @contextmanager
    def hosting(self) -> Iterator[None]:
        """Be the training thread for the duration of a run, and leave nothing behind."""
        self.thread_id = get_ident()
        token = current_hub.set(self._hub)
        try:
            yield
        finally:
            self._close()
            current_hub.reset(token)
            if self._loop_thread is not None:
                self._loop_thread.stop()
                self._loop_thread = None

    def safe_point(self) -> None:
        """Run what was asked for the main stream; costs one look while nothing was."""
        if not self.mailbox.empty():
            self.mailbox.serve()

    def control_point(self) -> None:
        """Let stops and pauses take effect between two steps; saves go on waiting for a boundary."""
        self.safe_point()
        if not self._requests.controls:
            return
        self._is_inside = True
        try:
            self._requests.carry_out(with_boundary=False)
            if self._pauses_inside:  # one at a boundary holds no validation that is asked for in it
                self._hold(with_boundary=False)
        finally:
            self._is_inside = self._pauses_inside = False

    def step_boundary(self) -> None:
        """Let everything take effect that was asked for; the counters have moved.

        An action that fails ends the run: a save that was asked for and did not happen must not pass unnoticed.
        """
        if self._backend is None and self.bridge.has_lost_its_loop:
            self._stop_without_loop()
        if not self.mailbox.empty():
            self.mailbox.serve()
        if self._at_boundary or self._controls:
            self._requests.carry_out(with_boundary=True)
        if self._hub.dirty:  # written between two publishes, by the model for instance
            self._hub.commit()
        if self.is_paused:
            self._hold(with_boundary=True)

    def _hold(self, *, with_boundary: bool) -> None:
        """Wait while the run is paused; what is asked for meanwhile takes effect at once."""
        while self.is_paused and not self.stop_requested:
            self.mailbox.wait(lambda: self._requests.any(with_boundary=with_boundary) or self.bridge.has_lost_its_loop)
            self.safe_point()  # nothing was served where something had been asked for already
            self._requests.carry_out(with_boundary=with_boundary)
            if self.bridge.has_lost_its_loop:
                self._stop_without_loop()

    def _stop_without_loop(self) -> None:
        """Stop where the event loop was closed under the run: nobody is left there who could."""
        if not self.stop_requested:
            _logger.error("%s; the run stops", LOOP_ENDED)
            self.stop_requested = True

    def cross(self, function: Callable[..., Awaitable[T]], *arguments: Any, closing: bool = False) -> T:
        """Run a coroutine function on the home loop, each of its steps on the main stream, and wait for it.

        Once a cancellation has taken effect as a stop, the handlers of the run's end are shielded, up to a deadline.

        Raises:
            CrossingCancelled: the run was cancelled before, or while the coroutine ran.
        """
        self._start_loop()
        closing = closing or (self._is_cancelled and self.stop_requested)
        value: T = self.bridge.call(as_handler, self._hub, self._main_stream.drive, function, *arguments, closing=closing)
        return value

    def _start_loop(self) -> None:
        """Start a loop of its own, where the run lives on nobody else's and something needs one."""
        if self._backend is not None and self._loop_thread is None:
            self._loop_thread = LoopThread(self.bridge, self._backend)
            self._loop_thread.start()

    def bridge_to(self, outbox: Outbox, hub: MessageHub, stall_timeout: float) -> None:
        """Begin to serve the outbox of the bus, and to bring errors of background handlers to the next step boundary."""
        self.bridge.stall_timeout = stall_timeout
        self.pump.attach(outbox, hub)

        def wake() -> None:
            self._start_loop()
            self.bridge.call_soon(self.pump.call)

        def end_run() -> None:
            self.request(outbox.raise_errors, "ending the run", outlasts_pauses=True).forgive()

        outbox.open(wake, end_run)

    def wait(self, done: Callable[[], bool], timeout: float) -> bool:
        """Wait, serving the mailbox, after a cancellation not for long; return whether it is done."""
        if not self.mailbox.wait(lambda: self._is_cancelled or done(), timeout):
            return False
        return done() or self.mailbox.wait(done, min(timeout, AFTER_CANCEL))

    def nudge(self) -> None:
        """Have this thread look again whether what it waits for is there; any thread may call this."""
        self.mailbox.put(_wake_up)

    def refuse_requests(self) -> None:
        """Refuse what waits for a step boundary, and what comes: none will come any more."""
        self._requests.close()
        self._requests.refuse()

    def _close(self) -> None:
        """Carry out what was asked in time, and take nothing more."""
        self.refuse_requests()
        with self._requests.lock:
            self._is_over = True
        self.mailbox.serve()

    # --- from anywhere ------------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Stop the run at the next step boundary; what is awaited until then, the bridge cancels."""
        self._is_cancelled = True
        self.stop().forgive()

    def post(self, emit: Callable[[], T], publish: Callable[[], Awaitable[T]], what: str) -> Acknowledgement[T]:
        """Have an event emitted at the next safe point, after what was posted before."""
        return self._submit(emit, what, self._posts.put)

    def submit(self, function: Callable[[], T], what: str) -> Acknowledgement[T]:
        """Have a function called on the training thread, and so on the main stream, at the next safe point."""
        return self._submit(function, what, self.mailbox.put)

    def _submit(self, function: Callable[[], T], what: str, put: Callable[[Callable[[], object]], object]) -> Acknowledgement[T]:
        answer: Acknowledgement[T] = Acknowledgement(what, check_wait=self._refuse_own_thread)
        with self._requests.lock:
            if self._is_over:
                answer.set_error(RunEnded(f"{what} cannot take effect: the run is over"))
            else:
                put(lambda: answer.carry_out(function))
        return answer

    def request(
        self,
        action: Callable[[], T | Acknowledgement[T]],
        what: str,
        *,
        outlasts_pauses: bool = False,
        then: Callable[[T], object] | None = None,
        refusals: tuple[type[Exception], ...] = (),
    ) -> Acknowledgement[T]:
        """Have an action taken at the next step boundary; where it gives an acknowledgement, its answer is the answer.

        In a pause between two boundaries it is refused, unless `outlasts_pauses`: then nobody should wait for it.

        Args:
            action: what to do.
            what: names it.
            outlasts_pauses: whether it may wait for a boundary that a pause keeps away.
            then: called with the answer once it is given, there and on that thread.
            refusals: errors of the action that go to the one who asked; any other one ends the run.
        """
        answer = self._answer(what)
        request = StepRequest(action, answer, then, refusals)
        if self._pauses_inside and not outlasts_pauses:
            msg = f"{what} cannot take effect: the run is paused between two step boundaries; unpause it first"
            answer.set_error(WouldDeadlock(msg))
        else:
            self._take(request, waits_for_boundary=True)
        return answer

    def stop(self, then: Callable[[TookEffect], object] | None = None) -> Acknowledgement[TookEffect]:
        """Stop the loop at the next step boundary, or earlier where nothing is lost by it; `then` is told when."""
        return self._control("stop()", self._stop_now, then)

    def pause(self, then: Callable[[TookEffect], object] | None = None) -> Acknowledgement[TookEffect]:
        """Hold the loop at the next step boundary, or earlier where nothing is lost by it, until `unpause` or `stop`."""
        return self._control("pause()", lambda: self._set_paused(True), then)

    def unpause(self, then: Callable[[TookEffect], object] | None = None) -> Acknowledgement[TookEffect]:
        """Let the loop go on."""
        return self._control("unpause()", lambda: self._set_paused(False), then)

    def _control(
        self, what: str, action: Callable[[], TookEffect], then: Callable[[TookEffect], object] | None
    ) -> Acknowledgement[TookEffect]:
        answer = self._answer(what)
        self._take(StepRequest(action, answer, then), waits_for_boundary=False)
        return answer

    def _answer(self, what: str) -> Acknowledgement[Any]:
        return Acknowledgement(what, check_wait=self._refuse_handlers)

    def _take(self, request: StepRequest, *, waits_for_boundary: bool) -> None:
        with self._requests.lock:
            if self._requests.is_closed:
                msg = f"{request.answer.what} cannot take effect: the run ends, no step boundary follows"
                request.answer.set_error(RunEnded(msg))
                request.answer.forgive()
                return
            self._requests.add(request, waits_for_boundary=waits_for_boundary)
        self.mailbox.put(_wake_up)  # it may wait in a pause

    def _stop_now(self) -> TookEffect:
        self.stop_requested = True
        return self._now()

    def _set_paused(self, is_paused: bool) -> TookEffect:
        self.is_paused = is_paused
        self._pauses_inside = is_paused and self._is_inside
        return self._now()

    def _now(self) -> TookEffect:
        return TookEffect(self._progress.epoch, self._progress.iter)

    def _refuse_own_thread(self) -> None:
        if get_ident() == self.thread_id:
            msg = "the training thread waits for something that only it can do; do not wait for it inside a handler"
            raise WouldDeadlock(msg)

    def _refuse_handlers(self) -> None:
        self._refuse_own_thread()
        writing = current_writing.get()
        if writing is not None and writing.hub is self._hub:
            msg = "this takes effect at the next step boundary, which cannot come while training waits for this handler"
            raise WouldDeadlock(msg)

"""What may be asked of a live run, from any thread, task, hook or signal handler.

Each control returns at once with an acknowledgement. On the training thread, where it takes effect, `ControlApplied` is
published and a line is logged, so that it is known who changed what.
"""

from __future__ import annotations

__all__ = ("RunControls", "Saved", "Validated")

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from hookbus._named import check_name
from hookbus.errors import ConfigError, RunEnded
from hookbus.events import ControlApplied
from hookbus.mailbox import Acknowledgement
from hookbus.runner.committing import SaveRequest
from hookbus.runner.learning_rates import Rates, check_rates, set_rates
from hookbus.runner.requesters import requester
from hookbus.runner.rolling_back import roll_back
from hookbus.runner.saving import Saver
from hookbus.runner.side_validation import validate_aside
from hookbus.training_thread import TookEffect, TrainingThread

if TYPE_CHECKING:
    from hookbus.runner.runner import Runner

T = TypeVar("T")


class Saved(NamedTuple):
    """When a save took effect: completed epochs and iterations, and where it lies; the path is None where a hook left it out."""

    epoch: int
    iter: int
    path: Path | None


class Validated(NamedTuple):
    """When a validation took place: completed epochs and iterations, and its metrics, none where a hook skipped it."""

    epoch: int
    iter: int
    metrics: dict[str, Any]


class RunControls:
    """The controls of a runner; `RunEnded` where no run is going on.

    `requested_by` says who asks, for the log and for `ControlApplied`; left out, it is the calling function with its thread
    or task. Inside a handler that training waits for, waiting for an acknowledgement raises `WouldDeadlock`.
    """

    experiment_name: str
    _saver: Saver
    _thread: TrainingThread | None

    def stop(self, *, requested_by: str | None = None) -> Acknowledgement[TookEffect]:
        """Stop at the next step boundary, in a validation or test between two batches.

        The acknowledgement gives the epoch and iteration at which it took effect. A validation that is stopped has no
        result and stays due.
        """
        thread = self._live_thread("stop()")
        return thread.stop(self._announcing(thread, "stop", {}, requested_by))

    def pause(self, *, requested_by: str | None = None) -> Acknowledgement[TookEffect]:
        """Hold the run where a stop would end it, until `unpause` or `stop`; the bus goes on working."""
        thread = self._live_thread("pause()")
        return thread.pause(self._announcing(thread, "pause", {}, requested_by))

    def unpause(self, *, requested_by: str | None = None) -> Acknowledgement[TookEffect]:
        """Let a paused run go on."""
        thread = self._live_thread("unpause()")
        return thread.unpause(self._announcing(thread, "unpause", {}, requested_by))

    def save(self, name: str | None = None, *, requested_by: str | None = None) -> Acknowledgement[Saved]:
        """Save the whole state at the next step boundary, under a name or as `iter_<completed iterations>`.

        The acknowledgement gives epoch, iteration and path once the checkpoint is committed.
        """
        if name is not None:
            check_name(name, "a checkpoint")
        thread, runner = self._live_thread("save()"), cast("Runner", self)

        def save() -> Saved:
            path = self._saver.save(SaveRequest(name or f"iter_{runner.iter}"))
            return Saved(runner.epoch, runner.iter, cast("Path | None", path))  # it was not asked to write in the background

        return thread.request(save, "save()", then=self._announcing(thread, "save", {"name": name}, requested_by))

    def validate(self, *, requested_by: str | None = None) -> Acknowledgement[Validated]:
        """Validate at the next step boundary, beside the validations that are due; training goes on as if there had been none.

        The acknowledgement gives epoch, iteration and metrics; `RunEnded` where a stop came before it was complete.

        Raises:
            ConfigError: the runner has no validation data.
        """
        thread, runner = self._live_thread("validate()"), cast("Runner", self)
        runner.loop("val")

        def validate() -> Validated:
            return Validated(runner.epoch, runner.iter, validate_aside(runner, thread))

        then = self._announcing(thread, "validate", {}, requested_by)
        return thread.request(validate, "validate()", then=then, refusals=(RunEnded,))

    def set_lr(self, lr: Rates, *, requested_by: str | None = None) -> Acknowledgement[TookEffect]:
        """Set learning rates at the next step boundary; schedules go on from there, in proportion.

        Where a schedule would give a rate `s`, it gives `s * lr / old` from then on, floors and peaks included, also after a
        resume. The acknowledgement raises `ConfigError` where a schedule stands at 0 then, and no rate is changed.

        Args:
            lr: the rate of every parameter group, or a dict by name: of an optimizer, where there are several, of a group
                (`name` in its options, else its number), or of both, `generator.head`.
            requested_by: who asks.

        Raises:
            ConfigError: a name is unknown, or a rate is no number of at least 0.
        """
        thread, runner = self._live_thread("set_lr()"), cast("Runner", self)
        rates = check_rates(runner, lr)

        def change() -> TookEffect:
            try:
                set_rates(runner, rates)
            except ConfigError as error:
                runner.logger.warning("%s", error)  # whoever asked may not look
                raise
            return TookEffect(runner.epoch, runner.iter)

        then = self._announcing(thread, "set_lr", {"lr": rates}, requested_by)
        return thread.request(change, "set_lr()", then=then, refusals=(ConfigError,))

    def run_on_main_stream(self, function: Callable[..., T], *arguments: Any) -> Acknowledgement[T]:
        """Have `function(*arguments)` called on the training thread at its next safe point.

        The acknowledgement gives what the function returned or raised.
        """
        name = getattr(function, "__qualname__", repr(function))
        return self._live_thread(f"run_on_main_stream({name})").submit(lambda: function(*arguments), name)

    def request_save(self, name: str, **options: Any) -> Acknowledgement[Path | None]:
        """Have a checkpoint taken at the next step boundary; the options are those of `SaveRequest`.

        For hooks: it is no control, and publishes what every save does. The acknowledgement gives its path once it is
        committed, or None where a hook left it out.
        """
        request = SaveRequest(check_name(name, "a checkpoint"), **options)
        return self._live_thread(f"saving {name}").request(lambda: self._saver.save(request), f"saving {name}")

    def request_rollback(self, reason: str = "somebody asked for it") -> Acknowledgement[Path]:
        """Have what is trained go back to the newest checkpoint at the next step boundary; data and counters go on.

        The acknowledgement gives the path of that checkpoint. Without one the run ends with a `CheckpointError`.
        """
        runner = cast("Runner", self)
        return self._live_thread("a rollback").request(lambda: roll_back(runner, self._saver, reason), "a rollback")

    def _live_thread(self, what: str) -> TrainingThread:
        thread = self._thread
        if thread is None:
            msg = f"{what} cannot take effect: no run of {self.experiment_name!r} is going on"
            raise RunEnded(msg)
        return thread

    def _announcing(
        self, thread: TrainingThread, control: str, arguments: Mapping[str, Any], requested_by: str | None
    ) -> Callable[[TookEffect | Saved | Validated], None]:
        """Return what tells log and bus that a control took effect, and on whose behalf."""
        who = requested_by or requester(thread.thread_id)

        def announce(took: TookEffect | Saved | Validated) -> None:
            runner = cast("Runner", self)
            event = ControlApplied(control=control, arguments=dict(arguments), epoch=took.epoch, iter=took.iter, requested_by=who)
            said = ", ".join(f"{name}={value!r}" for name, value in arguments.items() if value is not None)
            runner.logger.info("%s(%s) at epoch %d, iteration %d, by %s", control, said, took.epoch, took.iter, who)
            if runner.bus.has_subscribers(ControlApplied):
                runner.bus.emit(event, {"runner": runner})

        return announce

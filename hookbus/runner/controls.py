"""What may be asked of a live run, from any thread, task or hook; each returns at once with an acknowledgement."""

from __future__ import annotations

__all__ = ("RunControls",)

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from hookbus._named import check_name
from hookbus.errors import RunEnded
from hookbus.mailbox import Acknowledgement
from hookbus.runner.committing import SaveRequest
from hookbus.runner.rolling_back import roll_back
from hookbus.runner.saving import Saver
from hookbus.training_thread import TookEffect, TrainingThread

if TYPE_CHECKING:
    from hookbus.runner.runner import Runner

T = TypeVar("T")


class RunControls:
    """The controls of a runner; `RunEnded` where no run is going on."""

    experiment_name: str
    _saver: Saver
    _thread: TrainingThread | None

    def stop(self) -> Acknowledgement[TookEffect]:
        """Stop at the next step boundary, in a validation or test between two batches.

        The acknowledgement gives the epoch and iteration at which it took effect. A validation that is stopped has no
        result and stays due.
        """
        return self._live_thread("stop()").stop()

    def pause(self) -> Acknowledgement[TookEffect]:
        """Hold the run where a stop would end it, until `unpause` or `stop`; the bus goes on working."""
        return self._live_thread("pause()").pause()

    def unpause(self) -> Acknowledgement[TookEffect]:
        """Let a paused run go on."""
        return self._live_thread("unpause()").unpause()

    def run_on_main_stream(self, function: Callable[..., T], *arguments: Any) -> Acknowledgement[T]:
        """Have `function(*arguments)` called on the training thread at its next safe point.

        The acknowledgement gives what the function returned or raised.
        """
        name = getattr(function, "__qualname__", repr(function))
        return self._live_thread(f"run_on_main_stream({name})").submit(lambda: function(*arguments), name)

    def request_save(self, name: str, **options: Any) -> Acknowledgement[Path | None]:
        """Have a checkpoint taken at the next step boundary; the options are those of `SaveRequest`.

        The acknowledgement gives its path once it is committed, or None where a hook left it out.
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
        if self._thread is None:
            msg = f"{what} cannot take effect: no run of {self.experiment_name!r} is going on"
            raise RunEnded(msg)
        return self._thread

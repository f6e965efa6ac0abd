"""Makes the log records of a run and publishes them; writers bring them to the terminal, to `metrics.jsonl` and elsewhere.

Writers are background subscribers of `LogRecorded`, each with a thread of its own, so no destination holds training up.
"""

from __future__ import annotations

__all__ = ("LoggerHook",)

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from hookbus._config import refuse, shown
from hookbus._hyperparameters import hyperparameters_of
from hookbus._log_copy import LogCopy
from hookbus._strict_json import strict_json
from hookbus.delivery import Delivery, DeliveryStats
from hookbus.distributed import is_main_process
from hookbus.errors import ConfigError
from hookbus.hooks.base import Hook
from hookbus.hub import MessageHub
from hookbus.registry import WRITERS
from hookbus.types import Mode
from hookbus.writers.base import Record, RunPlace, RunPosition, Writer


class LoggerHook(Hook):
    """Logs every `interval` iterations of an epoch, and the metrics of each validation and test.

    Only the main process writes. The metrics of a test also go to `test_metrics.json`.

    Args:
        interval: iterations between two log lines, counted anew in each epoch.
        ignore_last: leave out the rest of an epoch that is shorter than `interval`.
        writers: names or configs of writers, or writers.
        out_dir: at the end of each run, copy the log files to `<out_dir>/<work_dir>/<start>/`.
        keep_local: with `out_dir`, leave the log files where they were written, too.
        hyperparameters: numbers and texts that writers show as what the run was started with, beside what the runner knows.
        closing_timeout: seconds that the end of a run waits at most for writers to be closed.

    Raises:
        ConfigError: the interval is not at least 1, a writer is unknown, or files would go without being copied.
    """

    priority: ClassVar[int | str] = "BELOW_NORMAL"

    def __init__(
        self,
        interval: int = 10,
        ignore_last: bool = True,
        writers: Sequence[Any] = ("terminal", "jsonl"),
        out_dir: str | Path | None = None,
        keep_local: bool = True,
        hyperparameters: Mapping[str, bool | int | float | str] | None = None,
        closing_timeout: float = 30.0,
    ) -> None:
        problems = []
        if interval < 1:
            problems.append(f"LoggerHook.interval must be at least 1, got {interval}")
        if isinstance(writers, str) or not isinstance(writers, Sequence):
            problems.append(f"LoggerHook.writers = {shown(writers)}: expected a list of names, configs or writers")
        if out_dir is None and not keep_local:
            problems.append("LoggerHook.keep_local = False: without out_dir the log files would be copied nowhere")
        if not closing_timeout > 0:
            problems.append(f"LoggerHook.closing_timeout must be a positive number of seconds, got {shown(closing_timeout)}")
        refuse(problems)
        self.interval = interval
        self.ignore_last = ignore_last
        self._logged_end: int | None = None
        """Iterations after which the running epoch ends, where that is to be logged."""
        self._batches = 0
        """Batches of the running validation or test so far; its dataloader may not know its length."""
        self._evaluating: Mode | None = None
        self._writers = [_make_writer(spec, index) for index, spec in enumerate(writers)]
        refuse(list(_doubled(self._writers)))
        self._is_open = False
        self._name = ""
        """Tells its records from those of other loggers of the run; empty for the first one."""
        self._deliveries: list[Delivery] = []
        self._hyperparameters = dict(hyperparameters or {})
        self._closing_timeout = closing_timeout
        self._copy = LogCopy(out_dir, keep_local=keep_local) if out_dir is not None else None

    @property
    def deliveries(self) -> list[DeliveryStats]:
        """What became of the records of this run, or of the last one, for each writer."""
        return [delivery.stats() for delivery in self._deliveries]

    def before_run(self, runner: Any) -> None:
        """Refuse an `out_dir` that leads back to the logs themselves, before anything is logged."""
        if self._copy is not None:
            self._copy.target(runner.work_dir, runner.log_dir)

    def before_train(self, runner: Any) -> None:
        """Open the writers, now that a checkpoint which training goes on from is loaded."""
        if is_main_process():
            self._open(runner)

    def before_train_epoch(self, runner: Any) -> None:
        """Find out whether the end of the epoch gets a line of its own."""
        length = runner.train_loop.epoch_length
        is_logged = length is not None and (not self.ignore_last or length <= self.interval)
        self._logged_end = length if is_logged else None

    def after_train_iter(self, runner: Any, batch_idx: int, hub: MessageHub) -> None:
        """Log every `interval` iterations, and at the end of an epoch where that is wanted."""
        completed = batch_idx + 1
        if (completed % self.interval == 0 or completed == self._logged_end) and is_main_process():
            hub.flush()  # what is still on a device belongs to this line
            self._publish(runner, runner.log_processor.after_iter(runner, batch_idx, "train"))

    def after_val_iter(self, runner: Any, batch_idx: int) -> None:
        """Show that the validation goes on."""
        self._show_progress(runner, batch_idx, "val")

    def after_test_iter(self, runner: Any, batch_idx: int) -> None:
        """Show that the test goes on."""
        self._show_progress(runner, batch_idx, "test")

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, Any], hub: MessageHub) -> None:
        """Log the metrics."""
        self._write_metrics(runner, metrics, hub, "val")

    def after_test_epoch(self, runner: Any, metrics: Mapping[str, Any], hub: MessageHub) -> None:
        """Log the metrics, and keep them in a file of their own."""
        self._write_metrics(runner, metrics, hub, "test")
        if is_main_process():
            (runner.log_dir / "test_metrics.json").write_bytes(strict_json(metrics) + b"\n")

    def after_run(self, runner: Any) -> None:
        """Close the writers, each of them whatever becomes of the others; then copy what they wrote."""
        self._evaluating = None
        if self._is_open:
            self._is_open = False
            self._close(runner)
        if self._copy is not None and is_main_process():
            self._copy.bring(runner.log_dir, self._copy.target(runner.work_dir, runner.log_dir))

    def _close(self, runner: Any) -> None:
        """Wait until all are closed, for a limited time; who waits for this thread meanwhile has its turn."""
        mailbox = runner._live_thread("closing the writers").mailbox
        for delivery in self._deliveries:
            delivery.begin_closing(done=lambda: mailbox.put(_look_again))
        mailbox.wait(lambda: all(delivery.is_closed for delivery in self._deliveries), self._closing_timeout)
        for delivery in self._deliveries:
            delivery.end()

    def _show_progress(self, runner: Any, batch_idx: int, mode: Mode) -> None:
        self._batches, self._evaluating = batch_idx + 1, mode
        if self._batches % self.interval == 0 and is_main_process():
            self._publish(runner, runner.log_processor.after_iter(runner, batch_idx, mode))

    def _write_metrics(self, runner: Any, metrics: Mapping[str, Any], hub: MessageHub, mode: Mode) -> None:
        self._evaluating = None
        if is_main_process():
            hub.flush()
            self._publish(runner, runner.log_processor.after_epoch(runner, metrics, self._batches, mode))

    def _publish(self, runner: Any, record: Record) -> None:
        if not self._is_open:
            self._open(runner)  # without training, or registered in its middle, writers wait for the first record
        runner.bus.emit(msgspec.structs.replace(record, logger=self._name) if self._name else record)

    def _open(self, runner: Any) -> None:
        place = RunPlace(
            logger=runner.logger,
            log_dir=runner.log_dir,
            first_iter=runner.iter + 1,
            experiment_name=runner.experiment_name,
            hyperparameters=hyperparameters_of(runner) | self._hyperparameters,
            position=lambda: self._position(runner),
        )
        others = [hook for hook in runner.hooks if isinstance(hook, LoggerHook)]
        self._name = "" if self is others[0] else f"{type(self).__name__}_{others.index(self) + 1}"
        self._deliveries = [Delivery(writer, runner.bus, place, self._name) for writer in self._writers]
        self._is_open = True

    def _position(self, runner: Any) -> RunPosition:
        mode = self._evaluating
        return RunPosition(
            mode=mode or ("train" if runner.is_training else None),
            epoch=runner.epoch,
            max_epochs=runner.max_epochs,
            iter=runner.iter,
            max_iters=runner.max_iters,
            batch=self._batches,
            num_batches=getattr(runner, f"{mode}_loop").num_batches if mode else None,
        )


def _doubled(writers: Sequence[Writer]) -> Iterator[str]:
    """Yield a sentence for each built-in writer that would write where another one of its kind does."""
    for index, writer in enumerate(writers):
        first = next(place for place, other in enumerate(writers) if type(other) is type(writer))
        if first != index and type(writer).__module__.startswith("hookbus."):
            yield f"LoggerHook.writers[{index}]: {type(writer).__name__} writes where writers[{first}] does; leave one out"


def _make_writer(spec: Any, index: int) -> Writer:
    if isinstance(spec, Writer):
        return spec
    path = f"LoggerHook.writers[{index}]"
    writer = WRITERS.build({"type": spec} if isinstance(spec, str) else spec, path=path)
    if not isinstance(writer, Writer):
        msg = f"{path} = {shown(spec)}: {type(writer).__name__} is no hookbus.Writer"
        raise ConfigError(msg)
    return writer


def _look_again() -> None:
    """Make the training thread see that a writer is closed."""

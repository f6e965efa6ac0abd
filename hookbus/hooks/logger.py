"""Writes log records: to the terminal, to `metrics.jsonl`, and to other destinations by name."""

from __future__ import annotations

__all__ = ("LoggerHook",)

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

from hookbus.errors import ConfigError
from hookbus.hooks.base import Hook
from hookbus.hub import MessageHub
from hookbus.registry import WRITERS
from hookbus.writers.base import Record, Writer


class LoggerHook(Hook):
    """Logs every `interval` iterations of an epoch, and the metrics of each validation and test.

    Args:
        interval: iterations between two log lines, counted anew in each epoch.
        ignore_last: leave out the rest of an epoch that is shorter than `interval`.
        writers: names or configs of writers, or writers.

    Raises:
        ConfigError: the interval is not at least 1, or a writer is unknown.
    """

    priority: ClassVar[int | str] = "BELOW_NORMAL"

    def __init__(self, interval: int = 10, ignore_last: bool = True, writers: Sequence[Any] = ("terminal", "jsonl")) -> None:
        if interval < 1:
            msg = f"LoggerHook.interval must be at least 1, got {interval}"
            raise ConfigError(msg)
        self.interval = interval
        self.ignore_last = ignore_last
        self._batches = 0
        """Batches of the running validation or test so far; its dataloader may not know its length."""
        self._is_open = False
        self._writers = [_make_writer(spec, index) for index, spec in enumerate(writers)]

    def before_run(self, runner: Any) -> None:
        """Tell the writers where this run logs to."""
        for writer in self._writers:
            writer.open(runner.logger, runner.log_dir)
        self._is_open = True

    def after_train_iter(self, runner: Any, batch_idx: int, hub: MessageHub) -> None:
        """Log every `interval` iterations, and at the end of an epoch where that is wanted."""
        if (batch_idx + 1) % self.interval == 0 or self._is_wanted_end(runner, batch_idx):
            hub.flush()  # what is still on a device belongs to this line
            self._write(runner, runner.log_processor.after_iter(runner, batch_idx, "train"))

    def after_val_iter(self, runner: Any, batch_idx: int) -> None:
        """Show that the validation goes on."""
        self._show_progress(runner, batch_idx, "val")

    def after_test_iter(self, runner: Any, batch_idx: int) -> None:
        """Show that the test goes on."""
        self._show_progress(runner, batch_idx, "test")

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, Any]) -> None:
        """Log the metrics."""
        self._write(runner, runner.log_processor.after_epoch(runner, metrics, self._batches, "val"))

    def after_test_epoch(self, runner: Any, metrics: Mapping[str, Any]) -> None:
        """Log the metrics."""
        self._write(runner, runner.log_processor.after_epoch(runner, metrics, self._batches, "test"))

    def after_run(self) -> None:
        """Close the writers, each of them whatever becomes of the others."""
        self._is_open = False
        with ExitStack() as closing:
            for writer in self._writers:
                closing.callback(writer.close)

    def _is_wanted_end(self, runner: Any, batch_idx: int) -> bool:
        length = runner.train_loop.num_batches
        return batch_idx + 1 == length and (not self.ignore_last or length < self.interval)

    def _show_progress(self, runner: Any, batch_idx: int, mode: Any) -> None:
        self._batches = batch_idx + 1
        if (batch_idx + 1) % self.interval == 0:
            runner.logger.info(runner.log_processor.after_iter(runner, batch_idx, mode).text)

    def _write(self, runner: Any, record: Record) -> None:
        if not self._is_open:  # registered in the middle of a run
            self.before_run(runner)
        for writer in self._writers:
            writer.write(record)


def _make_writer(spec: Any, index: int) -> Writer:
    if isinstance(spec, Writer):
        return spec
    config = {"type": spec} if isinstance(spec, str) else spec
    writer: Writer = WRITERS.build(config, path=f"LoggerHook.writers[{index}]")
    return writer

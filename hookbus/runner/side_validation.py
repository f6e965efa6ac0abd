"""A validation that somebody asked for: a look at the model, after which training goes on as if there had been none."""

from __future__ import annotations

__all__ = ("validate_aside",)

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hookbus.errors import RunEnded
from hookbus.random_state import rng_kept

if TYPE_CHECKING:
    from hookbus.runner.runner import Runner
    from hookbus.training_thread import TrainingThread


def validate_aside(runner: Runner, thread: TrainingThread) -> dict[str, Any]:
    """Validate in the middle of training and return the metrics; they are empty where a hook skipped it.

    It publishes the events of any validation, and the hub and the log get its metrics. It does not count as the one that
    may be due, and the runner counts as not training meanwhile: no schedule follows it, no score is compared with it. All
    random generators, also those of its dataloader, go on as if nothing had been drawn.

    Raises:
        RunEnded: the run was stopped before it was complete.
    """
    metrics: dict[str, Any] = {}
    if not thread.stop_requested:
        with rng_kept(), _data_kept(runner.val_loop), _not_training(runner):
            metrics = runner.val_loop.run()
    if thread.stop_requested and not metrics:
        msg = f"validate() has no result: {runner.experiment_name!r} was stopped before it was complete"
        raise RunEnded(msg)
    return metrics


@contextmanager
def _data_kept(loop: Any) -> Iterator[None]:
    """Have the next pass over the data of a loop begin where it would have begun."""
    state = loop.state_dict()
    try:
        yield
    finally:
        loop.load_state_dict(state)


@contextmanager
def _not_training(runner: Runner) -> Iterator[None]:
    before, runner.running = runner.running, "val"
    try:
        yield
    finally:
        runner.running = before

"""Going back in the middle of training: what is trained is again what the newest checkpoint holds, and training goes on.

Weights, buffers, optimizer, loss scaler and schedules go back. The data do not: the batches that follow are the next ones.
Nor do the counters, the hub and the hooks, because they count what was done; so checkpoints keep their order.
"""

from __future__ import annotations

__all__ = ("roll_back",)

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hookbus.errors import CheckpointCorrupt, CheckpointError, RunEnded, describe_error
from hookbus.events import AfterLoadCheckpoint

if TYPE_CHECKING:
    from hookbus.runner.runner import Runner
    from hookbus.runner.saving import Saver

_NEEDED = ("state_dict", "optimizer", "param_schedulers")


def roll_back(runner: Runner, saver: Saver, reason: str) -> Path:
    """Take up the newest checkpoint that is sound and complete, and return its path; hooks may edit it, as ever.

    Raises:
        CheckpointError: there is none yet.
        RunEnded: nothing is being trained.
    """
    if not runner.is_training or runner.optim_wrapper is None:
        msg = f"{reason}: there is nothing to roll back, because {runner.experiment_name!r} is not training"
        raise RunEnded(msg)
    path, checkpoint = next(_usable(runner, saver), (None, {}))
    if path is None:
        where = ", ".join(str(store.directory) for store in saver.stores())
        msg = f"{reason}: cannot roll back, because there is no complete checkpoint in {where}; save earlier and more often"
        raise CheckpointError(msg)
    event = AfterLoadCheckpoint(name=path.name, epoch=runner.epoch, iter=runner.iter)
    runner.bus.emit(event, {"runner": runner, "checkpoint": checkpoint})
    runner.model.load_state_dict(checkpoint["state_dict"])
    runner.optim_wrapper.load_state_dict(checkpoint["optimizer"])
    for scheduler, state in zip(runner.param_schedulers, checkpoint["param_schedulers"], strict=True):
        scheduler.load_state_dict(state)
    back = runner.iter - checkpoint["meta"]["iter"]
    runner.logger.warning("%s: rolled back to %s, %d iterations ago; the data go on", reason, path, back)
    return path


def _usable(runner: Runner, saver: Saver) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield what training can go on from, the newest first."""
    committed = [info for store in saver.stores() for info in store.list()]
    for info in sorted(committed, key=lambda info: info.step, reverse=True):
        try:
            checkpoint = saver.load(info.path)
        except CheckpointCorrupt as error:
            runner.logger.warning("%s is damaged and was left out: %s", info.path, describe_error(error))
            continue
        missing = [key for key in _NEEDED if key not in checkpoint]
        if missing:
            runner.logger.warning("%s was left out: it lacks %s", info.path, ", ".join(missing))
        else:
            yield info.path, checkpoint

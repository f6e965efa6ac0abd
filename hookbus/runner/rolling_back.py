"""Going back in the middle of training: what is trained is again what the newest checkpoint holds, and training goes on.

Weights, buffers, optimizer, loss scaler and schedules go back. The data do not: the batches that follow are the next ones.
Nor do the counters, the hub and the hooks, because they count what was done; so checkpoints keep their order.
"""

from __future__ import annotations

__all__ = ("roll_back",)

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hookbus.errors import CheckpointError, RunEnded
from hookbus.events import AfterLoadCheckpoint
from hookbus.runner.resuming import Found, load_updates, load_weights, sound_checkpoints

if TYPE_CHECKING:
    from hookbus.runner.runner import Runner
    from hookbus.runner.saving import Saver


def roll_back(runner: Runner, saver: Saver, reason: str) -> Path:
    """Take up the newest checkpoint that is sound and complete, and return its path; hooks may edit it, as ever.

    Raises:
        CheckpointError: there is none yet.
        RunEnded: nothing is being trained.
    """
    if not runner.is_training or runner.optim_wrapper is None:
        msg = f"{reason}: there is nothing to roll back, because {runner.experiment_name!r} is not training"
        raise RunEnded(msg)
    found = next(_usable(runner, saver), None)
    if found is None:
        where = ", ".join(str(store.directory) for store in saver.stores())
        msg = f"{reason}: cannot roll back, because there is no complete checkpoint in {where}; save earlier and more often"
        raise CheckpointError(msg)
    path, checkpoint = found
    event = AfterLoadCheckpoint(name=path.name, epoch=runner.epoch, iter=runner.iter, resuming=True)
    runner.bus.emit(event, {"runner": runner, "checkpoint": checkpoint})
    load_weights(runner.model, checkpoint["state_dict"], path, strict=True, warn=runner.logger.warning)
    load_updates(runner, checkpoint)
    back = runner.iter - checkpoint["meta"]["iter"]
    runner.logger.warning("%s: rolled back to %s, %d iterations ago; the data go on", reason, path, back)
    return path


def _usable(runner: Runner, saver: Saver) -> Iterator[Found]:
    """Yield what training can go on from, the newest first."""
    needed = ["state_dict", "optimizer", *(["param_schedulers"] if runner.param_schedulers else [])]
    committed = [info for store in saver.stores() for info in store.list()]
    for found in sound_checkpoints(saver, committed, runner.logger.warning, []):
        missing = [key for key in needed if key not in found.checkpoint]
        if missing:
            runner.logger.warning("%s was left out: it lacks %s", found.path, ", ".join(missing))
        else:
            yield found

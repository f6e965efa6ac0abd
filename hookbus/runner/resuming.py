"""Going on where a checkpoint was taken: which one, and how each part takes its state back."""

from __future__ import annotations

__all__ = ("Found", "Resumer", "load_weights")

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from hookbus.checkpoint import CheckpointInfo
from hookbus.errors import CheckpointCorrupt, CheckpointError, choices, describe_error

if TYPE_CHECKING:
    from hookbus.runner.runner import Runner
    from hookbus.runner.saving import Saver


class Found(NamedTuple):
    """A checkpoint that was read, every byte verified."""

    path: Path
    checkpoint: dict[str, Any]


class Resumer:
    """Finds the checkpoint to go on from, and restores the parts of one runner.

    `resume` is True, `"auto"` or a path.
    """

    def __init__(self, runner: Runner, saver: Saver, resume: bool | str | Path) -> None:
        self._runner = runner
        self._saver = saver
        self._resume = resume

    def find(self) -> Found | None:
        """Read the checkpoint to go on from: the named one, else the newest that is sound; None only for `"auto"`.

        Raises:
            CheckpointError: there is none.
            CheckpointCorrupt: the named one, or every one, is damaged.
        """
        if self._resume not in (True, "auto"):
            path = Path(str(self._resume))
            return Found(path, self._saver.load(path))
        damaged = self._report_damaged()
        for info in sorted(self._committed(), key=lambda info: info.step, reverse=True):
            try:
                return Found(info.path, self._saver.load(info.path))
            except CheckpointCorrupt as error:
                damaged.append(str(info.path))
                self._runner.logger.warning("%s is damaged and was left out: %s", info.path, describe_error(error))
        self._say_nothing_was_found(damaged)
        return None

    def _committed(self) -> Iterable[CheckpointInfo]:
        return [info for store in self._saver.stores() for info in store.list() if info.role in ("periodic", "best")]

    def _report_damaged(self) -> list[str]:
        damaged = []
        for store in self._saver.stores():
            for name, error in store.damaged().items():
                damaged.append(str(store.directory / name))
                self._runner.logger.warning("%s is damaged and was left out: %s", damaged[-1], describe_error(error))
        return damaged

    def _say_nothing_was_found(self, damaged: list[str]) -> None:
        where = ", ".join(str(store.directory) for store in self._saver.stores())
        if damaged:
            msg = f"resume={self._resume!r}: every checkpoint in {where} is damaged: {', '.join(damaged)}"
            raise CheckpointCorrupt(msg)
        if self._resume is True:
            msg = f"resume=True: there is no checkpoint in {where}; resume='auto' starts fresh where there is none"
            raise CheckpointError(msg)
        self._runner.logger.info("there is no checkpoint in %s: starting fresh", where)

    def restore(self, found: Found) -> None:
        """Give every part of the runner its state back; the random generators follow when training begins.

        Raises:
            CheckpointError: the checkpoint lacks what this run needs, or does not fit it.
        """
        runner, checkpoint = self._runner, found.checkpoint
        self._check(found)
        runner.model.load_state_dict(checkpoint["state_dict"])
        if runner.optim_wrapper is not None:
            runner.optim_wrapper.load_state_dict(checkpoint["optimizer"])
            for scheduler, state in zip(runner.param_schedulers, checkpoint["param_schedulers"], strict=True):
                scheduler.load_state_dict(state)
        runner.message_hub.load_state_dict(_unpacked(checkpoint["message_hub"]))
        runner.bus.load_state_dict(checkpoint["hooks"].pop("bus"))
        self._restore_hooks(checkpoint["hooks"])
        runner.progress.load_state_dict(checkpoint["progress"])
        self._take_seed(checkpoint["meta"]["seed"])
        runner.logger.info("resumed from %s: %d epochs and %d iterations are done", found.path, runner.epoch, runner.iter)

    def _check(self, found: Found) -> None:
        """Refuse what does not fit before anything is changed."""
        runner, checkpoint = self._runner, found.checkpoint
        needed = ["state_dict", "message_hub", "hooks", "progress", "meta"]
        if runner.optim_wrapper is not None:
            needed += ["optimizer", "param_schedulers"]
        missing = [key for key in needed if key not in checkpoint]
        if missing:
            msg = f"{found.path} cannot be resumed: it lacks {', '.join(missing)}; load_from takes the weights alone"
            raise CheckpointError(msg)
        mine, theirs = len(runner.param_schedulers), len(checkpoint.get("param_schedulers", ()))
        if runner.optim_wrapper is not None and mine != theirs:
            msg = f"{found.path} cannot be resumed: it holds the states of {theirs} schedulers, and this run has {mine}"
            raise CheckpointError(msg)
        for scheduler, state in zip(runner.param_schedulers, checkpoint.get("param_schedulers", ()), strict=False):
            scheduler.check_state(state)

    def _restore_hooks(self, states: Mapping[str, Any]) -> None:
        hooks = self._saver.keyed_hooks()
        for key, state in states.items():
            if key in hooks:
                hooks[key].load_state_dict(state)
            else:
                self._runner.logger.warning("the checkpoint holds the state of a hook %s, which this run does not have", key)

    def _take_seed(self, seed: int) -> None:
        runner = self._runner
        if runner.randomness.seed not in (None, seed):
            runner.logger.warning("the seed is %d, that of the checkpoint, and not %s", seed, runner.randomness.seed)
        runner.seed = seed


def load_weights(
    model: torch.nn.Module, weights: Mapping[str, Any], source: object, *, strict: bool, warn: Callable[[str], None]
) -> None:
    """Give a model the weights of a checkpoint, which may have been taken inside the wrapper of distributed training.

    Raises:
        CheckpointError: none of them has the name of one of the model.
    """
    own = model.state_dict().keys()
    named = {name if name in own else name.removeprefix("module."): weight for name, weight in weights.items()}
    if own and not own & named.keys():
        msg = f"{source} holds no weight of {type(model).__name__}; {choices(next(iter(own)), named)}"
        raise CheckpointError(msg)
    result = model.load_state_dict(named, strict=strict)
    if result.missing_keys:
        warn(f"{source} lacks {', '.join(result.missing_keys)}: they stay as they are")
    if result.unexpected_keys:
        warn(f"{source} also holds {', '.join(result.unexpected_keys)}, which the model does not have")


def _unpacked(hub_state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a hub with its histories as lists again."""
    scalars = {key: tuple(_as_list(column) for column in columns) for key, columns in hub_state["log_scalars"].items()}
    return {**hub_state, "log_scalars": scalars}


def _as_list(column: Any) -> list[Any]:
    return column.tolist() if isinstance(column, np.ndarray) else list(column)

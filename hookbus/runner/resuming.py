"""Going on where a checkpoint was taken: which one, and how each part takes its state back."""

from __future__ import annotations

__all__ = ("Found", "Resumer", "advance", "load_updates", "load_weights", "options_kept", "sound_checkpoints")

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from hookbus._bare import bare, inner_name
from hookbus.checkpoint import CheckpointInfo
from hookbus.checkpoint.manifest import MANIFEST_FILE
from hookbus.errors import CheckpointCorrupt, CheckpointError, choices, describe_error
from hookbus.optim import OptimWrapper
from hookbus.runner.settings import CONSEQUENCES, differences, settings_of

if TYPE_CHECKING:
    from hookbus.runner.runner import Runner
    from hookbus.runner.saving import Saver


class Found(NamedTuple):
    """A checkpoint that was read, every byte verified."""

    path: Path
    checkpoint: dict[str, Any]


class Resumer:
    """Finds the checkpoint to go on from, and restores the parts of one runner.

    `resume` is True, `"auto"` or a path; `allow` names the settings that may differ.
    """

    def __init__(self, runner: Runner, saver: Saver, resume: bool | str | Path, allow: Collection[str]) -> None:
        self._runner = runner
        self._saver = saver
        self._resume = resume
        self._allow = allow

    def find(self) -> Found | None:
        """Read the checkpoint to go on from: the named one, else the newest that is sound; None only for `"auto"`.

        Raises:
            CheckpointError: there is none.
            CheckpointCorrupt: the named one, or every one, is damaged.
        """
        if self._resume not in (True, "auto"):
            path = self._named(Path(str(self._resume)))
            return Found(path, self._saver.load(path))
        damaged = self._report_damaged()
        found = next(sound_checkpoints(self._saver, self._committed(), self._runner.logger.warning, damaged), None)
        if found is None:
            self._say_nothing_was_found(damaged)
        return found

    def _named(self, path: Path) -> Path:
        """Return where the named checkpoint lies; a name alone is looked for among those of this run.

        Raises:
            CheckpointError: there is none.
        """
        by_name = {info.name: info.path for info in self._committed()}
        if path.is_dir():
            if (path / MANIFEST_FILE).exists() or not any(path.glob(f"**/{MANIFEST_FILE}")):
                return path
            inside = sorted(str(found.parent.relative_to(path)) for found in path.glob(f"**/{MANIFEST_FILE}"))
            msg = f"resume={self._resume!r} is a directory with checkpoints and not one itself; {choices(path.name, inside)}"
            raise CheckpointError(msg)
        if path.name == str(path) and path.name in by_name:
            return by_name[path.name]
        if path.is_file():
            return path  # reading it says what to give instead
        msg = f"resume={self._resume!r}: there is no checkpoint at {path}; {choices(path.name, ['auto', *by_name])}"
        raise CheckpointError(msg)

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
            CheckpointError: the checkpoint lacks what this run needs, or was taken with other settings.
        """
        runner, checkpoint = self._runner, found.checkpoint
        changed = self._check(found)
        load_weights(
            runner.model, checkpoint["state_dict"], found.path, strict="model" not in changed, warn=runner.logger.warning
        )
        if runner.train_loop is not None:
            runner.message_hub.step = checkpoint["progress"]["iter"]
            self._restore_updates(checkpoint, changed)
            if not changed & {"batch_size", "train_batches"}:
                runner.train_loop.load_state_dict(checkpoint["loader"])
        runner.message_hub.load_state_dict(_unpacked(checkpoint["message_hub"]))
        runner.bus.load_state_dict(checkpoint["hooks"].pop("bus"))
        self._restore_hooks(checkpoint["hooks"])
        runner.progress.load_state_dict(checkpoint["progress"])
        self._take_seed(checkpoint["meta"]["seed"])
        runner.logger.info("resumed from %s: %d epochs and %d iterations are done", found.path, runner.epoch, runner.iter)

    def _check(self, found: Found) -> set[str]:
        """Refuse what does not fit before anything is changed; return which settings differ and may."""
        needed = ["state_dict", "message_hub", "hooks", "progress", "meta"]
        if self._runner.train_loop is not None:
            needed += ["optimizer", "loader", *(["param_schedulers"] if self._runner.param_schedulers else [])]
        missing = [key for key in needed if key not in found.checkpoint]
        if missing:
            msg = f"{found.path} cannot be resumed: it lacks {', '.join(missing)}; load_from takes the weights alone"
            raise CheckpointError(msg)
        differing = differences(self._runner, found.checkpoint)
        refused = [name for name in differing if name not in self._allow]
        if refused:
            texts = "\n  - ".join(["", *(differing[name] for name in refused)])
            msg = f"{found.path} was taken with other settings; resume with allow={refused} to go on all the same:{texts}"
            raise CheckpointError(msg)
        for name, text in differing.items():
            self._runner.logger.warning("%s: this is not the uninterrupted run any more, %s", text, CONSEQUENCES[name])
        return set(differing)

    def _restore_updates(self, checkpoint: Mapping[str, Any], changed: set[str]) -> None:
        """Give optimizers and schedules their states; where one of them is another now, its new settings hold."""
        runner, wrapper = self._runner, self._runner.optim_wrapper
        assert wrapper is not None
        if not changed & {"model", "optimizer", "optim_wrapper", "param_scheduler"}:
            load_updates(runner, checkpoint)
            return
        with options_kept(wrapper.wrappers().values()):
            if not changed & {"model", "optim_wrapper"}:
                self._load_optimizers(wrapper, checkpoint)
        advance(runner, epochs=checkpoint["progress"]["epoch"], iterations=checkpoint["progress"]["iter"])

    def _load_optimizers(self, wrapper: Any, checkpoint: Mapping[str, Any]) -> None:
        settings = (checkpoint["meta"]["settings"], settings_of(self._runner))
        before, now = ({name: options["type"] for name, options in each["optimizer"].items()} for each in settings)
        if before == now:
            wrapper.load_state_dict(checkpoint["optimizer"])

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


def sound_checkpoints(
    saver: Saver, infos: Iterable[CheckpointInfo], warn: Callable[..., object], damaged: list[str]
) -> Iterator[Found]:
    """Read checkpoints, the newest first; damaged ones are left out loudly and their paths added to `damaged`."""
    for info in sorted(infos, key=lambda info: info.step, reverse=True):
        try:
            checkpoint = saver.load(info.path)
        except CheckpointCorrupt as error:
            damaged.append(str(info.path))
            warn("%s is damaged and was left out: %s", info.path, describe_error(error))
        else:
            yield Found(info.path, checkpoint)


def load_updates(runner: Runner, checkpoint: Mapping[str, Any]) -> None:
    """Give optimizers and schedules exactly the states of a checkpoint; one saved without schedules is for runs without."""
    assert runner.optim_wrapper is not None
    runner.optim_wrapper.load_state_dict(checkpoint["optimizer"])
    for scheduler, state in zip(runner.param_schedulers, checkpoint.get("param_schedulers", ()), strict=True):
        scheduler.load_state_dict(state)


def load_weights(
    model: torch.nn.Module, weights: Mapping[str, Any], source: object, *, strict: bool, warn: Callable[[str], None]
) -> None:
    """Give a model the weights of a checkpoint, which may have been taken inside the wrapper of distributed training.

    Raises:
        CheckpointError: none of them has the name of one of the model.
    """
    own = bare(model).state_dict()
    named = {name if name in own else inner_name(name): weight for name, weight in weights.items()}
    if own and not own.keys() & named.keys():
        msg = f"{source} holds no weight of {type(model).__name__}; {choices(next(iter(own)), named)}"
        raise CheckpointError(msg)
    reshaped = [name for name in own if name in named and getattr(named[name], "shape", 0) != getattr(own[name], "shape", 0)]
    if reshaped:
        shapes = ", ".join(f"{name} {tuple(named[name].shape)} -> {tuple(own[name].shape)}" for name in reshaped[:5])
        msg = f"{source} holds weights of another shape than {type(model).__name__}: {shapes}; AfterLoadCheckpoint may edit them"
        raise CheckpointError(msg)
    result = bare(model).load_state_dict(named, strict=strict)
    if result.missing_keys:
        warn(f"{source} lacks {', '.join(result.missing_keys)}: they stay as they are")
    if result.unexpected_keys:
        warn(f"{source} also holds {', '.join(result.unexpected_keys)}, which the model does not have")


@contextmanager
def options_kept(wrappers: Iterable[OptimWrapper]) -> Iterator[None]:
    """Keep what the parameter groups of optimizers are set to, whatever is loaded into them meanwhile."""
    groups = [group for wrapper in wrappers for group in wrapper.param_groups]
    before = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    yield
    after = [group for wrapper in wrappers for group in wrapper.param_groups]
    for group, options in zip(after, before, strict=True):
        kept = {"params": group["params"]} | options
        group.clear()  # what a checkpoint brought along, such as a factor on the rate, must not outlive it
        group.update(kept)


def advance(runner: Runner, *, epochs: int, iterations: int) -> None:
    """Step schedules from their beginning to a point of the run; those that follow a metric stay as they are."""
    assert runner.optim_wrapper is not None
    stepped = [scheduler for scheduler in runner.param_schedulers if not scheduler.needs_metric]
    by_epoch = [scheduler for scheduler in stepped if scheduler.by_epoch]
    counts = {s: runner.optim_wrapper.wrapper_of(s.optimizer).accumulative_counts for s in stepped if not s.by_epoch}
    for scheduler in stepped:
        scheduler.optimizer._opt_called = True  # type: ignore[attr-defined]  # by the run so far
    per_epoch = iterations // epochs if epochs else iterations
    for iteration in range(1, iterations + 1):
        for scheduler, micro_batches in counts.items():
            if iteration % micro_batches == 0:  # they step once per update
                scheduler.step()
        if iteration % per_epoch == 0 and iteration <= epochs * per_epoch:
            for scheduler in by_epoch:
                scheduler.step()


def _unpacked(hub_state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a hub with its histories as lists again."""
    scalars = {key: tuple(_as_list(column) for column in columns) for key, columns in hub_state["log_scalars"].items()}
    return {**hub_state, "log_scalars": scalars}


def _as_list(column: Any) -> list[Any]:
    return column.tolist() if isinstance(column, np.ndarray) else list(column)

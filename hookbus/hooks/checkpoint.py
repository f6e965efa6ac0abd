"""Asks for checkpoints: at intervals, at the end, and whenever a metric is better than ever."""

from __future__ import annotations

__all__ = ("CheckpointHook",)

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from hookbus._config import refuse, shown
from hookbus._named import check_name
from hookbus.best_metric import BestScores, Rule, listed, metric_problems
from hookbus.checkpoint.places import directory_of
from hookbus.checkpoint.publishing import PUBLISHABLE, publish_weights
from hookbus.distributed import is_main_process
from hookbus.errors import InvalidName, choices
from hookbus.hooks.base import Hook
from hookbus.hub import MessageHub

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]")


class CheckpointHook(Hook):
    """Has the runner save at the step boundary; the hook only asks.

    Checkpoints are called `epoch_5` or `iter_500`, after what is completed, and the best ones `best_accuracy_epoch_5`. A
    best one is as complete as the others; the one it beats goes when it is safely there. Several such hooks may share a
    run: each counts its own checkpoints, and what two of them keep stays as long as one of them wants it.

    Args:
        interval: epochs or iterations between two saves; -1 for none but the last.
        by_epoch: whether `interval` counts epochs.
        save_optimizer: whether checkpoints hold the state of the optimizer, without which they cannot be resumed.
        save_param_scheduler: whether checkpoints hold the state of the schedulers, without which they cannot be resumed.
        out_dir: where a folder named after the work directory takes the checkpoints, instead of its `checkpoints/`.
        max_keep_ckpts: how many periodic checkpoints of this hook stay, the newest; -1 for all. Best ones are not counted.
        save_last: save at the end of training whatever the interval, also when it was stopped early.
        save_best: metrics, one or a list, of each of which the best checkpoint is kept; `"auto"` takes the first one.
        rule: whether greater or less is better, `"greater"` or `"less"`, for all or a list; left out, the name tells.
        greater_keys: names and parts of names of metrics of which greater is better, in place of the built-in ones.
        less_keys: likewise, of which less is better.
        filename_tmpl: names the checkpoints instead of `epoch_{}` or `iter_{}`; `{}` becomes the number.
        published_keys: weights, `"state_dict"` or `"averaged"`, to copy in the end into `epoch_5-<8 digits>.safetensors`.
        save_begin: the first epoch or iteration to save, from which `interval` counts; 0 saves after the first interval.
        async_save: whether training goes on while a checkpoint is written; at the boundary the state is only copied.
        stall_timeout: seconds without a byte written after which the end of a run waits no longer for an `async_save`.

    Raises:
        ConfigError: an option makes no sense; names each.
    """

    priority: ClassVar[int | str] = "VERY_LOW"

    def __init__(
        self,
        interval: int = -1,
        by_epoch: bool = True,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        out_dir: str | Path | None = None,
        max_keep_ckpts: int = -1,
        save_last: bool = True,
        save_best: str | Sequence[str] | None = None,
        rule: Rule | Sequence[Rule] | None = None,
        greater_keys: str | Sequence[str] | None = None,
        less_keys: str | Sequence[str] | None = None,
        filename_tmpl: str | None = None,
        published_keys: str | Sequence[str] | None = None,
        save_begin: int = 0,
        async_save: bool = False,
        stall_timeout: float = 60.0,
    ) -> None:
        refuse(list(_problems({name: value for name, value in locals().items() if name != "self"})))
        self.interval = interval
        self.by_epoch = by_epoch
        self.out_dir = out_dir
        self.max_keep_ckpts = max_keep_ckpts
        self.save_last = save_last
        self.save_best = save_best
        self.filename_tmpl = filename_tmpl
        self.published_keys = listed(published_keys)
        self.save_begin = save_begin
        self.async_save = async_save
        self.stall_timeout = stall_timeout
        kept = {"optimizer": save_optimizer, "param_schedulers": save_param_scheduler}
        self.leave_out = tuple(entry for entry, is_kept in kept.items() if not is_kept)
        self.best = BestScores(save_best, rule, greater_keys, less_keys)
        self._best_names: dict[str, list[str]] = {}
        """Of each metric, the checkpoints that were the best ones; the newest last, the others are gone or were never taken."""
        self._last: str | None = None
        self._last_iter = 0
        """The completed iterations when the last periodic save was asked for; at the beginning there is nothing to save."""
        self._to_publish: list[str] = []

    def uses(self, mount_point: str) -> bool:
        """Leave alone what this instance has no use for."""
        used = {
            "after_train_iter": not self.by_epoch,
            "after_train_epoch": self.by_epoch,
            "after_val_epoch": self.save_best is not None,
            "after_train": self.save_last or bool(self.published_keys),
            "after_run": bool(self.published_keys),
        }
        return used.get(mount_point, True)

    def checkpoint_directory(self, work_dir: Path) -> Path | None:
        """Return where the checkpoints go, or None where that is the usual place."""
        return None if self.out_dir is None else directory_of(work_dir, self.out_dir)

    def before_train(self, runner: Any) -> None:
        """Refuse to wait for a metric that no validation will give, and for weights that no hook averages."""
        problems = []
        if self.save_best is not None and runner.val_loop is None:
            problems.append(f"CheckpointHook.save_best={self.save_best!r} needs a validation; give the runner a val_dataloader")
        averaging = any(getattr(hook, "keeps_averaged_weights", False) for hook in runner.hooks)
        if "averaged" in self.published_keys and not averaging:
            problems.append("CheckpointHook.published_keys: 'averaged', but no hook of this run averages weights; add an EMAHook")
        refuse(problems)
        if self.by_epoch and self.interval > 0 and not runner.train_loop.by_epoch:
            message = "CheckpointHook counts epochs, and training by iterations is one: nothing is saved before its end; %s"
            runner.logger.warning(message, "give it by_epoch=False and an interval in iterations")

    def after_train_iter(self, runner: Any, iter: int) -> None:
        """Ask for a save where one is due."""
        is_due = self.every_n_train_iters(runner, self.interval, self.save_begin)
        if is_due or (self.save_last and self.is_last_train_iter(runner)):
            self._ask_periodic(runner, self._name(iter + 1, in_epochs=False), iter + 1)

    def after_train_epoch(self, runner: Any, epoch: int) -> None:
        """Ask for a save where one is due."""
        is_due = self.every_n_epochs(runner, self.interval, self.save_begin)
        if is_due or (self.save_last and self.is_last_train_epoch(runner)):
            self._ask_periodic(runner, self._name(epoch + 1, in_epochs=True), runner.iter)

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, Any], hub: MessageHub) -> None:
        """Ask for a save for each metric that was never better; a validation that is no part of training does not count.

        Raises:
            MetricNotFound: a metric to compare is not among those computed.
            ConfigError: one is not a number, or its name does not tell whether greater is better.
        """
        if not runner.is_training:
            return
        if not metrics:
            runner.logger.warning("CheckpointHook.save_best=%r: the validation gave no metrics to compare", self.save_best)
            return
        for key, score in self.best.update(metrics, "CheckpointHook.save_best").items():
            self._ask_best(runner, hub, key, score)

    def after_train(self, runner: Any) -> None:
        """Ask for the last save where training ended before it was due."""
        if self.save_last and self._last_iter != runner.iter:
            in_epochs = self.by_epoch and runner.train_loop.by_epoch and runner.progress.batch_idx == 0
            number = runner.epoch if in_epochs else runner.iter
            self._ask_periodic(runner, self._name(number, in_epochs=in_epochs), runner.iter)
        best = [names[-1] for names in self._best_names.values()]
        self._to_publish = [self._last, *best] if self.save_last and self._last is not None else best

    def after_run(self, runner: Any) -> None:
        """Publish the last and the best weights, now that they are saved."""
        names, self._to_publish = self._to_publish, []
        if not is_main_process():
            return
        directory = directory_of(runner.work_dir, self.out_dir)
        for name in names:
            for key in self.published_keys:
                self._publish(runner, directory / name, key)

    def _publish(self, runner: Any, checkpoint: Path, key: str) -> None:
        if checkpoint.exists():
            runner.logger.info("published %s", publish_weights(checkpoint, key))
        else:
            runner.logger.warning("%s was not published: it was not saved, because a hook left it out, or is gone", checkpoint)

    def _ask_periodic(self, runner: Any, name: str, iteration: int) -> None:
        self._last, self._last_iter = name, iteration
        self._ask(runner, name, max_keep=self.max_keep_ckpts)

    def _ask_best(self, runner: Any, hub: MessageHub, key: str, score: float) -> None:
        in_epochs = self.by_epoch and runner.train_loop.by_epoch
        number = runner.epoch if in_epochs else runner.iter
        name = f"{_best_prefix(key)}{self._name(number, in_epochs=in_epochs)}"
        names = self._best_names.setdefault(key, [])
        beaten = tuple(names)
        names.append(name)
        suffix = f"_{key}" if len(self.best.rules) > 1 else ""
        hub.update_info_dict({f"best_score{suffix}": score, f"best_ckpt{suffix}": name})
        self._ask(runner, name, role="best", facts={"metric": key, "score": score}, supersedes=beaten)

    def _ask(self, runner: Any, name: str, **options: Any) -> None:
        directory = self.checkpoint_directory(runner.work_dir)
        options |= {"leave_out": self.leave_out, "asynchronous": self.async_save, "stall_timeout": self.stall_timeout}
        runner.request_save(name, owner=self, directory=directory, **options)

    def _name(self, number: int, *, in_epochs: bool) -> str:
        """Return the name of a checkpoint; what is not counted in the unit of this hook has the usual one."""
        usual = "epoch_{}" if in_epochs else "iter_{}"
        template = self.filename_tmpl if in_epochs == self.by_epoch else None
        return (template or usual).replace("{}", str(number))

    def state_dict(self) -> dict[str, Any]:
        """Return what was best so far, and what was saved last."""
        names = {key: list(names) for key, names in self._best_names.items()}
        return {"best": self.best.state_dict(), "best_names": names, "last": self._last, "last_iter": self._last_iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on comparing with what was best, as far as the same metrics are still compared in the same way."""
        self.best.load_state_dict(state_dict["best"])
        self._best_names = {key: list(state_dict["best_names"][key]) for key in self.best.scores}
        self._last, self._last_iter = state_dict["last"], state_dict["last_iter"]


def _best_prefix(metric: str) -> str:
    return f"best_{_NOT_IN_NAMES.sub('_', metric)}_"


# --- what the options may be ------------------------------------------------------------------------------------------


def _is_number(value: object) -> bool:
    return type(value) is int and (value >= 1 or value == -1)


def _is_start(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_place(value: object) -> bool:
    return value is None or (isinstance(value, str | Path) and value != "")


def _are_texts(value: object) -> bool:
    items = value if isinstance(value, list | tuple) else [value]
    return value is None or (len(items) > 0 and all(isinstance(item, str) and item for item in items))


def _is_template(value: object) -> bool:
    return value is None or (isinstance(value, str) and value.count("{}") == 1 and _is_name(_filled(value)))


def _is_name(name: str) -> bool:
    try:
        check_name(name, "a checkpoint")
    except InvalidName:
        return False
    return True


_A_FLAG = (_is_flag, "True or False")
_TEXTS = (_are_texts, "a text, or a list of texts")
_EXPECTED: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "interval": (_is_number, "a whole number of at least 1, or -1 for no periodic checkpoints"),
    "by_epoch": _A_FLAG,
    "save_optimizer": _A_FLAG,
    "save_param_scheduler": _A_FLAG,
    "out_dir": (_is_place, "a path"),
    "max_keep_ckpts": (_is_number, "a whole number of at least 1, or -1 to keep all"),
    "save_last": _A_FLAG,
    "save_best": _TEXTS,
    "rule": _TEXTS,
    "greater_keys": _TEXTS,
    "less_keys": _TEXTS,
    "filename_tmpl": (_is_template, "a name of letters, digits, '.', '_' and '-' with one {} for the number, such as 'epoch_{}'"),
    "published_keys": _TEXTS,
    "save_begin": (_is_start, "a whole number of at least 0"),
    "async_save": _A_FLAG,
    "stall_timeout": (lambda value: isinstance(value, int | float) and value is not True and value > 0, "seconds, above 0"),
}


def _problems(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the options, each by itself; only where nothing is, how they go together."""
    wrong = [name for name, (is_good, _) in _EXPECTED.items() if not is_good(options[name])]
    yield from (_problem(name, options[name], _EXPECTED[name][1]) for name in wrong)
    if wrong:
        return
    unpublishable = [key for key in listed(options["published_keys"]) if key not in PUBLISHABLE]
    yield from (_problem("published_keys", key, f"weights; {choices(key, PUBLISHABLE)}") for key in unpublishable)
    metrics = listed(options["save_best"])
    yield from metric_problems(
        "CheckpointHook", "save_best", metrics, options["rule"], options["greater_keys"], options["less_keys"]
    )
    yield from _name_problems(metrics, options["filename_tmpl"] or "epoch_{}")


def _name_problems(metrics: Sequence[str], template: str) -> Iterator[str]:
    prefixes = {metric: _best_prefix(metric) for metric in metrics}
    if len(set(prefixes.values())) < len(prefixes):
        yield _problem("save_best", metrics, "names that still differ when all but letters, digits, '.', '_' and '-' become '_'")
    long = [metric for metric, prefix in prefixes.items() if not _is_name(prefix + _filled(template))]
    yield from (_problem("save_best", metric, "a shorter name; that of a checkpoint has at most 100 letters") for metric in long)


def _filled(template: str) -> str:
    return template.replace("{}", "1" * 12)


def _problem(name: str, value: object, expectation: str) -> str:
    return f"CheckpointHook.{name} = {shown(value)}: expected {expectation}"

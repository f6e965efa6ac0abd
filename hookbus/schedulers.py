"""Learning rate schedules: torch's own schedulers, each with the unit it counts in."""

from __future__ import annotations

__all__ = ("ParamScheduler", "build_param_schedulers")

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from hookbus._config import place, refuse, shown
from hookbus.errors import MetricNotFound, choices
from hookbus.registry import PARAM_SCHEDULERS

_OURS = ("by_epoch", "begin", "end", "monitor")
_FORMS = "a torch scheduler, dict(type=...), dict(scheduler=...) or a list of these"


class ParamScheduler:
    """A torch scheduler and when to step it: once per epoch, or once per update of the optimizer.

    `begin` and `end` count in that unit and cover the whole run for now. `needs_metric` says whether `step` wants the value of a
    metric, and `monitor` which one the user asked for.
    """

    def __init__(self, scheduler: LRScheduler, *, by_epoch: bool, monitor: str | None = None) -> None:
        self.scheduler = scheduler
        self.by_epoch = by_epoch
        self.begin = 0
        self.end: int | None = None
        self.monitor = monitor
        self._plateau = scheduler if isinstance(scheduler, ReduceLROnPlateau) else None
        self.needs_metric = self._plateau is not None

    def __repr__(self) -> str:
        return f"ParamScheduler({type(self.scheduler).__name__}, by_epoch={self.by_epoch})"

    def step(self, metrics: float | Tensor | None = None) -> None:
        """Count one epoch or iteration and set the learning rates that follow from it; call it after the optimizer's step.

        Raises:
            MetricNotFound: the scheduler follows a metric and none was given.
        """
        if self._plateau is None:
            self.scheduler.step()
        elif metrics is None:
            followed = f"the metric {self.monitor!r}" if self.monitor else "a metric"
            raise MetricNotFound(f"ReduceLROnPlateau follows {followed}, and no value was given")
        else:
            self._plateau.step(metrics)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the torch scheduler."""
        return self.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state that `state_dict` returned."""
        self.scheduler.load_state_dict(state_dict)


def build_param_schedulers(
    spec: object, optimizer: Optimizer, *, loop_by_epoch: bool, path: str = "param_scheduler"
) -> list[ParamScheduler]:
    """Return the schedules that a runner was given: none, one or a list of torch schedulers and configs.

    `dict(scheduler=...)` and configs may set `by_epoch` and `monitor`; without `by_epoch` a schedule counts what the loop counts.

    Raises:
        ConfigError: something does not fit; names every problem.
    """
    if spec is None:
        return []
    specs = {f"{path}[{index}]": item for index, item in enumerate(spec)} if isinstance(spec, list | tuple) else {path: spec}
    refuse([problem for where, item in specs.items() for problem in _problems(item, optimizer, where)])
    built = {where: _build(item, optimizer, loop_by_epoch, where) for where, item in specs.items()}
    refuse(list(_misfits(built)))
    return list(built.values())


def _problems(item: object, optimizer: Optimizer, path: str) -> list[str]:
    """Return what is wrong with one entry, without building it."""
    if isinstance(item, LRScheduler):
        return _foreign(item, optimizer, path)
    if not isinstance(item, Mapping):
        return [f"{path} = {shown(item)}: expected {_FORMS}"]
    if "scheduler" not in item:
        return [*PARAM_SCHEDULERS.check(item, path=path, given=("optimizer",), extra_keys=_OURS), *_timing_problems(item, path)]
    return [*_wrapped_problems(item, optimizer, path), *_timing_problems(item, path)]


def _wrapped_problems(item: Mapping[Any, Any], optimizer: Optimizer, path: str) -> list[str]:
    scheduler, valid = item["scheduler"], ("scheduler", *_OURS)
    unknown = [key for key in item if key not in valid]
    problems = [
        f"{place(path, str(key))} = {shown(item[key])}: no such option beside a scheduler object; {choices(str(key), valid)}"
        for key in unknown
    ]
    if not isinstance(scheduler, LRScheduler):
        return [*problems, f"{path}.scheduler = {shown(scheduler)}: expected a torch scheduler"]
    return [*problems, *_foreign(scheduler, optimizer, f"{path}.scheduler")]


def _foreign(scheduler: LRScheduler, optimizer: Optimizer, path: str) -> list[str]:
    if scheduler.optimizer is optimizer:
        return []
    return [
        f"{path} = {type(scheduler).__name__}: it steps another optimizer; expected the {type(optimizer).__name__} of the runner"
    ]


def _timing_problems(item: Mapping[Any, Any], path: str) -> Iterator[str]:
    if not isinstance(item.get("by_epoch", True), bool):
        yield f"{path}.by_epoch = {shown(item['by_epoch'])}: expected bool"
    if not isinstance(item.get("monitor"), str | None):
        yield f"{path}.monitor = {shown(item['monitor'])}: expected the name of a metric"
    begin, end = item.get("begin"), item.get("end")
    at_once = begin is None or (type(begin) is int and begin == 0)
    for key, value in [("begin", begin)] * (not at_once) + [("end", end)] * (end is not None):
        yield f"{path}.{key} = {shown(value)}: a schedule for a part of the run is not supported yet; leave {key!r} out"


def _build(item: Any, optimizer: Optimizer, loop_by_epoch: bool, path: str) -> ParamScheduler:
    if isinstance(item, LRScheduler):
        return ParamScheduler(item, by_epoch=loop_by_epoch)
    scheduler = item.get("scheduler")
    if scheduler is None:
        scheduler = PARAM_SCHEDULERS.build(item, path=path, given={"optimizer": optimizer}, extra_keys=_OURS)
    return ParamScheduler(scheduler, by_epoch=item.get("by_epoch", loop_by_epoch), monitor=item.get("monitor"))


def _misfits(built: Mapping[str, ParamScheduler]) -> Iterator[str]:
    """Yield what only shows once everything is built."""
    first: dict[int, str] = {}
    for path, entry in built.items():
        scheduler: object = entry.scheduler
        name = type(scheduler).__name__
        if not isinstance(scheduler, LRScheduler):
            yield f"{path}.type = {name}: expected a subclass of torch's LRScheduler"
        if entry.monitor is not None and not entry.needs_metric:
            yield f"{path}.monitor = {entry.monitor!r}: {name} follows no metric; expected ReduceLROnPlateau, or no monitor"
        if first.setdefault(id(scheduler), path) != path:
            yield f"{path} is the same {name} object as {first[id(scheduler)]}; it would be stepped twice"

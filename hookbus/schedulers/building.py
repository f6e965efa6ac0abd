"""Makes the schedules of a run out of what the user gave."""

from __future__ import annotations

__all__ = ("build_param_schedulers", "param_scheduler_problems")

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hookbus._config import copied, place, refuse
from hookbus.schedulers.schedule import ParamScheduler
from hookbus.schedulers.specs import OPTIONS, Entry, build_torch_scheduler, find_problems, read_entries, scheduler_class


def build_param_schedulers(
    spec: object, optimizers: Optimizer | Mapping[str, Optimizer], *, loop_by_epoch: bool, path: str = "param_scheduler"
) -> list[ParamScheduler]:
    """Return the schedules that a runner was given: none, one or a list of torch schedulers and configs.

    `dict(scheduler=...)` and configs may set `by_epoch`, `begin`, `end`, `param_name` and `monitor`; without `by_epoch` a
    schedule counts what the loop counts. Where several optimizers are given by name, `spec` may be a dict of the same names,
    each with its schedules; otherwise a config is built for every optimizer, and a torch scheduler belongs to the one it holds.

    Raises:
        ConfigError: something does not fit; names every problem.
    """
    refuse(find_problems(spec, optimizers, path))
    return [
        _build(entry, name, optimizer, loop_by_epoch)
        for entry in read_entries(spec, optimizers, path)
        for name, optimizer in entry.targets.items()
    ]


def param_scheduler_problems(
    spec: object, optimizers: Optimizer | Mapping[str, Optimizer] | None, *, path: str = "param_scheduler"
) -> list[str]:
    """Return everything that `build_param_schedulers` would refuse, one sentence each, and change nothing.

    Without the optimizers, which may be bad themselves, only what can be said about the options.
    """
    return find_problems(spec, optimizers, path)


def _build(entry: Entry, name: str, optimizer: Optimizer, loop_by_epoch: bool) -> ParamScheduler:
    item, kind = entry.item, scheduler_class(entry.item)
    if isinstance(item, LRScheduler):
        return ParamScheduler(kind, lambda _: item, optimizer, by_epoch=loop_by_epoch, name=name)
    return ParamScheduler(
        kind,
        _maker(item, entry.path),
        optimizer,
        by_epoch=item.get("by_epoch", loop_by_epoch),
        begin=item.get("begin") or 0,
        end=item.get("end"),
        param_name=item.get("param_name", "lr"),
        monitor=item.get("monitor"),
        name=name,
        options={key: value for key, value in item.items() if key not in (*OPTIONS, "type", "scheduler")},
    )


def _maker(item: Mapping[str, Any], path: str) -> Callable[[Optimizer], LRScheduler]:
    scheduler = item.get("scheduler")
    if scheduler is not None:
        return lambda _: scheduler
    own = {key: copied(value, place(path, key)) for key, value in item.items()}  # it may be built long after this
    return functools.partial(build_torch_scheduler, own, path)

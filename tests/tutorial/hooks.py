"""Hooks that write down what happens to them, and an evaluator whose metrics are known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from hookbus.events import MOUNT_POINTS
from hookbus.hooks import Hook
from hookbus.runner import Runner

INNER = ("after_backward", "before_optimizer_step", "after_optimizer_step", "run_failed")
CLASSIC = tuple(name for name in MOUNT_POINTS if name not in INNER)
"""The 22 mount points of the tutorial's system; hookbus has a few more."""


class Call(NamedTuple):
    """One call of a hook: where, and what the counters of runner and hub said."""

    mount_point: str
    epoch: int
    iter: int
    batch_idx: int | None
    hub_epoch: int | None
    hub_iter: int | None


class TracingHook(Hook):
    """Notes each mount point it is called at; stands behind RuntimeInfoHook and before the others."""

    priority: ClassVar[int | str] = "HIGH"

    def __init__(self) -> None:
        self.calls: list[Call] = []

    @property
    def order(self) -> list[str]:
        """The mount points in the order in which they were reached."""
        return [call.mount_point for call in self.calls]


class NamedHook(Hook):
    """Notes its label at each mount point, in a book that several such hooks share."""

    def __init__(self, label: str, book: dict[str, list[str]]) -> None:
        self.label = label
        self._book = book

    def note(self, mount_point: str) -> None:
        """Write the label down."""
        self._book.setdefault(mount_point, []).append(self.label)


def _tracing(mount_point: str) -> Callable[..., None]:
    def method(self: TracingHook, runner: Runner, batch_idx: int | None = None) -> None:
        info = runner.message_hub.get_info
        self.calls.append(Call(mount_point, runner.epoch, runner.iter, batch_idx, info("epoch"), info("iter")))

    return method


def _noting(mount_point: str) -> Callable[..., None]:
    def method(self: NamedHook) -> None:
        self.note(mount_point)

    return method


for _name in CLASSIC:
    setattr(TracingHook, _name, _tracing(_name))
    setattr(NamedHook, _name, _noting(_name))


class FixedMetrics:
    """An evaluator that gives one dict of metrics after the other."""

    def __init__(self, *metrics: dict[str, Any]) -> None:
        self._metrics = list(metrics)

    def reset(self) -> None: ...
    def update(self, predictions: Any, targets: Any) -> None: ...
    def compute(self) -> dict[str, Any]:
        """Return the next ones."""
        return self._metrics.pop(0)

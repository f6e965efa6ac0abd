"""The helpers of the base class, as tables."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hookbus.bus import EventBus
from hookbus.bus.hook_methods import SHARED_METHODS
from hookbus.events import MOUNT_POINTS
from hookbus.hooks.base import Hook


@pytest.mark.parametrize(
    ("n", "start", "hits"),
    [
        (1, 0, [1, 2, 3, 4, 5, 6, 7, 8]),
        (3, 0, [3, 6]),
        (3, 2, [2, 5, 8]),
        (4, 8, [8]),
        (2, 20, []),
        (0, 0, []),
        (-1, 0, []),
    ],
)
def test_every_n_counts_completed_epochs_and_iterations_from_a_start(n: int, start: int, hits: list[int]) -> None:
    """The running one counts as completed; `n` below one means never."""
    hook = Hook()
    runners = [SimpleNamespace(epoch=done, iter=done) for done in range(8)]
    assert [runner.epoch + 1 for runner in runners if hook.every_n_epochs(runner, n, start)] == hits
    assert [runner.iter + 1 for runner in runners if hook.every_n_train_iters(runner, n, start)] == hits


def test_every_n_inner_iters_counts_batches() -> None:
    """From one, anew in each epoch."""
    assert [index for index in range(7) if Hook().every_n_inner_iters(index, 3)] == [2, 5]
    assert not any(Hook().every_n_inner_iters(index, 0) for index in range(7))


def test_the_last_ones_are_recognised_before_the_counters_move() -> None:
    """In `after_train_epoch` and `after_train_iter`, where they are asked."""
    hook = Hook()
    runner = SimpleNamespace(epoch=1, iter=5, max_epochs=2, max_iters=6)
    assert hook.is_last_train_epoch(runner)
    assert hook.is_last_train_iter(runner)
    runner.epoch, runner.iter = 0, 4
    assert not hook.is_last_train_epoch(runner)
    assert not hook.is_last_train_iter(runner)
    assert hook.end_of_epoch([1, 2, 3], 2)
    assert not hook.end_of_epoch([1, 2, 3], 1)


# --- the methods that are there for super() ---------------------------------------------------------------------------


class Polite(Hook):
    """Calls the base class everywhere, as hooks of other libraries do, and notes what its shared methods hear."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def before_train_epoch(self, runner: Any) -> None:
        """Call the base class, which calls the shared method."""
        super().before_train_epoch(runner)

    def after_val_epoch(self, runner: Any, metrics: Any = None) -> None:
        """Likewise; shared methods get no metrics."""
        super().after_val_epoch(runner, metrics)
        super().after_val_epoch(runner, metrics=metrics)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Likewise, with all that it was given."""
        super().after_train_iter(runner, batch_idx=batch_idx, data_batch=data_batch, outputs=outputs)

    async def after_run(self, runner: Any) -> None:
        """Call the base class, which does nothing."""
        super().after_run(runner)

    def _before_epoch(self, runner: Any, mode: str = "?") -> None:
        self.heard.append(("before", runner, mode))

    def _after_epoch(self, runner: Any, mode: str = "?") -> None:
        super()._after_epoch(runner, mode=mode)
        self.heard.append(("after", runner, mode))

    def _after_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None, mode: str = "?") -> None:
        self.heard.append((runner, batch_idx, data_batch, outputs, mode))


def test_a_hook_may_call_its_base_class() -> None:
    """Which passes on to the shared methods of the hook and does nothing else."""
    hook = Polite()
    hook.before_train_epoch("runner")
    hook.after_val_epoch("runner", {"accuracy": 0.5})
    hook.after_train_iter("runner", 3, "batch", outputs="outputs")
    assert hook.heard == [
        ("before", "runner", "train"),
        *[("after", "runner", "val")] * 2,
        ("runner", 3, "batch", "outputs", "train"),
    ]


@pytest.mark.parametrize("name", [*MOUNT_POINTS, *SHARED_METHODS])
def test_the_base_class_has_every_method(name: str) -> None:
    """Each can be called through `super()`."""
    assert getattr(Hook(), name)("runner") is None


def test_the_methods_of_the_base_class_are_not_subscribed() -> None:
    """A hook costs nothing where it does not override them; a shared method still stands for its mount points."""
    bus = EventBus()
    assert len(bus.add_hook(Hook())) == 0
    bus.add_hook(Polite())
    heard = {mount_point: [entry.name for entry in bus.plan(event_type)] for mount_point, event_type in MOUNT_POINTS.items()}
    assert {mount_point: names for mount_point, names in heard.items() if names} == {
        "before_train_epoch": ["Polite.before_train_epoch"],
        "before_val_epoch": ["Polite._before_epoch"],
        "before_test_epoch": ["Polite._before_epoch"],
        "after_train_iter": ["Polite.after_train_iter"],
        "after_val_iter": ["Polite._after_iter"],
        "after_test_iter": ["Polite._after_iter"],
        "after_train_epoch": ["Polite._after_epoch"],
        "after_val_epoch": ["Polite.after_val_epoch"],
        "after_test_epoch": ["Polite._after_epoch"],
        "after_run": ["Polite.after_run"],
    }

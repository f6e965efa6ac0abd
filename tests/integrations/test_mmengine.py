"""Hooks that derive from MMEngine's base class are known by its name, so a class of that name stands in for it here.

`make test-mmengine` has the real one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from hookbus.bus import EventBus
from hookbus.errors import SubscriptionError
from hookbus.events import MOUNT_POINTS
from hookbus.integrations.mmengine import MMEngineRunner
from tests.runner.builders import make_runner


class Base:
    """Has methods without effect but for calling the shared one, as the base class of MMEngine does."""

    def before_train(self, runner: Any) -> None:
        """Do nothing."""

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Call the shared method."""
        self._before_iter(runner, batch_idx=batch_idx, data_batch=data_batch, mode="train")

    def before_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Call the shared method."""
        self._before_iter(runner, batch_idx=batch_idx, data_batch=data_batch, mode="val")

    def before_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Call the shared method."""
        self._before_iter(runner, batch_idx=batch_idx, data_batch=data_batch, mode="test")

    def after_val_epoch(self, runner: Any, metrics: Any = None) -> None:
        """Do nothing."""

    def _before_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, mode: str = "train") -> None:
        pass


Base.__module__, Base.__qualname__ = "mmengine.hooks.hook", "Hook"


class Noting(Base):
    """Notes what it is called with."""

    priority: ClassVar[int | str] = "LOW"

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def after_val_epoch(self, runner: Any, metrics: Any = None) -> None:
        """Note it."""
        self.heard.append((type(runner), runner.iter, list(metrics)))

    def _before_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, mode: str = "train") -> None:
        self.heard.append((batch_idx, len(data_batch), mode))


def test_only_what_a_hook_overrides_is_subscribed() -> None:
    """Under its own name and at its own priority."""
    bus = EventBus()
    bus.add_hook(Noting())
    entries = [entry for event_type in MOUNT_POINTS.values() for entry in bus.plan(event_type)]
    heard = ["before_train_iter", "before_val_iter", "after_val_epoch", "before_test_iter"]
    assert [(entry.name, entry.priority) for entry in entries] == [(f"Noting.{name}", 70) for name in heard]


def test_it_is_called_as_its_base_class_expects(tmp_path: Path) -> None:
    """With the runner that it knows, and the shared method with the mode."""
    hook = Noting()
    runner = make_runner(tmp_path, train_cfg=dict(max_iters=2), custom_hooks=[hook])
    runner.train()
    assert hook.heard == [(0, 2, "train"), (1, 2, "train"), (0, 2, "val"), (1, 2, "val"), (MMEngineRunner, 2, ["loss"])]
    assert hook in runner.hooks


def test_a_hook_that_cannot_run_here_is_refused() -> None:
    """With the reason, and with what there is instead."""
    theirs = type("LoggerHook", (Base,), {"__module__": "mmengine.hooks.logger_hook"})
    with pytest.raises(
        SubscriptionError, match=r"LoggerHook cannot run outside of MMEngine: it writes to runner\.visualizer; .*own"
    ):
        EventBus().add_hook(theirs())

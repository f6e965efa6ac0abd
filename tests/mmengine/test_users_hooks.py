"""Hooks that a user wrote to MMEngine's documentation: how they are called, what they see, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any

import mmengine.hooks
import pytest
import torch
from mmengine.hooks import Hook

from hookbus.bus import EventBus, every
from hookbus.errors import ConfigError, HandlerSignatureError, SubscriptionError
from hookbus.events import MOUNT_POINTS, AfterTrainIter
from tests.runner.builders import TRAIN_BATCHES, VAL_BATCHES, checkpoints, make_loader, make_runner


def planned(bus: EventBus, name: str) -> set[str]:
    """Return the mount points at which a hook is called."""
    return {
        mount_point
        for mount_point, event_type in MOUNT_POINTS.items()
        if any(entry.name.startswith(f"{name}.") for entry in bus.plan(event_type))
    }


class CheckInvalidLossHook(Hook):  # type: ignore[misc]  # MMEngine is not there for the type checker
    """The example of the tutorial: looks every so many iterations whether the loss is a number."""

    priority = "ABOVE_NORMAL"

    def __init__(self, interval: int = 2) -> None:
        self.interval = interval
        self.checked: list[int] = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Look."""
        if self.every_n_train_iters(runner, self.interval):
            self.checked.append(runner.iter)
            assert torch.isfinite(outputs["loss"]), runner.logger.info("the loss is not finite")


class CountingHook(Hook):  # type: ignore[misc]
    """Counts what the shared methods of the base class hear, and calls the base class everywhere else."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def _before_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, mode: str = "train") -> None:
        self.heard.append(f"{mode} {batch_idx} of {len(data_batch[0])}")

    def _after_epoch(self, runner: Any, mode: str = "train") -> None:
        self.heard.append(f"{mode} epoch {runner.epoch}")

    def before_train_epoch(self, runner: Any) -> None:
        """Call the base class, which does nothing."""
        super().before_train_epoch(runner)
        self.heard.append("begin")

    def after_val_epoch(self, runner: Any, metrics: Any = None) -> None:
        """Call the base class, which calls the shared method."""
        super().after_val_epoch(runner, metrics)
        self.heard.append(", ".join(metrics))


class RelyingHook(Hook):  # type: ignore[misc]
    """Reads from the runner what hooks in the wild do, and notes it."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}

    def before_run(self, runner: Any) -> None:
        """Note what is known before training."""
        self.facts |= {
            "length": (runner.max_epochs, runner.max_iters),
            "work_dir": runner.work_dir + "/more",
            "log_dir": runner._log_dir == runner.log_dir,
            "loops": (runner._train_loop is runner.train_loop, runner._val_loop is runner.val_loop),
            "processes": (runner.rank, runner.world_size, runner.distributed),
            "model": runner.model_name,
            "samples": len(runner.train_dataloader.dataset),
            "resume": runner._resume,
        }
        runner.said_by_a_hook = "hello"

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Record something, and end after the fourth iteration with a checkpoint."""
        runner.message_hub.update_scalar("train/twice", 2 * float(outputs["loss"]))
        self.facts["recorded"] = runner.message_hub.get_scalar("train/twice").current() == 2 * float(outputs["loss"])
        self.facts["lr"] = runner.optim_wrapper.param_groups[0]["lr"]
        if self.is_last_train_iter(runner):
            runner.save_checkpoint(runner.work_dir, "by_a_hook.pth")


def test_the_hook_of_the_tutorial_runs(tmp_path: Path) -> None:
    """Given as an object, or registered with a priority; at its own place in the order."""
    given, registered = CheckInvalidLossHook(), CheckInvalidLossHook(interval=3)
    runner = make_runner(tmp_path, custom_hooks=[given])
    runner.register_hook(registered, priority="VERY_LOW")
    places = [entry.priority for entry in runner.bus.plan(AfterTrainIter) if entry.name.startswith("CheckInvalidLossHook")]
    runner.train()
    assert places == [40, 90]
    assert (given.checked, registered.checked) == ([1, 3, 5], [2, 5])
    assert runner.hooks.count(given) == runner.hooks.count(registered) == 1


def test_its_error_ends_the_run_and_is_told_from_others(tmp_path: Path) -> None:
    """The exception itself, with a note that names the hook."""
    runner = make_runner(
        tmp_path, loss_fn=lambda output, target: output.sum() * torch.nan, custom_hooks=[CheckInvalidLossHook(1)]
    )
    with pytest.raises(AssertionError) as failure:
        runner.train()
    assert any("CheckInvalidLossHook.after_train_iter" in note for note in failure.value.__notes__)


def test_shared_methods_hear_what_the_base_class_passes_on(tmp_path: Path) -> None:
    """Also where a method calls the base class; what a hook inherits is not subscribed."""
    hook = CountingHook()
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=1), custom_hooks=[hook])
    assert (
        planned(runner.bus, "CountingHook")
        == {
            *("before_train_epoch", "before_train_iter", "before_val_iter", "before_test_iter"),
            *("after_train_epoch", "after_val_epoch", "after_test_epoch"),
        }
        == set(hook.get_triggered_stages())
    )
    runner.train()
    training = [f"train {batch_idx} of 4" for batch_idx in range(TRAIN_BATCHES)]
    validation = [f"val {batch_idx} of 4" for batch_idx in range(VAL_BATCHES)]
    assert hook.heard == ["begin", *training, "train epoch 0", *validation, "val epoch 1", "loss"]


def test_a_method_put_on_the_object_is_called(tmp_path: Path) -> None:
    """Which MMEngine calls, too."""
    seen: list[int] = []
    hook = Hook()
    hook.after_train = lambda runner: seen.append(runner.iter)
    make_runner(tmp_path, custom_hooks=[hook]).train()
    assert seen == [2 * TRAIN_BATCHES]


def test_the_runner_has_what_hooks_read(tmp_path: Path) -> None:
    """Under MMEngine's names; what a hook sets is there for the others."""
    hook = RelyingHook()
    runner = make_runner(tmp_path, custom_hooks=[hook])
    runner.train()
    assert hook.facts == {
        "length": (2, 2 * TRAIN_BATCHES),
        "work_dir": f"{tmp_path}/more",
        "log_dir": True,
        "loops": (True, True),
        "processes": (0, 1, False),
        "model": "Linear",
        "samples": 4 * TRAIN_BATCHES,
        "resume": False,
        "recorded": True,
        "lr": 0.1,
    }
    assert vars(runner)["said_by_a_hook"] == "hello"
    assert "by_a_hook" in checkpoints(tmp_path)


class LengthHook(Hook):  # type: ignore[misc]
    """Notes how long the training is."""

    def before_run(self, runner: Any) -> None:
        """Note it."""
        self.length = (runner.max_epochs, runner.max_iters)


class Stream:
    """Data that does not know its length."""

    def __iter__(self) -> Iterator[Any]:
        yield from make_loader(8)


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        (dict(train_dataloader=None, train_cfg=None, optimizer=None), (0, 0)),
        (dict(train_cfg=dict(max_iters=4)), (1, 4)),
        (dict(train_dataloader=Stream()), (2, inf)),
    ],
    ids=["no training", "by iterations", "a stream"],
)
def test_lengths_are_numbers_that_can_be_compared(tmp_path: Path, changes: dict[str, Any], length: Any) -> None:
    """Where there is no training, and where nobody knows how long it is."""
    hook = LengthHook()
    make_runner(tmp_path, **changes, custom_hooks=[hook]).test()
    assert hook.length == length


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("CheckpointHook", {}),
        ("LoggerHook", {}),
        ("RuntimeInfoHook", {}),
        ("NaiveVisualizationHook", {}),
        ("PrepareTTAHook", {"tta_cfg": {}}),
    ],
)
def test_a_hook_that_needs_more_than_there_is_is_refused(tmp_path: Path, name: str, arguments: dict[str, Any]) -> None:
    """When it is added, with the reason, whether it is MMEngine's own or derived from it."""
    cls = getattr(mmengine.hooks, name)
    with pytest.raises(ConfigError, match=rf"custom_hooks\[0\]: {name} cannot run outside of MMEngine: it "):
        make_runner(tmp_path, custom_hooks=[cls(**arguments)])
    runner = make_runner(tmp_path)
    with pytest.raises(ConfigError, match=r"Mine cannot run outside of MMEngine"):
        runner.register_hook(type("Mine", (cls,), {})(**arguments))


class DrawingHook(Hook):  # type: ignore[misc]
    """Asks for what hookbus does not have."""

    def __init__(self, name: str) -> None:
        self.name = name

    def after_train_epoch(self, runner: Any) -> None:
        """Ask."""
        getattr(runner, self.name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("visualizer", "DrawingHook asks for runner.visualizer, which the runner of hookbus does not have: records go to"),
        ("cfg", "a config is not kept"),
        ("message_hubb", "did you mean 'message_hub'?"),
    ],
)
def test_what_the_runner_lacks_is_named(tmp_path: Path, name: str, said: str) -> None:
    """With the hook that asks for it, and what there is in its place."""
    with pytest.raises(AttributeError) as failure:
        make_runner(tmp_path, custom_hooks=[DrawingHook(name)]).train()
    assert said in str(failure.value)


class ReplacingHook(Hook):  # type: ignore[misc]
    """Puts another model into the runner."""

    def before_train(self, runner: Any) -> None:
        """Replace it."""
        runner.model = torch.nn.Linear(4, 3)


def test_parts_that_the_loops_hold_are_not_replaced_in_vain(tmp_path: Path) -> None:
    """An error is better than a model that nobody trains."""
    with pytest.raises(AttributeError, match=r"ReplacingHook replaces runner\.model, which the loops would not see"):
        make_runner(tmp_path, custom_hooks=[ReplacingHook()]).train()


class AsyncHook(Hook):  # type: ignore[misc]
    """Has a coroutine function."""

    async def after_train(self, runner: Any) -> None:
        """Do nothing."""


class ShortHook(Hook):  # type: ignore[misc]
    """Leaves out an argument that MMEngine passes."""

    def after_train_iter(self, runner: Any, batch_idx: int) -> None:
        """Do nothing."""


class ExtendedHook(Hook):  # type: ignore[misc]
    """Uses what hookbus has beyond MMEngine."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def before_optimizer_step(self, iter: int) -> None:
        """Hear a mount point that MMEngine does not have."""
        self.seen.append(iter)

    @every(4)
    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Be called seldom."""
        self.seen.append(f"every 4: {runner.iter}")


@pytest.mark.parametrize(
    ("hook", "kind", "said"),
    [
        (AsyncHook(), SubscriptionError, "AsyncHook.after_train is a coroutine function"),
        (ShortHook(), HandlerSignatureError, "(runner, batch_idx, data_batch, outputs): got an unexpected keyword"),
    ],
    ids=["coroutine", "signature"],
)
def test_what_could_not_be_called_is_refused(hook: Any, kind: type[Exception], said: str) -> None:
    """When the hook is added, and not in the middle of a run."""
    with pytest.raises(kind) as failure:
        EventBus().add_hook(hook)
    assert said in str(failure.value)


def test_what_hookbus_has_beyond_mmengine_works_in_such_a_hook(tmp_path: Path) -> None:
    """Its own mount points, by name, and its decorators."""
    hook = ExtendedHook()
    make_runner(tmp_path, train_cfg=dict(max_epochs=2), custom_hooks=[hook]).train()
    assert hook.seen == [0, 1, 2, 3, "every 4: 3", 4, 5]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # which loop waits makes no difference to a sync hook
async def test_such_a_hook_works_in_an_async_run(tmp_path: Path) -> None:
    """On the thread of the training, like any sync hook."""
    hook = CheckInvalidLossHook()
    await make_runner(tmp_path, custom_hooks=[hook]).train_async()
    assert hook.checked == [1, 3, 5]

"""What RuntimeInfoHook writes, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torchmetrics.classification import MulticlassConfusionMatrix

from hookbus.events import AfterRun, AfterTrainIter, AfterValIter, BeforeTest, BeforeTrainIter, BeforeValEpoch, MountPoint
from hookbus.hub import MessageHub
from tests.runner.builders import make_loader, make_runner


def test_the_stage_is_that_of_the_loop(tmp_path: Path) -> None:
    """Training, validation inside of it, test, and nothing in between."""
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=1))
    stages: dict[str, set[Any]] = {}

    def note(event: MountPoint, hub: MessageHub) -> None:
        stages.setdefault(type(event).__name__, set()).add(hub.get_info("loop_stage"))

    for event_type in (BeforeTrainIter, AfterTrainIter, BeforeValEpoch, AfterValIter, BeforeTest, AfterRun):
        runner.bus.subscribe(event_type, note)
    runner.train()
    runner.val()
    runner.test()
    assert stages == {
        "BeforeTrainIter": {"train"},
        "AfterTrainIter": {"train"},
        "BeforeValEpoch": {"val"},
        "AfterValIter": {"val"},
        "BeforeTest": {"test"},
        "AfterRun": {None},
    }
    assert runner.message_hub.get_info("loop_stage") is None


def test_a_run_introduces_itself(tmp_path: Path) -> None:
    """Name, seed and length."""
    runner = make_runner(tmp_path, randomness=dict(seed=11))
    runner.train()
    info = runner.message_hub.runtime_info
    assert info["experiment_name"] == runner.experiment_name
    assert (info["seed"], info["max_epochs"], info["max_iters"], info["epoch"], info["iter"]) == (11, 2, 6, 2, 6)


def test_the_learning_rate_is_the_one_that_the_step_used(tmp_path: Path) -> None:
    """Before the schedule moves on; one value per iteration, with its step."""
    runner = make_runner(tmp_path, param_scheduler=dict(type="StepLR", step_size=1, gamma=0.5, by_epoch=False))
    used: list[float] = []
    runner.bus.subscribe(BeforeTrainIter, lambda runner: used.append(runner.optim_wrapper.param_groups[0]["lr"]))
    runner.train()
    history = runner.message_hub.get_scalar("train/lr")
    assert history.data[0] == used
    assert history.steps == [1, 2, 3, 4, 5, 6]


def test_losses_are_there_for_whoever_comes_later_at_the_same_event(tmp_path: Path) -> None:
    """A hook of lower priority reads the loss of its own iteration."""
    runner = make_runner(tmp_path)
    pairs: list[tuple[float, float]] = []

    def compare(outputs: dict[str, torch.Tensor], hub: MessageHub) -> None:
        pairs.append((float(outputs["loss"]), hub.get_scalar("train/loss").current()))

    runner.bus.subscribe(AfterTrainIter, compare, priority="HIGH")
    runner.train()
    assert len(pairs) == 6
    assert all(mine == recorded for mine, recorded in pairs)


def test_metrics_that_are_no_scalars_become_information(tmp_path: Path) -> None:
    """A confusion matrix has no history."""
    runner = make_runner(tmp_path, val_evaluator=MulticlassConfusionMatrix(3))
    runner.val()
    matrix = runner.message_hub.get_info("val/confusion_matrix")
    assert [len(row) for row in matrix] == [3, 3, 3]
    assert "val/confusion_matrix" not in runner.message_hub.log_scalars
    assert "val/loss" in runner.message_hub.log_scalars


def test_what_a_dataset_says_about_itself_is_kept(tmp_path: Path) -> None:
    """Under `dataset_meta`."""
    loader = make_loader(12)
    loader.dataset.metainfo = {"classes": ["a", "b", "c"]}  # type: ignore[attr-defined]
    runner = make_runner(tmp_path, train_dataloader=loader)
    runner.train()
    assert runner.message_hub.get_info("dataset_meta") == {"classes": ["a", "b", "c"]}


@pytest.mark.parametrize("value", ["text", [1.0, 2.0], {"a": 1}, None, torch.ones(2), object()])
def test_outputs_that_are_no_scalars_are_left_to_other_hooks(value: Any, tmp_path: Path) -> None:
    """They are no reason to fail."""

    def step(model: torch.nn.Module, batch: Any) -> dict[str, Any]:
        return {"loss": model(batch[0]).square().mean(), "other": value}

    runner = make_runner(tmp_path, train_step=step, train_cfg=dict(max_epochs=1))
    runner.train()
    assert "train/other" not in runner.message_hub.log_scalars

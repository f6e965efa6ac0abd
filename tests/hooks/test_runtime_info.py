"""What RuntimeInfoHook writes, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torchmetrics.classification import MulticlassConfusionMatrix

from hookbus._version import __version__
from hookbus.events import (
    AfterRun,
    AfterTrain,
    AfterTrainEpoch,
    AfterTrainIter,
    AfterVal,
    AfterValEpoch,
    AfterValIter,
    BeforeTest,
    BeforeTrain,
    BeforeTrainIter,
    BeforeVal,
    BeforeValEpoch,
    MountPoint,
)
from hookbus.hub import MessageHub
from tests.runner.builders import make_loader, make_model, make_runner


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
    assert info["hookbus_version"] == __version__


def test_what_an_older_run_was_called_is_not_taken_over(tmp_path: Path) -> None:
    """A checkpoint brings its facts after the run began and before training does."""
    runner = make_runner(tmp_path, randomness=dict(seed=11))
    older = {"experiment_name": "older", "seed": 1, "hookbus_version": "0"}
    runner.bus.subscribe(BeforeTrain, lambda hub: hub.update_info_dict(older), priority="HIGHEST")
    runner.train()
    info = runner.message_hub.runtime_info
    assert {key: info[key] for key in older} == {
        "experiment_name": runner.experiment_name,
        "seed": 11,
        "hookbus_version": __version__,
    }


def test_where_iterations_count_the_counters_of_the_hub_are_never_stale(tmp_path: Path) -> None:
    """The running iteration in training, completed ones from there on; the one epoch is not over before the end."""
    runner = make_runner(tmp_path, train_cfg=dict(by_epoch=False, max_iters=5, val_interval=2))
    seen: list[tuple[str, Any, Any]] = []

    def note(event: MountPoint, hub: MessageHub) -> None:
        seen.append((type(event).__name__, hub.get_info("epoch"), hub.get_info("iter")))

    for event_type in (BeforeTrain, AfterTrainIter, BeforeVal, AfterValEpoch, AfterVal, AfterTrainEpoch, AfterTrain, AfterRun):
        runner.bus.subscribe(event_type, note)
    runner.train()
    validation = ("BeforeVal", "AfterValEpoch", "AfterVal")
    assert seen == [
        ("BeforeTrain", 0, 0),
        ("AfterTrainIter", 0, 0),
        ("AfterTrainIter", 0, 1),
        *((name, 0, 2) for name in validation),
        ("AfterTrainIter", 0, 2),
        ("AfterTrainIter", 0, 3),
        *((name, 0, 4) for name in validation),
        ("AfterTrainIter", 0, 4),
        *((name, 0, 5) for name in validation),
        ("AfterTrainEpoch", 0, 5),
        ("AfterTrain", runner.epoch, 5),
        ("AfterRun", runner.epoch, 5),
    ]
    assert runner.message_hub.get_info("max_iters") == 5


def test_a_run_whose_length_nobody_knows_says_so(tmp_path: Path) -> None:
    """`max_iters` is None."""
    runner = make_runner(tmp_path, train_dataloader=(batch for batch in make_loader(8)), train_cfg=dict(max_epochs=1))
    runner.train()
    assert "max_iters" in runner.message_hub.runtime_info
    assert runner.message_hub.get_info("max_iters") is None


def test_the_learning_rate_is_the_one_that_the_step_used(tmp_path: Path) -> None:
    """Before the schedule moves on; one value per iteration, with its step."""
    runner = make_runner(tmp_path, param_scheduler=dict(type="StepLR", step_size=1, gamma=0.5, by_epoch=False))
    used: list[float] = []
    runner.bus.subscribe(BeforeTrainIter, lambda runner: used.append(runner.optim_wrapper.param_groups[0]["lr"]))
    runner.train()
    history = runner.message_hub.get_scalar("train/lr")
    assert history.data[0] == used
    assert history.steps == [1, 2, 3, 4, 5, 6]


def test_an_optimizer_of_several_groups_has_a_base_rate(tmp_path: Path) -> None:
    """The first group is the rate; the base is that of the group which began with the optimizer's own, wherever it stands."""
    model = make_model()
    groups: list[dict[str, Any]] = [{"params": [model.bias], "lr": 0.5}, {"params": [model.weight]}]
    changes: dict[str, Any] = dict(model=model, optimizer=torch.optim.SGD(groups, lr=0.1), train_cfg=dict(max_epochs=1))
    runner = make_runner(tmp_path, **changes, param_scheduler=dict(type="StepLR", step_size=1, gamma=0.5, by_epoch=False))
    runner.train()
    hub = runner.message_hub
    assert hub.get_scalar("train/lr").data[0] == pytest.approx([0.5, 0.25, 0.125])
    assert hub.get_scalar("train/base_lr").data[0] == pytest.approx([0.1, 0.05, 0.025])


def test_groups_that_all_have_rates_of_their_own_have_no_base(tmp_path: Path) -> None:
    """Nothing is made up."""
    model = make_model()
    groups = [{"params": [model.bias], "lr": 0.5}, {"params": [model.weight], "lr": 0.2}]
    runner = make_runner(tmp_path, model=model, optimizer=torch.optim.SGD(groups, lr=0.1), train_cfg=dict(max_epochs=1))
    runner.train()
    assert runner.message_hub.get_scalar("train/lr").data[0] == [0.5, 0.5, 0.5]
    assert "train/base_lr" not in runner.message_hub.log_scalars


class TwoPlayers(torch.nn.Module):
    """Two linear models, each with an optimizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.nn.Linear(4, 4)
        self.critic = torch.nn.Linear(4, 1)

    def train_step(self, batch: Any, optim_wrapper: Any) -> dict[str, torch.Tensor]:
        """Update both."""
        loss = self.critic(self.generator(batch[0])).square().mean()
        optim_wrapper["critic"].update_params(loss)
        loss = self.critic(self.generator(batch[0])).square().mean()
        optim_wrapper["generator"].update_params(loss)
        return {"loss": loss}


def test_each_of_several_optimizers_has_a_rate(tmp_path: Path) -> None:
    """Under its name; there is no rate without one."""
    model = TwoPlayers()
    optimizers = {
        "generator": torch.optim.SGD(model.generator.parameters(), lr=0.25),
        "critic": torch.optim.SGD(model.critic.parameters(), lr=0.5),
    }
    changes: dict[str, Any] = dict(val_dataloader=None, test_dataloader=None, loss_fn=None, train_cfg=dict(max_epochs=1))
    runner = make_runner(tmp_path, model=model, optimizer=optimizers, **changes)
    runner.train()
    hub = runner.message_hub
    assert hub.get_scalar("train/generator.lr").data[0] == [0.25] * 3
    assert hub.get_scalar("train/critic.lr").data[0] == [0.5] * 3
    assert "train/lr" not in hub.log_scalars


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

"""Resuming with other settings: refused with all differences, or accepted by name, and then the new setting holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hookbus.errors import CheckpointError, ConfigError
from hookbus.events import AfterLoadCheckpoint, AfterTrainIter
from hookbus.runner import Runner
from tests.runner.builders import make_loader, make_model, make_runner
from tests.runner.learners import train_until

EVERY_SECOND = dict(accumulative_counts=2)
COSINE = dict(type="CosineAnnealingLR", T_max=10)


def make(work_dir: Path, **changes: Any) -> Runner:
    """Return a runner of four epochs with three batches and a schedule."""
    model = changes.get("model") or make_model()
    options = dict(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        param_scheduler=COSINE,
        train_cfg=dict(max_epochs=4),
    )
    return make_runner(work_dir, **options | changes)


def wider() -> torch.nn.Module:
    """Return a model with a weight more."""
    return torch.nn.Sequential(make_model(), torch.nn.Linear(3, 3))


def other_optimizer(**options: Any) -> Any:
    """Return the config of another optimizer."""
    return dict(type="SGD", lr=0.1, momentum=0.9) | options


MISMATCHES: list[tuple[str, dict[str, Any], str]] = [
    ("param_scheduler", dict(param_scheduler=COSINE | dict(T_max=20)), "param_scheduler[0].options.T_max was 10 and is 20"),
    (
        "param_scheduler",
        dict(param_scheduler=dict(type="StepLR", step_size=1)),
        "param_scheduler[0].type was 'CosineAnnealingLR' and is 'StepLR'",
    ),
    ("param_scheduler", dict(param_scheduler=None), "and is not there"),
    ("optimizer", dict(optimizer=other_optimizer(lr=0.2)), "optimizer.lr was 0.1 and is 0.2"),
    ("optimizer", dict(optimizer=dict(type="AdamW")), "optimizer.type was 'SGD' and is 'AdamW'"),
    ("optim_wrapper", dict(optim_wrapper=dict(accumulative_counts=2)), "optim_wrapper.accumulative_counts was 1 and is 2"),
    ("batch_size", dict(train_dataloader=make_loader(6, batch_size=2)), "batch_size was 4 and is 2"),
    ("train_batches", dict(train_dataloader=make_loader(16)), "train_batches was 3 and is 4"),
    ("num_workers", dict(train_dataloader=make_loader(12, num_workers=1)), "num_workers was 0 and is 1"),
    ("train_cfg", dict(train_cfg=dict(by_epoch=False, max_iters=9)), "train_cfg was 'epochs' and is 'iterations'"),
]
IDS = [f"{name} {index}" for index, (name, _, _) in enumerate(MISMATCHES)]


@pytest.mark.parametrize(("name", "changes", "words"), MISMATCHES, ids=IDS)
def test_a_changed_setting_is_refused_and_named(name: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    """With what it was and is, and with how to go on all the same; nothing is changed."""
    train_until(make(tmp_path), 3)
    with pytest.raises(CheckpointError, match="taken with other settings") as caught:
        make(tmp_path, resume=True, **changes).train()
    text = str(caught.value)
    assert words in text
    assert "allow=[" in text
    assert f"'{name}'" in text


def test_a_changed_model_and_a_changed_torch_are_refused_too(tmp_path: Path) -> None:
    """All differences stand in one error."""
    train_until(make(tmp_path), 3)
    model = wider()
    runner = make(tmp_path, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), resume=True)

    def pretend(checkpoint: dict[str, Any]) -> None:
        checkpoint["meta"]["settings"]["torch_version"] = "1.0"
        checkpoint["meta"]["settings"]["world_size"] = 8

    runner.bus.subscribe(AfterLoadCheckpoint, pretend)
    with pytest.raises(CheckpointError) as caught:
        runner.train()
    words = ("torch_version was '1.0'", "world_size was 8 and is 1", "it lacks 0.weight, 0.bias, 1.weight, 1.bias", "'model'")
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("name", ["param_schedulr", 3])
def test_only_settings_may_be_allowed_to_differ(name: Any, tmp_path: Path) -> None:
    """A misspelt one is named."""
    with pytest.raises(ConfigError, match=r"allow = .*no setting that may differ"):
        make(tmp_path, resume=True, allow=[name])


def rates(runner: Runner) -> list[float]:
    """Return a list that fills with the learning rate of each iteration."""
    seen: list[float] = []
    runner.bus.subscribe(AfterTrainIter, lambda runner: seen.append(runner.optim_wrapper.optimizer.param_groups[0]["lr"]))
    return seen


@pytest.mark.parametrize(
    ("allowed", "changes"),
    [
        ("param_scheduler", dict(param_scheduler=COSINE | dict(T_max=20))),
        ("param_scheduler", dict(param_scheduler=dict(type="LinearLR", by_epoch=False, total_iters=8))),
        ("optimizer", dict(optimizer=other_optimizer(lr=0.3))),
        ("param_scheduler", dict(param_scheduler=dict(type="StepLR", step_size=1, by_epoch=False), optim_wrapper=EVERY_SECOND)),
    ],
    ids=["another length", "another schedule", "another learning rate", "another schedule and accumulation"],
)
def test_an_allowed_schedule_stands_where_it_would_have_stood(allowed: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """As if the run had had it from the beginning; momentum is that of the old run."""
    straight = make(tmp_path / "straight", **changes)
    expected = rates(straight)
    straight.train()
    train_until(make(tmp_path, optim_wrapper=changes.get("optim_wrapper")), 6)
    runner = make(tmp_path, resume=True, allow=[allowed], **changes)
    seen = rates(runner)
    kept: list[bool] = []
    runner.bus.subscribe(AfterLoadCheckpoint, lambda checkpoint: kept.append("state" in checkpoint["optimizer"]))
    runner.train()
    assert seen == pytest.approx(expected[6:])
    assert "this is not the uninterrupted run any more" in (runner.log_dir / "train.log").read_text(encoding="utf-8")
    assert kept == [True]


def test_an_allowed_batch_size_begins_the_pass_anew(tmp_path: Path) -> None:
    """Counted epochs stay."""
    train_until(make(tmp_path), 5)
    loader = make_loader(12, batch_size=2)
    runner = make(tmp_path, train_dataloader=loader, resume=True, allow=["batch_size", "train_batches"])
    runner.train()
    assert (runner.epoch, runner.iter) == (4, 5 + 3 * 6)


def test_an_allowed_model_takes_what_fits(tmp_path: Path) -> None:
    """And an optimizer without state."""
    old = make(tmp_path, model=torch.nn.Sequential(make_model()))
    train_until(old, 3)
    model = wider()
    runner = make(tmp_path, model=model, resume=True, allow=["model"])
    weights: list[torch.Tensor] = []
    runner.bus.subscribe(AfterTrainIter, lambda: weights.append(model[0].weight.clone()), once=True)  # type: ignore[index]
    runner.train()
    assert runner.epoch == 4
    assert weights
    assert "1.weight" in (runner.log_dir / "train.log").read_text(encoding="utf-8")


def test_training_longer_needs_no_permission(tmp_path: Path) -> None:
    """Nor do other hooks, logs and validations."""
    make(tmp_path).train()
    runner = make(tmp_path, resume=True, train_cfg=dict(max_epochs=5, val_interval=5), val_dataloader=make_loader(4))
    runner.train()
    assert runner.epoch == 5

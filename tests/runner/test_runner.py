"""What a user gets from a runner: the same training as by hand, metrics, controls, and a process as it was before."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anyio.lowlevel import checkpoint
from torch.nn.functional import cross_entropy
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryROC, MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from hookbus.bus import EventBus, on
from hookbus.checkpoint import load_checkpoint
from hookbus.errors import RunEnded, WouldDeadlock
from hookbus.evaluation import metric_name
from hookbus.events import (
    AfterLoadCheckpoint,
    AfterRun,
    AfterTrain,
    AfterTrainEpoch,
    AfterTrainIter,
    AfterValEpoch,
    AfterValIter,
    BeforeSaveCheckpoint,
    BeforeTrainEpoch,
    BeforeTrainIter,
    BeforeValIter,
    Event,
    MountPoint,
)
from hookbus.hooks import Hook
from hookbus.hub import MessageHub
from hookbus.runner import Runner
from tests.runner.builders import (
    at_iter,
    checkpoints,
    make_data,
    make_loader,
    make_model,
    make_runner,
    names,
    record,
    same,
    unique_name,
    weights,
)

# --- the same training as by hand -------------------------------------------------------------------------------------


def train_by_hand(epochs: int, *, shuffle: bool = False) -> dict[str, torch.Tensor]:
    """Train without hookbus: model, loader, optimizer, schedule, validation."""
    model = make_model()
    train, val = make_loader(12, shuffle=shuffle), make_loader(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    torch.manual_seed(7)
    for _ in range(epochs):
        for inputs, targets in train:
            loss = cross_entropy(model(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        with torch.no_grad():
            for inputs, targets in val:
                cross_entropy(model(inputs), targets)
    return weights(model)


def make_from_objects(tmp_path: Path, *, shuffle: bool) -> Runner:
    """Return a runner of PyTorch objects."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    return make_runner(
        tmp_path,
        model=model,
        optimizer=optimizer,
        param_scheduler=dict(scheduler=scheduler, by_epoch=False),
        train_dataloader=make_loader(12, shuffle=shuffle),
        train_cfg=dict(max_epochs=3),
        randomness=dict(seed=7),
    )


def make_from_configs(tmp_path: Path, *, shuffle: bool) -> Runner:
    """Return a runner of configs, as many as there are."""
    return make_runner(
        tmp_path,
        model=make_model(),
        optimizer=dict(type="SGD", lr=0.1, momentum=0.9),
        param_scheduler=[dict(type="StepLR", step_size=2, gamma=0.5, by_epoch=False)],
        train_dataloader=dict(dataset=make_data(12), batch_size=4, shuffle=shuffle),
        val_dataloader=dict(dataset=make_data(8), batch_size=4),
        train_cfg=dict(by_epoch=True, max_epochs=3, val_interval=1),
        val_cfg={},
        randomness=dict(seed=7),
    )


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("make", [make_from_objects, make_from_configs])
def test_a_run_trains_as_a_bare_loop_does_bit_for_bit(make: Callable[..., Runner], shuffle: bool, tmp_path: Path) -> None:
    """Hooks, logs and checkpoints draw no random number and change no weight."""
    runner = make(tmp_path, shuffle=shuffle)
    runner.train()
    assert same(weights(runner.model), train_by_hand(3, shuffle=shuffle))


def test_watching_a_run_does_not_change_it(tmp_path: Path) -> None:
    """Inline, awaited and detached observers leave the weights as they would be."""
    runner = make_from_objects(tmp_path, shuffle=True)

    async def look(hub: MessageHub) -> None:
        await asyncio.sleep(0)
        hub.get_scalar("train/time")

    runner.bus.subscribe(MountPoint, lambda: None)
    runner.bus.subscribe(AfterTrainIter, look)
    runner.train()
    assert same(weights(runner.model), train_by_hand(3, shuffle=True))


# --- the ways in which a model can say what a step is -----------------------------------------------------------------


def test_a_train_step_function_may_return_a_tensor(tmp_path: Path) -> None:
    """It is the loss."""
    runner = make_runner(
        tmp_path, loss_fn=None, val_step=give_pair, train_step=lambda model, batch: cross_entropy(model(batch[0]), batch[1])
    )
    runner.train()
    reference = make_runner(tmp_path / "reference")
    reference.train()
    assert same(weights(runner.model), weights(reference.model))
    assert len(runner.message_hub.get_scalar("train/loss").data[0]) == 6


def give_pair(model: torch.nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Validate: predictions and targets."""
    return model(batch[0]), batch[1]


def test_the_entries_of_a_dict_are_recorded_and_detached(tmp_path: Path) -> None:
    """Whatever else a step returns reaches handlers without its graph, and the scalars among it reach the hub."""

    def step(model: torch.nn.Module, batch: Any) -> dict[str, Any]:
        predictions = model(batch[0])
        loss = cross_entropy(predictions, batch[1])
        return {"loss": loss, "norm": loss.detach() * 2, "half": 0.5, "np": np.float32(3), "logits": predictions, "note": "text"}

    runner = make_runner(tmp_path, train_step=step)
    kept: list[dict[str, Any]] = []

    def keep(outputs: dict[str, Any]) -> None:
        kept.append(outputs)

    runner.bus.subscribe(AfterTrainIter, keep)
    runner.train()
    assert not any(value.requires_grad for outputs in kept for value in outputs.values() if isinstance(value, torch.Tensor))
    assert kept[0]["note"] == "text"
    hub = runner.message_hub
    assert hub.get_scalar("train/half").current() == 0.5
    assert hub.get_scalar("train/np").current() == 3.0
    assert hub.get_scalar("train/norm").current() == pytest.approx(2 * hub.get_scalar("train/loss").current())
    assert not {"train/logits", "train/note"} & hub.log_scalars.keys()


class Net(torch.nn.Linear):
    """A model that knows how to train and validate itself."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.called: list[str] = []

    def train_step(self, batch: Any, optim_wrapper: Any) -> dict[str, Any]:
        """Train on a batch."""
        self.called.append("train_step")
        loss = cross_entropy(self(batch[0]), batch[1])
        optim_wrapper.update_params(loss)
        return {"loss": loss}

    def val_step(self, batch: Any) -> dict[str, Any]:
        """Evaluate a batch."""
        self.called.append("val_step")
        assert not torch.is_grad_enabled()
        assert not self.training
        return {"mine": torch.tensor(float(len(batch[1])))}


class NetWithTest(Net):
    """One that treats tests differently."""

    def test_step(self, batch: Any) -> dict[str, Any]:
        """Test a batch."""
        self.called.append("test_step")
        return {"other": 1.0}


def refuse(*_: Any) -> Any:
    """Be called although a method of the model goes first."""
    raise AssertionError


def test_methods_of_the_model_go_before_functions_and_losses(tmp_path: Path) -> None:
    """`train_step` and `val_step` of the model; a test uses `val_step` where there is no `test_step`."""
    torch.manual_seed(0)
    runner = make_runner(tmp_path, model=Net(), loss_fn=refuse, train_step=refuse, val_step=refuse)
    assert runner.train() == {"mine": 4.0}
    assert runner.test() == {"mine": 4.0}
    assert runner.model.called == [*["train_step"] * 3, *["val_step"] * 2, *["train_step"] * 3, *["val_step"] * 2, "val_step"]
    reference = make_runner(tmp_path / "reference", model=seeded_linear())
    reference.train()
    assert same(weights(runner.model), weights(reference.model))


def seeded_linear() -> torch.nn.Module:
    """Return a linear model with the weights that `Net` gets from the same seed."""
    torch.manual_seed(0)
    return torch.nn.Linear(4, 3)


def test_a_test_step_of_the_model_is_used_for_tests(tmp_path: Path) -> None:
    """Only there."""
    runner = make_runner(tmp_path, model=NetWithTest(), loss_fn=None)
    assert runner.test() == {"other": 1.0}
    assert runner.val() == {"mine": 4.0}


def test_scalars_of_validation_steps_are_averaged_by_sample_count(tmp_path: Path) -> None:
    """A short last batch counts for less, in whatever shape batches come."""
    shapes: list[Callable[[torch.Tensor], Any]] = [
        lambda inputs: inputs,
        lambda inputs: (inputs, inputs),
        lambda inputs: {"names": ["a"] * len(inputs), "inputs": inputs},
        lambda inputs: [["a"] * len(inputs), {"x": inputs}],
        lambda inputs: (torch.tensor(0.5), inputs),
    ]

    @dataclass
    class Batch:
        names: list[str]
        inputs: torch.Tensor

    shapes.append(lambda inputs: Batch(["a"] * len(inputs), inputs))
    for shape in shapes:
        batches = [shape(torch.ones(4, 4)), shape(torch.zeros(2, 4))]
        values = iter([1.0, 4.0])
        runner = make_runner(tmp_path, val_dataloader=batches, val_step=lambda model, batch, values=values: {"v": next(values)})
        assert runner.val() == {"v": 2.0}, shape(torch.ones(1, 1))


def test_a_loss_fn_model_gets_its_validation_loss(tmp_path: Path) -> None:
    """The mean over samples, not over batches, under the name `loss`."""
    loader = make_loader(6)
    runner = make_runner(tmp_path, val_dataloader=loader)
    inputs, targets = make_data(6).tensors
    with torch.no_grad():
        expected = cross_entropy(runner.model(inputs), targets).item()
    assert runner.val() == {"loss": pytest.approx(expected, rel=1e-5)}
    assert runner.message_hub.get_scalar("val/loss").current() == pytest.approx(expected, rel=1e-5)


# --- metrics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("MulticlassAccuracy", "accuracy"),
        ("BinaryAccuracy", "accuracy"),
        ("MultilabelF1Score", "f1_score"),
        ("MulticlassAUROC", "auroc"),
        ("MeanSquaredError", "mean_squared_error"),
        ("R2Score", "r2_score"),
        ("BinaryROC", "roc"),
        ("Multiclass", "multiclass"),
        ("top1", "top1"),
        ("mIoU", "mIoU"),
        ("coco/bbox_mAP", "coco/bbox_mAP"),
        ("AR@100", "AR@100"),
    ],
)
def test_metric_names_are_snake_case_without_the_task(name: str, expected: str) -> None:
    """One table for what users read in logs."""
    assert metric_name(name) == expected


def test_the_evaluators_metrics_come_first_and_the_loss_last(tmp_path: Path) -> None:
    """In the event, in what the calls return, and with prefix in the hub."""
    collection = MetricCollection([MulticlassF1Score(3), MulticlassAccuracy(3)])
    runner = make_runner(tmp_path, val_evaluator=collection)
    events = record(runner.bus, AfterValEpoch)
    metrics = runner.train()
    event = events[-1]
    assert isinstance(event, AfterValEpoch)
    assert event.metrics == metrics
    assert sorted(metrics) == ["accuracy", "f1_score", "loss"]
    assert list(metrics)[-1] == "loss"
    assert all(type(value) is float for value in metrics.values())
    assert runner.message_hub.get_scalar("val/accuracy").current() == metrics["accuracy"]
    assert list(runner.test()) == list(metrics)
    assert "test/f1_score" in runner.message_hub.log_scalars


def test_metrics_begin_anew_with_every_pass(tmp_path: Path) -> None:
    """Two validations of an unchanged model give the same."""
    runner = make_runner(tmp_path, val_evaluator=dict(type="MulticlassAccuracy", num_classes=3, average="micro"))
    assert runner.val() == runner.val()


def test_metrics_of_the_same_short_name_do_not_hide_each_other(tmp_path: Path) -> None:
    """None of them is lost."""
    collection = MetricCollection({"MulticlassAccuracy": MulticlassAccuracy(3), "BinaryAccuracy": MulticlassAccuracy(3, top_k=2)})
    metrics = make_runner(tmp_path, val_evaluator=collection).val()
    assert len(metrics) == 3


@pytest.mark.parametrize("metric", [MulticlassConfusionMatrix(3), BinaryROC(thresholds=3)])
def test_metrics_that_are_no_scalars_are_plain_lists(metric: Any, tmp_path: Path) -> None:
    """They reach event, hub and log files as numbers, not as tensors."""
    runner = make_runner(
        tmp_path,
        val_evaluator=metric,
        val_step=lambda model, batch: (
            (batch[0][:, 0].sigmoid(), batch[1].clamp(max=1)) if isinstance(metric, BinaryROC) else (model(batch[0]), batch[1])
        ),
        default_hooks=dict(logger={}),
    )
    (value,) = runner.train().values()
    assert no_tensors(value)
    assert (runner.log_dir / "metrics.jsonl").read_text().count('"val"') == 2


def no_tensors(value: Any) -> bool:
    """Return whether only numbers and plain containers are in there."""
    if isinstance(value, list | tuple):
        return all(no_tensors(item) for item in value)
    return type(value) in (int, float)


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), np.array(0.5), np.array([0.5]), torch.tensor([0.5])])
def test_metrics_of_any_numeric_kind_become_python_numbers(value: Any, tmp_path: Path) -> None:
    """An evaluator of a user's own may compute with numpy."""

    class Mine:
        def reset(self) -> None: ...
        def update(self, predictions: Any, targets: Any) -> None: ...
        def compute(self) -> Any:
            return {"acc": value}

    hooks = dict(checkpoint=dict(save_best="acc"))
    runner = make_runner(tmp_path, val_evaluator=Mine(), train_cfg=dict(max_epochs=1), default_hooks=hooks)
    metrics = runner.train()
    assert (metrics["acc"], type(metrics["acc"])) == (0.5, float)


def test_an_evaluator_that_gets_a_dict_is_told_so(tmp_path: Path) -> None:
    """It needs predictions and targets."""
    runner = make_runner(tmp_path, val_evaluator=MulticlassAccuracy(3), val_step=lambda model, batch: {"loss": 1.0})
    with pytest.raises(ValueError, match=r"evaluator needs \(predictions, targets\)"):
        runner.val()


# --- one call after the other -----------------------------------------------------------------------------------------


def test_training_again_after_the_end_returns_at_once(tmp_path: Path) -> None:
    """Until the maximum is raised; then it goes on."""
    runner = make_runner(tmp_path)
    runner.train()
    seen = record(runner.bus)
    runner.train()
    assert names(seen) == ["BeforeRun", "AfterRun"]
    runner.train_loop.max_epochs = 3
    runner.train()
    assert (runner.epoch, runner.iter) == (3, 9)
    assert checkpoints(tmp_path) == ["epoch_1", "epoch_2", "epoch_3"]


def test_training_goes_on_after_a_stop(tmp_path: Path) -> None:
    """At the end of an epoch nothing is lost: it is the training that was never stopped, bit for bit."""
    whole = make_runner(tmp_path / "whole", train_cfg=dict(max_epochs=4))
    whole.train()
    runner = make_runner(tmp_path / "parts", train_cfg=dict(max_epochs=4))
    runner.bus.subscribe(AfterTrainEpoch, lambda runner: runner.stop(), when=lambda event: event.epoch == 1)
    runner.train()
    assert runner.epoch == 2
    runner.train()
    assert runner.epoch == 4
    assert same(weights(runner.model), weights(whole.model))


def test_a_test_after_training_uses_the_trained_model(tmp_path: Path) -> None:
    """And the calls do not disturb each other's counters."""
    runner = make_runner(tmp_path)
    runner.train()
    inputs, targets = make_data(4).tensors
    with torch.no_grad():
        expected = cross_entropy(runner.model(inputs), targets).item()
    assert runner.test()["loss"] == pytest.approx(expected, rel=1e-5)
    assert (runner.epoch, runner.iter) == (2, 6)


def test_a_hook_registered_between_two_runs_joins_the_others(tmp_path: Path) -> None:
    """The default hooks are still there."""
    runner = make_runner(tmp_path)
    runner.train()
    heard: list[str] = []

    class Late(Hook):
        @on(AfterRun, priority="LOWEST")
        def note(self) -> None:
            heard.append("late")

    runner.register_hook(Late())
    runner.train_loop.max_epochs = 3
    runner.train()
    assert heard == ["late"]
    assert checkpoints(tmp_path) == ["epoch_1", "epoch_2", "epoch_3"]
    priorities = []
    runner.bus.subscribe(
        MountPoint, lambda: priorities.append([(e.name, e.priority) for e in runner.bus.plan(AfterRun)]), once=True
    )
    runner.test()
    assert ("Late.note", 100) in priorities[0]


def test_hooks_hear_a_checkpoint_loaded_or_saved_outside_of_runs(tmp_path: Path) -> None:
    """Before the first run, between two runs, and after the last one."""
    heard: list[str] = []

    class Listener(Hook):
        def after_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            heard.append("loaded")

        def before_save_checkpoint(self, name: str) -> None:
            heard.append(name)

    make_runner(tmp_path / "a", train_cfg=dict(max_epochs=1)).train()
    path = tmp_path / "a" / "checkpoints" / "epoch_1"
    runner = make_runner(tmp_path / "b", custom_hooks=[Listener()], default_hooks=dict(checkpoint=None))
    runner.load_checkpoint(path)
    runner.train()
    runner.load_checkpoint(path)
    runner.save_checkpoint("mine")
    assert heard == ["loaded", "loaded", "mine"]
    assert runner.bus.plan(AfterLoadCheckpoint) == ()


def test_weights_may_come_from_a_checkpoint_in_the_same_work_dir(tmp_path: Path) -> None:
    """Old checkpoints are moved aside only after they were read."""
    make_runner(tmp_path).train()
    old = load_checkpoint(tmp_path / "checkpoints" / "epoch_2")["state_dict"]
    runner = make_runner(tmp_path, load_from=tmp_path / "checkpoints" / "epoch_2")
    seen: list[bool] = []
    runner.bus.subscribe(BeforeTrainEpoch, lambda runner: seen.append(same(weights(runner.model), dict(old))), once=True)
    runner.train()
    assert seen == [True]
    assert checkpoints(tmp_path) == ["epoch_1", "epoch_2"]
    (aside,) = tmp_path.glob("checkpoints_before_*")
    assert sorted(path.name for path in aside.iterdir()) == ["epoch_1", "epoch_2"]


def test_runs_that_start_in_the_same_second_keep_their_logs_apart(tmp_path: Path) -> None:
    """Every start has a directory of its own, and no earlier checkpoint is lost."""
    runners = []
    for _ in range(4):
        runner = make_runner(tmp_path, train_cfg=dict(max_epochs=1))
        runner.train()
        runners.append(runner)
    assert len({runner.log_dir for runner in runners}) == 4
    assert all((runner.log_dir / "run.json").exists() for runner in runners)
    assert len(list(tmp_path.glob("checkpoints_before_*"))) == 3


def test_a_second_runner_of_a_name_does_not_call_the_hooks_of_an_idle_first(tmp_path: Path) -> None:
    """As when a notebook cell runs twice: one logger, one step of each schedule."""
    name = unique_name()
    scheduler = dict(type="StepLR", step_size=1, gamma=0.5, by_epoch=False)
    parts: dict[str, Any] = dict(experiment_name=name, param_scheduler=scheduler, default_hooks=dict(logger={}))
    first, second = make_runner(tmp_path, **parts), make_runner(tmp_path, **parts)
    second.train()
    assert len(second.message_hub.get_scalar("train/time").data[0]) == 6
    assert second.message_hub.get_scalar("train/lr").data[0] == pytest.approx([0.1 * 0.5**i for i in range(6)])
    planned: list[str] = []
    first.bus.subscribe(BeforeTrainIter, lambda: planned.extend(e.name for e in first.bus.plan(AfterTrainIter)), once=True)
    first.train()
    assert planned.count("LoggerHook.after_train_iter") == 1
    assert first.epoch == 2


def test_hooks_of_a_freed_runner_do_not_stay_on_a_bus_that_others_hold(tmp_path: Path) -> None:
    """The bus belongs to a dashboard; a runner that never ran is gone, its hooks are not called."""
    name = unique_name()
    bus = EventBus.get_instance(name)
    make_runner(tmp_path, experiment_name=name)
    gc.collect()
    runner = make_runner(tmp_path, experiment_name=name)
    assert runner.bus is bus
    runner.train()
    assert len(runner.message_hub.get_scalar("train/time").data[0]) == 6
    assert bus.plan(AfterTrainIter) == ()


# --- stopping ---------------------------------------------------------------------------------------------------------


def stop_inline(runner: Runner, answers: list[Any]) -> None:
    """Stop from an inline handler of the fifth iteration."""
    runner.bus.subscribe(AfterTrainIter, at_iter(4, lambda: answers.append(runner.stop())))


def stop_awaited(runner: Runner, answers: list[Any]) -> None:
    """Stop from an awaited handler of the fifth iteration."""

    async def stop(iter: int) -> None:
        await asyncio.sleep(0)
        if iter == 4:
            answers.append(runner.stop())

    runner.bus.subscribe(AfterTrainIter, stop)


def stop_from_a_thread(runner: Runner, answers: list[Any]) -> None:
    """Stop from another thread during the fifth iteration."""

    def ask() -> None:
        thread = threading.Thread(target=lambda: answers.append(runner.stop()))
        thread.start()
        thread.join()

    runner.bus.subscribe(BeforeTrainIter, at_iter(4, ask))


def stop_twice(runner: Runner, answers: list[Any]) -> None:
    """Stop twice, at two points of the fifth iteration."""
    runner.bus.subscribe(BeforeTrainIter, at_iter(4, lambda: answers.append(runner.stop())))
    runner.bus.subscribe(AfterTrainIter, at_iter(4, lambda: answers.append(runner.stop())))


@pytest.mark.parametrize("ask", [stop_inline, stop_awaited, stop_from_a_thread, stop_twice])
def test_a_stop_in_mid_epoch_takes_effect_behind_the_iteration(ask: Callable[[Runner, list[Any]], None], tmp_path: Path) -> None:
    """No `AfterTrainEpoch`, no validation, but `AfterTrain` and `AfterRun`; the answer says when."""
    runner = make_runner(tmp_path)
    seen = record(runner.bus)
    answers: list[Any] = []
    ask(runner, answers)
    metrics = runner.train()
    assert (runner.epoch, runner.iter) == (1, 5)
    assert names(seen)[-4:] == ["AfterTrainIter", "AfterTrain", "BeforeSaveCheckpoint", "AfterRun"]
    assert names(seen).count("AfterTrainEpoch") == 1
    assert "loss" in metrics
    assert {(answer.result(0).epoch, answer.result(0).iter) for answer in answers} == {(1, 5)}


def test_a_stop_behind_an_epoch_leaves_out_its_validation(tmp_path: Path) -> None:
    """The epoch is complete and counts."""
    runner = make_runner(tmp_path)
    seen = record(runner.bus)
    answers: list[Any] = []
    runner.bus.subscribe(AfterTrainEpoch, lambda runner: answers.append(runner.stop()))
    assert runner.train() == {}
    assert names(seen)[-3:] == ["BeforeSaveCheckpoint", "AfterTrain", "AfterRun"]
    assert (answers[0].result(0).epoch, answers[0].result(0).iter) == (1, 3)


def test_stop_training_ends_behind_the_epoch_and_its_validation(tmp_path: Path) -> None:
    """The classic flag of hooks that stop early."""
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=5))

    def enough(runner: Runner) -> None:
        runner.train_loop.stop_training = True

    runner.bus.subscribe(AfterTrainIter, enough, when=lambda event: event.iter == 4)
    seen = record(runner.bus)
    assert "loss" in runner.train()
    assert runner.epoch == 2
    assert names(seen)[-3:] == ["AfterVal", "AfterTrain", "AfterRun"]


def test_waiting_for_a_stop_in_an_inline_handler_is_refused_by_name(tmp_path: Path) -> None:
    """It would wait for itself; a time-out is no way out either."""
    runner = make_runner(tmp_path)
    runner.bus.subscribe(AfterTrainIter, lambda runner: runner.stop().result(5))
    with pytest.raises(WouldDeadlock, match="training thread") as caught:
        runner.train()
    assert any("AfterTrainIter" in note for note in caught.value.__notes__)


def test_waiting_for_a_stop_in_an_awaited_handler_is_refused_by_name(tmp_path: Path) -> None:
    """Awaited, blocking, and in a worker thread that the handler waits for."""

    async def wait(runner: Runner) -> None:
        await runner.stop()

    async def block(runner: Runner) -> None:
        runner.stop().result(5)

    async def block_elsewhere(runner: Runner) -> None:
        await asyncio.to_thread(runner.stop().result, 5)

    for handler in (wait, block, block_elsewhere):
        runner = make_runner(tmp_path)
        runner.bus.subscribe(AfterTrainIter, handler)
        with pytest.raises(WouldDeadlock, match="step boundary"):
            runner.train()


def test_requests_that_come_too_late_say_that_the_run_is_over(tmp_path: Path) -> None:
    """Before a run, in its last handlers, and after it."""
    runner = make_runner(tmp_path)
    with pytest.raises(RunEnded, match=r"stop\(\).*no run of 'run-"):
        runner.stop()
    answers: list[Any] = []
    runner.bus.subscribe(AfterRun, lambda runner: answers.append(runner.stop()))
    runner.bus.subscribe(AfterRun, lambda runner: answers.append(runner.save_checkpoint("late")))
    runner.train()
    for answer, what in zip(answers, [r"stop\(\)", "saving late"], strict=True):
        with pytest.raises(RunEnded, match=f"{what} cannot take effect: the run ends"):
            answer.result(0)
    with pytest.raises(RunEnded):
        runner.run_on_main_stream(print)
    assert checkpoints(tmp_path) == ["epoch_1", "epoch_2"]


def test_functions_for_the_main_stream_run_between_mount_points(tmp_path: Path) -> None:
    """Asked for by a thread that waits for the answer; an error arrives there, and training goes on."""
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=100_000), default_hooks=dict(checkpoint=None))
    answers: list[Any] = []

    def ask() -> None:
        answers.append(runner.run_on_main_stream(lambda a, b: (a + b, threading.get_ident()), 1, 2).result(20))
        with pytest.raises(ZeroDivisionError):
            runner.run_on_main_stream(lambda: 1 / 0).result(20)
        answers.append(runner.stop().result(20))

    thread = threading.Thread(target=ask)
    runner.bus.subscribe(AfterTrainIter, thread.start, once=True)
    runner.train()
    thread.join()
    assert answers[0] == (3, threading.get_ident())
    assert answers[1].iter == runner.iter


def test_waiting_for_the_main_stream_on_the_main_stream_is_refused(tmp_path: Path) -> None:
    """An inline handler can simply call the function."""
    runner = make_runner(tmp_path)
    runner.bus.subscribe(AfterTrainIter, lambda runner: runner.run_on_main_stream(int).result())
    with pytest.raises(WouldDeadlock):
        runner.train()


def test_a_save_asked_for_in_a_handler_is_taken_at_the_boundary(tmp_path: Path) -> None:
    """The counters have moved by then; the answer is where it lies."""
    runner = make_runner(tmp_path, default_hooks=dict(checkpoint=None))
    answers: list[Any] = []
    runner.bus.subscribe(AfterTrainIter, at_iter(3, lambda: answers.append(runner.save_checkpoint("mine"))))
    saves = record(runner.bus, BeforeSaveCheckpoint)
    runner.train()
    (event,) = saves
    assert isinstance(event, BeforeSaveCheckpoint)
    assert (event.name, event.epoch, event.iter) == ("mine", 1, 4)
    path = answers[0].result(0)
    assert load_checkpoint(path)["progress"] == {"epoch": 1, "iter": 4, "batch_idx": 1, "validation_due": False}


# --- hubs, buses and other runs ---------------------------------------------------------------------------------------


def test_a_bus_and_a_hub_made_before_the_run_are_those_of_the_run(tmp_path: Path) -> None:
    """Whoever knows the name hears and reads everything from the first event on."""
    name = unique_name()
    heard: list[Event] = []
    EventBus.get_instance(name).subscribe(MountPoint, lambda event: heard.append(event))
    hub = MessageHub.get_instance(name)
    gc.collect()
    runner = make_runner(tmp_path, experiment_name=name)
    runner.train()
    assert names(heard)[0] == "BeforeRun"
    assert names(heard)[-1] == "AfterRun"
    assert hub is runner.message_hub
    assert hub.get_info("iter") == 6


def test_a_detached_thread_finds_the_hub_and_reads_while_training_goes_on(tmp_path: Path) -> None:
    """It waits for an iteration, reads a mean, and is told when the run is over."""
    name = unique_name()
    seen: list[Any] = []

    def read() -> None:
        hub = MessageHub.get_instance(name)
        seen.append(
            hub.wait_until_blocking(lambda h: h.get_info("iter", 0) >= 5 and h.get_scalar("train/loss").mean(), timeout=20)
        )
        try:
            hub.wait_until_blocking(lambda h: h.get_info("iter", 0) >= 10**9, timeout=20)
        except RunEnded as error:
            seen.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    make_runner(tmp_path, experiment_name=name, train_cfg=dict(max_epochs=4)).train()
    thread.join()
    assert seen[0] > 0
    assert isinstance(seen[1], RunEnded)


def test_runs_on_two_threads_do_not_see_each_other(tmp_path: Path) -> None:
    """Each has its own hub, bus, logs and checkpoints, and its handlers find their own current hub."""
    barrier = threading.Barrier(2)
    found: dict[str, set[str]] = {}
    runners: dict[str, Runner] = {}

    def train(part: str) -> None:
        runner = runners[part] = make_runner(tmp_path / part, model=make_model(seed=ord(part)), train_cfg=dict(max_epochs=3))
        hubs = found.setdefault(runner.experiment_name, set())
        runner.bus.subscribe(BeforeTrainEpoch, lambda: barrier.wait(20))
        runner.bus.subscribe(AfterTrainIter, lambda: hubs.add(MessageHub.get_current_instance().name))

        async def note(hub: MessageHub) -> None:
            hubs.add(MessageHub.get_current_instance().name)

        runner.bus.subscribe(AfterTrainIter, note)
        runner.train()

    threads = [threading.Thread(target=train, args=(part,)) for part in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {runner.experiment_name: {runner.experiment_name} for runner in runners.values()}
    for part, runner in runners.items():
        assert checkpoints(tmp_path / part) == ["epoch_1", "epoch_2", "epoch_3"]
        assert len(runner.message_hub.get_scalar("train/loss").data[0]) == 9


def test_an_explicit_bus_keeps_the_hub_of_the_run_that_is_live_on_it(tmp_path: Path) -> None:
    """Making a second runner for the bus meanwhile neither steals its hub nor adds hooks to the live run."""
    bus = EventBus("shared")
    first = make_runner(tmp_path / "a", bus=bus)
    second: list[Runner] = []
    first.bus.subscribe(AfterTrainIter, lambda: second.append(make_runner(tmp_path / "b", bus=bus)), once=True)
    hubs: set[str] = set()
    first.bus.subscribe(AfterTrainIter, lambda hub: hubs.add(hub.name))
    first.train()
    assert hubs == {first.experiment_name}
    assert len(first.message_hub.get_scalar("train/loss").data[0]) == 6
    second[0].train()
    assert len(second[0].message_hub.get_scalar("train/loss").data[0]) == 6
    assert hubs == {first.experiment_name, second[0].experiment_name}


def test_freeing_a_run_frees_its_model_bus_and_hub(tmp_path: Path) -> None:
    """Nothing holds a finished run, a failed one, or one that never ran."""

    def run(how: str) -> list[weakref.ref[Any]]:
        runner = make_runner(tmp_path / how)

        async def note() -> None: ...

        runner.bus.subscribe(AfterTrainIter, note)
        if how == "failed":
            runner.bus.subscribe(AfterTrainEpoch, lambda: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                runner.train()
        elif how == "finished":
            runner.train()
            runner.test()
        return [weakref.ref(part) for part in (runner, runner.bus, runner.message_hub, runner.model)]

    for how in ("finished", "failed", "idle"):
        references = run(how)
        gc.collect()
        assert [reference() for reference in references] == [None] * 4, how


def test_training_works_where_an_event_loop_is_running_already(tmp_path: Path) -> None:
    """As in a notebook: `train()` blocks the loop, and awaited handlers run all the same."""
    heard: list[int] = []

    async def note(iter: int) -> None:
        await asyncio.sleep(0)
        heard.append(iter)

    async def cell() -> dict[str, Any]:
        runner = make_runner(tmp_path)
        runner.bus.subscribe(AfterTrainIter, note)
        return runner.train()

    assert "loss" in asyncio.run(cell())
    assert heard == list(range(6))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_awaited_handlers_of_a_script_run_on_the_backend_it_names(backend: Any, tmp_path: Path) -> None:
    """One joined thread with one event loop for the whole run."""
    threads: set[threading.Thread] = set()
    runner = make_runner(tmp_path)

    async def note() -> None:
        await checkpoint()
        threads.add(threading.current_thread())

    runner.bus.subscribe(MountPoint, note)
    runner.train(backend=backend)
    (thread,) = threads
    assert not thread.is_alive()


def test_a_run_whose_handlers_are_all_inline_starts_no_thread(tmp_path: Path) -> None:
    """Everything happens on the calling thread; the writers of a log would have threads of their own."""
    before = threading.active_count()
    counts: set[int] = set()
    runner = make_runner(tmp_path, default_hooks=dict(logger=None))
    runner.bus.subscribe(MountPoint, lambda: counts.add(threading.active_count()))
    runner.train()
    assert counts == {before}


def test_many_runs_leave_nothing_behind(tmp_path: Path) -> None:
    """Threads, file descriptors and logging handlers are as before, with and without failures."""

    def run(number: int) -> None:
        runner = make_runner(tmp_path / str(number), train_cfg=dict(max_epochs=1))

        async def note() -> None: ...

        runner.bus.subscribe(AfterTrainIter, note)
        if number % 2:
            runner.bus.subscribe(AfterValIter, lambda: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                runner.train()
        else:
            runner.train()

    run(0)
    before = count_resources()
    for number in range(1, 7):
        run(number)
    assert count_resources() == before


def count_resources() -> tuple[int, int, int, int]:
    """Return the numbers of threads, open descriptors, handlers of the root logger, and handlers known to logging."""
    gc.collect()
    return threading.active_count(), len(os.listdir("/proc/self/fd")), len(logging.root.handlers), len(logging._handlerList)  # type: ignore[attr-defined]


def test_the_logger_of_a_run_is_not_among_the_loggers_of_the_process(tmp_path: Path) -> None:
    """A user's own logging is left alone."""
    runner = make_runner(tmp_path)
    level = logging.root.level
    runner.train()
    assert runner.experiment_name not in logging.Logger.manager.loggerDict
    assert logging.root.level == level
    assert "INFO - train of" in (runner.log_dir / "train.log").read_text()


def test_a_line_of_the_log_stays_one_line(tmp_path: Path) -> None:
    """Control characters in a message cannot fake a line."""
    runner = make_runner(tmp_path)
    runner.bus.subscribe(AfterTrain, lambda runner: runner.logger.info("first\nsecond \x1b[31mred"))
    runner.train()
    (line,) = [line for line in (runner.log_dir / "train.log").read_text().splitlines() if "first" in line]
    assert r"first\nsecond \x1b[31mred" in line


def test_the_mode_of_the_model_follows_the_phase(tmp_path: Path) -> None:
    """Training mode in training, evaluation mode and no gradients in validation."""
    modes: dict[str, set[bool]] = {}
    runner = make_runner(tmp_path)

    def note(event: MountPoint, runner: Runner) -> None:
        modes.setdefault(type(event).__name__, set()).add(runner.model.training)

    runner.bus.subscribe(MountPoint, note)
    runner.train()
    assert modes["BeforeTrainIter"] == modes["AfterTrainIter"] == {True}
    assert modes["BeforeValIter"] == modes["AfterValIter"] == {False}


def test_stopping_early_frees_the_workers_of_a_dataloader(tmp_path: Path) -> None:
    """Their iterator is let go of when the run is over."""
    closed: list[bool] = []

    class Loader:
        def __iter__(self) -> Iterator[Any]:
            try:
                while True:
                    yield from make_loader(12)
            finally:
                closed.append(True)

    runner = make_runner(tmp_path, train_dataloader=Loader())
    runner.bus.subscribe(AfterTrainIter, at_iter(2, lambda: runner.stop()))
    runner.train()
    assert closed == [True]


def test_call_hook_reaches_stages_of_a_users_own(tmp_path: Path) -> None:
    """The classic way of adding mount points."""
    heard: list[Any] = []

    class Staged(Hook):
        def my_stage(self, runner: Runner, value: int) -> None:
            heard.append((runner.iter, value))

    runner = make_runner(tmp_path, custom_hooks=[Staged()])
    runner.bus.subscribe(BeforeValIter, lambda runner: runner.call_hook("my_stage", value=7), once=True)
    runner.train()
    assert heard == [(3, 7)]

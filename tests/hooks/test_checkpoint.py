"""CheckpointHook: what is saved when, what is kept, which one is best, and what is inside."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hookbus.checkpoint import CheckpointStore, load_checkpoint
from hookbus.errors import Skip
from hookbus.events import BeforeSaveCheckpoint
from hookbus.hooks import Hook
from hookbus.hooks.checkpoint import rule_of
from hookbus.runner import Runner
from tests.runner.builders import checkpoints, make_runner, same, weights


class FixedMetric:
    """An evaluator that gives one value after the other, under a name of choice."""

    def __init__(self, *values: float | None, name: str = "acc") -> None:
        self._values = list(values)
        self._name = name

    def reset(self) -> None: ...
    def update(self, predictions: Any, targets: Any) -> None: ...
    def compute(self) -> dict[str, float | None]:
        return {self._name: self._values.pop(0)}


def make(tmp_path: Path, epochs: int, checkpoint: dict[str, Any] | None, **changes: Any) -> Runner:
    """Return a runner with these options of its CheckpointHook."""
    return make_runner(tmp_path, train_cfg=dict(max_epochs=epochs), default_hooks=dict(checkpoint=checkpoint), **changes)


def make_best(tmp_path: Path, *values: float | None, name: str = "acc", **checkpoint: Any) -> Runner:
    """Return a runner whose validations give these values."""
    metric = FixedMetric(*values, name=name)
    return make(tmp_path, len(values), dict(interval=100, save_last=False, save_best=name) | checkpoint, val_evaluator=metric)


def best_of(work_dir: Path) -> list[str]:
    """Return the names of the best checkpoints."""
    return [name for name in checkpoints(work_dir) if name.startswith("best_")]


@pytest.mark.parametrize(
    ("options", "saved"),
    [
        (dict(interval=1), ["epoch_1", "epoch_2", "epoch_3", "epoch_4", "epoch_5"]),
        (dict(interval=2), ["epoch_2", "epoch_4", "epoch_5"]),
        (dict(interval=2, save_last=False), ["epoch_2", "epoch_4"]),
        (dict(interval=-1), ["epoch_5"]),
        (dict(interval=-1, save_last=False), []),
        (dict(interval=10), ["epoch_5"]),
        (dict(interval=1, max_keep_ckpts=2), ["epoch_4", "epoch_5"]),
        (dict(interval=2, max_keep_ckpts=1), ["epoch_5"]),
        (dict(interval=6, by_epoch=False), ["iter_12", "iter_15", "iter_6"]),
        (dict(interval=5, by_epoch=False, save_last=False), ["iter_10", "iter_15", "iter_5"]),
        (dict(interval=4, by_epoch=False, max_keep_ckpts=2), ["iter_12", "iter_15"]),
    ],
)
def test_checkpoints_are_saved_at_intervals_and_at_the_end(options: dict[str, Any], saved: list[str], tmp_path: Path) -> None:
    """Five epochs of three iterations."""
    runner = make(tmp_path, 5, options)
    runner.train()
    assert checkpoints(tmp_path) == saved
    newest = max(saved, key=lambda name: int(name.rpartition("_")[2]), default=None)
    last = tmp_path / "last_checkpoint"
    assert (last.read_text() if last.exists() else None) == newest


def test_the_options_of_the_tutorial(tmp_path: Path) -> None:
    """Twenty epochs, every fifth, the newest two: at each moment no more and no fewer."""
    runner = make(tmp_path, 20, dict(interval=5, max_keep_ckpts=2), val_dataloader=None)
    kept: list[list[str]] = []
    runner.bus.subscribe(BeforeSaveCheckpoint, lambda: kept.append(checkpoints(tmp_path)))
    runner.train()
    assert kept == [[], ["epoch_5"], ["epoch_10", "epoch_5"], ["epoch_10", "epoch_15"]]
    assert checkpoints(tmp_path) == ["epoch_15", "epoch_20"]


def test_an_interval_is_inherited_where_it_is_not_set(tmp_path: Path) -> None:
    """The entry of `default_hooks` only changes what it names."""
    make(tmp_path, 3, dict(type="CheckpointHook", max_keep_ckpts=2)).train()
    assert checkpoints(tmp_path) == ["epoch_2", "epoch_3"]


# --- the best one -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "options", "best"),
    [
        ((0.1, 0.3, 0.2), {}, "best_acc_epoch_2"),
        ((0.3, 0.3, 0.3), {}, "best_acc_epoch_1"),
        ((0.3, 0.2, 0.1), dict(rule="less"), "best_acc_epoch_3"),
        ((math.nan, 0.2, math.nan), {}, "best_acc_epoch_2"),
        ((math.nan, math.nan), {}, None),
        ((None, 0.2, None), {}, "best_acc_epoch_2"),
        ((-math.inf, math.inf, 1.0), {}, "best_acc_epoch_2"),
        ((math.inf, 0.1), dict(rule="less"), "best_acc_epoch_2"),
        ((0, 1, 1), {}, "best_acc_epoch_2"),
        ((0.1, 0.3, 0.2), dict(save_best="auto"), "best_acc_epoch_2"),
    ],
)
def test_the_best_checkpoint_is_kept(
    values: tuple[float, ...], options: dict[str, Any], best: str | None, tmp_path: Path
) -> None:
    """Strictly better, by the rule; NaN never wins."""
    runner = make_best(tmp_path, *values, **options)
    runner.train()
    assert best_of(tmp_path) == ([best] if best else [])
    assert runner.message_hub.get_info("best_ckpt") == best
    if best:
        info = CheckpointStore(tmp_path / "checkpoints").get(best)
        assert info.role == "best"
        assert info.epoch == int(best[-1])


@pytest.mark.parametrize(
    ("metric", "rule"),
    [
        ("accuracy", "greater"),
        ("top1", "greater"),
        ("AUROC", None),
        ("loss", "less"),
        ("val_loss", "less"),
        ("miou_loss", "greater"),
        ("coco/bbox_mAP", "greater"),
        ("f1_score", "greater"),
        ("mean_squared_error", "less"),
        ("fluffiness", None),
    ],
)
def test_the_rule_is_told_from_the_name_where_it_can_be(metric: str, rule: str | None) -> None:
    """Otherwise the error asks for it."""
    if rule is None:
        with pytest.raises(ValueError, match=rf"{metric}.*rule='greater'"):
            rule_of(metric)
    else:
        assert rule_of(metric) == rule


def test_auto_takes_the_first_metric_and_stays_with_it(tmp_path: Path) -> None:
    """The evaluator's, which come before the loss."""
    runner = make_best(tmp_path, 0.1, 0.3, 0.2, save_best="auto")
    runner.train()
    assert runner.message_hub.get_info("best_score") == 0.3


@pytest.mark.parametrize("name", ["coco/bbox_mAP", "AR@100", "acc top 1", "précision_acc"])
def test_any_name_of_a_metric_makes_a_good_directory(name: str, tmp_path: Path) -> None:
    """What a directory should not hold becomes an underscore."""
    runner = make_best(tmp_path, 0.1, 0.2, name=name)
    runner.train()
    (best,) = best_of(tmp_path)
    assert best.startswith("best_")
    assert best.endswith("_epoch_2")


def test_best_checkpoints_do_not_count_as_periodic_ones(tmp_path: Path) -> None:
    """Both kinds keep their own number."""
    runner = make_best(tmp_path, 0.3, 0.2, 0.1, interval=1, max_keep_ckpts=1)
    runner.train()
    assert checkpoints(tmp_path) == ["best_acc_epoch_1", "epoch_3"]


def test_a_superseded_best_goes_only_when_the_newer_one_is_there(tmp_path: Path) -> None:
    """If the newer one cannot be saved, the older one stays."""
    runner = make_best(tmp_path, 0.1, 0.2)

    def spoil(name: str, checkpoint: dict[str, Any]) -> None:
        if name == "best_acc_epoch_2":
            checkpoint["mine"] = object()

    runner.bus.subscribe(BeforeSaveCheckpoint, spoil)
    with pytest.raises(TypeError, match="mine"):
        runner.train()
    assert best_of(tmp_path) == ["best_acc_epoch_1"]
    load_checkpoint(tmp_path / "checkpoints" / "best_acc_epoch_1")


def test_a_best_save_that_was_skipped_does_not_fail_the_next_one(tmp_path: Path) -> None:
    """There is nothing to supersede then."""
    runner = make_best(tmp_path, 0.1, 0.2, 0.3)

    def skip(name: str) -> None:
        if name == "best_acc_epoch_2":
            raise Skip("no room")

    runner.bus.subscribe(BeforeSaveCheckpoint, skip)
    runner.train()
    assert "best_acc_epoch_3" in best_of(tmp_path)


def test_a_validation_of_its_own_saves_nothing(tmp_path: Path) -> None:
    """Nor does it count as the best so far."""
    runner = make_best(tmp_path, 0.9, 0.1, 0.2)
    runner.val()
    assert checkpoints(tmp_path) == []
    runner.train_loop.max_epochs = 2
    runner.train()
    assert best_of(tmp_path) == ["best_acc_epoch_2"]


def test_two_hooks_keep_the_best_of_two_metrics(tmp_path: Path) -> None:
    """A second CheckpointHook among the custom hooks."""
    extra = dict(type="CheckpointHook", save_best="loss", save_last=False)
    metric = FixedMetric(0.3, 0.2, 0.1)
    runner = make(tmp_path, 3, dict(save_best="acc", interval=-1, save_last=False), val_evaluator=metric, custom_hooks=[extra])
    runner.train()
    assert [name.rpartition("_epoch")[0] for name in best_of(tmp_path)] == ["best_acc", "best_loss"]


# --- what is inside ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_the_whole_state(tmp_path: Path) -> None:
    """Model, optimizer, schedules, hub, hooks, random generators and counters, exactly."""

    class Counting(Hook):
        def __init__(self) -> None:
            self.seen = 0

        def after_train_iter(self) -> None:
            self.seen += 1

        def state_dict(self) -> dict[str, Any]:
            return {"seen": self.seen}

    scheduler = dict(type="StepLR", step_size=1, gamma=0.5)
    runner = make(tmp_path, 2, dict(save_best="loss"), param_scheduler=scheduler, custom_hooks=[Counting(), Counting()])
    expected: dict[str, Any] = {}

    def keep(name: str, checkpoint: dict[str, Any], runner: Runner) -> None:
        if name == "epoch_2":
            momentum = checkpoint["optimizer"]["state"][0]["momentum_buffer"].clone()
            expected.update(weights=weights(runner.model), momentum=momentum, torch=checkpoint["rng"]["torch"].clone())

    runner.bus.subscribe(BeforeSaveCheckpoint, keep, priority="LOWEST")
    runner.train()
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "epoch_2")
    assert same(dict(checkpoint["state_dict"]), expected["weights"])
    assert torch.equal(checkpoint["optimizer"]["state"][0]["momentum_buffer"], expected["momentum"])
    assert checkpoint["optimizer"]["param_groups"][0]["lr"] == 0.025
    assert checkpoint["param_schedulers"][0]["last_epoch"] == 2
    assert checkpoint["progress"] == {"epoch": 2, "iter": 6, "batch_idx": 0}
    assert (checkpoint["meta"]["epoch"], checkpoint["meta"]["iter"], checkpoint["meta"]["seed"]) == (2, 6, 0)
    assert checkpoint["hooks"]["Counting"] == {"seen": 6}
    assert checkpoint["hooks"]["Counting_2"] == {"seen": 6}
    assert checkpoint["hooks"]["CheckpointHook"]["best_checkpoint"].startswith("best_loss_epoch_")
    assert torch.equal(checkpoint["rng"]["torch"], expected["torch"])
    assert set(checkpoint["rng"]) >= {"python", "numpy", "torch"}
    assert len(checkpoint["message_hub"]["log_scalars"]["train/loss"][0]) == 6


def test_the_weights_load_with_safetensors_alone(tmp_path: Path) -> None:
    """No hookbus is needed to use a trained model."""
    runner = make(tmp_path, 2, {})
    runner.train()
    loaded = load_file(tmp_path / "checkpoints" / "epoch_2" / "model.safetensors")
    assert same(loaded, weights(runner.model))


def test_a_checkpoint_saved_in_mid_epoch_knows_its_place(tmp_path: Path) -> None:
    """Completed batches of the running epoch are part of the progress."""
    runner = make(tmp_path, 2, dict(interval=4, by_epoch=False, save_last=False))
    runner.train()
    assert load_checkpoint(tmp_path / "checkpoints" / "iter_4")["progress"] == {"epoch": 1, "iter": 4, "batch_idx": 1}


def test_what_hooks_put_into_a_checkpoint_is_there_when_it_is_loaded(tmp_path: Path) -> None:
    """And may be edited before it is taken over."""

    class Marking(Hook):
        def before_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["mark"] = {"shape": (1, 2), "tensor": torch.arange(3)}

        def after_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            assert checkpoint["mark"]["shape"] == (1, 2)
            checkpoint["state_dict"]["bias"] = torch.full((3,), 7.0)

    make(tmp_path / "a", 1, {}, custom_hooks=[Marking()]).train()
    runner = make(tmp_path / "b", 1, {}, custom_hooks=[Marking()], load_from=tmp_path / "a" / "checkpoints" / "epoch_1")
    runner.test()
    assert runner.model.state_dict()["bias"].tolist() == [7.0] * 3
    assert runner.epoch == 0


def test_saving_between_runs_happens_at_once(tmp_path: Path) -> None:
    """There is no boundary to wait for."""
    runner = make(tmp_path, 1, None)
    runner.train()
    path = runner.save_checkpoint("mine")
    assert path == tmp_path / "checkpoints" / "mine"
    assert checkpoints(tmp_path) == ["mine"]


def test_the_checkpoints_of_an_earlier_run_are_set_aside(tmp_path: Path) -> None:
    """A fresh run in the same directory neither mixes with them nor deletes them."""
    make(tmp_path, 3, {}).train()
    runner = make(tmp_path, 1, dict(max_keep_ckpts=1))
    runner.train()
    assert checkpoints(tmp_path) == ["epoch_1"]
    (aside,) = tmp_path.glob("checkpoints_before_*")
    assert sorted(path.name for path in aside.iterdir()) == ["epoch_1", "epoch_2", "epoch_3"]
    assert "were moved to" in (runner.log_dir / "train.log").read_text()

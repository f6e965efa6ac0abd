"""CheckpointHook: which checkpoint is the best one, and what becomes of the one it beats."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hookbus.checkpoint import CheckpointStore, load_checkpoint
from hookbus.errors import ConfigError, MetricNotFound, Skip
from hookbus.events import BeforeSaveCheckpoint
from hookbus.hooks import CheckpointHook
from hookbus.runner import Runner
from tests.runner.builders import checkpoints, make_runner


class FixedMetrics:
    """An evaluator that gives one dict of metrics after the other."""

    def __init__(self, *metrics: dict[str, Any]) -> None:
        self._metrics = list(metrics)

    def reset(self) -> None: ...
    def update(self, predictions: Any, targets: Any) -> None: ...
    def compute(self) -> dict[str, Any]:
        return self._metrics.pop(0)


def make(tmp_path: Path, epochs: int, checkpoint: dict[str, Any] | None, **changes: Any) -> Runner:
    """Return a runner with these options of its CheckpointHook."""
    return make_runner(tmp_path, train_cfg=dict(max_epochs=epochs), default_hooks=dict(checkpoint=checkpoint), **changes)


def make_best(tmp_path: Path, *values: Any, name: str = "acc", resume: Any = False, **checkpoint: Any) -> Runner:
    """Return a runner whose validations give these values."""
    metrics = FixedMetrics(*({name: value} for value in values))
    options = dict(interval=100, save_last=False, save_best=name) | checkpoint
    return make(tmp_path, len(values), options, val_evaluator=metrics, resume=resume)


def best_of(work_dir: Path) -> list[str]:
    """Return the names of the best checkpoints."""
    return [name for name in checkpoints(work_dir) if name.startswith("best_")]


@pytest.mark.parametrize(
    ("values", "options", "best"),
    [
        ((0.5, math.nan, 0.7, 0.6), {}, "best_acc_epoch_3"),
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


def test_auto_takes_the_first_metric_and_stays_with_it(tmp_path: Path) -> None:
    """The evaluator's, which come before the loss."""
    runner = make_best(tmp_path, 0.1, 0.3, 0.2, save_best="auto")
    runner.train()
    assert runner.message_hub.get_info("best_score") == 0.3


def test_the_best_score_is_a_row_of_decisions(tmp_path: Path) -> None:
    """At each validation: what is there before it, what is asked for, and what the hub knows then."""
    runner = make_best(tmp_path, 0.5, math.nan, 0.7, 0.6, None, 0.8)
    rows: list[tuple[list[str], str, float]] = []

    def note(name: str, hub: Any) -> None:
        rows.append((best_of(tmp_path), name, hub.get_info("best_score")))
        assert hub.get_info("best_ckpt") == name

    runner.bus.subscribe(BeforeSaveCheckpoint, note)
    runner.train()
    assert rows == [
        ([], "best_acc_epoch_1", 0.5),
        (["best_acc_epoch_1"], "best_acc_epoch_3", 0.7),
        (["best_acc_epoch_3"], "best_acc_epoch_6", 0.8),
    ]
    assert checkpoints(tmp_path) == ["best_acc_epoch_6"]  # a new best one is no reason for a periodic one


def test_several_metrics_have_one_best_checkpoint_each(tmp_path: Path) -> None:
    """And the hub says which."""
    metrics = [{"acc": 0.1, "err/or": 3.0}, {"acc": 0.3, "err/or": 4.0}, {"acc": 0.2, "err/or": 2.0}]
    options = dict(interval=-1, save_last=False, save_best=["acc", "err/or"], rule=["greater", "less"])
    runner = make(tmp_path, 3, options, val_evaluator=FixedMetrics(*metrics))
    runner.train()
    assert best_of(tmp_path) == ["best_acc_epoch_2", "best_err_or_epoch_3"]
    info = runner.message_hub.get_info
    assert (info("best_score_acc"), info("best_ckpt_acc")) == (0.3, "best_acc_epoch_2")
    assert (info("best_score_err/or"), info("best_ckpt_err/or")) == (2.0, "best_err_or_epoch_3")
    assert info("best_score") is None
    facts = {found.name: found.facts for found in CheckpointStore(tmp_path / "checkpoints").list()}
    assert facts["best_err_or_epoch_3"] == {"metric": "err/or", "score": 2.0}


@pytest.mark.parametrize(
    ("train_cfg", "options", "best"),
    [
        (dict(max_epochs=2), {}, "best_acc_epoch_2"),
        (dict(max_epochs=2), dict(by_epoch=False), "best_acc_iter_6"),
        (dict(max_epochs=2), dict(filename_tmpl="mine_{}"), "best_acc_mine_2"),
        (dict(max_epochs=2), dict(by_epoch=False, filename_tmpl="mine_{}"), "best_acc_mine_6"),
        (dict(by_epoch=False, max_iters=4, val_interval=2), {}, "best_acc_iter_4"),
        (dict(by_epoch=False, max_iters=4, val_interval=2), dict(by_epoch=False), "best_acc_iter_4"),
    ],
)
def test_a_best_checkpoint_is_named_after_its_moment(
    train_cfg: dict[str, Any], options: dict[str, Any], best: str, tmp_path: Path
) -> None:
    """In iterations where the hook or the run counts these."""
    checkpoint = dict(interval=-1, save_last=False, save_best="acc") | options
    metrics = FixedMetrics({"acc": 0.1}, {"acc": 0.2})
    runner = make_runner(tmp_path, train_cfg=train_cfg, default_hooks=dict(checkpoint=checkpoint), val_evaluator=metrics)
    runner.train()
    assert checkpoints(tmp_path) == [best]


@pytest.mark.parametrize(
    ("options", "best"),
    [
        (dict(save_best="fluff", greater_keys="fluff"), "best_fluff_epoch_2"),
        (dict(save_best="fluff", less_keys=["fluff"]), "best_fluff_epoch_3"),
        (dict(save_best="auto", less_keys=["fluff"]), "best_fluff_epoch_3"),
        (dict(save_best="auto", rule="greater"), "best_fluff_epoch_2"),
    ],
)
def test_a_rule_may_come_from_keys_of_ones_own(options: dict[str, Any], best: str, tmp_path: Path) -> None:
    """Also for the metric that is taken because it comes first."""
    make_best(tmp_path, 0.2, 0.3, 0.1, name="fluff", **options).train()
    assert best_of(tmp_path) == [best]


def test_a_first_metric_that_does_not_tell_its_rule_ends_training(tmp_path: Path) -> None:
    """At the first validation, with the remedy."""
    runner = make_best(tmp_path, 0.1, name="fluff", save_best="auto")
    with pytest.raises(ConfigError, match=r"fluff.*rule='greater'"):
        runner.train()


def test_a_metric_that_is_missing_ends_training(tmp_path: Path) -> None:
    """Rather than waiting for it for ever; the nearest one is named."""
    runner = make_best(tmp_path, 0.1, name="acc", save_best="acc1")
    with pytest.raises(MetricNotFound, match=r"save_best='acc1'.*did you mean 'acc'"):
        runner.train()


def test_a_metric_that_is_no_number_ends_training(tmp_path: Path) -> None:
    """A list of accuracies has no order."""
    runner = make_best(tmp_path, [0.1, 0.2])
    with pytest.raises(ConfigError, match=r"save_best='acc' cannot compare \[0.1, 0.2\]; expected one number"):
        runner.train()


@pytest.mark.parametrize("save_best", ["acc", "auto"])
def test_a_validation_without_metrics_is_said_and_left_out(save_best: str, tmp_path: Path) -> None:
    """There is nothing to compare."""

    def train_step(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        loss: torch.Tensor = model(batch[0]).sum()
        return loss

    changes: dict[str, Any] = dict(loss_fn=None, train_step=train_step, val_step=lambda model, batch: {})
    options = dict(interval=-1, save_last=False, save_best=save_best)
    runner = make(tmp_path, 1, options, test_dataloader=None, **changes)
    runner.train()
    assert checkpoints(tmp_path) == []
    assert "the validation gave no metrics to compare" in (runner.log_dir / "train.log").read_text()


def test_waiting_for_a_metric_without_validation_is_refused(tmp_path: Path) -> None:
    """Before the first epoch."""
    runner = make(tmp_path, 1, dict(save_best="acc"), val_dataloader=None)
    with pytest.raises(ConfigError, match="needs a validation; give the runner a val_dataloader"):
        runner.train()


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
    """There is nothing to supersede then, but the one before goes all the same."""
    runner = make_best(tmp_path, 0.1, 0.2, 0.3)

    def skip(name: str) -> None:
        if name == "best_acc_epoch_2":
            raise Skip("no room")

    runner.bus.subscribe(BeforeSaveCheckpoint, skip)
    runner.train()
    assert best_of(tmp_path) == ["best_acc_epoch_3"]


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
    metric = FixedMetrics({"acc": 0.3}, {"acc": 0.2}, {"acc": 0.1})
    runner = make(tmp_path, 3, dict(save_best="acc", interval=-1, save_last=False), val_evaluator=metric, custom_hooks=[extra])
    runner.train()
    assert [name.rpartition("_epoch")[0] for name in best_of(tmp_path)] == ["best_acc", "best_loss"]


# --- after a restart --------------------------------------------------------------------------------------------------


def test_a_restart_goes_on_with_the_best_one(tmp_path: Path) -> None:
    """It is compared with, and goes when it is beaten. The validation that was due when `epoch_2` was saved comes again."""
    make_best(tmp_path, 0.7, 0.5, interval=1).train()
    runner = make_best(tmp_path, 0.5, 0.6, 0.8, interval=1, resume=True)
    runner.train_loop.max_epochs = 4
    asked: list[str] = []
    runner.bus.subscribe(BeforeSaveCheckpoint, lambda name: asked.append(name))
    runner.train()
    assert [name for name in asked if name.startswith("best_")] == ["best_acc_epoch_4"]
    assert best_of(tmp_path) == ["best_acc_epoch_4"]


def test_other_metrics_may_be_watched_after_a_restart() -> None:
    """What is no longer compared is left where it is."""
    first, second = CheckpointHook(save_best=["acc", "loss"]), CheckpointHook(save_best=["loss", "f1"])
    first.best.update({"acc": 0.5, "loss": 2.0}, "save_best")
    first._best_names = {"acc": ["best_acc_epoch_1"], "loss": ["best_loss_epoch_1"]}
    second.load_state_dict(first.state_dict())
    assert second.best.scores == {"loss": 2.0}
    assert second.state_dict()["best_names"] == {"loss": ["best_loss_epoch_1"]}


def test_a_best_checkpoint_can_be_resumed(tmp_path: Path) -> None:
    """It holds what a periodic one holds."""
    make_best(tmp_path, 0.5, interval=1).train()
    periodic, best = (load_checkpoint(tmp_path / "checkpoints" / name) for name in ("epoch_1", "best_acc_epoch_1"))
    assert best.keys() == periodic.keys()
    runner = make_best(tmp_path, 0.6, 0.7, resume=tmp_path / "checkpoints" / "best_acc_epoch_1")
    runner.train()
    assert runner.epoch == 2

"""The tutorial on the hooks that are there by themselves: each docstring is its sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import DataLoader, DistributedSampler

from hookbus.errors import ConfigError
from hookbus.events import AfterTrainEpoch, BeforeSaveCheckpoint, BeforeTrainEpoch, BeforeTrainIter
from hookbus.hooks import DistSamplerSeedHook, IterTimerHook, ParamSchedulerHook, RuntimeInfoHook
from hookbus.hub import MessageHub
from hookbus.optim import OptimWrapper
from hookbus.runner import Runner
from hookbus.testing import make_runner
from hookbus.writers import Record, Writer
from tests.runner.builders import (
    TEST_BATCHES,
    TRAIN_BATCHES,
    VAL_BATCHES,
    checkpoints,
    make_data,
    make_loader,
    read_records,
    record,
    same,
    weights,
)
from tests.tutorial.hooks import FixedMetrics
from tests.writers.event_files import curves


def make_sampled_runner(work_dir: Path, **changes: Any) -> Runner:
    """Return a runner whose data a distributed sampler shuffles, and whose rate a schedule moves."""
    sampler: DistributedSampler[Any] = DistributedSampler(make_data(12), num_replicas=1, rank=0, shuffle=True)
    loader = DataLoader(make_data(12), batch_size=4, sampler=sampler)
    schedule = dict(type="ExponentialLR", gamma=0.5)
    return make_runner(work_dir, train_dataloader=loader, param_scheduler=schedule, **changes)


def rate_of(runner: Runner) -> float:
    """Return the learning rate."""
    assert isinstance(runner.optim_wrapper, OptimWrapper)
    rate: float = runner.optim_wrapper.param_groups[0]["lr"]
    return rate


# --- all of them ------------------------------------------------------------------------------------------------------

TRACES: dict[str, Callable[[Runner], bool]] = {
    "runtime_info": lambda runner: "train/loss" in runner.message_hub.log_scalars,
    "timer": lambda runner: "train/time" in runner.message_hub.log_scalars,
    "sampler_seed": lambda runner: runner.train_dataloader.sampler.epoch == 1,
    "logger": lambda runner: (runner.log_dir / "metrics.jsonl").exists(),
    "param_scheduler": lambda runner: rate_of(runner) == 0.025,
    "checkpoint": lambda runner: checkpoints(runner.work_dir) == ["epoch_1", "epoch_2"],
}
"""What each of them leaves behind."""


@pytest.mark.parametrize("off", [None, *TRACES])
def test_default_hooks_do_their_work_unless_they_are_switched_off(off: str | None, tmp_path: Path) -> None:
    """Default hooks (registered unless switched off)."""
    runner = make_sampled_runner(tmp_path, default_hooks={off: None} if off else None)
    runner.train()
    assert {name: found(runner) for name, found in TRACES.items()} == {name: name != off for name in TRACES}


@pytest.mark.parametrize("hook_type", [ParamSchedulerHook, IterTimerHook, DistSamplerSeedHook, RuntimeInfoHook])
def test_four_of_them_have_no_options(hook_type: type[Any], tmp_path: Path) -> None:
    """The last four have nothing to configure."""
    assert hook_type().priority == hook_type.priority
    with pytest.raises(ConfigError, match=rf"interval = 3: {hook_type.__name__} has no such option"):
        make_runner(tmp_path, custom_hooks=[dict(type=hook_type.__name__, interval=3)])


# --- RuntimeInfoHook --------------------------------------------------------------------------------------------------

WHAT_A_RUN_IS = ("epoch", "iter", "max_epochs", "max_iters")
WHAT_IT_MEASURED = ("train/lr", "train/loss", "val/accuracy")


class LonelyLoss:
    """A module that no runner was ever given to."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.read: list[tuple[Any, ...]] = []

    def __call__(self, predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Read the hub of the run by its name, in training."""
        hub = MessageHub.get_instance(self._name)
        if hub.get_info("loop_stage") == "train":
            measured = [hub.get_scalar(key).current() if key in hub.log_scalars else None for key in WHAT_IT_MEASURED]
            self.read.append((*(hub.get_info(key) for key in WHAT_A_RUN_IS), *measured))
        return torch.nn.functional.cross_entropy(predictions, targets)


def test_a_module_without_the_runner_reads_the_hub(tmp_path: Path) -> None:
    """Keep the message hub up to date: epoch, iter, max_epochs, max_iters, lr, losses, metrics, ...

    so that modules without access to the runner can read them.
    """
    loss = LonelyLoss("read-by-a-lonely-loss")
    metrics = FixedMetrics({"accuracy": 0.25}, {"accuracy": 0.75})
    halve = dict(type="ExponentialLR", gamma=0.5)
    runner = make_runner(
        tmp_path, loss_fn=loss, val_evaluator=metrics, param_scheduler=halve, experiment_name="read-by-a-lonely-loss"
    )
    runner.train()
    losses = runner.message_hub.get_scalar("train/loss").data[0]
    assert loss.read == [
        (0, 0, 2, 6, None, None, None),
        (0, 1, 2, 6, 0.1, losses[0], None),
        (0, 2, 2, 6, 0.1, losses[1], None),
        (1, 3, 2, 6, 0.1, losses[2], 0.25),
        (1, 4, 2, 6, 0.05, losses[3], 0.25),
        (1, 5, 2, 6, 0.05, losses[4], 0.25),
    ]


# --- IterTimerHook ----------------------------------------------------------------------------------------------------


def test_each_iteration_of_each_kind_is_timed_once(tmp_path: Path) -> None:
    """Time of data loading and of the iteration."""
    runner = make_runner(tmp_path)
    runner.train()
    runner.test()
    for mode, number in (("train", 2 * TRAIN_BATCHES), ("val", 2 * VAL_BATCHES), ("test", TEST_BATCHES)):
        whole, data = (runner.message_hub.get_scalar(f"{mode}/{kind}").data[0] for kind in ("time", "data_time"))
        assert (mode, len(whole), len(data)) == (mode, number, number)
        assert all(0 < waited < total for waited, total in zip(data, whole, strict=True))


# --- DistSamplerSeedHook ----------------------------------------------------------------------------------------------


def test_each_epoch_has_the_order_of_its_number(tmp_path: Path) -> None:
    """Make shuffling of a distributed sampler take effect each epoch."""
    runner = make_sampled_runner(tmp_path, train_cfg=dict(max_epochs=3))
    seen: dict[int, list[torch.Tensor]] = {}
    runner.bus.subscribe(BeforeTrainIter, lambda epoch, data_batch: seen.setdefault(epoch, []).append(data_batch[0].clone()))
    runner.train()
    sampler: DistributedSampler[Any] = DistributedSampler(make_data(12), num_replicas=1, rank=0, shuffle=True)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert torch.equal(torch.cat(seen[epoch]), make_data(12).tensors[0][orders[-1]])
    assert len(set(map(tuple, orders))) == 3


# --- LoggerHook -------------------------------------------------------------------------------------------------------


class MineWriter(Writer):
    """Stands for any other back end."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def write(self, record: Record) -> None:
        """Keep it."""
        self.records.append(record)


def test_logs_go_to_every_destination(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Collect logs and write them to the terminal, to files, to TensorBoard and other back ends."""
    mine = MineWriter()
    logger = dict(interval=1, writers=["terminal", "jsonl", "tensorboard", mine])
    runner = make_runner(tmp_path, default_hooks=dict(logger=logger), train_cfg=dict(max_epochs=1))
    runner.train()
    losses = [kept.values["loss"] for kept in mine.records]
    assert [kept.mode for kept in mine.records] == ["train"] * 3 + ["val"]
    assert [line["loss"] for line in read_records(runner)] == losses
    assert [point.value for point in curves(runner.log_dir)["train/loss"]] == pytest.approx(losses[:3])
    shown, written = "".join(capfd.readouterr()), (runner.log_dir / "train.log").read_text()
    for kept in mine.records:
        assert kept.text in shown
        assert kept.text in written


@pytest.mark.parametrize(
    ("train_cfg", "logged"),
    [(dict(max_epochs=2), [20, 40, 65, 85]), (dict(by_epoch=False, max_iters=85), [20, 40, 60, 80])],
)
def test_every_twentieth_iteration_is_logged(train_cfg: dict[str, Any], logged: list[int], tmp_path: Path) -> None:
    """`interval=20`: every 20 iterations."""
    changes: dict[str, Any] = dict(train_dataloader=make_loader(45, batch_size=1), val_dataloader=None, train_cfg=train_cfg)
    runner = make_runner(tmp_path, default_hooks=dict(logger=dict(interval=20), checkpoint=None), **changes)
    runner.train()
    assert [line["iter"] for line in read_records(runner)] == logged


# --- ParamSchedulerHook -----------------------------------------------------------------------------------------------


def test_all_schedulers_are_stepped(tmp_path: Path) -> None:
    """Step every parameter scheduler of the runner."""
    schedulers = [
        dict(type="ExponentialLR", gamma=0.5),
        dict(type="ExponentialLR", gamma=0.9, by_epoch=False),
        dict(type="ExponentialLR", gamma=0.8, param_name="momentum"),
    ]
    runner = make_runner(tmp_path, param_scheduler=schedulers)
    runner.train()
    assert isinstance(runner.optim_wrapper, OptimWrapper)
    (group,) = runner.optim_wrapper.param_groups
    assert (group["lr"], group["momentum"]) == pytest.approx((0.1 * 0.5**2 * 0.9**6, 0.9 * 0.8**2))


# --- CheckpointHook ---------------------------------------------------------------------------------------------------


def test_the_weights_of_an_epoch_are_saved(tmp_path: Path) -> None:
    """Save weights at an interval."""
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=4), default_hooks=dict(checkpoint=dict(interval=2)))
    trained: dict[int, dict[str, torch.Tensor]] = {}
    runner.bus.subscribe(AfterTrainEpoch, lambda epoch: trained.update({epoch + 1: weights(runner.model)}))
    runner.train()
    assert checkpoints(tmp_path) == ["epoch_2", "epoch_4"]
    for number in (2, 4):
        assert same(load_file(tmp_path / "checkpoints" / f"epoch_{number}" / "model.safetensors"), trained[number])


@pytest.mark.parametrize(("options", "unit"), [({}, "epoch"), (dict(by_epoch=False), "iter")])
def test_twenty_are_saved_at_every_fifth(options: dict[str, Any], unit: str, tmp_path: Path) -> None:
    """Saves every `interval` epochs (`by_epoch=True`, the default) or iterations (`by_epoch=False`).

    20 epochs, `interval=5` -> epochs 5, 10, 15, 20.
    """
    changes: dict[str, Any] = dict(train_dataloader=make_loader(4), val_dataloader=None, train_cfg=dict(max_epochs=20))
    runner = make_runner(tmp_path, default_hooks=dict(checkpoint=dict(interval=5) | options, logger=None), **changes)
    runner.train()
    assert set(checkpoints(tmp_path)) == {f"{unit}_{number}" for number in (5, 10, 15, 20)}
    assert (tmp_path / "last_checkpoint").read_text() == f"{unit}_20"


@pytest.fixture(params=[0, 1])
def rank_of_two(request: pytest.FixtureRequest) -> Iterator[int]:
    """Make this process one of two that do not talk to each other."""
    torch.distributed.init_process_group("fake", rank=request.param, world_size=2, store=FakeStore())
    yield request.param
    torch.distributed.destroy_process_group()


def test_one_process_saves_for_all(rank_of_two: int, tmp_path: Path) -> None:
    """In distributed training only the master process saves.

    Better than before_save_checkpoint on the master alone: hooks of all processes are called, so they may talk to each other.
    """
    runner = make_runner(tmp_path)
    announced = record(runner.bus, BeforeSaveCheckpoint)
    runner.train()
    assert len(announced) == 2
    assert checkpoints(tmp_path) == (["epoch_1", "epoch_2"] if rank_of_two == 0 else [])
    assert (tmp_path / "last_checkpoint").exists() == (rank_of_two == 0)


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    """`max_keep_ckpts=2` keeps the newest two: after epoch 15 the one of epoch 5 goes, after epoch 20 that of epoch 10."""
    changes: dict[str, Any] = dict(train_dataloader=make_loader(4), val_dataloader=None, train_cfg=dict(max_epochs=21))
    options = dict(interval=5, max_keep_ckpts=2, save_last=False)
    runner = make_runner(tmp_path, default_hooks=dict(checkpoint=options, logger=None), **changes)
    kept: dict[int, list[str]] = {}
    runner.bus.subscribe(BeforeTrainEpoch, lambda epoch: kept.update({epoch: checkpoints(tmp_path)}))
    runner.train()
    expected = {
        0: [],
        5: ["epoch_5"],
        10: ["epoch_10", "epoch_5"],
        15: ["epoch_10", "epoch_15"],
        20: ["epoch_15", "epoch_20"],
    }
    assert kept == {epoch: expected[epoch // 5 * 5] for epoch in range(21)}


def best_of_three(work_dir: Path, **options: Any) -> list[str]:
    """Return what is kept of three epochs whose validations return a top-1 accuracy, a speed and, as the last, a loss."""
    metrics = [{"top-1": 0.5, "speed": 2.0}, {"top-1": 0.7, "speed": 3.0}, {"top-1": 0.6, "speed": 4.0}]
    checkpoint = dict(interval=-1, save_last=False) | options
    changes: dict[str, Any] = dict(train_cfg=dict(max_epochs=3), val_evaluator=FixedMetrics(*metrics))
    make_runner(work_dir, default_hooks=dict(checkpoint=checkpoint, logger=None), **changes).train()
    return checkpoints(work_dir)


def test_auto_follows_the_first_metric(tmp_path: Path) -> None:
    """`save_best='auto'` keeps the best by the first metric that validation returns (an ordered dict)."""
    assert best_of_three(tmp_path, save_best="auto") == ["best_top-1_epoch_2"]


@pytest.mark.parametrize(
    ("metric", "best"), [("top-1", "best_top-1_epoch_2"), ("loss", "best_loss_epoch_3")], ids=["greater by name", "less by name"]
)
def test_a_metric_may_be_named(metric: str, best: str, tmp_path: Path) -> None:
    """`save_best='top-1'` names one."""
    assert best_of_three(tmp_path, save_best=metric) == [best]


@pytest.mark.parametrize(
    ("options", "best"),
    [
        (dict(save_best="top-1", rule="less"), "best_top-1_epoch_1"),
        (dict(save_best="speed", rule="greater"), "best_speed_epoch_3"),
        (dict(save_best="speed", rule="less"), "best_speed_epoch_1"),
        (dict(save_best="speed", greater_keys=["speed"]), "best_speed_epoch_3"),
        (dict(save_best="speed", less_keys=["speed"]), "best_speed_epoch_1"),
    ],
)
def test_the_better_direction_may_be_said(options: dict[str, Any], best: str, tmp_path: Path) -> None:
    """`rule` ('greater' / 'less'), `greater_keys`, `less_keys` say which direction is better."""
    assert best_of_three(tmp_path, **options) == [best]


def test_checkpoints_may_lie_elsewhere(tmp_path: Path) -> None:
    """`out_dir` puts checkpoints elsewhere than the work directory."""
    work_dir, elsewhere = tmp_path / "digits", tmp_path / "elsewhere"
    make_runner(work_dir, default_hooks=dict(checkpoint=dict(out_dir=str(elsewhere)))).train()
    assert checkpoints(work_dir) == []
    assert sorted(path.name for path in (elsewhere / "digits").iterdir()) == ["epoch_1", "epoch_2"]

"""MMEngine's own hooks, each through a real training, and the numbers that follow."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import (
    DistSamplerSeedHook,
    EarlyStoppingHook,
    EMAHook,
    EmptyCacheHook,
    IterTimerHook,
    ParamSchedulerHook,
    ProfilerHook,
    SyncBuffersHook,
)

from hookbus.checkpoint import load_checkpoint
from hookbus.errors import ConfigError
from hookbus.events import MOUNT_POINTS, AfterTrainIter, BeforeTestIter, BeforeValIter
from hookbus.runner import Runner
from tests.runner.builders import TRAIN_BATCHES, at_iter, make_runner, same, weights

MOMENTUM = 0.25

# --- EarlyStoppingHook ------------------------------------------------------------------------------------------------


def scores(values: list[float]) -> Any:
    """Return a validation step whose accuracy is the next of these values in each validation."""
    left = iter(values)
    return lambda model, batch: {"accuracy": torch.tensor(next(left))}


@pytest.mark.parametrize(
    ("values", "options", "epochs"),
    [
        ([0.5, 0.7, 0.6, 0.65, 0.9, 0.9], dict(patience=2, min_delta=0.0), 4),
        ([0.5, 0.52, 0.54, 0.56, 0.58, 0.6], dict(patience=3), 4),  # better, but never by its default min_delta of 0.1
        ([0.5, 0.7, 0.9, 0.1, 0.1, 0.1], dict(stopping_threshold=0.8), 3),
        ([0.5, float("nan"), 0.9, 0.9, 0.9, 0.9], dict(patience=2), 2),
        ([0.1, 0.3, 0.5, 0.7, 0.9, 1.1], dict(patience=1), 6),
    ],
    ids=["patience", "min_delta", "threshold", "not finite", "always better"],
)
def test_training_stops_early_after_the_epoch_that_says_so(
    tmp_path: Path, values: list[float], options: dict[str, Any], epochs: int
) -> None:
    """As its rules have it, counted by hand."""
    runner = make_runner(
        tmp_path,
        val_step=scores([value for value in values for _ in range(2)]),
        train_cfg=dict(max_epochs=6),
        custom_hooks=[EarlyStoppingHook("accuracy", rule="greater", **options)],
        default_hooks=dict(logger=None),
    )
    runner.train()
    assert runner.epoch == epochs
    assert runner.train_loop.stop_training is (epochs < 6)


# --- ParamSchedulerHook -----------------------------------------------------------------------------------------------


def learning_rates(tmp_path: Path, name: str, **changes: Any) -> list[float]:
    """Return the learning rate of each iteration."""
    seen: list[float] = []
    schedules = [dict(type="StepLR", step_size=1, gamma=0.5, by_epoch=True), dict(type="LinearLR", total_iters=4, by_epoch=False)]
    runner = make_runner(tmp_path / name, param_scheduler=schedules, train_cfg=dict(max_epochs=3), **changes)
    runner.bus.subscribe(
        AfterTrainIter, lambda runner: seen.append(runner.optim_wrapper.param_groups[0]["lr"]), priority="HIGHEST"
    )
    runner.train()
    return seen


@pytest.mark.parametrize("as_default", [True, False])
def test_schedules_step_as_with_our_own_hook(tmp_path: Path, as_default: bool) -> None:
    """By iteration and by epoch, in the place of ours or as a further hook where ours was taken off."""
    hook = ParamSchedulerHook()
    theirs = learning_rates(
        tmp_path,
        "theirs",
        default_hooks=dict(param_scheduler=hook if as_default else None, logger=None),
        custom_hooks=[] if as_default else [hook],
    )
    assert theirs == learning_rates(tmp_path, "ours", default_hooks=dict(logger=None))
    warm_up = [1 / 3 + 2 / 3 * min(step, 4) / 4 for step in range(9)]
    assert theirs == pytest.approx([0.1 * factor * 0.5 ** (step // 3) for step, factor in enumerate(warm_up)])


def test_schedules_are_not_stepped_twice(tmp_path: Path) -> None:
    """Beside our own hook theirs is refused when training begins."""
    runner = make_runner(tmp_path, custom_hooks=[ParamSchedulerHook()])
    with pytest.raises(ConfigError, match=r"two hooks would step the schedules.*param_scheduler=None"):
        runner.train()


def test_a_schedule_that_follows_a_metric_is_left_to_our_own_hook(tmp_path: Path) -> None:
    """Theirs only steps such schedules of its own kind."""
    plateau = dict(type="ReduceLROnPlateau", monitor="loss")
    runner = make_runner(tmp_path, param_scheduler=plateau, default_hooks=dict(param_scheduler=ParamSchedulerHook()))
    with pytest.raises(ConfigError, match=r"does not step ParamScheduler\(ReduceLROnPlateau"):
        runner.train()


# --- ProfilerHook -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "steps"),
    [(dict(by_epoch=False, profile_times=2), 2), (dict(), TRAIN_BATCHES)],
    ids=["2 iterations", "the first epoch"],
)
def test_the_profiler_writes_its_trace(tmp_path: Path, options: dict[str, Any], steps: int) -> None:
    """With as many steps of the optimizer as it was asked for, and the kernels of the model."""
    trace = tmp_path / "trace.json"
    runner = make_runner(tmp_path, custom_hooks=[ProfilerHook(json_trace_path=str(trace), **options)])
    runner.train()
    seen = Counter(event["name"] for event in json.loads(trace.read_text(encoding="utf-8"))["traceEvents"])
    assert seen["Optimizer.step#SGD.step"] == steps
    assert seen["aten::linear"] >= steps
    assert runner.iter == 2 * TRAIN_BATCHES


def test_the_profiler_hands_its_results_to_a_function(tmp_path: Path) -> None:
    """When the cycle of its schedule is complete."""
    seen: list[int] = []
    hook = ProfilerHook(
        by_epoch=False,
        profile_times=6,  # all of the only epoch
        schedule=dict(wait=1, warmup=1, active=2, repeat=1),
        on_trace_ready=lambda profile: seen.append(profile.step_num),
    )
    make_runner(tmp_path, train_cfg=dict(max_iters=6), custom_hooks=[hook]).train()
    assert seen == [4]


# --- EMAHook ----------------------------------------------------------------------------------------------------------


class Averaged:
    """A run with EMAHook, and the average of its weights by the formula."""

    def __init__(self, work_dir: Path, **changes: Any) -> None:
        self.hook = EMAHook(momentum=MOMENTUM, **changes.pop("options", {}))
        changes.setdefault("custom_hooks", [self.hook])
        changes.setdefault("default_hooks", dict(checkpoint=dict(interval=1), logger=None))
        self.runner: Runner = make_runner(work_dir, **changes)
        self.expected: dict[str, torch.Tensor] = {}
        self.raw: dict[str, torch.Tensor] = {}
        self.runner.bus.subscribe(AfterTrainIter, self.average, priority="HIGHEST")

    def average(self) -> None:
        """First a copy, then (1 - momentum) * average + momentum * weights."""
        self.raw = weights(self.runner.model)
        for name, current in self.raw.items():
            before = self.expected.get(name)
            self.expected[name] = current if before is None else (1 - MOMENTUM) * before + MOMENTUM * current

    @property
    def averaged(self) -> dict[str, torch.Tensor]:
        """The average that the hook keeps."""
        return weights(self.hook.ema_model.module)


def close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Return whether weights are the same but for rounding."""
    return left.keys() == right.keys() and all(torch.allclose(left[name], right[name], atol=1e-6) for name in left)


def test_weights_are_averaged_by_the_formula_and_validated(tmp_path: Path) -> None:
    """Validation sees the average, training never does; they are far apart."""
    run = Averaged(tmp_path)
    validated: list[bool] = []
    run.runner.bus.subscribe(BeforeValIter, lambda: validated.append(close(weights(run.runner.model), run.expected)))
    run.runner.train()
    assert close(run.averaged, run.expected)
    assert not close(run.averaged, run.raw)
    assert same(weights(run.runner.model), run.raw)
    assert validated == [True] * 4


def test_averaging_begins_when_it_should(tmp_path: Path) -> None:
    """Before, the average is a copy of the weights."""
    run = Averaged(tmp_path, options=dict(begin_epoch=2))
    run.runner.bus.subscribe(AfterTrainIter, at_iter(TRAIN_BATCHES, run.expected.clear), priority=0)
    run.runner.bus.subscribe(AfterTrainIter, at_iter(1, lambda: seen.append(close(run.averaged, run.raw))), priority="LOW")
    seen: list[bool] = []
    run.runner.train()
    assert seen == [True]
    assert run.hook.ema_model.steps == TRAIN_BATCHES


def test_a_checkpoint_holds_the_average_and_the_weights(tmp_path: Path) -> None:
    """The average as the weights to deploy, as in MMEngine, and the weights in its own entry."""
    run = Averaged(tmp_path)
    run.runner.train()
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "epoch_2")
    kept = checkpoint["ema_state_dict"]
    assert same(dict(checkpoint["state_dict"]), run.averaged)
    assert same({name: kept[f"module.{name}"] for name in run.raw}, run.raw)
    assert kept["steps"] == 2 * TRAIN_BATCHES


def test_a_resumed_run_averages_like_one_that_was_never_interrupted(tmp_path: Path) -> None:
    """Bit for bit, weights and average."""
    straight = Averaged(tmp_path / "straight", train_cfg=dict(max_epochs=3))
    straight.runner.train()
    begun = Averaged(tmp_path / "resumed", train_cfg=dict(max_epochs=3))
    begun.runner.bus.subscribe(AfterTrainIter, at_iter(4, lambda: begun.runner.stop() and None))
    begun.runner.train()
    resumed = Averaged(tmp_path / "resumed", train_cfg=dict(max_epochs=3), resume=True)
    resumed.runner.train()
    assert begun.runner.iter == 5
    assert same(resumed.raw, straight.raw)
    assert same(resumed.averaged, straight.averaged)


def test_a_new_run_begins_with_the_average_of_an_old_one(tmp_path: Path) -> None:
    """`load_from` takes what is to be deployed, for the weights and for the new average."""
    old = Averaged(tmp_path / "old")
    old.runner.train()
    new = Averaged(tmp_path / "new", load_from=tmp_path / "old" / "checkpoints" / "epoch_2")
    begins: list[bool] = []
    new.runner.register_hook(Beginning(new, old, begins))
    new.runner.train()
    assert begins == [True, True]


class Beginning:
    """Compares the weights that training begins with."""

    def __init__(self, new: Averaged, old: Averaged, begins: list[bool]) -> None:
        self._new, self._old, self._begins = new, old, begins

    def before_train(self) -> None:
        """Compare."""
        self._begins += [same(state, self._old.averaged) for state in (weights(self._new.runner.model), self._new.averaged)]


def test_a_validation_that_is_stopped_leaves_the_weights_of_training(tmp_path: Path) -> None:
    """In the model, and in the last checkpoint."""
    run = Averaged(tmp_path)
    run.runner.bus.subscribe(BeforeValIter, lambda runner: runner.stop() and None, once=True)
    run.runner.train()
    kept = load_checkpoint(tmp_path / "checkpoints" / "epoch_1")["ema_state_dict"]
    assert run.runner.epoch == 1
    assert same(weights(run.runner.model), run.raw)
    assert same({name: kept[f"module.{name}"] for name in run.raw}, run.raw)


def test_a_validation_that_fails_leaves_the_weights_of_training(tmp_path: Path) -> None:
    """The error is the one of the validation."""
    run = Averaged(tmp_path, val_step=lambda model, batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.runner.train()
    assert same(weights(run.runner.model), run.raw)


def test_a_test_after_training_sees_the_weights_of_training(tmp_path: Path) -> None:
    """As in MMEngine, where each run begins a new average."""
    run = Averaged(tmp_path)
    tested: list[bool] = []
    run.runner.bus.subscribe(BeforeTestIter, lambda: tested.append(same(weights(run.runner.model), run.raw)))
    run.runner.train()
    run.runner.test()
    assert tested == [True]


# --- the others -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", [dict(max_epochs=2), dict(max_iters=6, val_interval=3)], ids=["by epochs", "by iterations"])
@pytest.mark.parametrize(
    "options",
    [
        dict(default_hooks=dict(timer=IterTimerHook())),
        dict(default_hooks=dict(sampler_seed=DistSamplerSeedHook())),
        dict(custom_hooks=[EmptyCacheHook(before_epoch=True, after_iter=True)]),
        dict(custom_hooks=[SyncBuffersHook()]),
    ],
    ids=["IterTimerHook", "DistSamplerSeedHook", "EmptyCacheHook", "SyncBuffersHook"],
)
def test_the_others_go_through_training_and_test(tmp_path: Path, options: dict[str, Any], loop: dict[str, Any]) -> None:
    """In both kinds of loop; one timer records each iteration once."""
    runner = make_runner(tmp_path, train_cfg=loop, **options)
    runner.train()
    runner.test()
    assert runner.iter == 2 * TRAIN_BATCHES
    assert len(runner.message_hub.get_scalar("train/time").data[0]) == 2 * TRAIN_BATCHES


# --- what is subscribed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hook", "mount_points"),
    [
        (EarlyStoppingHook("accuracy"), {"before_run", "after_val_epoch"}),
        (ParamSchedulerHook(), {"before_train", "after_train_iter", "after_train_epoch", "after_val_epoch"}),
        (ProfilerHook(), {"before_run", "after_train_iter", "after_train_epoch"}),
        (
            EMAHook(),
            {"before_run", "before_train", "after_train_iter", "before_val_epoch", "after_val_epoch", "before_test_epoch"}
            | {"after_test_epoch", "before_save_checkpoint", "after_load_checkpoint", "after_val", "after_test", "after_run"},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_methods_without_effect_are_not_subscribed(tmp_path: Path, hook: Any, mount_points: set[str]) -> None:
    """What a hook inherits from the base class costs nothing; each of its own methods is called at its own priority."""
    runner = make_runner(tmp_path, default_hooks=dict(param_scheduler=None))
    runner.register_hook(hook)
    name = type(hook).__name__
    planned = {
        mount_point: entry
        for mount_point, event_type in MOUNT_POINTS.items()
        for entry in runner.bus.plan(event_type)
        if entry.name == f"{name}.{mount_point}"
    }
    assert set(planned) == mount_points
    order = {"EarlyStoppingHook": 100, "ParamSchedulerHook": 70, "ProfilerHook": 90, "EMAHook": 50}
    assert {entry.priority for entry in planned.values()} == {order[name]}
    assert set(hook.get_triggered_stages()) <= mount_points

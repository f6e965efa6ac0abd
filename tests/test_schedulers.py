"""Learning rate schedules, which are torch's own."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as lrs

from hookbus.errors import ConfigError, MetricNotFound
from hookbus.registry import PARAM_SCHEDULERS
from hookbus.schedulers import ParamScheduler, build_param_schedulers


def make_optimizer() -> SGD:
    """Return an optimizer of two groups with different learning rates."""
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in (0.1, 0.02)]
    return SGD(groups, momentum=0.9)


def build(spec: object, optimizer: Optimizer | None = None, *, loop_by_epoch: bool = True) -> list[ParamScheduler]:
    """Build schedules for an optimizer of a new run, or for this one."""
    return build_param_schedulers(spec, optimizer or make_optimizer(), loop_by_epoch=loop_by_epoch)


def rates(optimizer: Optimizer, step: Callable[[], object], num_steps: int = 20) -> list[list[float]]:
    """Return the learning rates at the beginning and after each step."""
    seen = [[group["lr"] for group in optimizer.param_groups]]
    for _ in range(num_steps):
        optimizer.step()
        step()
        seen.append([group["lr"] for group in optimizer.param_groups])
    return seen


def step_all(schedules: Sequence[ParamScheduler | lrs.LRScheduler]) -> Callable[[], None]:
    """Return a function that steps all of them in order."""

    def step() -> None:
        for schedule in schedules:
            schedule.step()

    return step


def refusal(spec: object, optimizer: Optimizer | None = None) -> str:
    """Return the text with which a specification is refused."""
    with pytest.raises(ConfigError) as caught:
        build(spec, optimizer)
    return str(caught.value)


USUAL: list[dict[str, Any]] = [
    dict(type="StepLR", step_size=3, gamma=0.5),
    dict(type="MultiStepLR", milestones=[2, 5, 11], gamma=0.1),
    dict(type="MultiStepLR", milestones=range(0, 20, 4)),
    dict(type="ConstantLR", factor=0.5, total_iters=4),
    dict(type="LinearLR", start_factor=0.1, end_factor=1, total_iters=5),
    dict(type="ExponentialLR", gamma=0.9),
    dict(type="PolynomialLR", total_iters=10, power=2),
    dict(type="CosineAnnealingLR", T_max=20, eta_min=0),
    dict(type="CosineAnnealingWarmRestarts", T_0=4, T_mult=2, eta_min=1e-4),
    dict(type="CyclicLR", base_lr=0.01, max_lr=[0.1, 0.2], step_size_up=3, step_size_down=None, mode="triangular2"),
    dict(type="OneCycleLR", max_lr=[0.2, 0.1], total_steps=21, anneal_strategy="linear", three_phase=True),
    dict(type="OneCycleLR", max_lr=1, epochs=7, steps_per_epoch=3, pct_start=0.3),
    dict(type="LambdaLR", lr_lambda=lambda step: 0.5**step),
    dict(type="LambdaLR", lr_lambda=[lambda step: 1 / (step + 1), lambda step: 1.0]),
    dict(type="MultiplicativeLR", lr_lambda=lambda step: 0.95),
]


@pytest.mark.parametrize("config", USUAL, ids=lambda config: " ".join(map(str, config.values())).split(" at ")[0][:60])
def test_a_schedule_from_a_config_is_that_of_torch(config: dict[str, Any]) -> None:
    """The learning rates are equal to the last bit over 20 steps."""
    ours, theirs = make_optimizer(), make_optimizer()
    options = {name: value for name, value in config.items() if name != "type"}
    (schedule,) = build(config, ours)
    bare = getattr(lrs, config["type"])(theirs, **options)
    assert rates(ours, schedule.step) == rates(theirs, bare.step)


def test_several_schedules_work_together_like_those_of_torch() -> None:
    """In the order of the list."""
    ours, theirs = make_optimizer(), make_optimizer()
    config = [dict(type="LinearLR", total_iters=5), dict(type="CosineAnnealingLR", T_max=20)]
    bare = [lrs.LinearLR(theirs, total_iters=5), lrs.CosineAnnealingLR(theirs, T_max=20)]
    assert rates(ours, step_all(build(config, ours))) == rates(theirs, step_all(bare))


def test_schedules_of_schedules_are_built_by_the_user() -> None:
    """A config may hold the scheduler objects that they are made of."""
    for name, options in (("SequentialLR", dict(milestones=[5])), ("ChainedScheduler", {})):
        optimizers = make_optimizer(), make_optimizer()
        parts = [[lrs.ConstantLR(optimizer, 0.5, 5), lrs.ExponentialLR(optimizer, 0.9)] for optimizer in optimizers]
        (schedule,) = build(dict(type=name, schedulers=parts[0], **options), optimizers[0])
        bare = getattr(lrs, name)(optimizer=optimizers[1], schedulers=parts[1], **options)
        assert rates(optimizers[0], schedule.step) == rates(optimizers[1], bare.step)


def test_every_scheduler_of_torch_is_covered_here() -> None:
    """A new one in the table needs a case above."""
    covered = {config["type"] for config in USUAL} | {"SequentialLR", "ChainedScheduler", "ReduceLROnPlateau"}
    assert covered == set(PARAM_SCHEDULERS.names())


def test_a_plateau_follows_its_metric_like_that_of_torch() -> None:
    """It is told the value at each step."""
    ours, theirs = make_optimizer(), make_optimizer()
    (schedule,) = build(dict(type="ReduceLROnPlateau", mode="max", patience=1, min_lr=[0.001, 0], monitor="accuracy"), ours)
    bare = lrs.ReduceLROnPlateau(theirs, mode="max", patience=1, min_lr=[0.001, 0])
    assert schedule.needs_metric
    assert schedule.monitor == "accuracy"
    metric = [0.5, 0.6, 0.6, 0.6, 0.6, 0.7, 0.1, 0.1, 0.1, 0.1]
    left, right = iter(metric), iter(metric)
    assert rates(ours, lambda: schedule.step(next(left)), 10) == rates(theirs, lambda: bare.step(next(right)), 10)
    assert ours.param_groups[0]["lr"] < 0.1


def test_a_plateau_without_its_metric_says_so() -> None:
    """It names the metric that was asked for."""
    (schedule,) = build(dict(type="ReduceLROnPlateau", monitor="accuracy"))
    with pytest.raises(MetricNotFound, match="ReduceLROnPlateau follows the metric 'accuracy', and no value was given"):
        schedule.step()
    (schedule,) = build(dict(type="ReduceLROnPlateau"))
    with pytest.raises(MetricNotFound, match="ReduceLROnPlateau follows a metric, and no value was given"):
        schedule.step()


def test_other_schedules_ignore_the_metric() -> None:
    """So a caller may give it to all of them."""
    optimizer = make_optimizer()
    (schedule,) = build(dict(type="StepLR", step_size=1), optimizer)
    optimizer.step()
    schedule.step(0.5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    assert not schedule.needs_metric


def test_normal_use_gives_no_warning_of_torch() -> None:
    """Its warnings are about steps in the wrong order, and there are none."""
    optimizer = make_optimizer()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for schedule in build(USUAL[:7], optimizer):
            rates(optimizer, schedule.step)
    assert caught == []


def test_no_schedule_is_an_empty_list() -> None:
    """As is an empty list or tuple."""
    assert build(None) == build([]) == build(()) == []


@pytest.mark.parametrize("loop_by_epoch", [True, False])
def test_a_schedule_counts_what_the_loop_counts_unless_told_otherwise(loop_by_epoch: bool) -> None:
    """In every form in which it can be given."""
    optimizer = make_optimizer()
    schedulers = [lrs.ExponentialLR(optimizer, 0.9) for _ in range(3)]
    built = build(
        [
            schedulers[0],
            dict(scheduler=schedulers[1]),
            dict(scheduler=schedulers[2], by_epoch=not loop_by_epoch),
            dict(type="ExponentialLR", gamma=0.9),
            dict(type="ExponentialLR", gamma=0.9, by_epoch=not loop_by_epoch, begin=0, end=None),
        ],
        optimizer,
        loop_by_epoch=loop_by_epoch,
    )
    other = not loop_by_epoch
    assert [schedule.by_epoch for schedule in built] == [loop_by_epoch, loop_by_epoch, other, loop_by_epoch, other]
    assert [schedule.scheduler for schedule in built[:3]] == schedulers
    assert {(schedule.begin, schedule.end, schedule.monitor) for schedule in built} == {(0, None, None)}
    assert repr(built[2]) == f"ParamScheduler(ExponentialLR, by_epoch={other})"


def test_a_schedule_goes_on_from_its_state() -> None:
    """The state is that of torch, and plain data."""
    config = dict(type="CosineAnnealingLR", T_max=20)
    straight, broken = make_optimizer(), make_optimizer()
    (whole,) = build(config, straight)
    expected = rates(straight, whole.step, 12)
    (first,) = build(config, broken)
    rates(broken, first.step, 5)
    state = json.loads(json.dumps(first.state_dict()))
    resumed = make_optimizer()
    (second,) = build(config, resumed)
    resumed.load_state_dict(broken.state_dict())
    second.load_state_dict(state)
    assert rates(resumed, second.step, 7) == expected[5:]


def test_a_config_of_a_schedule_is_not_changed() -> None:
    """What is ours is taken from a copy."""
    config = dict(type="MultiStepLR", milestones=[3, 1], by_epoch=False, begin=0, end=None)
    before = {**config, "milestones": [3, 1]}
    build(config)
    assert config == before


# refusals


@pytest.mark.parametrize("spec", [5, "StepLR", lrs.StepLR, [[]]], ids=str)
def test_a_schedule_is_an_object_or_a_config(spec: object) -> None:
    """The text lists what may stand there."""
    text = refusal(spec)
    assert text.startswith("param_scheduler")
    assert text.endswith(": expected a torch scheduler, dict(type=...), dict(scheduler=...) or a list of these")


def test_all_problems_of_all_schedules_are_reported_at_once() -> None:
    """Each with its place in the list, and the optimizer is left as it was."""
    optimizer = make_optimizer()
    lines = refusal(
        [
            dict(type="LinearLR", start_factor=0.1),
            dict(type="StepLR", step_size="3", gama=0.5, by_epoch=1),
            dict(type="CosineAnealingLR"),
            dict(type="MultiStepLR", milestones=["x"]),
        ],
        optimizer,
    ).splitlines()
    assert lines[0] == "5 problems in the config:"
    assert lines[1] == "  - param_scheduler[1].step_size = '3': expected int"
    assert lines[2].startswith(
        "  - param_scheduler[1].gama = 0.5: StepLR has no such option; did you mean 'gamma'? valid choices: "
    )
    assert lines[2].endswith("step_size, gamma, last_epoch, by_epoch, begin, end, monitor")
    assert lines[3] == "  - param_scheduler[1].by_epoch = 1: expected bool"
    assert lines[4].startswith("  - param_scheduler[2].type = 'CosineAnealingLR': no param scheduler is registered as ")
    assert "did you mean 'CosineAnnealingLR'?" in lines[4]
    assert lines[5] == "  - param_scheduler[3].milestones = ['x']: expected Iterable[int]"
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.02]


@pytest.mark.parametrize(("key", "value"), [("begin", 5), ("begin", "0"), ("end", 10)])
def test_a_schedule_for_a_part_of_the_run_is_not_supported_yet(key: str, value: object) -> None:
    """Rather than being run from the beginning to the end."""
    expected = f"param_scheduler.{key} = {value!r}: a schedule for a part of the run is not supported yet; leave {key!r} out"
    assert refusal({"type": "StepLR", "step_size": 3, key: value}) == expected


def test_a_scheduler_must_step_the_optimizer_of_the_runner() -> None:
    """Otherwise it would have no effect."""
    foreign = lrs.StepLR(make_optimizer(), 3)
    expected = " = StepLR: it steps another optimizer; expected the SGD of the runner"
    assert refusal(foreign) == f"param_scheduler{expected}"
    assert refusal([dict(scheduler=foreign)]) == f"param_scheduler[0].scheduler{expected}"


def test_a_config_may_not_choose_the_optimizer() -> None:
    """It is that of the runner."""
    text = refusal(dict(type="StepLR", step_size=3, optimizer=None))
    assert text == "param_scheduler.optimizer = None: StepLR gets its 'optimizer' elsewhere; leave it out here"


def test_a_wrapped_scheduler_has_few_options() -> None:
    """Those of the schedule itself were given to torch."""
    optimizer = make_optimizer()
    assert refusal({"scheduler": lrs.StepLR(optimizer, 3), "by_epoc": True}, optimizer) == (
        "param_scheduler.by_epoc = True: no such option beside a scheduler object; "
        "did you mean 'by_epoch'? valid choices: scheduler, by_epoch, begin, end, monitor"
    )
    assert refusal(dict(scheduler=None)) == "param_scheduler.scheduler = None: expected a torch scheduler"


def test_only_a_plateau_can_monitor_a_metric() -> None:
    """The others would not look at it."""
    assert refusal(dict(type="StepLR", step_size=3, monitor="loss")) == (
        "param_scheduler.monitor = 'loss': StepLR follows no metric; expected ReduceLROnPlateau, or no monitor"
    )
    assert refusal(dict(type="ReduceLROnPlateau", monitor=5)) == "param_scheduler.monitor = 5: expected the name of a metric"


def test_a_scheduler_is_not_stepped_twice() -> None:
    """The same object may stand in the list once."""
    optimizer = make_optimizer()
    scheduler = lrs.StepLR(optimizer, 3)
    assert refusal([scheduler, dict(scheduler=scheduler)], optimizer) == (
        "param_scheduler[1] is the same StepLR object as param_scheduler[0]; it would be stepped twice"
    )


def test_a_class_that_is_no_scheduler_of_torch_is_refused() -> None:
    """What else it could do is unknown."""

    class Odd:
        def __init__(self, optimizer: Optimizer) -> None:
            self.optimizer = optimizer

    assert refusal(dict(type=Odd)) == "param_scheduler.type = Odd: expected a subclass of torch's LRScheduler"
    assert refusal(dict(type=dict)) == "param_scheduler.type = dict: expected a subclass of torch's LRScheduler"

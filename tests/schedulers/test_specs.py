"""What may be given as schedules: its forms, for one optimizer and for several, and everything that is refused."""

from __future__ import annotations

from typing import Any

import pytest
from torch.optim import SGD, AdamW, Optimizer
from torch.optim import lr_scheduler as lrs

from hookbus.errors import ConfigError
from hookbus.registry import PARAM_SCHEDULERS
from hookbus.schedulers import ParamScheduler, build_param_schedulers, param_scheduler_problems
from tests.schedulers.builders import build, make_adam, make_optimizer, make_plain, rates, refusal, values_of

STEP: dict[str, Any] = dict(type="StepLR", step_size=3)


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
    assert {(schedule.param_name, schedule.name, schedule.optimizer) for schedule in built} == {("lr", "", optimizer)}


# several optimizers


def make_pair() -> dict[str, Optimizer]:
    """Return two optimizers by name."""
    return {"generator": make_plain(0.1), "discriminator": make_adam()}


def facts(schedules: list[ParamScheduler]) -> list[tuple[str, str]]:
    """Return for which optimizer each schedule is, and of which class."""
    return [(schedule.name, type(schedule.scheduler).__name__) for schedule in schedules]


def build_pair(spec: object, pair: dict[str, Optimizer] | None = None) -> list[ParamScheduler]:
    """Build schedules for several optimizers."""
    return build_param_schedulers(spec, pair or make_pair(), loop_by_epoch=True)


def test_schedules_are_given_by_the_name_of_their_optimizer() -> None:
    """Each with one schedule, a list, or none."""
    pair = make_pair()
    spec = dict(generator=[STEP, dict(type="ExponentialLR", gamma=0.5)], discriminator=STEP)
    built = build_pair(spec, pair)
    assert facts(built) == [("generator", "StepLR"), ("generator", "ExponentialLR"), ("discriminator", "StepLR")]
    assert all(schedule.optimizer is pair[schedule.name] for schedule in built)
    assert facts(build_pair(dict(discriminator=STEP))) == [("discriminator", "StepLR")]
    assert facts(build_pair(dict(generator=None, discriminator=[]))) == facts(build_pair({})) == facts(build_pair(None)) == []
    assert repr(built[2]) == "ParamScheduler(StepLR, by_epoch=True, name='discriminator')"


@pytest.mark.parametrize("spec", [STEP, [STEP]], ids=["alone", "in a list"])
def test_a_config_without_a_name_is_for_every_optimizer(spec: object) -> None:
    """Each has a schedule of its own."""
    pair = make_pair()
    built = build_pair(spec, pair)
    assert facts(built) == [("generator", "StepLR"), ("discriminator", "StepLR")]
    rates(pair["generator"], built[0].step, 3)
    assert [values_of(optimizer)[0] for optimizer in pair.values()] == pytest.approx([0.01, 0.1])


def test_the_momentum_of_every_optimizer_can_be_driven_at_once() -> None:
    """One has a momentum, the other has betas."""
    pair = make_pair()
    for schedule in build_pair(dict(type="ExponentialLR", gamma=0.5, param_name="momentum"), pair):
        schedule.step()
    assert (pair["generator"].param_groups[0]["momentum"], pair["discriminator"].param_groups[0]["betas"]) == (0.4, (0.4, 0.99))


def test_an_object_belongs_to_the_optimizer_that_it_holds() -> None:
    """Alone, in a dict, or inside a config."""
    pair = make_pair()
    alone, wrapped, inner = (lrs.StepLR(pair["discriminator"], 3) for _ in range(3))
    built = build_pair([alone, dict(scheduler=wrapped), dict(type="ChainedScheduler", schedulers=[inner]), STEP], pair)
    assert facts(built) == [
        ("discriminator", "StepLR"),
        ("discriminator", "StepLR"),
        ("discriminator", "ChainedScheduler"),
        ("generator", "StepLR"),
        ("discriminator", "StepLR"),
    ]
    assert [schedule.scheduler for schedule in built[:2]] == [alone, wrapped]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            dict(generatr=STEP, discriminator=STEP),
            "param_scheduler.generatr: there is no optimizer of that name; "
            "did you mean 'generator'? valid choices: generator, discriminator",
        ),
        (
            dict(tipe="StepLR", step_size=3),
            "param_scheduler.type is missing: it says which param scheduler to build; the key 'tipe' looks like it; ",
        ),
        (
            [lrs.StepLR(make_plain(), 3)],
            "param_scheduler[0] = StepLR: it steps another optimizer; "
            "expected the SGD 'generator' of the runner or the AdamW 'discriminator' of the runner",
        ),
        (
            dict(generator=STEP, discriminator=[STEP, dict(type="StepLr", step_size=3)]),
            "param_scheduler.discriminator[1].type = 'StepLr': no param scheduler is registered as 'StepLr'; "
            "did you mean 'StepLR'?",
        ),
        (STEP | dict(param_name="dampening"), "param_scheduler.param_name = 'dampening': AdamW has no number of that name; "),
        (STEP | dict(gama=1), "param_scheduler.gama = 1: StepLR has no such option; did you mean 'gamma'?"),
        (dict(generator=5), "param_scheduler.type is missing"),
        ([5], "param_scheduler[0] = 5: expected a torch scheduler, dict(type=...), dict(scheduler=...) or a list of these"),
    ],
)
def test_what_does_not_fit_several_optimizers_is_refused(spec: object, expected: str) -> None:
    """Once, and with the place where it stands."""
    text = refusal(spec, make_pair())
    assert text.startswith(expected)
    assert "problems in the config" not in text


def test_an_object_under_a_name_holds_that_optimizer() -> None:
    """Not another one of the run."""
    pair = make_pair()
    assert refusal(dict(generator=lrs.StepLR(pair["discriminator"], 3)), pair) == (
        "param_scheduler.generator = StepLR: it steps another optimizer; expected the SGD 'generator' of the runner"
    )


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
    assert lines[2].endswith("step_size, gamma, last_epoch, by_epoch, begin, end, param_name, monitor")
    assert lines[3] == "  - param_scheduler[1].by_epoch = 1: expected bool"
    assert lines[4].startswith("  - param_scheduler[2].type = 'CosineAnealingLR': no param scheduler is registered as ")
    assert "did you mean 'CosineAnnealingLR'?" in lines[4]
    assert lines[5] == "  - param_scheduler[3].milestones = ['x']: expected Iterable[int]"
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.02]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (dict(begin=-1), "begin = -1: expected a whole number, at least 0"),
        (dict(begin=True), "begin = True: expected a whole number, at least 0"),
        (dict(begin=2.0), "begin = 2.0: expected a whole number, at least 0"),
        (dict(begin="5"), "begin = '5': expected a whole number, at least 0"),
        (dict(end=0), "end = 0: expected a whole number above begin = 0, or None"),
        (dict(end=-3), "end = -3: expected a whole number above begin = 0, or None"),
        (dict(end=True), "end = True: expected a whole number above begin = 0, or None"),
        (dict(begin=5, end=5), "end = 5: expected a whole number above begin = 5, or None"),
        (dict(begin=5, end=7.0), "end = 7.0: expected a whole number above begin = 5, or None"),
        (dict(begin=5, end=float("inf")), "end = inf: expected a whole number above begin = 5, or None"),
    ],
    ids=str,
)
def test_the_part_of_a_schedule_is_given_in_whole_units(part: dict[str, Any], expected: str) -> None:
    """It has a beginning before its end."""
    assert refusal(STEP | part) == f"param_scheduler.{expected}"


def test_an_object_cannot_begin_later() -> None:
    """It set its first value when it was made, as did one inside a config."""
    optimizer = make_optimizer()
    expected = "begin = 5: a scheduler object set its first value when it was made; expected 0, or dict(type=...) instead"
    assert refusal(dict(scheduler=lrs.StepLR(optimizer, 3), begin=5), optimizer) == f"param_scheduler.{expected}"
    inside = dict(type="ChainedScheduler", schedulers=[lrs.StepLR(optimizer, 3)], begin=5)
    assert refusal([inside], optimizer) == f"param_scheduler[0].{expected}"


@pytest.mark.parametrize("begin", [0, 500])
@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (dict(type="LinearLR", start_factor=0.0), "ValueError: Starting multiplicative factor expected to be greater than 0"),
        (dict(type="OneCycleLR", max_lr=0.1), "ValueError: You must define either total_steps OR"),
        (dict(type="OneCycleLR", max_lr=[0.1], total_steps=5), "ValueError: max_lr must have the same length as "),
        (dict(type="StepLR", step_size=0), "ZeroDivisionError: "),
        (dict(type="LambdaLR", lr_lambda=lambda step: 1 / step), "ZeroDivisionError: "),
        (dict(type="ReduceLROnPlateau", factor=2.0), "ValueError: Factor should be < 1.0"),
        (STEP | dict(last_epoch=3), "KeyError: "),
    ],
)
@pytest.mark.parametrize("name", ["lr", "weight_decay"])
def test_what_torch_refuses_is_found_before_the_run(config: dict[str, Any], reason: str, begin: int, name: str) -> None:
    """Also where the schedule begins much later, and the optimizer is left as it was."""
    optimizer = make_optimizer()
    before = [dict(group) for group in optimizer.param_groups]
    spec = config | dict(begin=begin, param_name=name)
    if spec["type"] == "OneCycleLR" and name != "lr":
        spec["cycle_momentum"] = False
    text = refusal(spec, optimizer)
    verb = "refuses its" if reason.startswith("ValueError") else "fails with these"
    assert text.startswith(f"param_scheduler: {spec['type']} {verb} options: {reason}")
    assert optimizer.param_groups == before


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("LinearMomentum", "dict(type='LinearLR', param_name='momentum')"),
        ("ConstantMomentum", "dict(type='ConstantLR', param_name='momentum')"),
        ("CosineAnnealingMomentum", "dict(type='CosineAnnealingLR', param_name='momentum')"),
        ("CosineRestartMomentum", "dict(type='CosineAnnealingWarmRestarts', param_name='momentum')"),
        ("ExponentialMomentum", "dict(type='ExponentialLR', param_name='momentum')"),
        ("MultiStepMomentum", "dict(type='MultiStepLR', param_name='momentum')"),
        ("PolyMomentum", "dict(type='PolynomialLR', param_name='momentum')"),
        ("ReduceOnPlateauMomentum", "dict(type='ReduceLROnPlateau', param_name='momentum')"),
        ("StepMomentum", "dict(type='StepLR', param_name='momentum')"),
        ("LinearParamScheduler", "dict(type='LinearLR', param_name=...)"),
        ("PolyParamScheduler", "dict(type='PolynomialLR', param_name=...)"),
        ("CosineRestartLR", "dict(type='CosineAnnealingWarmRestarts')"),
    ],
)
def test_a_name_that_says_the_parameter_is_answered_with_ours(name: str, remedy: str) -> None:
    """There is one name for each schedule, whatever it drives."""
    assert refusal(dict(type=name, begin=0)) == (
        f"param_scheduler.type = {name!r}: no param scheduler is registered as {name!r}; did you mean {remedy}?"
    )


@pytest.mark.parametrize(
    ("name", "close"), [("PolyLR", "PolynomialLR"), ("ReduceOnPlateauLR", "ReduceLROnPlateau"), ("Momentum", None)]
)
def test_other_unknown_names_have_a_nearest_choice(name: str, close: str | None) -> None:
    """As in every registry."""
    text = refusal(dict(type=name))
    assert (f"did you mean {close!r}?" in text) == (close is not None)
    assert all(known in text for known in PARAM_SCHEDULERS.names())


def test_a_scheduler_must_step_the_optimizer_of_the_runner() -> None:
    """Otherwise it would have no effect."""
    foreign = lrs.StepLR(make_optimizer(), 3)
    expected = " = StepLR: it steps another optimizer; expected the SGD of the runner"
    assert refusal(foreign) == f"param_scheduler{expected}"
    assert refusal([dict(scheduler=foreign)]) == f"param_scheduler[0].scheduler{expected}"
    assert refusal(dict(type="ChainedScheduler", schedulers=[foreign])) == f"param_scheduler{expected}"


def test_a_config_may_not_choose_the_optimizer() -> None:
    """It is that of the runner."""
    text = refusal(dict(type="StepLR", step_size=3, optimizer=None))
    assert text == "param_scheduler.optimizer = None: StepLR gets its 'optimizer' elsewhere; leave it out here"


def test_a_wrapped_scheduler_has_few_options() -> None:
    """Those of the schedule itself were given to torch."""
    optimizer = make_optimizer()
    assert refusal({"scheduler": lrs.StepLR(optimizer, 3), "by_epoc": True}, optimizer) == (
        "param_scheduler.by_epoc = True: no such option beside a scheduler object; "
        "did you mean 'by_epoch'? valid choices: scheduler, by_epoch, begin, end, param_name, monitor"
    )
    assert refusal(dict(scheduler=None)) == "param_scheduler.scheduler = None: expected a torch scheduler"


def test_only_a_plateau_can_monitor_a_metric() -> None:
    """The others would not look at it."""
    expected = "param_scheduler.monitor = 'loss': StepLR follows no metric; expected ReduceLROnPlateau, or no monitor"
    optimizer = make_optimizer()
    assert refusal(STEP | dict(monitor="loss")) == expected
    assert refusal(dict(scheduler=lrs.StepLR(optimizer, 3), monitor="loss"), optimizer) == expected
    assert refusal(dict(type="ReduceLROnPlateau", monitor=5)) == "param_scheduler.monitor = 5: expected the name of a metric"


def test_a_scheduler_is_not_stepped_twice() -> None:
    """The same object may stand in the list once, inside of others too."""
    optimizer = make_optimizer()
    scheduler = lrs.StepLR(optimizer, 3)
    expected = "param_scheduler[1] is the same StepLR object as param_scheduler[0]; it would be stepped twice"
    assert refusal([scheduler, dict(scheduler=scheduler)], optimizer) == expected
    assert refusal([scheduler, dict(type="ChainedScheduler", schedulers=[scheduler])], optimizer) == expected


def test_a_class_that_is_no_scheduler_of_torch_is_refused() -> None:
    """What else it could do is unknown."""

    class Odd:
        def __init__(self, optimizer: Optimizer) -> None:
            self.optimizer = optimizer

    assert refusal(dict(type=Odd)) == "param_scheduler.type = Odd: expected a subclass of torch's LRScheduler"
    assert refusal(dict(type=dict)) == "param_scheduler.type = dict: expected a subclass of torch's LRScheduler"


def test_a_scheduler_of_the_user_is_used_like_those_of_torch() -> None:
    """By its class, with options of its own."""

    class Falling(lrs.LRScheduler):
        def __init__(self, optimizer: Optimizer, *, by: float) -> None:
            self.by = by
            super().__init__(optimizer)

        def get_lr(self) -> list[Any]:
            return [base - self.by * self.last_epoch for base in self.base_lrs]

    optimizer = make_plain(1.0)
    (schedule,) = build(dict(type=Falling, by=0.25, begin=1, end=3), optimizer)
    assert rates(optimizer, schedule.step, 4) == [[1.0], [1.0], [0.75], [0.5], [0.5]]


# looking for problems without building


def test_problems_are_found_without_building() -> None:
    """The list is what would be refused; nothing is made and nothing is changed."""
    optimizer = make_optimizer()
    bad = [STEP, dict(type="LinearLR", start_factor=2.0, begin=5), STEP | dict(end=0)]
    problems = param_scheduler_problems(bad, optimizer, path="schedules")
    with pytest.raises(ConfigError) as caught:
        build_param_schedulers(bad, optimizer, loop_by_epoch=True, path="schedules")
    assert str(caught.value).splitlines()[1:] == [f"  - {problem}" for problem in problems]
    assert [problem.partition(" ")[0] for problem in problems] == ["schedules[1]:", "schedules[2].end"]
    assert param_scheduler_problems([STEP, dict(type="LinearLR")], optimizer) == []
    assert "initial_lr" not in optimizer.param_groups[0]
    assert "step" not in vars(optimizer)
    assert values_of(optimizer) == [0.1, 0.02]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, []),
        (STEP | dict(param_name="anything"), []),
        (lrs.StepLR(make_plain(), 3), []),
        (dict(a=STEP, b=[STEP | dict(end=0)]), ["param_scheduler.b[0].end"]),
        (STEP | dict(end=0), ["param_scheduler.end"]),
        ([dict(type="StepLR")], ["param_scheduler[0].step_size"]),
        (dict(scheduler=lrs.StepLR(make_plain(), 3), begin=1), ["param_scheduler.begin"]),
    ],
)
def test_problems_are_found_where_the_optimizers_are_bad_themselves(spec: object, expected: list[str]) -> None:
    """What can be said about the options alone."""
    assert [problem.partition(" ")[0] for problem in param_scheduler_problems(spec, None)] == expected


def test_one_and_several_optimizers_have_the_same_problems() -> None:
    """A problem of the options is reported once, whatever number of optimizers they are for."""
    bad = STEP | dict(step_size="3")
    one, several = (param_scheduler_problems(bad, optimizers) for optimizers in (make_plain(), make_pair()))
    assert one == several == ["param_scheduler.step_size = '3': expected int"]
    assert {type(optimizer) for optimizer in make_pair().values()} == {SGD, AdamW}

"""Controls of a live run: what each does, when it takes effect, and what is said about it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hookbus.checkpoint import load_checkpoint
from hookbus.errors import ConfigError, InvalidName, RunEnded, Skip, WouldDeadlock
from hookbus.events import AfterTrainIter, AfterValEpoch, AfterValIter, BeforeVal, ControlApplied
from hookbus.runner import Runner
from hookbus.step_requests import LATER_ONES
from hookbus.training_thread import TookEffect
from hookbus.wire import decode_event, encode_event
from tests.checkpoint.builders import assert_same
from tests.runner.builders import at_iter, checkpoints, make_loader, make_runner, names, record, same, weights
from tests.runner.learners import final_state, make_learner


def ask_at(runner: Runner, iteration: int, ask: Callable[[], Any]) -> list[Any]:
    """Return a list that gets what is asked for in an iteration, counted from 0."""
    answers: list[Any] = []
    runner.bus.subscribe(AfterTrainIter, at_iter(iteration, lambda: answers.append(ask())))
    return answers


def rates_seen(runner: Runner) -> list[float]:
    """Return a list that fills with the learning rate of each iteration."""
    seen: list[float] = []
    wrapper: Any = runner.optim_wrapper
    optimizer: torch.optim.Optimizer = wrapper.optimizer
    runner.bus.subscribe(AfterTrainIter, lambda: seen.append(float(optimizer.param_groups[0]["lr"])), priority="HIGHEST")
    return seen


# save


@pytest.mark.parametrize(("name", "expected"), [("mine", "mine"), (None, "iter_2")])
def test_a_save_says_where_and_when(name: str | None, expected: str, tmp_path: Path) -> None:
    """It holds the state behind the iteration in which it was asked for."""
    runner = make_runner(tmp_path)
    answers = ask_at(runner, 1, lambda: runner.save(name))
    runner.train()
    assert answers[0].result(0) == (0, 2, tmp_path / "checkpoints" / expected)
    assert load_checkpoint(answers[0].result(0).path)["progress"]["iter"] == 2


def test_a_save_that_a_hook_leaves_out_has_no_path(tmp_path: Path) -> None:
    """The run goes on."""
    runner = make_runner(tmp_path)

    class Veto:
        def before_save_checkpoint(self, runner: Runner, name: str) -> None:
            if name == "mine":
                raise Skip("not that one")

    runner.register_hook(Veto())
    answers = ask_at(runner, 1, lambda: runner.save("mine"))
    runner.train()
    assert answers[0].result(0) == (0, 2, None)
    assert runner.epoch == 2


def test_a_name_that_is_no_name_is_refused_at_once(tmp_path: Path) -> None:
    """Before anything is asked of the training thread."""
    runner = make_runner(tmp_path)
    ask_at(runner, 0, lambda: runner.save("../mine"))
    with pytest.raises(InvalidName, match="a checkpoint"):
        runner.train()


@pytest.mark.parametrize(("order", "saved"), [("save first", 0.1), ("rate first", 0.03)])
def test_what_is_asked_for_at_one_moment_takes_effect_in_the_order_of_asking(order: str, saved: float, tmp_path: Path) -> None:
    """A checkpoint that was asked for after a change holds it."""
    runner = make_runner(tmp_path)
    asks: list[Callable[[], Any]] = [lambda: runner.save("mine"), lambda: runner.set_lr(0.03)]
    ask_at(runner, 1, lambda: [ask() for ask in (asks if order == "save first" else reversed(asks))])
    runner.train()
    assert load_checkpoint(tmp_path / "checkpoints" / "mine")["optimizer"]["param_groups"][0]["lr"] == saved


# validate


def comparable(work_dir: Path, name: str) -> dict[str, Any]:
    """Return the state of a run but for what a validation more leaves in the hub: its metrics."""
    state = final_state(work_dir, name)
    hub = state["message_hub"]
    hub["log_scalars"] = {key: columns for key, columns in hub["log_scalars"].items() if not key.startswith("val/")}
    return state


PLATEAU = dict(type="ReduceLROnPlateau", mode="max", factor=0.5, patience=0, monitor="loss")


@pytest.mark.parametrize("by_epoch", [True, False])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_validation_on_demand_leaves_no_trace_in_training(by_epoch: bool, workers: int, tmp_path: Path) -> None:
    """Shuffling, augmentation, dropout, accumulation, plateaus and the best score are those of a run without it."""

    def make(work_dir: Path) -> Runner:
        own = torch.Generator().manual_seed(3)
        val = make_loader(8, shuffle=True, generator=own)
        options: dict[str, Any] = dict(by_epoch=by_epoch, workers=workers, val_dataloader=val, custom_hooks=[])
        schedules = [PLATEAU, dict(type="LinearLR", by_epoch=False, total_iters=3)]
        return make_learner(work_dir, param_scheduler=schedules, **options)

    make(tmp_path / "plain").train()
    runner = make(tmp_path / "asked")
    answers: list[Any] = []
    runner.bus.subscribe(AfterTrainIter, lambda: answers.append(runner.validate()), when=lambda event: event.iter % 3 == 1)
    runner.train()
    assert len(answers) == 4
    assert all(answer.result(0).metrics["loss"] > 0 for answer in answers)
    name = "epoch_3" if by_epoch else "iter_12"
    assert_same(comparable(tmp_path / "asked", name), comparable(tmp_path / "plain", name))


def test_the_metrics_are_those_of_the_moment(tmp_path: Path) -> None:
    """What a due validation of the same weights computes; the events are those of any validation."""
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=1))
    answers = ask_at(runner, 2, runner.validate)
    seen = record(runner.bus, AfterValEpoch)
    metrics = runner.train()
    assert answers[0].result(0) == (0, 3, metrics)
    assert [(event.epoch, event.iter) for event in seen if isinstance(event, AfterValEpoch)] == [(0, 3), (1, 3)]
    assert list(runner.message_hub.get_scalar("val/loss").data[0]) == [metrics["loss"]] * 2


def test_what_is_in_training_mode_and_what_is_frozen_stays_so(tmp_path: Path) -> None:
    """Part by part, behind every validation."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3))
    runner = make_runner(tmp_path, model=model, train_cfg=dict(by_epoch=False, max_iters=4, val_interval=3))
    modes: list[list[bool]] = []

    def look(iter: int) -> None:
        if iter == 0:
            model[1].eval()
            runner.validate()
        modes.append([part.training for part in model])

    runner.bus.subscribe(AfterTrainIter, look)
    runner.train()
    assert modes == [[True, False, True]] * 4


def test_a_validation_on_demand_is_none_of_training_s(tmp_path: Path) -> None:
    """Hooks see a validation outside of training; what is due stays due."""
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=1))
    ask_at(runner, 0, runner.validate)
    seen: list[Any] = []
    runner.bus.subscribe(AfterValEpoch, lambda runner: seen.append((runner.is_training, runner.progress.validation_due)))
    runner.train()
    assert seen == [(False, False), (True, True)]
    assert runner.running is None


def test_a_validation_that_is_stopped_has_no_result(tmp_path: Path) -> None:
    """Whoever waits for it is told, and the run ends as after any stop."""
    runner = make_runner(tmp_path, val_dataloader=make_loader(20))
    answers = ask_at(runner, 1, runner.validate)
    runner.bus.subscribe(AfterValIter, lambda: runner.stop(), once=True)
    seen = record(runner.bus)
    runner.train()
    with pytest.raises(RunEnded, match=r"validate\(\) has no result: 'run-\d+' was stopped before it was complete"):
        answers[0].result(0)
    assert names(seen).count("AfterValIter") == 1
    assert "AfterTrain" in names(seen)
    assert "RunFailed" not in names(seen)
    assert runner.iter == 2


def test_a_validation_behind_a_stop_does_not_begin(tmp_path: Path) -> None:
    """The stop came first."""
    runner = make_runner(tmp_path)
    answers = ask_at(runner, 1, lambda: (runner.stop(), runner.validate())[1])
    seen = record(runner.bus, BeforeVal)
    runner.train()
    assert seen == []
    with pytest.raises(RunEnded, match="was stopped"):
        answers[0].result(0)


def test_a_validation_that_a_hook_skips_has_no_metrics(tmp_path: Path) -> None:
    """It took effect all the same."""
    runner = make_runner(tmp_path)

    def skip() -> None:
        raise Skip("not now")

    answers = ask_at(runner, 1, runner.validate)
    runner.bus.subscribe(BeforeVal, skip)
    runner.train()
    assert answers[0].result(0) == (0, 2, {})


def test_an_error_in_a_validation_on_demand_ends_the_run(tmp_path: Path) -> None:
    """As in any other one; the generators and the state of the runner are put back."""
    runner = make_runner(tmp_path)
    answers = ask_at(runner, 1, runner.validate)

    def fail() -> None:
        raise ValueError("bad batch")

    runner.bus.subscribe(AfterValIter, fail)
    with pytest.raises(ValueError, match="bad batch"):
        runner.train()
    with pytest.raises(ValueError, match="bad batch"):
        answers[0].result(0)
    assert runner.running is None


def test_without_validation_data_there_is_nothing_to_ask_for(tmp_path: Path) -> None:
    """The error says what is needed."""
    runner = make_runner(tmp_path, val_dataloader=None)
    ask_at(runner, 0, runner.validate)
    with pytest.raises(ConfigError, match=r"val\(\) needs val_dataloader, which the runner was not given"):
        runner.train()


# set_lr


SCHEDULES = [
    dict(type="ExponentialLR", gamma=0.5, by_epoch=False),
    dict(type="CosineAnnealingLR", T_max=9, eta_min=0.001, by_epoch=False),
]


def test_a_learning_rate_holds_from_the_next_iteration_on(tmp_path: Path) -> None:
    """Without a schedule it stays; the hub records it."""
    runner = make_runner(tmp_path)
    seen = rates_seen(runner)
    answers = ask_at(runner, 1, lambda: runner.set_lr(0.01))
    runner.train()
    assert seen == [0.1, 0.1, 0.01, 0.01, 0.01, 0.01]
    assert answers[0].result(0) == TookEffect(0, 2)
    assert list(runner.message_hub.get_scalar("train/lr").data[0]) == seen


def test_schedules_go_on_in_proportion_also_after_a_resume(tmp_path: Path) -> None:
    """The resumed run is the run that was never interrupted, to the last bit."""

    def make(work_dir: Path, **options: Any) -> Runner:
        runner = make_runner(work_dir, param_scheduler=SCHEDULES, **options)
        ask_at(runner, 1, lambda: runner.set_lr(0.8))
        return runner

    plain = make_runner(tmp_path / "plain", param_scheduler=SCHEDULES)
    straight, cut = make(tmp_path / "straight"), make(tmp_path / "cut")
    expected, seen = rates_seen(plain), rates_seen(straight)
    ask_at(cut, 3, cut.stop)
    for runner in (plain, straight, cut):
        runner.train()
    factor = 0.8 / expected[2]
    assert seen == pytest.approx([*expected[:2], *(rate * factor for rate in expected[2:])])
    resumed = make(tmp_path / "cut", resume=True)
    going_on = rates_seen(resumed)
    resumed.train()
    assert going_on == seen[4:]
    assert same(weights(resumed.model), weights(straight.model))


def two_groups(tmp_path: Path, **options: Any) -> Runner:
    """Return a runner whose optimizer has a group with a name, and one without."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 3))
    groups: list[dict[str, Any]] = [
        {"params": model[0].parameters()},
        {"params": model[1].parameters(), "name": "head", "lr": 0.2},
    ]
    return make_runner(tmp_path, model=model, optimizer=torch.optim.SGD(groups, lr=0.1), **options)


class Pair(torch.nn.Module):
    """Two parts, each with an optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.probe = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)

    def train_step(self, batch: Any, optim_wrapper: Any) -> dict[str, Any]:
        """Minimise both."""
        losses = {name: torch.nn.functional.cross_entropy(getattr(self, name)(batch[0]), batch[1]) for name in ("body", "probe")}
        for name, loss in losses.items():
            optim_wrapper[name].update_params(loss)
        return {"loss": losses["body"]}


def two_optimizers(tmp_path: Path) -> Runner:
    """Return a runner with optimizers by name."""
    options = dict(body=dict(type="SGD", lr=0.1), probe=dict(type="SGD", lr=0.2))
    return make_runner(tmp_path, model=Pair(), optimizer=options, val_dataloader=None)


@pytest.mark.parametrize(
    ("make", "asked", "expected"),
    [
        (two_groups, 0.5, [0.5, 0.5]),
        (two_groups, {"head": 0.5}, [0.1, 0.5]),
        (two_groups, {"0": 0.3, "head": 0}, [0.3, 0.0]),
        (two_groups, {0: 0.3}, [0.3, 0.2]),
        (two_optimizers, {"probe": 0.5}, [0.1, 0.5]),
        (two_optimizers, {"body": 0.5, "body.0": 0.4}, [0.4, 0.2]),
        (two_optimizers, 0.7, [0.7, 0.7]),
    ],
)
def test_rates_may_be_given_by_name(make: Any, asked: Any, expected: list[float], tmp_path: Path) -> None:
    """Of an optimizer, of a group, or of a group of an optimizer; the more precise name wins."""
    runner = make(tmp_path)
    ask_at(runner, 0, lambda: runner.set_lr(asked))
    runner.train()
    groups = [group for wrapper in runner.optim_wrapper.wrappers().values() for group in wrapper.param_groups]
    assert [group["lr"] for group in groups] == expected


@pytest.mark.parametrize(
    ("make", "asked", "message"),
    [
        (two_groups, -0.1, "set_lr: lr = -0.1: expected a number of at least 0"),
        (two_groups, float("nan"), "set_lr: lr = nan: expected a number of at least 0"),
        (two_groups, float("inf"), "set_lr: lr = inf: expected a number of at least 0"),
        (two_groups, True, "set_lr: lr = True: expected a number of at least 0"),
        (two_groups, "0.1", "set_lr: lr = '0.1': expected a number of at least 0"),
        (two_groups, {}, r"set_lr\({}\): expected at least one learning rate"),
        (two_groups, {"haed": 0.1}, "no optimizer or group is called 'haed'; did you mean 'head'. valid choices: 0, head"),
        (two_groups, {"head": -1}, r"set_lr: lr\['head'\] = -1: expected a number of at least 0"),
        (two_optimizers, {"prob": 0.1}, "did you mean 'probe'. valid choices: body, body.0, probe, probe.0"),
    ],
)
def test_a_rate_that_makes_no_sense_is_refused_where_it_is_asked_for(make: Any, asked: Any, message: str, tmp_path: Path) -> None:
    """The caller gets the error, and nothing is changed."""
    runner = make(tmp_path)
    refused: list[str] = []

    def ask() -> None:
        with pytest.raises(ConfigError) as caught:
            runner.set_lr(asked)
        refused.append(str(caught.value))

    ask_at(runner, 0, ask)
    runner.train()
    assert re.search(message, refused[0])
    assert runner.epoch == 2


def test_a_schedule_that_stands_at_zero_refuses_and_the_run_goes_on(tmp_path: Path) -> None:
    """Whoever asked is told, the log holds it, and no other group is changed; once it has moved on, it works."""

    class AtOnce:
        def before_train(self, runner: Runner) -> None:
            self.first = runner.set_lr(0.5)

    spec = dict(type="LambdaLR", lr_lambda=lambda step: 0.0 if step < 3 else 1.0, by_epoch=False)
    runner = make_runner(tmp_path, param_scheduler=spec)
    hook = AtOnce()
    runner.register_hook(hook)
    later = ask_at(runner, 3, lambda: runner.set_lr(0.5))
    seen = rates_seen(runner)
    runner.train()
    with pytest.raises(ConfigError, match=r"set_lr\(0.5\): the schedules of group 0 stand at 0, and no factor.*ask again"):
        hook.first.result(0)
    assert later[0].result(0).iter == 4
    assert seen == [0.0, 0.0, 0.0, 0.1, 0.5, 0.5]
    assert "the schedules of group 0 stand at 0" in (runner.log_dir / "train.log").read_text()


def test_schedules_that_are_over_leave_the_rate_to_whoever_sets_it(tmp_path: Path) -> None:
    """Also one that ended at 0."""
    spec = dict(type="CosineAnnealingLR", T_max=2, end=2, by_epoch=False)
    runner = make_runner(tmp_path, param_scheduler=spec)
    seen = rates_seen(runner)
    ask_at(runner, 2, lambda: runner.set_lr(0.5))
    runner.train()
    assert seen == pytest.approx([0.1, 0.05, 0.0, 0.5, 0.5, 0.5])


# who asked


def test_each_control_is_published_and_logged_behind_its_effect(tmp_path: Path) -> None:
    """With what it was called with, when, and on whose behalf; the event goes over the wire."""
    runner = make_runner(tmp_path)
    seen = record(runner.bus, ControlApplied)

    def ask() -> None:
        runner.save("mine")
        runner.set_lr({"0": 0.02}, requested_by="alice")
        runner.validate()

    ask_at(runner, 1, ask)
    ask_at(runner, 2, lambda: runner.stop(requested_by="bob"))
    runner.train()
    me = "test_each_control_is_published_and_logged_behind_its_effect.<locals>.ask"
    expected: list[tuple[str, dict[str, Any], int, str]] = [
        ("save", {"name": "mine"}, 2, me),
        ("set_lr", {"lr": {"0": 0.02}}, 2, "alice"),
        ("validate", {}, 2, me),
        ("stop", {}, 3, "bob"),
    ]
    assert seen == [ControlApplied(control=c, arguments=a, epoch=0, iter=i, requested_by=who) for c, a, i, who in expected]
    assert [decode_event(encode_event(event)) for event in seen] == seen
    log = (runner.log_dir / "train.log").read_text()
    assert "set_lr(lr={'0': 0.02}) at epoch 0, iteration 2, by alice\n" in log
    assert "stop() at epoch 0, iteration 3, by bob\n" in log


def test_a_handler_that_answers_every_control_with_another_one_holds_nobody_up(tmp_path: Path) -> None:
    """A few take effect at the same boundary, the others later; the run ends."""
    runner = make_runner(tmp_path, log_level="WARNING")
    seen = record(runner.bus, ControlApplied)
    runner.bus.subscribe(ControlApplied, lambda: runner.set_lr(0.1))
    ask_at(runner, 0, lambda: runner.set_lr(0.1))
    runner.train()
    assert runner.epoch == 2
    at_the_first = [event for event in seen if isinstance(event, ControlApplied) and event.iter == 1]
    assert len(at_the_first) == 1 + LATER_ONES


def test_an_error_of_a_listener_ends_the_run_and_the_control_has_taken_effect(tmp_path: Path) -> None:
    """The acknowledgement is not about the listeners."""
    runner = make_runner(tmp_path)

    def fail() -> None:
        raise ValueError("no control room")

    runner.bus.subscribe(ControlApplied, fail)
    answers = ask_at(runner, 1, lambda: runner.set_lr(0.5))
    with pytest.raises(ValueError, match="no control room"):
        runner.train()
    assert answers[0].result(0).iter == 2


# where it may not be waited for


@pytest.mark.parametrize("control", ["stop", "pause", "unpause", "save", "validate", "set_lr", "run_on_main_stream"])
def test_waiting_inside_a_handler_that_training_waits_for_is_refused(control: str, tmp_path: Path) -> None:
    """By name, in inline and in awaited handlers; asking without waiting works."""
    runner = make_runner(tmp_path)
    arguments = {"set_lr": (0.1,), "run_on_main_stream": (int,)}.get(control, ())

    def inline() -> None:
        runner.unpause()
        with pytest.raises(WouldDeadlock):
            getattr(runner, control)(*arguments).result(30)
        runner.unpause()

    async def awaited() -> None:
        if control == "run_on_main_stream":  # training serves it while it waits for this handler
            assert await runner.run_on_main_stream(int) == 0
            return
        with pytest.raises(WouldDeadlock, match="takes effect at the next step boundary, which cannot come while training waits"):
            await getattr(runner, control)(*arguments)
        runner.unpause()

    runner.bus.subscribe(AfterTrainIter, inline, once=True)
    runner.bus.subscribe(AfterTrainIter, awaited, once=True)
    runner.train()
    assert runner.iter == (1 if control == "stop" else 6)
    assert "epoch_2" in checkpoints(tmp_path) or control == "stop"

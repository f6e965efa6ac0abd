"""ProfilerHook: which iterations it records, where the traces go, and that it always stops."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity

from hookbus.errors import ConfigError
from hookbus.events import AfterTrainIter, BeforeTrainIter
from hookbus.hooks import ProfilerHook
from hookbus.runner import Runner
from tests.runner.builders import at_iter, make_runner

LOOPS: dict[str, dict[str, Any]] = {
    "by epoch": dict(max_epochs=4),
    "by iteration": dict(by_epoch=False, max_iters=12, val_interval=3),
}
"""Twelve iterations and four validations."""


def make(work_dir: Path, loop: str = "by epoch", **options: Any) -> Runner:
    """Return a runner of twelve iterations with the hook."""
    hook = dict(type="ProfilerHook") | options
    return make_runner(work_dir, train_cfg=LOOPS[loop], default_hooks=dict(logger=None, checkpoint=None), custom_hooks=[hook])


def traces(runner: Runner) -> list[str]:
    """Return the names of the traces."""
    return sorted(path.name for path in (runner.log_dir / "profile").glob("*"))


def steps_in(path: Path) -> list[int]:
    """Return the steps of the profiler that a trace shows."""
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return sorted({int(event["name"].removeprefix("ProfilerStep#")) for event in events if is_step(event)})


def is_step(event: dict[str, Any]) -> bool:
    """Return whether this is a step, in the thread that made it."""
    return event.get("name", "").startswith("ProfilerStep#") and event.get("cat") == "user_annotation"


def nothing_is_profiled() -> bool:
    """Return whether torch records nothing now."""
    return not torch.autograd.profiler._is_profiler_enabled


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        (None, {5: [2, 3, 4]}),
        (dict(skip_first=2, wait=0, warmup=1, active=1), {4: [3]}),
        (dict(wait=1, warmup=1, active=2, repeat=2), {4: [2, 3], 8: [6, 7]}),
        (dict(wait=2, warmup=1, active=1, repeat=0), {4: [3], 8: [7], 12: [11]}),
        (dict(wait=9, warmup=1, active=10), {12: [10, 11]}),
    ],
)
def test_each_round_of_the_schedule_gives_one_trace(
    schedule: dict[str, int] | None, steps: dict[int, list[int]], loop: str, tmp_path: Path
) -> None:
    """Named after the process and the iterations that are completed; the last one may be cut short by the end of training."""
    runner = make(tmp_path, loop, schedule=schedule)
    runner.train()
    assert traces(runner) == sorted(f"rank_0_iter_{completed}.json" for completed in steps)
    found = {completed: steps_in(runner.log_dir / "profile" / f"rank_0_iter_{completed}.json") for completed in steps}
    assert {completed: [step for step in those if step in steps[completed]] for completed, those in found.items()} == steps
    assert nothing_is_profiled()


def test_when_the_schedule_is_over_nothing_is_profiled_any_more(tmp_path: Path) -> None:
    """The rest of training runs as if the hook were not there."""
    runner = make(tmp_path, schedule=dict(wait=0, warmup=1, active=2))
    states: list[bool] = []
    runner.bus.subscribe(BeforeTrainIter, lambda: states.append(nothing_is_profiled()))
    runner.train()
    assert states == [True, False, False, *[True] * 9]  # while it warms up, nothing is recorded


def test_a_trace_shows_each_handler_by_its_name(tmp_path: Path) -> None:
    """As long as the profiler runs; afterwards nothing surrounds the calls of handlers any more."""
    runner = make(tmp_path, schedule=dict(wait=0, warmup=1, active=1))
    surrounded: list[bool] = []
    runner.bus.subscribe(BeforeTrainIter, lambda: surrounded.append(runner.bus.around is not None), name="look around")
    runner.train()
    (path,) = (runner.log_dir / "profile").glob("*.json")
    found = {event.get("name") for event in json.loads(path.read_text(encoding="utf-8"))["traceEvents"]}
    assert {"look around", "IterTimerHook.after_train_iter", "ParamSchedulerHook.after_train_iter"} <= found
    assert surrounded == [True, True, *[False] * 10]


def test_whoever_surrounds_the_handlers_already_stays(tmp_path: Path) -> None:
    """The trace has no names of handlers then."""
    runner = make(tmp_path)
    names: list[str] = []

    @contextmanager
    def mine(subscription: Any) -> Iterator[None]:
        names.append(subscription.name)
        yield

    runner.bus.around = mine
    runner.train()
    assert runner.bus.around is mine
    assert "ProfilerHook.after_train_iter" in names
    assert traces(runner) == ["rank_0_iter_5.json"]


def test_an_error_in_training_stops_the_profiler_and_keeps_what_it_had(tmp_path: Path) -> None:
    """The error itself goes on."""

    def fail() -> None:
        raise ArithmeticError("in the fourth iteration")

    runner = make(tmp_path)
    runner.bus.subscribe(AfterTrainIter, at_iter(3, fail))
    with pytest.raises(ArithmeticError, match="in the fourth iteration"):
        runner.train()
    assert nothing_is_profiled()
    assert runner.bus.around is None
    assert traces(runner) == ["rank_0_iter_3.json"]
    again = make(tmp_path / "again")
    again.train()
    assert traces(again) == ["rank_0_iter_5.json"]


def test_a_function_that_fails_ends_the_run_and_the_profiler(tmp_path: Path) -> None:
    """It was a user's own, and is called once."""
    calls: list[Any] = []

    def fail(ready: Any) -> None:
        calls.append(ready)
        raise OSError("no space left")

    runner = make(tmp_path, on_trace_ready=fail)
    with pytest.raises(OSError, match="no space left"):
        runner.train()
    assert len(calls) == 1
    assert nothing_is_profiled()


def test_a_function_gets_the_profiler_with_its_trace(tmp_path: Path) -> None:
    """And nothing is written but by itself."""
    tables: list[str] = []
    runner = make(
        tmp_path,
        on_trace_ready=lambda ready: tables.append(ready.key_averages().table(row_limit=5)),
        record_shapes=True,
        profile_memory=True,
        with_flops=True,
        with_stack=True,
    )
    runner.train()
    (table,) = tables
    assert "CPU Mem" in table
    assert traces(runner) == []


def test_traces_for_tensorboard_have_the_names_it_expects(tmp_path: Path) -> None:
    """The name of a worker, a time, and the ending of a trace."""
    runner = make(tmp_path, on_trace_ready="tensorboard")
    runner.train()
    (name,) = traces(runner)
    assert re.fullmatch(r"rank_0\.\d+\.pt\.trace\.json", name)


def test_training_that_is_too_short_for_the_schedule_says_so(tmp_path: Path) -> None:
    """Instead of leaving nothing behind without a word."""
    runner = make(tmp_path, schedule=dict(skip_first=20))
    runner.train()
    expected = "ProfilerHook recorded nothing: training ended after 12 iterations, and it begins to record after 22"
    assert expected in (runner.log_dir / "train.log").read_text(encoding="utf-8")
    assert nothing_is_profiled()


def test_each_call_of_train_has_a_schedule_of_its_own(tmp_path: Path) -> None:
    """The second one counts on from where the first one ended; validation and test in between are left alone."""
    runner = make(tmp_path, "by iteration", schedule=dict(wait=0, warmup=1, active=1))
    runner.bus.subscribe(AfterTrainIter, at_iter(5, runner.stop))
    runner.train()
    runner.val()
    runner.test()
    runner.train()
    assert traces(runner) == ["rank_0_iter_2.json", "rank_0_iter_8.json"]


async def test_a_run_inside_a_service_is_profiled_too(tmp_path: Path) -> None:
    """Its training thread is another one."""
    runner = make(tmp_path)
    await runner.train_async()
    assert traces(runner) == ["rank_0_iter_5.json"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (dict(schedule=3), "ProfilerHook.schedule = 3: expected a dict of numbers of iterations; its keys: skip_first, wait,"),
        (dict(schedule=dict(activ=3)), "ProfilerHook.schedule has no 'activ'; did you mean 'active'? valid choices: skip_first"),
        (dict(schedule=dict(active=0)), "ProfilerHook.schedule.active = 0: expected a whole number of at least 1"),
        (dict(schedule=dict(wait=-1)), "ProfilerHook.schedule.wait = -1: expected a whole number of at least 0"),
        (dict(schedule=dict(repeat=True)), "ProfilerHook.schedule.repeat = True: expected a whole number of at least 0"),
        (
            dict(on_trace_ready="jsn"),
            "ProfilerHook.on_trace_ready = 'jsn': expected a function that takes a profiler, or a format; did you mean 'json'?",
        ),
        (dict(activity_with_cpu=1), "ProfilerHook.activity_with_cpu = 1: expected True or False"),
        (dict(activity_with_cuda="yes"), "ProfilerHook.activity_with_cuda = 'yes': expected True, False, or None"),
        (
            dict(activity_with_cpu=False, activity_with_cuda=False),
            "ProfilerHook.activity_with_cpu = False: expected True: there would be nothing to record otherwise",
        ),
        (dict(with_stack=None), "ProfilerHook.with_stack = None: expected True or False"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], problem: str) -> None:
    """Each is named, with what was expected."""
    with pytest.raises(ConfigError, match=f"^{re.escape(problem)}"):
        ProfilerHook(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a device that could be profiled")
def test_a_device_that_is_not_there_is_refused_and_not_recorded() -> None:
    """Left out, what is there is recorded."""
    with pytest.raises(ConfigError, match="activity_with_cuda = True: expected False or None: torch sees no accelerator here"):
        ProfilerHook(activity_with_cuda=True)
    assert ProfilerHook().activities == [ProfilerActivity.CPU]

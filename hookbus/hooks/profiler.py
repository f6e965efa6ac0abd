"""Records what a few iterations spend their time on, as traces for a viewer."""

from __future__ import annotations

__all__ = ("ProfilerHook",)

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
from torch.profiler import ProfilerActivity, profile, record_function, supported_activities, tensorboard_trace_handler

from hookbus._config import refuse, shown
from hookbus.errors import choices
from hookbus.hooks.base import Hook

TraceFormat = Literal["json", "tensorboard"]
"""How traces are stored."""
TraceHandler: TypeAlias = Callable[[Any], object]
"""Gets the `torch.profiler.profile` when it has a trace."""

SCHEDULE: Mapping[str, int] = {"skip_first": 0, "wait": 1, "warmup": 1, "active": 3, "repeat": 1}
"""Iterations, but for `repeat`, which counts rounds; the phases follow one another in this order."""
_AT_LEAST = {"active": 1}


class ProfilerHook(Hook):
    """Runs `torch.profiler` over a few training iterations; each process writes traces of its own, with handlers by name.

    They go to `profile/` in the directory of the logs, named after process and iteration. When the schedule is over, or
    training ends in whatever way, the profiler is stopped; what it had recorded until then is written, too. A validation
    between two iterations is part of the later one.

    Args:
        schedule: iterations to `skip_first`, then round by round to `wait`, to `warmup` and to record (`active`), and how often
            to `repeat` that, 0 for as long as training lasts; what is left out is 0, 1, 1, 3 and 1.
        on_trace_ready: `"json"` for one file per trace, `"tensorboard"` for the names that its profiler plugin expects, or a
            function that gets the profiler whenever a round is recorded.
        activity_with_cpu: whether to record what runs on the CPU.
        activity_with_cuda: whether to record what runs on an accelerator; left out, where there is one.
        record_shapes: whether to record the shapes of what operators are given.
        profile_memory: whether to record what is allocated and freed.
        with_stack: whether to record the Python stack of each operator, which takes time itself.
        with_flops: whether to estimate the floating point operations of matrix products and convolutions.

    Raises:
        ConfigError: an option makes no sense; names each.
    """

    priority: ClassVar[int | str] = "VERY_LOW"

    def __init__(
        self,
        *,
        schedule: Mapping[str, int] | None = None,
        on_trace_ready: TraceFormat | TraceHandler = "json",
        activity_with_cpu: bool = True,
        activity_with_cuda: bool | None = None,
        record_shapes: bool = False,
        profile_memory: bool = False,
        with_stack: bool = False,
        with_flops: bool = False,
    ) -> None:
        recorded: dict[str, Any] = {
            "record_shapes": record_shapes,
            "profile_memory": profile_memory,
            "with_stack": with_stack,
            "with_flops": with_flops,
        }
        flags = {"activity_with_cpu": activity_with_cpu, **recorded}
        refuse(
            [
                *_schedule_problems(schedule),
                *_handler_problems(on_trace_ready),
                *_activity_problems(activity_with_cpu, activity_with_cuda),
                *(_problem(name, value, "True or False") for name, value in flags.items() if not isinstance(value, bool)),
            ]
        )
        self.schedule = {**SCHEDULE, **(schedule or {})}
        self.on_trace_ready = on_trace_ready
        self.activities = _activities(activity_with_cpu, activity_with_cuda)
        self.recorded = recorded
        self._profile: profile | None = None
        self._stop_naming: Callable[[], None] = _nothing
        self._steps = 0
        """Iterations since training began."""
        self._iter = 0
        self._traces = 0

    def before_train(self, runner: Any) -> None:
        """Start the profiler; each call of `train` gets a schedule of its own."""
        self._steps = self._traces = 0
        self._iter = runner.iter
        handler = self._handler(runner)

        def on_trace_ready(ready: profile) -> None:
            self._traces += 1
            handler(ready)

        self._profile = profile(
            activities=self.activities,
            schedule=torch.profiler.schedule(**self.schedule),
            on_trace_ready=on_trace_ready,
            acc_events=True,  # each round is a trace of its own; torch would warn that it forgets the one before
            **self.recorded,
        )
        self._stop_naming = _name_handlers(runner.bus)
        self._profile.start()

    def after_train_iter(self, iter: int) -> None:
        """Tell the profiler that an iteration is over, and stop it with the schedule."""
        if self._profile is None:
            return
        self._iter = iter + 1
        self._steps += 1
        self._profile.step()
        if self._steps == self._last_step():
            self._stop()

    def after_train(self, runner: Any) -> None:
        """Stop the profiler where training was shorter than the schedule."""
        self._stop()
        if self._traces == 0:
            message = "ProfilerHook recorded nothing: training ended after %d iterations, and it begins to record after %d"
            runner.logger.warning(message, self._steps, sum(self.schedule[phase] for phase in ("skip_first", "wait", "warmup")))

    def after_run(self) -> None:
        """Stop the profiler where an error ended training."""
        self._stop()

    def _stop(self) -> None:
        """Stop once, also where the handler of the trace fails."""
        self._stop_naming()
        self._stop_naming = _nothing
        running, self._profile = self._profile, None
        if running is not None:
            running.stop()

    def _last_step(self) -> int | None:
        """Return the iterations after which nothing more will be recorded, or None where there is always more to come."""
        phases = self.schedule
        round_length = phases["wait"] + phases["warmup"] + phases["active"]
        return phases["skip_first"] + phases["repeat"] * round_length if phases["repeat"] else None

    def _handler(self, runner: Any) -> TraceHandler:
        if callable(self.on_trace_ready):
            return self.on_trace_ready
        directory: Path = runner.log_dir / "profile"
        process = f"rank_{runner.rank}"
        if self.on_trace_ready == "tensorboard":
            to_tensorboard: TraceHandler = tensorboard_trace_handler(str(directory), worker_name=process)
            return to_tensorboard

        def to_json(ready: profile) -> None:
            directory.mkdir(parents=True, exist_ok=True)
            path = directory / f"{process}_iter_{self._iter}.json"
            ready.export_chrome_trace(str(path))
            runner.logger.info("wrote %s", path)

        return to_json


def _nothing() -> None:
    """There is nothing to undo."""


def _name_handlers(bus: Any) -> Callable[[], None]:
    """Have each call of a handler be a range of the trace, and return what ends that; who is already around them, stays."""
    if bus.around is not None:
        return _nothing

    def around(subscription: Any) -> record_function:
        return record_function(subscription.name)

    def end() -> None:
        if bus.around is around:
            bus.around = None

    bus.around = around
    return end


def _activities(with_cpu: bool, with_accelerator: bool | None) -> list[ProfilerActivity]:
    there: set[ProfilerActivity] = supported_activities()  # type: ignore[no-untyped-call]
    accelerators = [activity for activity in there if activity != ProfilerActivity.CPU]
    return [*([ProfilerActivity.CPU] if with_cpu else []), *(accelerators if with_accelerator is not False else [])]


def _schedule_problems(schedule: object) -> Iterator[str]:
    if not isinstance(schedule, Mapping | None):
        yield _problem("schedule", schedule, f"a dict of numbers of iterations; its keys: {', '.join(SCHEDULE)}")
        return
    for phase, number in (schedule or {}).items():
        least = _AT_LEAST.get(phase, 0)
        if phase not in SCHEDULE:
            yield f"ProfilerHook.schedule has no {shown(phase)}; {choices(str(phase), SCHEDULE)}"
        elif type(number) is not int or number < least:
            yield _problem(f"schedule.{phase}", number, f"a whole number of at least {least}")


def _handler_problems(handler: object) -> Iterator[str]:
    if not callable(handler) and handler not in get_args(TraceFormat):
        expected = f"a function that takes a profiler, or a format; {choices(str(handler), get_args(TraceFormat))}"
        yield _problem("on_trace_ready", handler, expected)


def _activity_problems(with_cpu: object, with_accelerator: object) -> Iterator[str]:
    if not isinstance(with_accelerator, bool | None):
        yield _problem("activity_with_cuda", with_accelerator, "True, False, or None for where there is an accelerator")
        return
    has_accelerator = bool(_activities(False, True))
    if with_accelerator and not has_accelerator:
        yield _problem("activity_with_cuda", True, "False or None: torch sees no accelerator here that could be profiled")
    elif not with_cpu and (with_accelerator is False or not has_accelerator):
        yield _problem("activity_with_cpu", with_cpu, "True: there would be nothing to record otherwise")


def _problem(name: str, value: object, expectation: str) -> str:
    return f"ProfilerHook.{name} = {shown(value)}: expected {expectation}"

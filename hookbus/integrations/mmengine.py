"""Hooks of MMEngine, and hooks written for it, as they are.

`MMEngineHook` takes the place of such a hook on the bus: it is subscribed to the mount points that the hook overrides, and calls
it as MMEngine does, the runner first and the rest by keyword. `MMEngineRunner` is the runner that the hook gets to see: ours, and
under MMEngine's names what such hooks read beyond it. MMEngine itself is not imported here.
"""

from __future__ import annotations

__all__ = ("MMEngineHook", "MMEngineRunner")

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from hookbus.bus.hook_methods import SHARED_METHODS
from hookbus.errors import ConfigError, HandlerSignatureError, SubscriptionError, choices
from hookbus.events import MOUNT_POINTS, MountPoint
from hookbus.registry import HOOKS
from hookbus.types import Handler

_BASE = ("mmengine.hooks.hook", "Hook")
"""Module and name of the class that all these hooks derive from."""

_UNFIT: Mapping[str, str] = {
    "CheckpointHook": "it writes and removes files of MMEngine's own format",
    "LoggerHook": "it writes to runner.visualizer",
    "RuntimeInfoHook": "it records runner.cfg",
    "NaiveVisualizationHook": "it draws on runner.visualizer",
    "PrepareTTAHook": "it puts another model in the place of runner.model, which the loops would not see",
}
"""MMEngine's own hooks that cannot work with another runner, and why."""

_ABSENT: Mapping[str, str] = {
    "visualizer": "records go to the writers of LoggerHook",
    "cfg": "a config is not kept once the runner is built; give the hook what it needs",
}
"""What MMEngine's runner has and ours has not, and what takes its place."""

_PARTS = frozenset(
    [
        "model",
        "optim_wrapper",
        "param_schedulers",
        "train_dataloader",
        "val_dataloader",
        "test_dataloader",
        "train_loop",
        "val_loop",
        "test_loop",
    ]
)
"""What the loops hold themselves, so that another value would not reach them."""

_EVALUATIONS: Mapping[str, str] = {"before_val_epoch": "after_val_epoch", "before_test_epoch": "after_test_epoch"}
"""What begins an evaluation, and what a hook relies on to end it."""

_Call = Callable[..., None]

_SIGNATURES: Mapping[tuple[str, ...], Callable[[_Call], Handler]] = {
    (): lambda call: lambda runner: call(runner),
    ("checkpoint",): lambda call: lambda runner, checkpoint: call(runner, checkpoint=checkpoint),
    ("metrics",): lambda call: lambda runner, metrics: call(runner, metrics=metrics),
    ("batch_idx", "data_batch"): lambda call: (
        lambda runner, batch_idx, data_batch: call(runner, batch_idx=batch_idx, data_batch=data_batch)
    ),
    ("batch_idx", "data_batch", "outputs"): lambda call: (
        lambda runner, batch_idx, data_batch, outputs: call(runner, batch_idx=batch_idx, data_batch=data_batch, outputs=outputs)
    ),
}
"""Handlers by what MMEngine passes beside the runner; a bus reads from their signatures what they ask for."""


class MMEngineHook:
    """Takes the place of a hook of MMEngine on a bus, with one method for each mount point that the hook overrides.

    Two things are done for the hook. It hears `after_val_epoch` (without metrics) for each `before_val_epoch` it has heard,
    also where hookbus ends a validation in the middle, and likewise in a test: averaged weights are swapped back. And
    `runner._resume` still tells, when a checkpoint is loaded, whether the run goes on from it.

    Raises:
        SubscriptionError: the hook is one that needs what hookbus does not have, or a method of it is a coroutine function.
        HandlerSignatureError: a method cannot be called as MMEngine would call it.
    """

    def __init__(self, hook: Any) -> None:
        self._hook = hook
        self._base = _base_of(hook)
        self._is_resuming = False
        self._end_of_evaluation = ""
        _refuse_unfit(hook)
        self._overridden = {mount_point for mount_point in MOUNT_POINTS if self._is_overridden(mount_point)}
        self._first = self._preparations()
        for mount_point in sorted(self._overridden | set(self._first)):
            setattr(self, mount_point, self._handler(mount_point))

    def _is_overridden(self, mount_point: str) -> bool:
        """Return whether the hook defines a mount point itself, or the shared method that the base class calls there."""
        shared = (name for name, mount_points in SHARED_METHODS.items() if mount_point in mount_points)
        return any(_function(self._hook, name) is not getattr(self._base, name, None) for name in (mount_point, *shared))

    def _handler(self, mount_point: str) -> Handler:
        method: Handler = getattr(self._hook, mount_point)
        if not hasattr(self._base, mount_point):  # one of ours: by name, as in any hook
            return method
        names = _passed(MOUNT_POINTS[mount_point])
        _check_method(method, f"{type(self._hook).__name__}.{mount_point}", names)
        if mount_point == "after_load_checkpoint":
            return self._load
        handler = _SIGNATURES[names](partial(self._call, mount_point))
        vars(handler).update(getattr(method, "__dict__", {}))  # what decorators noted
        return handler

    def _call(self, mount_point: str, runner: Any, **arguments: Any) -> None:
        if mount_point in self._first:
            self._first[mount_point](runner)
        if mount_point in self._overridden:
            getattr(self._hook, mount_point)(self._seen(runner), **arguments)

    def _load(self, runner: Any, checkpoint: dict[str, Any], resuming: bool) -> None:
        """Show the hook a checkpoint; `runner._resume` tells whether the run goes on from it."""
        self._is_resuming = resuming
        self._call("after_load_checkpoint", runner, checkpoint=checkpoint)

    def _seen(self, runner: Any) -> MMEngineRunner:
        return MMEngineRunner(runner, type(self._hook).__name__, self._is_resuming)

    def _preparations(self) -> dict[str, Callable[[Any], None]]:
        """Return what is done at mount points before the hook has its turn."""
        first: dict[str, Callable[[Any], None]] = {}
        if _is_mmengines(self._hook, "ParamSchedulerHook"):
            first["before_train"] = self._check_schedules
        for begin, end in _EVALUATIONS.items():
            if {begin, end} <= self._overridden:
                first[begin] = partial(self._begin_evaluation, end)
                first[end] = self._note_end
                first |= dict.fromkeys(("after_val", "after_test", "after_run"), self._end_evaluation)
        return first

    def _begin_evaluation(self, end: str, runner: Any) -> None:
        self._end_of_evaluation = end

    def _note_end(self, runner: Any) -> None:
        self._end_of_evaluation = ""

    def _end_evaluation(self, runner: Any) -> None:
        """Have the hook end an evaluation that was stopped or failed, so that nobody else did."""
        if self._end_of_evaluation:
            end, self._end_of_evaluation = self._end_of_evaluation, ""
            getattr(self._hook, end)(self._seen(runner), metrics=None)

    def _check_schedules(self, runner: Any) -> None:
        """Refuse schedules that two hooks would step, or that this one cannot.

        Raises:
            ConfigError: says which.
        """
        if any(isinstance(hook, HOOKS.get("ParamSchedulerHook")) for hook in runner.hooks):
            remedy = "take off ours: default_hooks=dict(param_scheduler=None)"
            raise ConfigError(f"two hooks would step the schedules, MMEngine's ParamSchedulerHook and ours; {remedy}")
        for schedule in runner.param_schedulers:
            if schedule.needs_metric:
                msg = f"MMEngine's ParamSchedulerHook does not step {schedule!r}, which follows a metric; our own hook does"
                raise ConfigError(msg)


class MMEngineRunner:
    """A runner as hooks of MMEngine know it.

    Args:
        runner: the runner of hookbus, which has everything that is not defined here.
        hook_name: who asks, for errors.
        is_resuming: whether a checkpoint that is loaded is gone on from.
    """

    def __init__(self, runner: Any, hook_name: str, is_resuming: bool) -> None:
        own = {"_runner": runner, "_hook_name": hook_name, "_resume": is_resuming}
        vars(self).update(own)  # past __setattr__, which is for what hooks set

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(self._runner, name)
        except AttributeError:
            remedy = _ABSENT.get(name) or choices(name, [known for known in dir(self._runner) if known[0] != "_"])
            msg = f"{self._hook_name} asks for runner.{name}, which the runner of hookbus does not have: {remedy}"
            raise AttributeError(msg, name=name, obj=self) from None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _PARTS:
            msg = f"{self._hook_name} replaces runner.{name}, which the loops would not see; change the object in place"
            raise AttributeError(msg)
        setattr(self._runner, name, value)

    @property
    def max_epochs(self) -> int:
        """Epochs to complete; 1 in a training by iterations, 0 without training."""
        return self._runner.max_epochs or 0

    @property
    def max_iters(self) -> float:
        """Iterations to complete; infinite where that is not known, 0 without training."""
        if self._runner.train_loop is None:
            return 0
        known = self._runner.max_iters
        return inf if known is None else known

    @property
    def work_dir(self) -> str:
        """Where logs and checkpoints go, as text."""
        return str(self._runner.work_dir)

    @property
    def log_dir(self) -> str:
        """Where the logs of this start go, as text."""
        return str(self._runner.log_dir)

    @property
    def distributed(self) -> bool:
        """Whether several processes train together."""
        return bool(self._runner.world_size > 1)

    @property
    def model_name(self) -> str:
        """The name of the class of the model."""
        return type(self._runner.model).__name__

    _log_dir = log_dir

    @property
    def _train_loop(self) -> Any:
        return self._runner.train_loop

    @property
    def _val_loop(self) -> Any:
        return self._runner.val_loop

    @property
    def _test_loop(self) -> Any:
        return self._runner.test_loop

    def save_checkpoint(self, out_dir: str | Path, filename: str) -> Any:
        """Ask for a checkpoint named after a file of MMEngine; it is taken at the next step boundary.

        Raises:
            ConfigError: it is to lie outside of the work directory.
        """
        if Path(out_dir).absolute() != self._runner.work_dir:
            msg = f"{self._hook_name} saves to {out_dir}; checkpoints of this run lie in {self._runner.work_dir}/checkpoints"
            raise ConfigError(f"{msg}, or where CheckpointHook(out_dir=...) has them")
        return self._runner.save_checkpoint(filename.removesuffix(".pth"))


def _base_of(hook: Any) -> type:
    return next(cls for cls in type(hook).__mro__ if (cls.__module__, cls.__qualname__) == _BASE)


def _is_mmengines(hook: Any, name: str) -> bool:
    """Return whether a hook is one of MMEngine's own classes, or derived from it."""
    return any(cls.__name__ == name and cls.__module__.startswith("mmengine.") for cls in type(hook).__mro__)


def _function(hook: Any, name: str) -> Any:
    """Return what a hook has under a name, without the hook that it is bound to."""
    method = getattr(hook, name, None)
    return getattr(method, "__func__", method)


def _passed(event_type: type[MountPoint]) -> tuple[str, ...]:
    """Return what MMEngine passes beside the runner at a mount point."""
    offered = (*event_type.live, *event_type.__struct_fields__)
    return tuple(name for name in ("batch_idx", "data_batch", "outputs", "metrics", "checkpoint") if name in offered)


def _refuse_unfit(hook: Any) -> None:
    for name, reason in _UNFIT.items():
        if _is_mmengines(hook, name):
            own = f"; hookbus has its own, dict(type={name!r})" if name in HOOKS else ""
            raise SubscriptionError(f"{type(hook).__name__} cannot run outside of MMEngine: {reason}{own}")


def _check_method(method: Handler, name: str, passed: tuple[str, ...]) -> None:
    if inspect.iscoroutinefunction(method):
        msg = f"{name} is a coroutine function, which a hook of MMEngine cannot have; derive the class from hookbus.Hook"
        raise SubscriptionError(msg)
    try:
        inspect.signature(method).bind(None, **dict.fromkeys(passed))
    except TypeError as error:
        msg = f"{name} cannot be called as MMEngine calls it, ({', '.join(('runner', *passed))}): {error}"
        raise HandlerSignatureError(msg) from None

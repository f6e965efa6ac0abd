"""One schedule: a torch scheduler with its unit and its part of the run."""

from __future__ import annotations

__all__ = ("ParamScheduler",)

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from hookbus.errors import ConfigError, MetricNotFound
from hookbus.schedulers.parameters import ParameterView, values_kept
from hookbus.schedulers.scaling import as_scheduled, is_scaled

_NOTHING: Mapping[str, Any] = MappingProxyType({})
_PLAIN = (bool, int, float, str, list, tuple, type(None))


class ParamScheduler:
    """A torch scheduler, the optimizer and parameter that it drives, and the part of the run in which it does so.

    It counts epochs, or updates of its optimizer, or, where it follows a metric, validations. The torch scheduler is made when
    `begin` of them are completed, and so starts from the value of that moment; its last step comes when `end` are. Outside of
    that the parameter is left alone.

    Args:
        kind: the class of the torch scheduler.
        make: returns that scheduler for an optimizer; called once.
        optimizer: the optimizer that it drives.
        by_epoch: whether it counts epochs.
        begin: how many units pass before it.
        end: after how many units it has taken its last step; None for never.
        param_name: which option of the parameter groups it drives.
        monitor: the metric that was asked for.
        name: the name of the optimizer, where there are several.
        options: what the torch scheduler is made with, for its description.
    """

    def __init__(
        self,
        kind: type,
        make: Callable[[Optimizer], LRScheduler],
        optimizer: Optimizer,
        *,
        by_epoch: bool,
        begin: int = 0,
        end: int | None = None,
        param_name: str = "lr",
        monitor: str | None = None,
        name: str = "",
        options: Mapping[str, Any] = _NOTHING,
    ) -> None:
        self.optimizer = optimizer
        self.name = name
        self.by_epoch = by_epoch
        self.begin = begin
        self.end = end
        self.param_name = param_name
        self.monitor = monitor
        self.needs_metric = issubclass(kind, ReduceLROnPlateau)
        self.completed = 0
        """The units completed so far, also those before `begin` and after `end`."""
        self.scheduler: LRScheduler | None = None
        """The torch scheduler; None before `begin`."""
        self._options = {key: value for key, value in options.items() if isinstance(value, _PLAIN)}
        self._kind = kind
        self._make = make
        self._view: ParameterView | None = None
        if begin == 0:
            self._start()

    def __repr__(self) -> str:
        options = {"begin": self.begin or None, "end": self.end, "name": self.name or None}
        if self.param_name != "lr":
            options["param_name"] = self.param_name
        said = "".join(f", {name}={value!r}" for name, value in options.items() if value is not None)
        return f"ParamScheduler({self._kind.__name__}, by_epoch={self.by_epoch}{said})"

    def step(self, metrics: float | Tensor | None = None) -> None:
        """Count one unit and set the values that follow from it; call it after the optimizer's step.

        Raises:
            MetricNotFound: the scheduler follows a metric and none was given.
        """
        if self.needs_metric and metrics is None:
            followed = f"the metric {self.monitor!r}" if self.monitor else "a metric"
            raise MetricNotFound(f"{self._kind.__name__} follows {followed}, and no value was given")
        self.completed += 1
        if self.completed < self.begin or (self.end is not None and self.completed > self.end):
            return
        if self.scheduler is None:
            self._start()
        else:
            self._step(self.scheduler, metrics)

    def _step(self, scheduler: LRScheduler, metrics: float | Tensor | None) -> None:
        given = () if metrics is None or not isinstance(scheduler, ReduceLROnPlateau) else (metrics,)
        if self._view is not None:
            self._view.step()
            scheduler.step(*given)
            self._view.write()
        elif is_scaled(self.optimizer):
            with as_scheduled(self.optimizer):
                scheduler.step(*given)
        else:
            scheduler.step(*given)

    def _start(self) -> None:
        """Make the torch scheduler, which sets its first value at once."""
        if self.param_name == "lr":
            with as_scheduled(self.optimizer):
                self.scheduler = self._make(self.optimizer)
        else:
            self._view = ParameterView(self.optimizer, self.param_name)
            self.scheduler = self._make(self._view)
            self._view.write()
            self._view.write_base()

    @property
    def is_over(self) -> bool:
        """Whether it has taken its last step."""
        return self.end is not None and self.completed >= self.end

    @property
    def description(self) -> dict[str, Any]:
        """What it is, as plain values: two schedules of one description do the same."""
        place = {
            "by_epoch": self.by_epoch,
            "begin": self.begin,
            "end": self.end,
            "param_name": self.param_name,
            "name": self.name,
        }
        return {"type": self._kind.__name__, **place, "options": self._options}

    def state_dict(self) -> dict[str, Any]:
        """Return what was counted, and the state of the torch scheduler, None before it has begun."""
        state = None if self.scheduler is None else self.scheduler.state_dict()
        return {"type": self._kind.__name__, "completed": self.completed, "scheduler": state}

    def check_state(self, state_dict: Mapping[str, Any]) -> None:
        """Refuse a state that `load_state_dict` would refuse, before anything is changed.

        Raises:
            ConfigError: it is the state of another class of scheduler.
        """
        if state_dict["type"] != self._kind.__name__:
            saved, own = state_dict["type"], self._kind.__name__
            raise ConfigError(f"the saved schedule is a {saved} and cannot go on as {own}; expected dict(type={saved!r}, ...)")

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state that `state_dict` returned; the values in the optimizer are those of its own state.

        Raises:
            ConfigError: it is the state of another class of scheduler.
        """
        self.check_state(state_dict)
        self.completed = state_dict["completed"]
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # by another process
        state = state_dict["scheduler"]
        if state is None:
            if self.completed < self.begin:
                self.scheduler = self._view = None
            return
        if self.scheduler is None:
            with values_kept(self.optimizer):
                self._start()
        assert self.scheduler is not None
        self.scheduler.load_state_dict(dict(state))

"""Formulas: how much the current weights of a model count in the new average.

```text
averaged = (1 - share) * averaged + share * current
```

The first update copies the current weights; from the second one on, a formula gives the share. One of your own is a subclass of
`Averager` with a method `share`, registered by `@AVERAGERS.register_module()`.
"""

from __future__ import annotations

__all__ = ("Averager", "ExponentialMovingAverage", "MomentumAnnealingEMA", "StochasticWeightAverage")

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch

from hookbus._config import refuse, shown


class Averager(ABC):
    """A way to average weights.

    Args:
        interval: take every so many updates into the average, beginning with the first.
        update_buffers: whether buffers are averaged, too; otherwise the average has those of the model.

    Raises:
        ConfigError: an option makes no sense; names each.
    """

    def __init__(self, interval: int = 1, update_buffers: bool = False) -> None:
        _check(self, interval=interval, update_buffers=update_buffers)
        self.interval = interval
        self.update_buffers = update_buffers

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    @abstractmethod
    def share(self, steps: int) -> float:
        """Return how much the current weights count, between 0 and 1; `steps`, at least 1, is the number of updates before."""

    def average(self, averaged: list[torch.Tensor], current: list[torch.Tensor], steps: int) -> None:
        """Bring averages up to date, in place; all tensors are of one device and one dtype, and nothing records gradients."""
        torch._foreach_lerp_(averaged, current, self.share(steps))


class ExponentialMovingAverage(Averager):
    """An average that forgets: each update counts `1 - momentum` times as much as the one behind it.

    Args:
        momentum: the share of the current weights, between 0 and 1; a decay of 0.9998 is a momentum of 0.0002.
        interval: take every so many updates into the average, beginning with the first.
        update_buffers: whether buffers are averaged, too; otherwise the average has those of the model.

    Raises:
        ConfigError: an option makes no sense; names each.
    """

    def __init__(self, momentum: float = 0.0002, interval: int = 1, update_buffers: bool = False) -> None:
        _check(self, momentum=momentum, interval=interval, update_buffers=update_buffers)
        super().__init__(interval, update_buffers)
        self.momentum = momentum
        _warn_of_a_decay(self, momentum)

    def share(self, steps: int) -> float:
        """Return the momentum."""
        return self.momentum


class StochasticWeightAverage(Averager):
    """The plain mean of all weights that were taken into it (Izmailov et al. 2018, arXiv:1803.05407)."""

    def share(self, steps: int) -> float:
        """Return the share of one among all that were taken so far."""
        return 1 / (steps // self.interval + 1)


class MomentumAnnealingEMA(ExponentialMovingAverage):
    """A moving average that forgets quickly at first: its momentum falls as `gamma / (gamma + steps)` down to `momentum`.

    Args:
        momentum: the least share of the current weights, between 0 and 1.
        gamma: the number of updates after which the share has fallen to one half.
        interval: take every so many updates into the average, beginning with the first.
        update_buffers: whether buffers are averaged, too; otherwise the average has those of the model.

    Raises:
        ConfigError: an option makes no sense; names each.
    """

    def __init__(self, momentum: float = 0.0002, gamma: float = 100, interval: int = 1, update_buffers: bool = False) -> None:
        _check(self, momentum=momentum, gamma=gamma, interval=interval, update_buffers=update_buffers)
        super().__init__(momentum, interval, update_buffers)
        self.gamma = gamma

    def share(self, steps: int) -> float:
        """Return the momentum as it has fallen so far."""
        return max(self.momentum, self.gamma / (self.gamma + steps))


# --- what the options may be ------------------------------------------------------------------------------------------


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_EXPECTED: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "interval": (_is_count, "a whole number of updates of at least 1"),
    "update_buffers": (lambda value: isinstance(value, bool), "True or False"),
    "momentum": (
        lambda value: _is_number(value) and 0 < value < 1,  # type: ignore[operator]
        "the share of the current weights, a number between 0 and 1",
    ),
    "gamma": (lambda value: _is_number(value) and value > 0, "a number of updates, more than 0"),  # type: ignore[operator]
}


def _check(averager: Averager, **options: object) -> None:
    name = type(averager).__name__
    wrong = [option for option, value in options.items() if not _EXPECTED[option][0](value)]
    refuse([f"{name}.{option} = {shown(options[option])}: expected {_EXPECTED[option][1]}" for option in wrong])


def _warn_of_a_decay(averager: Averager, momentum: float) -> None:
    """Point out a momentum that is more likely the decay that others ask for."""
    if momentum > 0.5:
        name, decay = type(averager).__name__, f"{1 - momentum:.6g}"
        text = f"{name}.momentum = {momentum} is the share of the current weights, so the average hardly averages"
        warnings.warn(f"{text}; for a decay of {momentum} give momentum={decay}", stacklevel=4)

"""Counts how the weights of a model and their gradients are distributed, without waiting for the device.

Buckets are the same for every tensor: one around zero, and on both sides of it `PER_DECADE` for each power of ten from
`SMALLEST` to `LARGEST`. So counting needs to know nothing about the values beforehand, and what it leaves on the device is
small. It comes to the host with the next line of the log, which has waited for the device anyway.
"""

from __future__ import annotations

__all__ = ("HistogramTaker",)

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from hookbus.bus import EventBus, on
from hookbus.events import AfterTrain, BeforeOptimizerStep, Histogram, HistogramsTaken, LogRecorded

SMALLEST, LARGEST = -12, 12
"""Powers of ten: what lies nearer to zero is one bucket, what lies further away one on each side."""
PER_DECADE = 10


class _Row(NamedTuple):
    """The histogram of one tensor, on its device."""

    facts: torch.Tensor
    """Smallest and largest value, sum, sum of squares."""
    counts: torch.Tensor
    """One number for each bucket, and behind them how many values are not finite."""


class HistogramTaker:
    """A hook that counts weights and gradients before an optimizer step, and publishes the histograms with a line of the log.

    Gradients are those that the step is about to use: accumulated and unscaled, not yet clipped.

    Args:
        interval: iterations between two histograms at least; an iteration without an optimizer step leaves them to the next
            that has one, and none are counted while others wait for a line of the log.
    """

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._due: int | None = None
        """The iteration from which on the next histograms are due."""
        self._taken: dict[str, _Row] = {}
        self._taken_at = 0
        self._bus: EventBus | None = None

    @on(BeforeOptimizerStep, on_error="log")
    def count(self, runner: Any, iter: int, optimizer: str) -> None:
        """Count on the device, where histograms are due."""
        running = iter + 1
        if self._due is None:
            self._due = running + -running % self._interval
        is_another_optimizer = bool(self._taken) and self._taken_at == running
        if running < self._due and not is_another_optimizer:
            return
        if self._taken and not is_another_optimizer:
            return
        wrapper = runner.optim_wrapper[optimizer] if isinstance(runner.optim_wrapper, Mapping) else runner.optim_wrapper
        owned = {id(parameter) for group in wrapper.optimizer.param_groups for parameter in group["params"]}
        named = {name: value for name, value in runner.model.named_parameters() if id(value) in owned}
        self._taken |= {name: _row(tensor) for name, tensor in _tensors(named) if tensor.numel()}
        self._taken_at, self._bus = running, runner.bus
        self._due = running + self._interval - running % self._interval

    @on(LogRecorded, on_error="log")
    def publish(self, epoch: int) -> None:
        """Bring what was counted to the host, now that a line of the log has waited for the device."""
        taken, self._taken = self._taken, {}
        if taken and self._bus is not None:
            self._bus.emit(HistogramsTaken(epoch=epoch, iter=self._taken_at, histograms=_on_host(taken)))

    @on(AfterTrain, on_error="log")
    def publish_the_last(self, epoch: int) -> None:
        """Publish what no line of the log came after."""
        self.publish(epoch)


def _tensors(parameters: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in parameters.items():
        yield f"weights/{name}", parameter
        if parameter.grad is not None:
            yield f"gradients/{name}", parameter.grad


@torch.no_grad()
def _row(tensor: torch.Tensor) -> _Row:
    """Count one tensor; nothing in here reads a value."""
    values = tensor.detach().coalesce().values() if tensor.is_sparse else tensor.detach()
    values = (torch.view_as_real(values) if values.is_complex() else values).flatten().float()
    is_finite = values.isfinite()
    finite = torch.where(is_finite, values, 0.0)
    limits = torch.tensor(_LIMITS, device=values.device)
    buckets = torch.where(is_finite, torch.bucketize(finite, limits), len(_LIMITS) + 1)
    counts = torch.zeros(len(_LIMITS) + 2, dtype=torch.int64, device=values.device)
    counts.scatter_add_(0, buckets, torch.ones_like(buckets))
    ends = torch.where(is_finite, values, math.inf).amin(), torch.where(is_finite, values, -math.inf).amax()
    return _Row(torch.stack([*ends, finite.sum(), finite.square().sum()]), counts)


def _on_host(rows: Mapping[str, _Row]) -> dict[str, Histogram]:
    device = next(iter(rows.values())).counts.device
    facts = torch.stack([row.facts.to(device) for row in rows.values()]).tolist()
    counts = torch.stack([row.counts.to(device) for row in rows.values()]).tolist()
    return {name: _histogram(*pair) for name, pair in zip(rows, zip(facts, counts, strict=True), strict=True)}


def _histogram(facts: list[float], counts: list[int]) -> Histogram:
    """Return a histogram without the empty buckets at its ends, but for one on the left, whose limit is where it begins."""
    *counts, not_finite = counts
    filled = [index for index, count in enumerate(counts) if count]
    smallest, largest, total, total_of_squares = facts if filled else (0.0,) * 4
    kept = slice(max(0, filled[0] - 1), filled[-1] + 1) if filled else slice(0)
    limits = [*_LIMITS, max(largest, 10.0 ** (LARGEST + 1))][kept]
    return Histogram(
        min=smallest,
        max=largest,
        total=total,
        total_of_squares=total_of_squares,
        limits=limits,
        counts=counts[kept],
        not_finite=not_finite,
    )


_MAGNITUDES = [10.0 ** (SMALLEST + step / PER_DECADE) for step in range((LARGEST - SMALLEST) * PER_DECADE + 1)]
_LIMITS = [-magnitude for magnitude in reversed(_MAGNITUDES)] + _MAGNITUDES
"""The upper limits of all buckets but the last."""

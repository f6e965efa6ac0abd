"""Decides what is drawn: which values share a panel, on which scale, and what is said about them."""

from __future__ import annotations

__all__ = ("Line", "Panel", "build_panels")

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hookbus.best_metric import rule_of
from hookbus.cli.metrics_reading import Metrics
from hookbus.cli.series import Points
from hookbus.cli.words import number_in_words, seconds_in_words, shortened
from hookbus.errors import ConfigError

Role = Literal["first", "second", "third"]
_ROLES: tuple[Role, ...] = ("first", "second", "third")
_TIMES = ("time", "data_time")
_LOG_SCALE_FROM = 50.0
"""How many times the least value the greatest one must be for a logarithmic scale."""
_LEAST_ON_LOG_SCALE = 1e-200
_OUTLIER = 3.0
"""How many times the 99th percentile a time must be to be left above the picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One curve of a panel."""

    label: str
    points: Points
    role: Role = "first"
    """Which ink it has."""
    is_noisy: bool = False
    """Whether a smoothed curve is drawn over it."""
    has_dots: bool = False
    """Whether each value is a dot, as befits values that are far apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One picture: curves that share a scale."""

    key: str
    """Names the panel in the page."""
    title: str
    unit: str = ""
    lines: tuple[Line, ...]
    is_log: bool = False
    from_zero: bool = False
    top: float | None = None
    """The upper end of the scale, where what lies above is left out."""
    best: tuple[int, float] | None = None
    """Iteration and value of the best one, where it is known which of two is better."""
    notes: tuple[str, ...] = ()


def build_panels(metrics: Metrics) -> list[Panel]:
    """Return the panels of a run: losses, metrics of validation, the learning rate, times, and all else that was logged."""
    points = {key: series.points() for key, series in metrics.curves.items()}
    curves = {key: found for key, found in points.items() if len(found.iters)}
    train = [name for mode, name in curves if mode == "train"]
    val = [name for mode, name in curves if mode == "val" and name not in _TIMES]
    loss = _main_loss(train, val)
    rates = [name for name in train if _is_rate(name)]
    shown_so_far = {loss, *rates, *_TIMES}
    panels = [] if loss is None else [_compared(curves, loss, title=_loss_title(loss))]
    panels += [_metric(curves["val", name], name) for name in val if name != loss and name not in train]
    panels += _rates(curves, rates)
    panels += _times(curves)
    panels += [_compared(curves, name, title=shortened(name, 40)) for name in train if name not in shown_so_far]
    return panels


def _main_loss(train: list[str], val: list[str]) -> str | None:
    names = [*train, *val]
    return "loss" if "loss" in names else next((name for name in names if "loss" in name.casefold()), None)


def _loss_title(name: str) -> str:
    return "Loss" if name == "loss" else shortened(name, 40)


def _compared(curves: Mapping[tuple[str, str], Points], name: str, title: str) -> Panel:
    """Return a value in training, and the same in validation where it has one."""
    lines = []
    if ("train", name) in curves:
        lines.append(Line(label="training", points=curves["train", name], is_noisy=True))
    if ("val", name) in curves:
        lines.append(Line(label="validation", points=curves["val", name], role="second", has_dots=True))
    is_log = _spans_magnitudes(lines)
    return Panel(
        key=f"value-{name}", title=title, lines=tuple(lines), is_log=is_log, notes=tuple(_notes(lines)), unit=_unit(name)
    )


def _metric(points: Points, name: str) -> Panel:
    lines = [Line(label="validation", points=points, role="second", has_dots=True)]
    best, notes = _best(points, name), list(_notes(lines))
    if best is not None:
        notes.insert(0, f"best {number_in_words(best[1])} at iteration {number_in_words(best[0])}")
    return Panel(key=f"metric-{name}", title=shortened(name, 40), lines=tuple(lines), best=best, notes=tuple(notes))


def _rates(curves: Mapping[tuple[str, str], Points], names: list[str]) -> Iterator[Panel]:
    """Yield the panel of the learning rates; of those that are the same throughout, one."""
    different: dict[bytes, str] = {}
    for name in sorted(names, key=lambda name: name != "lr"):
        different.setdefault(curves["train", name].mean.tobytes(), name)
    chosen = list(different.values())[: len(_ROLES)]
    inked = zip(chosen, _ROLES, strict=False)
    lines = [Line(label=shortened(name, 20), points=curves["train", name], role=role) for name, role in inked]
    if lines:
        more = len(different) - len(chosen)
        notes = [*_notes(lines), *([f"{more} more are not drawn"] if more else [])]
        yield Panel(key="rates", title="Learning rate", lines=tuple(lines), from_zero=True, notes=tuple(notes))


def _times(curves: Mapping[tuple[str, str], Points]) -> Iterator[Panel]:
    labels = {"time": "iteration", "data_time": "of it data"}
    names = [name for name in _TIMES if ("train", name) in curves]
    lines = [Line(label=labels[n], points=curves["train", n], role=r) for n, r in zip(names, _ROLES, strict=False)]
    if lines:
        top, above = _top(lines[0].points)
        notes = (*above, *_notes(lines))
        yield Panel(key="times", title="Time per iteration", unit="s", lines=tuple(lines), from_zero=True, top=top, notes=notes)


def _top(points: Points) -> tuple[float | None, list[str]]:
    """Return where the scale of times ends, and what is above: the first iterations may take a hundred times as long."""
    finite = points.high[np.isfinite(points.high)]
    if len(finite) < 10:
        return None, []
    usual = float(np.percentile(finite, 95))
    highest = float(finite.max())
    if usual <= 0 or highest < _OUTLIER * usual:
        return None, []
    at = int(points.iters[np.nanargmax(points.high)])
    return 1.25 * usual, [f"up to {seconds_in_words(highest)} at iteration {number_in_words(at)}"]


def _best(points: Points, name: str) -> tuple[int, float] | None:
    try:
        rule = rule_of(name)
    except ConfigError:  # the name does not say which of two values is better, so none is called the best
        return None
    values = points.high if rule == "greater" else -points.low
    if not np.isfinite(values).any():
        return None
    at = int(np.nanargmax(values))
    return int(points.iters[at]), float(values[at]) if rule == "greater" else -float(values[at])


def _spans_magnitudes(lines: Iterable[Line]) -> bool:
    """Say whether values are all positive and so different that a linear scale shows the greatest ones only."""
    finite = np.concatenate([line.points.mean[np.isfinite(line.points.mean)] for line in lines])
    return len(finite) > 0 and finite.min() > _LEAST_ON_LOG_SCALE and finite.max() / _LOG_SCALE_FROM >= finite.min()


def _notes(lines: Iterable[Line]) -> Iterator[str]:
    for line in lines:
        if line.points.missing:
            were = "value was" if line.points.missing == 1 else "values were"
            yield f"{number_in_words(line.points.missing)} {line.label} {were} NaN or infinite"


def _unit(name: str) -> str:
    return "MB" if name == "memory" else ""


def _is_rate(name: str) -> bool:
    return name in ("lr", "base_lr") or name.endswith(".lr")

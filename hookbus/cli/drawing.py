"""Draws one panel on axes of matplotlib; picture and page share it."""

from __future__ import annotations

__all__ = ("draw_costs", "draw_panel")

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from hookbus.cli.handler_costs import HandlerCost
from hookbus.cli.inks import FIRST, INK, MUTED, PAPER, RULE, ink_of
from hookbus.cli.panels import Line, Panel
from hookbus.cli.series import Points, smoothed
from hookbus.cli.words import number_in_words, seconds_in_words, shortened

Marks = Sequence[tuple[int, bool]]
"""The checkpoints of a run: the iteration of each, and whether it is a best one."""

_MOST_MARKS = 400
_MOST_DOTS = 80
_LABEL_HEIGHT = 11.0
"""Points between two labels at the right end of a panel, at least."""


def draw_panel(axes: Axes, panel: Panel, marks: Marks = ()) -> None:
    """Draw the curves with their names and newest values at the right end, and the checkpoints on the axis of iterations."""
    _dress(axes, panel)
    for line in panel.lines:
        _draw_line(axes, line)
    _set_limits(axes, panel)
    if panel.best is not None:
        axes.plot(*panel.best, marker="o", markersize=9, markerfacecolor="none", markeredgecolor=INK, clip_on=False)
    _label_lines(axes, panel)
    _mark_checkpoints(axes, marks)


def draw_costs(axes: Axes, costs: Sequence[HandlerCost]) -> None:
    """Draw a bar for each handler, the dearest at the top, with its share of the time and its time per call."""
    longest = max(cost.share for cost in costs) or max(cost.seconds for cost in costs) or 1.0
    has_shares = any(cost.share for cost in costs)
    for row, cost in enumerate(costs):
        length = (cost.share if has_shares else cost.seconds) / longest
        axes.barh(row, length, height=0.56, color=FIRST, alpha=1.0 if cost.lane in ("inline", "") else 0.45, linewidth=0)
        axes.text(-0.02, row, shortened(cost.handler, 34), ha="right", va="center", fontsize=8, color=INK)
        per_call = f"{seconds_in_words(cost.seconds / cost.calls)} a call" if cost.calls else seconds_in_words(cost.seconds)
        lane = "" if cost.lane in ("inline", "") else f", {shortened(cost.lane, 16)}"
        share = f"{cost.share:.2%}  " if has_shares else ""
        axes.text(length + 0.015, row, f"{share}{per_call}{lane}", ha="left", va="center", fontsize=8, color=MUTED)
    axes.set(xlim=(0, 1.0), ylim=(len(costs) - 0.4, -0.6), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _dress(axes: Axes, panel: Panel) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.spines["bottom"].set_linewidth(0.8)
    axes.grid(axis="y", color=RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelsize=8)
    axes.tick_params(which="major", pad=4)
    axes.set_xlabel("iteration", fontsize=8, loc="left", labelpad=3)
    if panel.is_log:
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    if not panel.is_log:
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _value_tick(value, panel)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(panel.title, loc="left", fontsize=10.5, fontweight="bold", color=INK, pad=9)
    kind = ", ".join(part for part in ("log scale" if panel.is_log else "", *panel.notes) if part)
    axes.set_title(kind, loc="right", fontsize=8, color=MUTED, pad=9)


def _draw_line(axes: Axes, line: Line) -> None:
    points, ink = line.points, ink_of(line.role)
    if points.width > 1:
        axes.fill_between(points.iters, points.low, points.high, color=ink, alpha=0.22, linewidth=0)
    if line.is_noisy:
        means, _ = smoothed(points.mean)
        if points.width == 1:
            axes.plot(points.iters, points.mean, color=ink, alpha=0.38, linewidth=0.9, solid_joinstyle="round")
        axes.plot(points.iters, means, color=ink, linewidth=1.8, solid_joinstyle="round", solid_capstyle="round")
    else:
        axes.plot(points.iters, points.mean, color=ink, linewidth=1.6, solid_joinstyle="round", solid_capstyle="round")
    shown = _dotted(points, everywhere=line.has_dots and len(points.iters) <= _MOST_DOTS)
    if shown.any():
        (dots,) = axes.plot(points.iters[shown], points.mean[shown], color=ink, marker="o", markersize=4.6, linestyle="none")
        dots.set(markeredgecolor=PAPER, markeredgewidth=0.8, clip_on=False, zorder=4)


def _dotted(points: Points, *, everywhere: bool) -> NDArray[np.bool_]:
    """Return which values get a dot: those without a neighbour to draw a line to."""
    is_there: NDArray[np.bool_] = np.isfinite(points.mean)
    if everywhere:
        return is_there
    padded = np.concatenate([[False], is_there, [False]])
    is_alone: NDArray[np.bool_] = is_there & ~padded[:-2] & ~padded[2:]
    return is_alone


def _set_limits(axes: Axes, panel: Panel) -> None:
    iters = np.concatenate([line.points.iters for line in panel.lines])
    first, last = int(iters.min()), int(iters.max())
    first = 0 if first <= 0.1 * last else first
    axes.set_xlim(first, last if last > first else first + 1)
    axes.margins(y=0.08)
    if panel.from_zero and not panel.is_log and axes.get_ylim()[1] > 0 and axes.dataLim.y0 >= 0:
        axes.set_ylim(0, panel.top or axes.get_ylim()[1])


def _label_lines(axes: Axes, panel: Panel) -> None:
    """Name each curve where it ends, no two labels over each other."""
    named = [(line, line.points.last) for line in panel.lines]
    to_axes = axes.transData + axes.transAxes.inverted()
    places = []
    for line, last in named:
        if last is not None:
            places.append((float(np.clip(to_axes.transform((axes.get_xlim()[1], last))[1], 0.0, 1.0)), line, last))
    height = 72 * axes.get_window_extent().height / axes.figure.dpi
    for at, (_, line, last) in zip(_spread([p[0] for p in places], _LABEL_HEIGHT / height), places, strict=True):
        text = f"{line.label} {_newest(last, panel)}"
        style: dict[str, Any] = {"fontsize": 8.5, "va": "center", "ha": "left"}
        axes.annotate(text, (1, at), (9, 0), "axes fraction", "offset points", color=ink_of(line.role), **style)


def _spread(places: list[float], distance: float) -> list[float]:
    """Return the places, moved as far apart as is needed and no further."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = list(places)
    for below, above in pairwise(order):
        moved[above] = max(moved[above], moved[below] + distance)
    excess = max(0.0, max(moved, default=0.0) - 1.0)
    return [place - excess for place in moved] if excess else moved


def _mark_checkpoints(axes: Axes, marks: Marks) -> None:
    """Set a mark below the axis for each checkpoint; the best ones stand out."""
    first, last = axes.get_xlim()
    inside = [mark for mark in marks if first <= mark[0] <= last][-_MOST_MARKS:]
    for is_best, size, fill in ((False, 20, PAPER), (True, 34, INK)):
        iters = [iteration for iteration, best in inside if best is is_best]
        across = axes.get_xaxis_transform()
        marked = axes.scatter(iters, [0.0] * len(iters), s=size, marker="^", facecolor=fill, edgecolor=INK, transform=across)
        marked.set(linewidth=0.9, clip_on=False, zorder=5)


def _tick(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (size if letter != 'k' else 1e3):g}{letter}"
    return f"{value:g}"


def _value_tick(value: float, panel: Panel) -> str:
    if panel.unit == "s":
        return seconds_in_words(value) if value else "0"
    return f"{value:.3g} {panel.unit}".strip()


def _newest(value: float, panel: Panel) -> str:
    return seconds_in_words(value) if panel.unit == "s" else f"{number_in_words(value)} {panel.unit}".strip()

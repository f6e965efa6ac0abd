"""The curves of a page: each panel as SVG, with the numbers behind it for whoever points at it."""

from __future__ import annotations

__all__ = ("render_chart",)

import html
import json
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hookbus.cli.drawing import Marks, draw_panel
from hookbus.cli.inline_svg import inline_svg
from hookbus.cli.panels import Line, Panel
from hookbus.cli.words import number_in_words, seconds_in_words

_HEIGHTS = {True: 3.1, False: 2.3}
_WIDTHS = {True: 9.8, False: 4.75}
_MARGINS = (0.62, 1.42, 0.42, 0.55)
"""Inches left, right, above and below of the axes."""
_DIGITS = 6


def render_chart(panel: Panel, marks: Marks, key: str, *, is_wide: bool) -> str:
    """Return a panel as a `figure` element."""
    width, height = _WIDTHS[is_wide], _HEIGHTS[is_wide]
    left, right, above, below = _MARGINS
    figure = Figure(figsize=(width, height))
    box = (left / width, below / height, (width - left - right) / width, (height - above - below) / height)
    axes = figure.add_axes(box)
    draw_panel(axes, panel, marks)
    svg = inline_svg(figure, key, _in_words(panel))
    curves = {
        "box": [72 * left, 72 * above, 72 * (width - right), 72 * (height - below)],
        "range": [float(limit) for limit in axes.get_xlim()],
        "unit": panel.unit,
        "lines": [_numbers(line) for line in panel.lines],
    }
    data = html.escape(json.dumps(curves, separators=(",", ":"), allow_nan=False))
    shape = "chart wide" if is_wide else "chart"
    return f'<figure class="{shape}" tabindex="0" data-curves="{data}">{svg}<figcaption aria-live="polite"></figcaption></figure>'


def _numbers(line: Line) -> dict[str, Any]:
    values = [float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None for value in line.points.mean.tolist()]
    return {"label": line.label, "role": line.role, "iters": line.points.iters.tolist(), "values": values}


def _in_words(panel: Panel) -> str:
    """Return what a panel shows as a sentence."""
    parts = []
    for line in panel.lines:
        last = line.points.last
        if last is None:
            parts.append(f"{line.label} has no finite value")
        else:
            value = seconds_in_words(last) if panel.unit == "s" else f"{number_in_words(last)} {panel.unit}".strip()
            parts.append(f"{line.label} ends at {value}")
    return ", ".join([f"{panel.title}: {'; '.join(parts)}", *panel.notes])

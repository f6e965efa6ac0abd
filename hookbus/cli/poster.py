"""The picture of a run: everything on one sheet, to send to somebody or to hang up."""

from __future__ import annotations

__all__ = ("draw_poster",)

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hookbus.cli.checkpoint_list import score_of
from hookbus.cli.drawing import draw_costs, draw_panel
from hookbus.cli.inks import FIRST, INK, MUTED, RULE, SECOND, THIRD
from hookbus.cli.panels import Panel
from hookbus.cli.run_summary import RunSummary, header_facts
from hookbus.cli.words import bytes_in_words, number_in_words, shortened

_WIDTH = 12.0
_LEFT = 0.85
_RIGHT = 1.5
"""The margins in inches; the right one has room for the names of the curves."""
_GAP = 2.0
_HEADER = 1.35
_LOSS = 3.3
_SMALL = 1.7
_BETWEEN = 0.95
"""Inches for the title of a panel and for the axis of the one above."""
_ROW = 0.235
_MOST_SMALL = 8
_MOST_COSTS = 10
_MOST_CHECKPOINTS = 10
_LOG_LINES = 6

STATE_INKS = {"running": FIRST, "finished": THIRD, "failed": SECOND, "silent": SECOND}


class _Sheet:
    """A figure on which things are put in inches, from the top left corner."""

    def __init__(self, height: float) -> None:
        self.figure = Figure(figsize=(_WIDTH, height))
        self.height = height

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        place = (left / _WIDTH, 1 - (top + height) / self.height, width / _WIDTH, height / self.height)
        return self.figure.add_axes(place)

    def text(self, left: float, top: float, text: str, **style: object) -> None:
        self.figure.text(left / _WIDTH, 1 - top / self.height, text, va="top", **style)  # type: ignore[arg-type]

    def rule(self, top: float, left: float = _LEFT - 0.45, right: float = _WIDTH - 0.4) -> None:
        from matplotlib.lines import Line2D

        at = 1 - top / self.height
        self.figure.add_artist(Line2D((left / _WIDTH, right / _WIDTH), (at, at), color=RULE, linewidth=0.8))


def draw_poster(summary: RunSummary, panels: list[Panel]) -> Figure:
    """Return the sheet: facts, the loss, all other curves in two columns, times, checkpoints, and the end of the log."""
    large, small = panels[:1], panels[1 : 1 + _MOST_SMALL]
    rows = (len(small) + 1) // 2
    facts = _HEADER + 0.2 * len(_remarks(summary, panels))
    curves = (_LOSS + _BETWEEN if large else 0.0) + rows * (_SMALL + _BETWEEN)
    tables = 0.75 + _ROW * max(3, min(_MOST_COSTS, len(summary.costs.entries)), _checkpoint_rows(summary))
    log = 0.65 + 0.17 * min(_LOG_LINES, len(summary.tail)) if summary.tail else 0.3
    sheet = _Sheet(facts + curves + tables + log + 0.35)
    _draw_header(sheet, summary, panels)
    top = facts + 0.35
    marks = [(info.iter, info.role == "best") for info in summary.checkpoints.sound]
    for panel in large:
        draw_panel(sheet.axes(_LEFT, top, _WIDTH - _LEFT - _RIGHT, _LOSS), panel, marks)
        top += _LOSS + _BETWEEN
    width = (_WIDTH - _LEFT - _RIGHT - _GAP) / 2
    for index, panel in enumerate(small):
        row, column = divmod(index, 2)
        is_alone = column == 0 and index == len(small) - 1
        left, wide = _LEFT + column * (width + _GAP), _WIDTH - _LEFT - _RIGHT
        draw_panel(sheet.axes(left, top + row * (_SMALL + _BETWEEN), wide if is_alone else width, _SMALL), panel, marks)
    top = facts + curves
    sheet.rule(top + 0.1)
    _draw_cost_table(sheet, summary, top + 0.3)
    _draw_checkpoints(sheet, summary, top + 0.3, _LEFT + width + _GAP - 0.35)
    _draw_log(sheet, summary, top + tables)
    return sheet.figure


def _remarks(summary: RunSummary, panels: list[Panel]) -> list[str]:
    left_out = max(0, len(panels) - 1 - _MOST_SMALL)
    further = [f"{left_out} further values are in report.html."] if left_out else []
    return [*summary.remarks, *further]


def _draw_header(sheet: _Sheet, summary: RunSummary, panels: list[Panel]) -> None:
    left = _LEFT - 0.45
    sheet.text(left, 0.32, summary.name, fontsize=19, fontweight="bold", color=INK)
    ink = STATE_INKS.get(summary.state.word, MUTED)
    sheet.text(_WIDTH - 0.4, 0.34, summary.state.word, fontsize=13, fontweight="bold", color=ink, ha="right")
    sheet.text(_WIDTH - 0.4, 0.6, shortened(summary.state.detail, 90), fontsize=8, color=MUTED, ha="right")
    facts = header_facts(summary)
    weights = [max(len(name), len(value)) + 5 for name, value in facts]
    scale = min(0.088, (_WIDTH - left - 0.4) / (sum(weights) or 1))
    for (name, value), weight in zip(facts, weights, strict=True):
        sheet.text(left, 0.86, name, fontsize=7.5, color=MUTED)
        sheet.text(left, 1.02, value, fontsize=9.5, color=INK)
        left += weight * scale
    for row, remark in enumerate(_remarks(summary, panels)):
        sheet.text(_LEFT - 0.45, _HEADER + 0.02 + 0.2 * row, shortened(remark, 170), fontsize=8.5, color=MUTED)


def _draw_cost_table(sheet: _Sheet, summary: RunSummary, top: float) -> None:
    left = _LEFT - 0.45
    sheet.text(left, top, "Time per handler", fontsize=10.5, fontweight="bold", color=INK)
    costs = summary.costs.entries[:_MOST_COSTS]
    if not costs:
        sheet.text(left, top + 0.3, summary.costs.problem, fontsize=8.5, color=MUTED)
        return
    draw_costs(sheet.axes(left + 2.3, top + 0.3, 1.35, _ROW * len(costs)), costs)


def _checkpoint_rows(summary: RunSummary) -> int:
    return min(_MOST_CHECKPOINTS, len(summary.checkpoints.sound)) + min(4, len(summary.checkpoints.damaged)) + 1


def _draw_checkpoints(sheet: _Sheet, summary: RunSummary, top: float, left: float) -> None:
    listing = summary.checkpoints
    older = len(listing.sound) - _MOST_CHECKPOINTS
    note = f"  the newest {_MOST_CHECKPOINTS} of {len(listing.sound)}" if older > 0 else ""
    sheet.text(left, top, f"Checkpoints{note}", fontsize=10.5, fontweight="bold", color=INK)
    if not listing.sound and not listing.damaged:
        sheet.text(left, top + 0.3, f"there are none in {shortened(str(listing.directory), 60)}", fontsize=8.5, color=MUTED)
    line = top + 0.32
    for info in reversed(listing.sound[-_MOST_CHECKPOINTS:]):
        score = score_of(info)
        best = info.role == "best"
        words = f"{shortened(score[0], 18)} {number_in_words(score[1])}" if score else ""
        sheet.text(left, line, "▲" if best else "△", fontsize=7, color=INK, fontfamily="DejaVu Sans")
        sheet.text(left + 0.2, line, shortened(info.name, 34), fontsize=8.5, color=INK)
        for at, text in ((3.05, number_in_words(info.iter)), (3.75, bytes_in_words(info.size))):
            sheet.text(left + at, line, text, fontsize=8.5, color=MUTED, ha="right")
        sheet.text(left + 3.95, line, words, fontsize=8.5, color=INK if best else MUTED)
        line += _ROW
    for name, problem in list(listing.damaged.items())[:4]:
        sheet.text(left, line, shortened(f"{name} is damaged: {problem}", 92), fontsize=8, color=SECOND)
        line += _ROW


def _draw_log(sheet: _Sheet, summary: RunSummary, top: float) -> None:
    if not summary.tail:
        return
    left = _LEFT - 0.45
    sheet.rule(top)
    sheet.text(left, top + 0.16, "End of the log", fontsize=10.5, fontweight="bold", color=INK)
    for row, line in enumerate(summary.tail[-_LOG_LINES:]):
        sheet.text(left, top + 0.45 + 0.17 * row, shortened(line, 165), fontsize=7, color=MUTED, fontfamily="DejaVu Sans Mono")

"""The tables of a page: handlers, checkpoints and values."""

from __future__ import annotations

__all__ = ("checkpoint_table", "cost_table", "value_table")

from collections.abc import Iterable, Iterator
from html import escape

import numpy as np

from hookbus.cli.checkpoint_list import CheckpointListing, score_of
from hookbus.cli.handler_costs import HandlerCosts
from hookbus.cli.panels import Panel
from hookbus.cli.words import bytes_in_words, number_in_words, seconds_in_words, shortened

_MOST_HANDLERS = 40
_MOST_CHECKPOINTS = 200
_MOST_VALUES = 200
_LONGEST_NAME = 80

Cell = tuple[str, str]
"""The class of a cell and its content, which is escaped already."""


def cost_table(costs: HandlerCosts) -> Iterator[str]:
    """Yield what each handler cost, the dearest first, with a bar for its share of the time."""
    if not costs.entries:
        yield f'<p class="note">{escape(costs.problem)}.</p>'
        return
    widest = max(cost.share for cost in costs.entries) or 1.0
    rows = []
    for cost in costs.entries[:_MOST_HANDLERS]:
        per_call = seconds_in_words(cost.seconds / cost.calls) if cost.calls else ""
        bar = f'<span class="bar" style="width:{6 * cost.share / widest:.2f}em"></span>{cost.share:.2%}'
        names = [_text(cost.handler), _text(cost.event), _text(cost.lane)]
        numbers = [_number(number_in_words(cost.calls)), _number(per_call), _number(seconds_in_words(cost.seconds))]
        rows.append([*names, *numbers, ("share", bar)])
    yield from _table(["handler", "event", "lane", "calls", "per call", "in all", "share of the time"], rows, numeric=(3, 4, 5))
    yield from _left_out(len(costs.entries), _MOST_HANDLERS, "handlers")


def checkpoint_table(listing: CheckpointListing) -> Iterator[str]:
    """Yield the checkpoints, the newest first, and what is wrong with the damaged ones."""
    if not listing.sound and not listing.damaged:
        yield f'<p class="note">There are none in {escape(shortened(str(listing.directory), 200))}.</p>'
        return
    rows = []
    for info in reversed(listing.sound[-_MOST_CHECKPOINTS:]):
        score = score_of(info)
        mark = ("mark", "▲" if info.role == "best" else "△")
        counts = [_number(number_in_words(info.epoch)), _number(number_in_words(info.iter)), _number(bytes_in_words(info.size))]
        words = f"{shortened(score[0], 40)} {number_in_words(score[1])}" if score else ""
        rows.append([mark, _text(info.name), *counts, _text(info.role), _text(words)])
    for name, problem in listing.damaged.items():
        rows.append([("mark", "✕"), _text(name), _number(""), _number(""), _number(""), _text("damaged"), _text(problem, 300)])
    yield from _table(["", "name", "epoch", "iteration", "size", "role", "score"], rows, numeric=(2, 3, 4))
    yield from _left_out(len(listing.sound), _MOST_CHECKPOINTS, "checkpoints")


def value_table(panels: Iterable[Panel]) -> Iterator[str]:
    """Yield what the curves show as numbers."""
    lines = [(panel, line) for panel in panels for line in panel.lines]
    rows = []
    for panel, line in lines[:_MOST_VALUES]:
        points = line.points
        finite = np.isfinite(points.mean).any()
        extremes = [float(np.nanmin(points.low)), float(np.nanmax(points.high))] if finite else []
        newest = [points.last] if points.last is not None else []
        words = [number_in_words(value) for value in [*newest, *extremes]] or ["", "", ""]
        name = f"{panel.title} ({panel.unit})" if panel.unit else panel.title
        missing = number_in_words(points.missing) if points.missing else ""
        rows.append([_text(name), _text(line.label), *(_number(word) for word in words), _number(missing)])
    yield from _table(["value", "of", "newest", "least", "greatest", "NaN or infinite"], rows, numeric=(2, 3, 4, 5))
    yield from _left_out(len(lines), _MOST_VALUES, "values")


def _table(headings: list[str], rows: list[list[Cell]], numeric: tuple[int, ...]) -> Iterator[str]:
    heads = "".join(f'<th scope="col"{_kind("number" if at in numeric else "")}>{name}</th>' for at, name in enumerate(headings))
    yield f'<div class="scroll"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>'
    for row in rows:
        yield "<tr>" + "".join(f"<td{_kind(kind)}>{content}</td>" for kind, content in row) + "</tr>"
    yield "</tbody>\n</table></div>"


def _left_out(number: int, most: int, what: str) -> Iterator[str]:
    if number > most:
        yield f'<p class="note">{number - most} further {what} are not shown.</p>'


def _kind(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _text(text: str, longest: int = _LONGEST_NAME) -> Cell:
    return "", escape(shortened(text, longest))


def _number(text: str) -> Cell:
    return "number", escape(text)

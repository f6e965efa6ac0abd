"""The page of a run: one HTML file that loads nothing, follows light and dark, and can be read without seeing the curves."""

from __future__ import annotations

__all__ = ("render_page",)

import base64
import hashlib
from collections.abc import Iterator
from html import escape
from importlib import resources

from hookbus._version import __version__
from hookbus.cli.charts import render_chart
from hookbus.cli.page_tables import checkpoint_table, cost_table, value_table
from hookbus.cli.panels import Panel
from hookbus.cli.run_summary import RunSummary, header_facts

_MOST_PANELS = 40


def render_page(summary: RunSummary, panels: list[Panel]) -> bytes:
    """Return the page."""
    body = "\n".join([*_header(summary), *_main(summary, panels), *_footer(summary)])
    return "\n".join([*_head(summary), f"<body>\n{body}", *_script(), "</body>", "</html>", ""]).encode(
        "utf-8", "backslashreplace"
    )


def _head(summary: RunSummary) -> Iterator[str]:
    """Yield the head; its policy lets no browser fetch anything or run another script than that of the page."""
    digest = base64.b64encode(hashlib.sha256(_resource("page.js").encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">'
    yield f"<title>{escape(summary.name)}: {escape(summary.state.word)}</title>"
    yield f"<style>\n{_resource('page.css')}</style>\n</head>"


def _script() -> Iterator[str]:
    yield f"<script>{_resource('page.js')}</script>"


def _header(summary: RunSummary) -> Iterator[str]:
    state = summary.state
    detail = f"<span>{escape(state.detail)}</span>" if state.detail else ""
    yield f"<header>\n<h1>{escape(summary.name)}</h1>"
    yield f'<p class="state {escape(state.word)}"><b>{escape(state.word)}</b>{detail}</p>'
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in header_facts(summary))
    yield f'<dl class="facts">{facts}</dl>'
    if summary.remarks:
        yield f'<ul class="remarks">{"".join(f"<li>{escape(remark)}</li>" for remark in summary.remarks)}</ul>'
    yield "</header>"


def _main(summary: RunSummary, panels: list[Panel]) -> Iterator[str]:
    yield "<main>"
    if panels:
        yield from _section("curves", "Curves", _charts(summary, panels))
    yield from _section("handlers", "Time per handler", cost_table(summary.costs))
    yield from _section("checkpoints", "Checkpoints", checkpoint_table(summary.checkpoints))
    if panels:
        yield from _section("values", "Values", value_table(panels))
    if summary.tail:
        lines = "\n".join(escape(line) for line in summary.tail)
        yield from _section("log", "End of the log", iter([f'<pre tabindex="0">{lines}</pre>']))
    yield "</main>"


def _section(key: str, title: str, content: Iterator[str]) -> Iterator[str]:
    yield f'<section aria-labelledby="{key}">\n<h2 id="{key}">{title}</h2>'
    yield from content
    yield "</section>"


def _charts(summary: RunSummary, panels: list[Panel]) -> Iterator[str]:
    marks = [(info.iter, info.role == "best") for info in summary.checkpoints.sound]
    shown = panels[:_MOST_PANELS]
    yield '<div class="charts">'
    for index, panel in enumerate(shown):
        is_alone = index == len(shown) - 1 and index % 2 == 1
        yield render_chart(panel, marks, f"panel{index}", is_wide=index == 0 or is_alone)
    yield "</div>"
    if len(panels) > len(shown):
        yield f'<p class="note">{len(panels) - len(shown)} further values are not drawn; they are in the table of values.</p>'
    if marks:
        yield '<p class="note">Below the curves, each △ is a checkpoint and each ▲ a best one.</p>'


def _footer(summary: RunSummary) -> Iterator[str]:
    starts = ", ".join(start.log_dir.name for start in summary.starts[-8:])
    made = f"hookbus {__version__}, {summary.made_at:%Y-%m-%d %H:%M:%S}"
    yield f"<footer>Made by {made}{f' from {escape(starts)}' if starts else ''}.</footer>"


def _resource(name: str) -> str:
    return resources.files("hookbus.cli").joinpath(name).read_text(encoding="utf-8")

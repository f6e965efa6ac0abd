"""The inks of a report: few, told apart by people who see no red or no green, and each with a name in the page."""

from __future__ import annotations

__all__ = ("FIRST", "INK", "MUTED", "PAPER", "RULE", "SECOND", "THIRD", "VARIABLES", "ink_of", "text_style")

from typing import Any

INK = "#1c2126"
MUTED = "#67707b"
RULE = "#dfe3e8"
PAPER = "#fffffe"
FIRST = "#0b62a6"
SECOND = "#c4500b"
THIRD = "#0a7d62"

VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
    FIRST: "var(--first)",
    SECOND: "var(--second)",
    THIRD: "var(--third)",
}
"""What each ink is called in the page, where it depends on whether that is light or dark."""

_FONTS = ("Inter", "Source Sans 3", "Open Sans", "Noto Sans", "Liberation Sans", "Arial", "DejaVu Sans")
"""In the order of preference; the last one comes with matplotlib."""


def ink_of(role: str) -> str:
    """Return the ink of a curve."""
    return {"first": FIRST, "second": SECOND, "third": THIRD}[role]


def text_style() -> Any:
    """Return the settings of matplotlib for all pictures, a dict whose keys its annotations spell out one by one."""
    from matplotlib import font_manager

    installed = set(font_manager.fontManager.get_font_names())
    return {
        "font.family": next(name for name in _FONTS if name in installed),
        "font.size": 8.5,
        "text.color": INK,
        "text.parse_math": False,  # a dollar sign in the name of a metric is a dollar sign
        "axes.edgecolor": RULE,
        "axes.labelcolor": MUTED,
        "axes.unicode_minus": False,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "figure.facecolor": PAPER,
        "axes.facecolor": "none",
        "savefig.facecolor": "auto",
        "svg.fonttype": "none",  # text stays text: it can be read aloud, searched, and follows the font of the page
        "svg.hashsalt": "hookbus",
        "path.simplify": True,
    }

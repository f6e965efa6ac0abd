"""Turns a figure of matplotlib into SVG that belongs to the page around it: its inks and fonts are those of the page."""

from __future__ import annotations

__all__ = ("inline_svg",)

import io
import re
from xml.etree import ElementTree

from matplotlib.figure import Figure

from hookbus.cli.inks import VARIABLES

_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"
_INK = re.compile("|".join(VARIABLES), re.IGNORECASE)
_REFERENCE = re.compile(r"url\(#")
_FONT = re.compile(r"(font: [^;]*?[\d.]+px) [^;]*")
"""Size and weight of a text, and then the fonts that matplotlib would take."""


def inline_svg(figure: Figure, key: str, label: str) -> str:
    """Return a figure as an `svg` element.

    Args:
        figure: what to show.
        key: begins every id in it, so that no two elements of a page share one.
        label: what it shows, in words, for those who do not see it.
    """
    written = io.StringIO()
    figure.savefig(written, format="svg", dpi=72, transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(written.getvalue())
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        _adapt(element, key)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.attrib.update({"role": "img", "aria-label": label})
    return ElementTree.tostring(root, encoding="unicode")


def _adapt(element: ElementTree.Element, key: str) -> None:
    attributes = element.attrib
    if "id" in attributes:
        attributes["id"] = f"{key}-{attributes['id']}"
    if attributes.get(_LINK, "").startswith("#"):
        attributes[_LINK] = f"#{key}-{attributes[_LINK][1:]}"
    for name in ("style", "clip-path", "fill", "stroke"):
        if name in attributes:
            text = _REFERENCE.sub(f"url(#{key}-", attributes[name])
            text = _FONT.sub(r"\1 var(--font)", text)
            attributes[name] = _INK.sub(lambda found: VARIABLES[found[0].lower()], text)

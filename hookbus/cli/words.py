"""Numbers, durations and sizes as people read them."""

from __future__ import annotations

__all__ = ("bytes_in_words", "number_in_words", "seconds_in_words", "shortened", "span_in_words", "value_in_words")

import math
from collections.abc import Mapping
from typing import Any

_THIN_SPACE = "\u2009"
_SIZES = ("B", "kB", "MB", "GB", "TB", "PB")
_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def number_in_words(value: float) -> str:
    """Return four significant digits, and whole numbers with thin spaces between thousands."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace(",", _THIN_SPACE)
    return f"{value:.4g}"


def seconds_in_words(seconds: float) -> str:
    """Return a short time with its unit, such as `3.2 ms`."""
    scale, unit = next(((scale, unit) for scale, unit in _TIMES if abs(seconds) >= scale), _TIMES[-1])
    return f"{seconds / scale:.3g} {unit}" if seconds else "0 s"


def span_in_words(seconds: float) -> str:
    """Return a long time as a person says it, such as `2 h 14 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h"


def bytes_in_words(size: int) -> str:
    """Return a size with its unit, in powers of 1000."""
    value, unit = float(size), _SIZES[0]
    for larger in _SIZES[1:]:
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"


def shortened(text: str, longest: int) -> str:
    """Return a text on one line without control characters, its middle left out where it is too long."""
    line = "".join(
        char if char.isprintable() or char == _THIN_SPACE else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )
    line = line.encode("utf-8", "backslashreplace").decode()
    if len(line) <= longest:
        return line
    front = (longest - 1) * 2 // 3
    return f"{line[:front]}…{line[len(line) - (longest - 1 - front) :]}"


def value_in_words(value: Any, longest: int = 80) -> str:
    """Return any value that was read from a file, short and on one line."""
    if isinstance(value, float | int) and not isinstance(value, bool):
        return number_in_words(value) if abs(value) < 1e300 else shortened(str(value)[:longest], longest)
    if isinstance(value, Mapping):
        return shortened(", ".join(f"{key}: {value_in_words(item)}" for key, item in list(value.items())[:20]), longest)
    if isinstance(value, list | tuple):
        return shortened(", ".join(value_in_words(item) for item in value[:20]), longest)
    return "none" if value is None else shortened(str(value), longest)

"""Further statistics for log lines: the entries of `LogProcessor.custom_cfg`, checked before anything is trained."""

from __future__ import annotations

__all__ = ("CustomStatistic", "read_statistics", "recorded_since")

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from hookbus._config import shown
from hookbus.errors import choices
from hookbus.history import HistoryBuffer

KEYS = ("data_src", "method_name", "log_name", "window_size")
WINDOWS = ("epoch", "global")
_WINDOW_PARAMETERS = ("window", "window_size")


class CustomStatistic(NamedTuple):
    """One entry: what of which history is shown under which name."""

    source: str
    name: str
    method: str
    window: int | str | None
    window_parameter: str
    options: Mapping[str, Any]

    def of(self, buffer: HistoryBuffer, first_step: int, batches: int) -> Any:
        """Return the statistic, in a pass that began with `first_step` and has come to so many batches."""
        if self.window is None:
            return buffer.statistics(self.method, **self.options)
        size = self.window if isinstance(self.window, int) else len(buffer)
        if self.window == "epoch":
            size = recorded_since(first_step, buffer, batches)
        return buffer.statistics(self.method, **self.options, **{self.window_parameter: size})


def recorded_since(first_step: int, buffer: HistoryBuffer, at_most: int) -> int:
    """Return how many of the newest values were recorded at `first_step` or later, at least one."""
    _, _, steps = buffer.newest(max(1, at_most))
    return max(1, sum(step >= first_step for step in steps))


def read_statistics(entries: object, *, by_epoch: bool | None, path: str) -> tuple[list[CustomStatistic], list[str]]:
    """Return the statistics that entries describe, and everything that is wrong with them."""
    if entries is None:
        return [], []
    if not isinstance(entries, list | tuple):
        return [], [f"{path} = {shown(entries)}: expected a list of dicts"]
    problems = [
        problem for index, entry in enumerate(entries) for problem in _problems(entry, f"{path}[{index}]", by_epoch=by_epoch)
    ]
    if problems:
        return [], problems
    statistics = [_read(entry) for entry in entries]
    names = Counter(statistic.name for statistic in statistics)
    twice = [name for name, times in names.items() if times > 1]
    return statistics, [f"{path}: {names[name]} entries are shown as {name!r}; give each a log_name of its own" for name in twice]


def _read(entry: Mapping[str, Any]) -> CustomStatistic:
    source, method = entry["data_src"], entry["method_name"]
    options = {key: value for key, value in entry.items() if key not in KEYS}
    name = entry.get("log_name", source)
    return CustomStatistic(source, name, method, entry.get("window_size"), _window_parameter(method), options)


def _problems(entry: object, path: str, *, by_epoch: bool | None) -> Iterator[str]:
    if not isinstance(entry, Mapping):
        yield f"{path} = {shown(entry)}: expected a dict with {', '.join(KEYS[:2])} and, if wanted, {', '.join(KEYS[2:])}"
        return
    yield from _wrong_names(entry, path)
    yield from _wrong_window(entry.get("window_size"), f"{path}.window_size", by_epoch=by_epoch)
    yield from _wrong_method(entry, path)


def _wrong_names(entry: Mapping[str, object], path: str) -> Iterator[str]:
    for key in ("data_src", "log_name"):
        name = entry.get(key)
        if key in entry and not (isinstance(name, str) and name):
            yield f"{path}.{key} = {shown(name)}: expected the name of a value"
    for key in KEYS[:2]:
        if key not in entry:
            yield f"{path}.{key} is missing"
    source = entry.get("data_src")
    if isinstance(source, str) and source.startswith(("train/", "val/", "test/")):
        yield f"{path}.data_src = {source!r}: name it without its mode, {source.partition('/')[2]!r}"


def _wrong_window(window: object, path: str, *, by_epoch: bool | None) -> Iterator[str]:
    if isinstance(window, str):
        if window not in WINDOWS:
            yield f"{path} = {shown(window)}: expected a whole number, or a word; {choices(window[:100], WINDOWS)}"
        elif window == "epoch" and by_epoch is False:
            yield f"{path} = 'epoch': log_processor.by_epoch is False, so there are no epochs; a number or 'global' will do"
    elif window is not None and (not isinstance(window, int) or isinstance(window, bool) or window < 1):
        yield f"{path} = {shown(window)}: expected a whole number of at least 1, or one of {', '.join(map(repr, WINDOWS))}"


def _wrong_method(entry: Mapping[str, object], path: str) -> Iterator[str]:
    """Yield what keeps the statistic from being called with the options of the entry."""
    if "method_name" not in entry:
        return
    method = entry["method_name"]
    if not isinstance(method, str) or method not in HistoryBuffer._statistics:
        known = choices(str(method)[:100], HistoryBuffer._statistics)
        yield f"{path}.method_name = {shown(method)}: no statistic of HistoryBuffer is registered as that; {known}"
        return
    parameters = _parameters(method)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    options = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    valid = (*KEYS, *(name for name in options if name not in _WINDOW_PARAMETERS))
    for key in entry:
        if key not in valid and (not takes_any or key in _WINDOW_PARAMETERS):
            yield f"{path} has the key {shown(key)}, which {method!r} does not take; {choices(str(key)[:100], valid)}"
    window = _window_parameter(method)
    if "window_size" in entry and window not in options and not takes_any:
        yield f"{path}.window_size = {shown(entry['window_size'])}: {method!r} takes no window; leave it out"
    for name, parameter in options.items():
        key = "window_size" if name == window else name
        if parameter.default is parameter.empty and key not in entry:
            yield f"{path}.{key} is missing: {method!r} needs it"


def _parameters(method: str) -> list[inspect.Parameter]:
    """Return what a statistic takes besides the buffer."""
    return list(inspect.signature(HistoryBuffer._statistics[method]).parameters.values())[1:]


def _window_parameter(method: str) -> str:
    """Return what a statistic calls its window."""
    names = {parameter.name for parameter in _parameters(method)}
    return next((name for name in _WINDOW_PARAMETERS if name in names), "window_size")

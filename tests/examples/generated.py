"""The parts of the documentation that are made from the code.

    python -m tests.examples.generated     brings them up to date

In a page each stands between `<!-- generated: NAME -->` and `<!-- end of NAME -->`, the options of a hook or a writer
between `<!-- options of CLASS -->` and `<!-- end -->`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from hookbus import events, hooks, writers
from hookbus.events import (
    MOUNT_POINTS,
    CheckpointEvent,
    EpochEvent,
    Event,
    IterEvent,
    MountPoint,
    PhaseEvent,
    RunEvent,
    StepEvent,
)
from hookbus.priority import Priority, get_priority
from hookbus.runner.defaults import DEFAULT_HOOKS
from tests.test_layers import LAYERS, PACKAGE

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_OPTIONS = re.compile(r"(?P<begin><!-- options of (?P<name>\w+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)
_PART = re.compile(r"(?P<begin><!-- generated: (?P<name>[a-z ]+) -->\n).*?(?P<end><!-- end of (?P=name) -->)", re.DOTALL)


def loop_map() -> str:
    """Return the loop as pseudocode, with every event in its place."""
    fenced = str(events.__doc__).partition("```text")[2].partition("```")[0]
    return f"```text{fenced}```"


def events_table() -> str:
    """Return one row per mount point, in firing order."""
    head = ["event", "when it fires, what may be changed", "facts", "live names", "`every=` counts"]
    rows = [
        [f"`{cls.__name__}`", _summary(cls), _codes(_own_facts(cls)), _codes(cls.live), _counted(cls)]
        for cls in MOUNT_POINTS.values()
    ]
    return _table(head, rows)


def base_classes_table() -> str:
    """Return one row per base class of mount points, with the events that it stands for."""
    bases = (MountPoint, RunEvent, PhaseEvent, EpochEvent, IterEvent, StepEvent, CheckpointEvent)
    rows = [[f"`{base.__name__}`", _summary(base), _heard_through(base)] for base in bases]
    return _table(["base class", "what it stands for", "events"], rows)


def priorities_table() -> str:
    """Return the named priorities, the first to run first."""
    return _table(["name", "number"], [[f"`{priority.name}`", str(priority.value)] for priority in Priority])


def default_hooks_table() -> str:
    """Return one row per default hook, in the order in which they are added."""
    rows = []
    for name, config in DEFAULT_HOOKS.items():
        cls = getattr(hooks, config["type"])
        rows.append([f"`{name}`", f"`{cls.__name__}`", _priority(cls), _summary(cls)])
    return _table(["name", "hook", "priority", "what it does"], rows)


def default_hook_options_table() -> str:
    """Return one row per option of a default hook."""
    rows = []
    for config in DEFAULT_HOOKS.values():
        cls = getattr(hooks, config["type"])
        described = _described_arguments(cls)
        for name, parameter in inspect.signature(cls).parameters.items():
            default = config.get(name, parameter.default)
            rows.append([f"`{cls.__name__}`", f"`{name}`", f"`{default!r}`", described[name]])
    return _table(["hook", "option", "default", "meaning"], rows)


def hooks_table() -> str:
    """Return one row per hook, each with its page: the default ones, then the others by name."""
    default = {config["type"]: name for name, config in DEFAULT_HOOKS.items()}
    others = sorted(name for name in hooks.__all__ if name != "Hook" and name not in default)
    rows = []
    for name in (*default, *others):
        cls = getattr(hooks, name)
        rows.append(
            [f"[{name}](hooks/{page_name(cls)})", f"`{default[name]}`" if name in default else "", _priority(cls), _summary(cls)]
        )
    return _table(["hook", "default hook", "priority", "what it does"], rows)


def page_name(hook: type[hooks.Hook]) -> str:
    """Return the name of the page about a hook: that of its module."""
    return f"{hook.__module__.rpartition('.')[2]}.md"


def options_table(name: str) -> str:
    """Return one row per option of a hook or a writer, from its signature and its docstring."""
    cls = getattr(hooks, name, None) or getattr(writers, name)
    described = _described_arguments(cls)
    rows = [
        [f"`{_spelt(option)}`", _default(option), described[option.name]] for option in inspect.signature(cls).parameters.values()
    ]
    return _table(["option", "default", "meaning"], rows) if rows else f"`{name}` has no options."


def layers_table() -> str:
    """Return the files and folders of the package by layer, the lowest first; those to come are left out."""
    layers: dict[int, list[str]] = {}
    for name, layer in LAYERS.items():
        if (PACKAGE / name).is_dir():
            layers.setdefault(layer, []).append(f"{name}/")
        elif (PACKAGE / f"{name}.py").exists():
            layers.setdefault(layer, []).append(f"{name}.py")
    return _table(["layer", "files and folders"], [[str(layer), _codes(names)] for layer, names in sorted(layers.items())])


PARTS: Mapping[str, Callable[[], str]] = {
    "loop map": loop_map,
    "events": events_table,
    "base classes": base_classes_table,
    "priorities": priorities_table,
    "default hooks": default_hooks_table,
    "options of default hooks": default_hook_options_table,
    "hooks": hooks_table,
    "layers": layers_table,
}
"""Every generated part by its name."""


def parts_of(page: str) -> list[str]:
    """Return the names of the generated parts of a page."""
    return [match["name"] for match in _PART.finditer(page)]


def brought_up_to_date(page: str) -> str:
    """Return the text of a page with its generated parts written anew."""
    page = _PART.sub(lambda match: match["begin"] + PARTS[match["name"]]() + "\n" + match["end"], page)
    return _OPTIONS.sub(lambda match: match["begin"] + options_table(match["name"]) + "\n" + match["end"], page)


def options_of(page: str) -> list[str]:
    """Return the names of the classes whose options a page shows."""
    return [match["name"] for match in _OPTIONS.finditer(page)]


def _own_facts(cls: type[Event]) -> list[str]:
    return [field for field in cls.__struct_fields__ if field not in MountPoint.__struct_fields__]


def _counted(cls: type[Event]) -> str:
    if cls.counted is None:
        return "publishes"
    field, offset = cls.counted
    return f"`{field} + {offset}`" if offset else f"`{field}`"


def _heard_through(base: type[MountPoint]) -> str:
    if base is MountPoint:
        return "all of them"
    return _codes(cls.__name__ for cls in MOUNT_POINTS.values() if issubclass(cls, base))


def _priority(cls: type[hooks.Hook]) -> str:
    number = get_priority(cls.priority)
    return f"`{Priority(number).name}` {number}"


def _summary(cls: type) -> str:
    """Return the first paragraph of a docstring on one line."""
    return " ".join(inspect.cleandoc(str(cls.__doc__)).partition("\n\n")[0].split())


def _described_arguments(cls: type) -> dict[str, str]:
    """Return what the section `Args:` of a docstring says about each argument, each on one line."""
    section = inspect.cleandoc(str(cls.__doc__)).partition("Args:\n")[2].partition("\n\n")[0]
    on_one_line = re.sub(r"\n {8,}", " ", section)
    return dict(re.findall(r"^ {4}(\w+): (.*)$", on_one_line, re.MULTILINE))


def _spelt(option: inspect.Parameter) -> str:
    return f"**{option.name}" if option.kind is option.VAR_KEYWORD else option.name


def _default(option: inspect.Parameter) -> str:
    if option.kind is option.VAR_KEYWORD:
        return ""
    return "required" if option.default is option.empty else f"`{option.default!r}`"


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    return "\n".join(_lines(head, rows))


def _lines(head: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def main() -> None:
    """Write the generated parts of every page anew."""
    for path in sorted(DOCS.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        current = brought_up_to_date(text)
        if current != text:
            path.write_text(current, encoding="utf-8")
            print(f"{path.relative_to(ROOT)} is up to date again")


if __name__ == "__main__":
    main()

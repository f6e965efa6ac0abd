"""The hooks and writers that hookbus registers, found in its registries, and what can be known about each from its signature."""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hookbus.registry import HOOKS, WRITERS, Registry

REQUIRED: Mapping[str, Mapping[str, Any]] = {
    "EarlyStoppingHook": {"monitor": "loss"},
    "wandb": {"options": {"mode": "offline", "settings": {"silent": True}}},
}
"""What a constructor cannot do without, or what would leave this machine otherwise."""

NEEDS: Mapping[str, str] = {"wandb": "wandb", "mlflow": "mlflow"}
"""Writers that are behind an extra, with the package they need."""

_SCALARS: Mapping[Any, tuple[Any, ...]] = {
    bool: (True, False),
    int: (2, 1),
    float: (0.5,),
    str: ("accuracy",),
    Any: (1,),
    Path: (Path("other"),),
}


def slow_but_for(fast: Iterable[str], every: Iterable[str]) -> list[Any]:
    """Return parameters of a test, of which those that are not named as fast are marked as slow."""
    return [one if one in fast else pytest.param(one, marks=pytest.mark.slow) for one in every]


class Subject(NamedTuple):
    """A class to be looked at, with the arguments that its constructor needs."""

    kind: str | type
    cls: type
    required: Mapping[str, Any] = {}

    def config(self, **options: Any) -> dict[str, Any]:
        """Return a config; options come in addition."""
        return {"type": self.kind, **self.required, **options}

    def options(self) -> dict[str, inspect.Parameter]:
        """Return the options that have a name in the signature."""
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return {name: one for name, one in inspect.signature(self.cls).parameters.items() if one.kind in named}

    def defaults(self) -> dict[str, Any]:
        """Return every option with its default, or with what it needs."""
        return {name: self.required.get(name, option.default) for name, option in self.options().items()}

    def others(self, name: str) -> Iterator[Any]:
        """Yield values of an option, other than its default, that its annotation allows."""
        hint = typing.get_type_hints(self.cls.__init__)[name]  # type: ignore[misc]
        default = self.defaults()[name]
        yield from (value for value in _values(hint) if type(value) is not type(default) or value != default)


def _values(hint: Any) -> Iterator[Any]:
    """Yield examples of what an annotation allows; a handful, not all."""
    kind, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        for member in arguments:
            yield from _values(member)
    elif kind is typing.Literal:
        yield from arguments
    elif kind is collections.abc.Sequence:
        yield from ([item] for item in _values(arguments[0]))
        yield from [[]] if arguments[0] is Any else []
    elif kind is collections.abc.Mapping:
        yield from ({key: value} for key in _values(arguments[0]) for value in _values(arguments[1]))
    elif kind is collections.abc.Callable:
        yield lambda *arguments: ()
    else:
        yield from _SCALARS.get(kind, ())


def registered(registry: Registry) -> list[str]:
    """Return the names that hookbus itself registers; tests and pages add their own."""
    return [name for name, entry in registry._entries.items() if _module_of(entry).startswith("hookbus.")]


def _module_of(entry: type | str) -> str:
    return entry if isinstance(entry, str) else entry.__module__


def hook(name: str) -> Subject:
    """Return a registered hook."""
    return Subject(name, HOOKS.get(name), REQUIRED.get(name, {}))


def writer(name: str) -> Subject:
    """Return a registered writer; skip the test where the package that it needs is not installed."""
    package = NEEDS.get(name)
    if package is not None:
        pytest.importorskip(package, reason=f"NOT CHECKED: the writer {name!r} needs {package}, which is not installed")
    return Subject(name, WRITERS.get(name), REQUIRED.get(name, {}))


HOOK_NAMES = registered(HOOKS)
WRITER_NAMES = registered(WRITERS)

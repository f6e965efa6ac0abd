"""The public face: every public module says in `__all__` what it offers, and offers what it says."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import pytest

import hookbus


def public_modules() -> list[str]:
    """Return the names of hookbus and of its modules, without those that begin with an underscore."""
    found = pkgutil.walk_packages(hookbus.__path__, "hookbus.", onerror=_raise_what_broke_the_import)
    return ["hookbus", *(info.name for info in found if not any(part.startswith("_") for part in info.name.split(".")))]


def _raise_what_broke_the_import(name: str) -> None:
    raise  # what pkgutil has just caught: it calls this inside its `except`, and would pass over an ImportError otherwise


def find_faults(module: ModuleType) -> list[str]:
    """Return one sentence for each difference between what a module declares and what it defines."""
    declared = getattr(module, "__all__", None)
    if not isinstance(declared, tuple):
        return [f"{module.__name__} declares no tuple __all__"]
    absent = [f"{module.__name__}.{name} is in __all__ and does not exist" for name in declared if not hasattr(module, name)]
    missing = [f"{module.__name__}.{name} is public and not in __all__" for name in _defined_in(module) if name not in declared]
    return [*absent, *missing]


def _defined_in(module: ModuleType) -> Iterator[str]:
    for name, value in vars(module).items():
        is_definition = inspect.isclass(value) or inspect.isroutine(value) or hasattr(value, "__wrapped__")
        if is_definition and not name.startswith("_") and value.__module__ == module.__name__:
            yield name


@pytest.mark.parametrize("name", public_modules())
def test_a_public_module_declares_exactly_its_public_names(name: str) -> None:
    """`__all__` is a tuple of names that exist, and no public class or function is missing from it."""
    assert find_faults(importlib.import_module(name)) == []


def test_the_package_gives_every_name_it_promises() -> None:
    """Each name of `hookbus.__all__`, those loaded on first use included, is there, and none is listed twice."""
    assert {name: getattr(hookbus, name) for name in hookbus.__all__}.keys() == set(hookbus.__all__)
    assert len(set(hookbus.__all__)) == len(hookbus.__all__)


@pytest.mark.parametrize(
    ("source", "faults"),
    [
        pytest.param("def run(): ...", ["broken declares no tuple __all__"], id="no declaration"),
        pytest.param("__all__ = ['run']\ndef run(): ...", ["broken declares no tuple __all__"], id="a list"),
        pytest.param("__all__ = ('run',)", ["broken.run is in __all__ and does not exist"], id="a name too many"),
        pytest.param("__all__ = ()\ndef run(): ...", ["broken.run is public and not in __all__"], id="a forgotten function"),
        pytest.param("__all__ = ()\nclass Run: ...", ["broken.Run is public and not in __all__"], id="a forgotten class"),
        pytest.param(
            "from functools import cache\n__all__ = ()\n@cache\ndef run(): ...",
            ["broken.run is public and not in __all__"],
            id="a forgotten decorated function",
        ),
        pytest.param("from pathlib import Path\n__all__ = ()\ndef _run(): ...\nlimit = 1", [], id="nothing amiss"),
    ],
)
def test_a_wrong_declaration_is_reported(source: str, faults: list[str]) -> None:
    """A module whose `__all__` says too little or too much is reported, name by name."""
    module = ModuleType("broken")
    exec(source, vars(module))

    assert find_faults(module) == faults

"""Importing is light: what does not need torch does not load it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

from tests.test_layers import PACKAGE, make_package, modules_up_to

HEAVY = ("torch", "numpy", "pandas", "sklearn", "tensorboardX")
"""Packages that take longer to load than everything hookbus needs to define and publish events."""

PROBE = """
import importlib, sys
root, module, *heavy = sys.argv[1:]
sys.path.insert(0, root)
importlib.import_module(module)
print(*(name for name in heavy if name in sys.modules))
"""


FORKS = """
import asyncio, importlib, os, sys
import anyio, msgspec, numpy, pydantic, rich
root, *modules = sys.argv[1:]
sys.path.insert(0, root)
assert "torch" not in sys.modules and "hookbus" not in sys.modules
for module in modules:
    if os.fork():
        os.wait()
        continue
    importlib.import_module(module)
    print(module, "torch" in sys.modules, flush=True)
    os._exit(0)
"""


def loaded_by(module: str, heavy: Collection[str], root: Path = PACKAGE.parent) -> list[str]:
    """Import a module, found below `root`, in a fresh interpreter and return which heavy packages that loads."""
    probe = subprocess.run([sys.executable, "-c", PROBE, str(root), module, *heavy], capture_output=True, text=True, check=False)
    assert probe.returncode == 0, probe.stderr
    return probe.stdout.split()


def test_importing_the_package_loads_nothing_heavy() -> None:
    """`import hookbus` leaves torch, numpy and their like to the first use of a name that needs them."""
    assert loaded_by("hookbus", HEAVY) == []


def first_imports(modules: Sequence[str], root: Path = PACKAGE.parent) -> dict[str, bool]:
    """Import each module as the first of its package, and return whether that loads torch; what cannot be imported is left out.

    Each has a fork of one process, which has loaded what they all need of others.
    """
    command = [sys.executable, "-c", FORKS, str(root), *modules]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {module: loaded == "True" for module, loaded in (line.split() for line in lines)}


@pytest.mark.timeout(180)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process for each module would take too long")
def test_a_module_below_the_training_thread_loads_no_torch() -> None:
    """Each module of the layers 0 to 2 can be the first one imported, and gets by without torch."""
    assert first_imports(modules_up_to(3)) == dict.fromkeys(modules_up_to(3), False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process for each module would take too long")
def test_a_module_that_loads_torch_or_cannot_come_first_is_noticed(tmp_path: Path) -> None:
    """The test above can fail; the one behind is not taken in by the one before."""
    (tmp_path / "torch.py").touch()
    circle = {"one.py": "from hookbus.two import x\ny = 1", "two.py": "from hookbus.one import y\nx = 1"}
    make_package(tmp_path, {"heavy.py": "import torch", "light.py": "", **circle})

    found = first_imports(["hookbus.heavy", "hookbus.one", "hookbus.light"], root=tmp_path)

    assert found == {"hookbus.heavy": True, "hookbus.light": False}


def test_a_heavy_import_is_noticed(tmp_path: Path) -> None:
    """A package that loads torch in passing is found out."""
    (tmp_path / "torch.py").touch()
    make_package(tmp_path, {"events.py": "from hookbus import optim", "optim.py": "import torch"})

    assert loaded_by("hookbus.events", HEAVY, root=tmp_path) == ["torch"]

"""Importing is light: what does not need torch does not load it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection
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


def loaded_by(module: str, heavy: Collection[str], root: Path = PACKAGE.parent) -> list[str]:
    """Import a module, found below `root`, in a fresh interpreter and return which heavy packages that loads."""
    probe = subprocess.run([sys.executable, "-c", PROBE, str(root), module, *heavy], capture_output=True, text=True, check=False)
    assert probe.returncode == 0, probe.stderr
    return probe.stdout.split()


def test_importing_the_package_loads_nothing_heavy() -> None:
    """`import hookbus` leaves torch, numpy and their like to the first use of a name that needs them."""
    assert loaded_by("hookbus", HEAVY) == []


@pytest.mark.parametrize("module", modules_up_to(3))
def test_a_module_below_the_training_thread_loads_no_torch(module: str) -> None:
    """Each module of the layers 0 to 2 can be the first one imported, and gets by without torch."""
    assert loaded_by(module, ["torch"]) == []


def test_a_heavy_import_is_noticed(tmp_path: Path) -> None:
    """A package that loads torch in passing is found out."""
    (tmp_path / "torch.py").touch()
    make_package(tmp_path, {"events.py": "from hookbus import optim", "optim.py": "import torch"})

    assert loaded_by("hookbus.events", HEAVY, root=tmp_path) == ["torch"]

"""The layers hold: the imports of every module are read and compared with the table of layers."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

LAYERS = {
    "errors": 0,
    "_current": 0,
    "_version": 0,
    "types": 0,
    "_config": 0,
    "_custom_statistics": 0,
    "_landing": 0,
    "_log_copy": 0,
    "_hub_copy": 0,
    "_named": 0,
    "_hyperparameters": 0,
    "_plain": 0,
    "_troubles": 0,
    "_scalars": 0,
    "_sendable": 0,
    "_snapshot": 0,
    "_strict_json": 0,
    "_waiting": 0,
    "mailbox": 0,
    "priority": 0,
    "registry": 0,
    "events": 0,
    "wire": 0,
    "history": 0,
    "progress": 0,
    "bridge": 1,
    "loop_threads": 2,
    "distributed": 1,
    "hub": 2,
    "bus": 3,
    "worker_hub": 3,
    "loop_lag": 3,
    "device": 4,
    "device_reads": 5,
    "checkpoint": 4,
    "foreign_weights": 5,
    "evaluation": 4,
    "samplers": 4,
    "random_state": 4,
    "writers": 4,
    "_bare": 4,
    "averaging": 5,
    "best_metric": 4,
    "pictures": 4,
    "optim": 4,
    "schedulers": 4,
    "loading": 5,
    "step_requests": 4,
    "training_thread": 5,
    "steps": 5,
    "log_processor": 5,
    "delivery": 5,
    "hooks": 6,
    "loops": 6,
    "online": 6,
    "runner": 7,
    "cli": 8,
    "web": 8,
    "integrations": 8,
    "testing": 8,
    "__main__": 9,
}
"""The layer of each file and folder of the package; whatever lies in a folder belongs to its layer."""

FACE = 9
"""The layer of the package's `__init__.py`: it may import everything, and nothing may import it."""

EXTENSIONS = ("hooks", "loops", "writers")
"""Folders of interchangeable parts: all but their `base.py` and `..._base.py` is found through registries."""

LONERS = ("hooks", "loops")
"""Folders whose files know the `base.py` and `..._base.py` beside them, and never one another."""

EVENT_LOOPS = ("asyncio", "trio", "uvloop", "sniffio")
"""What only `bridge.py` imports; modules above the runner may serve one of them on purpose."""

PACKAGE = Path(__file__).parents[1] / "hookbus"


class Import(NamedTuple):
    """One import of a module: what it names, and where."""

    target: str
    line: int


Imports = Mapping[str, list[Import]]
"""The modules of a package by full name, each with its imports."""


def read_imports(package: Path) -> Imports:
    """Read the imports of every module of the package that lies at a path."""
    files = {_module_name(package, path): path for path in sorted(package.rglob("*.py"))}
    imports = {}
    for module, path in files.items():
        parent = module if path.name == "__init__.py" else module.rpartition(".")[0]
        reader = ImportReader(parent, frozenset(files))
        reader.visit(ast.parse(path.read_text(encoding="utf-8"), str(path)))
        imports[module] = reader.imports
    return imports


def _module_name(package: Path, path: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


class ImportReader(ast.NodeVisitor):
    """Collects the imports of one module, also those inside functions; imports for type checkers alone do not count."""

    def __init__(self, parent: str, modules: frozenset[str]) -> None:
        self.imports: list[Import] = []
        self._parent = parent.split(".")
        self._modules = modules

    def visit_If(self, node: ast.If) -> None:
        """Step over what only type checkers see."""
        for_type_checkers = ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.orelse if for_type_checkers else [*node.body, *node.orelse]:
            self.visit(statement)

    def visit_Import(self, node: ast.Import) -> None:
        """Note `import a.b`."""
        self.imports += [Import(alias.name, node.lineno) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Note `from a import b` as an import of `a.b` where that is a module, else of `a`."""
        start = self._parent[: len(self._parent) - node.level + 1] if node.level else []
        source = ".".join([*start, node.module] if node.module else start)
        for alias in node.names:
            name = f"{source}.{alias.name}"
            self.imports.append(Import(name if name in self._modules else source, node.lineno))


def layer_of(module: str) -> int | None:
    """Return the layer of a module, or None if the table does not name it."""
    return LAYERS.get(_part(module)) if "." in module else FACE


def _part(module: str) -> str:
    """Return the file or folder, directly below the package, that holds a module."""
    return module.split(".")[1] if "." in module else ""


def modules_up_to(layer: int) -> list[str]:
    """Return the modules of hookbus that lie in the layers from 0 to `layer`."""
    return [module for module in read_imports(PACKAGE) if (own := layer_of(module)) is not None and own <= layer]


def find_violations(imports: Imports) -> list[str]:
    """Return one sentence for each place that breaks the rules of layers."""
    return [*_modules_without_a_layer(imports), *_forbidden_imports(imports), *_import_cycles(imports)]


def _modules_without_a_layer(imports: Imports) -> Iterator[str]:
    for module in imports:
        if layer_of(module) is None:
            yield f"{module} has no layer: give {_part(module)!r} one in LAYERS of tests/test_layers.py"


def _forbidden_imports(imports: Imports) -> Iterator[str]:
    for module, found in imports.items():
        for target, line in dict.fromkeys(found):  # each once, however many names it gives
            rule = _broken_rule(module, target)
            if rule:
                yield f"{module} imports {target} in line {line}: {rule}"


def _broken_rule(module: str, target: str) -> str | None:
    own = layer_of(module)
    if own is None or own == FACE:
        return None
    if target.split(".")[0] != module.split(".")[0]:
        return _broken_rule_outside(own, module, target)
    if _part(module) == _part(target):
        return _broken_rule_in_a_folder(module, target)
    if _part(module) in (*EXTENSIONS, "runner") and _part(target) in EXTENSIONS and not target.endswith("base"):
        return "hooks, loops and writers are found through their registries"
    theirs = layer_of(target)
    if theirs is None or theirs < own or theirs == own == 0:
        return None  # a module without a layer is reported by itself
    return f"layer {own} imports only from lower layers, and this is layer {theirs}"


def _broken_rule_outside(own: int, module: str, target: str) -> str | None:
    if target.split(".")[0] in EVENT_LOOPS and own <= LAYERS["runner"] and _part(module) != "bridge":
        return "only the bridge tells asyncio from trio"
    return None


def _broken_rule_in_a_folder(module: str, target: str) -> str | None:
    is_face_of_the_folder = module.count(".") == 1
    if _part(module) in LONERS and not is_face_of_the_folder and not target.endswith("base"):
        return f"files in {_part(module)}/ import base.py of their folder and never one another"
    return None


def _import_cycles(imports: Imports) -> Iterator[str]:
    graph = {module: {target for target, _ in found if target in imports} for module, found in imports.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield f"import cycle: {' <- '.join(error.args[1])}"


def test_every_import_obeys_the_layers() -> None:
    """Every module of hookbus has a layer, imports only from below it or its own folder, and no imports form a cycle."""
    assert find_violations(read_imports(PACKAGE)) == []


def make_package(root: Path, sources: Mapping[str, str]) -> Path:
    """Write a package of the given sources, by path below it, and return where it lies."""
    package = root / "hookbus"
    for name, source in {"__init__.py": "", **sources}.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return package


BROKEN = {
    "a module without a layer": ({"surprise.py": "", "hub.py": "import hookbus.surprise"}, ["hookbus.surprise has no layer"]),
    "an upward import": (
        {"events.py": "from hookbus.hub import MessageHub", "hub.py": ""},
        ["hookbus.events imports hookbus.hub in line 1: layer 0 imports only from lower layers, and this is layer 2"],
    ),
    "an upward import inside a function": (
        {"bridge.py": "def cross():\n    import hookbus.runner.runner", "runner/runner.py": ""},
        ["hookbus.bridge imports hookbus.runner.runner in line 2: layer 1"],
    ),
    "an upward import in the branch that runs": (
        {"hub.py": "if TYPE_CHECKING:\n    pass\nelse:\n    from hookbus import optim", "optim.py": ""},
        ["hookbus.hub imports hookbus.optim in line 4: layer 2"],
    ),
    "an upward relative import": (
        {"bus/plan.py": "from ..hooks import base", "hooks/base.py": ""},
        ["hookbus.bus.plan imports hookbus.hooks.base in line 1: layer 3"],
    ),
    "an import between neighbours in one layer": (
        {"optim.py": "from hookbus.device import mover", "device.py": ""},
        ["hookbus.optim imports hookbus.device in line 1: layer 4"],
    ),
    "an import of the package's face": (
        {"runner/runner.py": "from hookbus import Event"},
        ["hookbus.runner.runner imports hookbus in line 1: layer 7"],
    ),
    "a hook that knows another hook": (
        {"hooks/ema.py": "from hookbus.hooks.timer import Timer", "hooks/timer.py": ""},
        ["hookbus.hooks.ema imports hookbus.hooks.timer in line 1: files in hooks/ import base.py"],
    ),
    "a hook that knows another hook through their folder": (
        {"hooks/__init__.py": "", "hooks/ema.py": "from hookbus.hooks import Timer"},
        ["hookbus.hooks.ema imports hookbus.hooks in line 1: files in hooks/ import base.py"],
    ),
    "a hook that knows a writer": (
        {"hooks/logger.py": "from hookbus.writers.terminal import Terminal", "writers/terminal.py": ""},
        ["hookbus.hooks.logger imports hookbus.writers.terminal in line 1: hooks, loops and writers are found"],
    ),
    "a hook that knows the base of loops": (
        {"hooks/logger.py": "from hookbus.loops.base import Loop", "loops/base.py": ""},
        ["hookbus.hooks.logger imports hookbus.loops.base in line 1: layer 6"],
    ),
    "a runner that knows a concrete loop": (
        {"runner/runner.py": "from hookbus.loops import ValLoop", "loops/__init__.py": ""},
        ["hookbus.runner.runner imports hookbus.loops in line 1: hooks, loops and writers are found"],
    ),
    "a second module that knows asyncio": (
        {"hub.py": "from asyncio import Event"},
        ["hookbus.hub imports asyncio in line 1: only the bridge"],
    ),
    "a cycle among leaves": (
        {"types.py": "from hookbus.events import Event", "events.py": "from hookbus.types import Phase"},
        ["import cycle: hookbus."],
    ),
    "a cycle inside a folder": (
        {"bus/__init__.py": "from hookbus.bus.plan import Plan", "bus/plan.py": "from hookbus.bus import EventBus"},
        ["import cycle: hookbus.bus"],
    ),
}


@pytest.mark.parametrize(("sources", "expected"), BROKEN.values(), ids=BROKEN)
def test_a_broken_rule_is_reported(tmp_path: Path, sources: Mapping[str, str], expected: list[str]) -> None:
    """A package that breaks one rule is reported once, with module, import, line and rule."""
    found = find_violations(read_imports(make_package(tmp_path, sources)))

    assert len(found) == len(expected), found
    assert all(sentence.startswith(start) for sentence, start in zip(found, expected, strict=True)), found


def test_what_the_rules_allow_is_not_reported(tmp_path: Path) -> None:
    """Downward imports, leaves, own folders, `base.py` and imports for type checkers alone are all fine."""
    sources = {
        "__init__.py": "from hookbus import events\nfrom hookbus.runner.runner import Runner",
        "errors.py": "import asyncless",
        "events.py": "from hookbus.errors import EventDefinitionError\nif TYPE_CHECKING:\n    from hookbus.hub import MessageHub",
        "bridge.py": "import asyncio\nimport trio",
        "bus/__init__.py": "from hookbus.bus.bus import EventBus",
        "bus/bus.py": "from .plan import Plan\nfrom hookbus import bridge",
        "bus/plan.py": "import hookbus.events",
        "hub.py": "import typing\nif typing.TYPE_CHECKING:\n    import asyncio",
        "writers/base.py": "",
        "hooks/__init__.py": "from hookbus.hooks.ema import EMAHook",
        "hooks/base.py": "from hookbus.bus import EventBus",
        "hooks/ema.py": "from hookbus.hooks.base import Hook\nfrom hookbus.writers.base import Writer",
        "runner/__init__.py": "from hookbus.runner.runner import Runner",
        "runner/runner.py": "from hookbus.runner._setup import set_up\nfrom hookbus.hooks.base import Hook",
        "runner/_setup.py": "from hookbus.hub import MessageHub",
        "web.py": "import asyncio\nfrom hookbus.hooks import EMAHook",
    }

    assert find_violations(read_imports(make_package(tmp_path, sources))) == []


def test_layers_name_the_modules_below_them() -> None:
    """The modules up to a layer are those that exist, with everything in their folders."""
    assert "hookbus.errors" in modules_up_to(0)
    assert {layer_of(module) for module in modules_up_to(2)} <= {0, 1, 2}

"""Registries, and what may and may not stand in a config."""

from __future__ import annotations

import contextlib
import copy
import enum
import importlib
import pathlib
import subprocess
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal, Protocol

import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbus.errors import ConfigError
from hookbus.registry import AVERAGERS, HOOKS, LOOPS, METRICS, OPTIMIZERS, PARAM_SCHEDULERS, WRITERS, Registry

if typing.TYPE_CHECKING:
    from elsewhere import Unknown  # type: ignore[import-not-found]


class Rule(enum.Enum):
    """An enumeration with texts for values."""

    LESS = "less"
    GREATER = "greater"


class Level(enum.IntEnum):
    """An enumeration with numbers for values."""

    LOW = 1
    HIGH = 2


class Shape(Protocol):
    """A protocol that has no checks at run time."""

    sides: int


class Keeper:
    """A class that keeps the options it was given."""

    def __init__(  # type: ignore[no-untyped-def]
        self,
        interval: int = 1,
        ratio: float = 0.5,
        by_epoch: bool = True,
        folder: pathlib.Path = pathlib.Path(),
        rule: Rule = Rule.LESS,
        level: Level = Level.LOW,
        mode: Literal["min", "max"] = "min",
        betas: tuple[float, float] = (0.9, 0.999),
        milestones: Iterable[int] = (),
        writers: Sequence[str] = ("terminal",),
        keys: set[str] | None = None,
        limits: dict[str, int] | None = None,
        rows: list[list[int]] | None = None,
        scale: float | torch.Tensor = 1.0,
        fn: Callable[[int], int] | None = None,
        even: Annotated[int, pydantic.Field(gt=0)] = 2,
        shape: Shape | None = None,
        unknown: Unknown = 0,
        anything: Any = None,
        free=None,
        late: int = None,  # type: ignore[assignment]  # noqa: RUF013
    ) -> None:
        self.kept = {name: value for name, value in locals().items() if name != "self"}


class Needy:
    """A class with options that must be given."""

    def __init__(self, interval: int, *, monitor, rule: str = "less") -> None:  # type: ignore[no-untyped-def]
        self.kept = (interval, monitor, rule)


class Open:
    """A class that takes any option."""

    def __init__(self, interval: int = 1, **options: object) -> None:
        self.kept = {"interval": interval, **options}


def make_registry(*classes: type) -> Registry:
    """Return a registry of hooks with these classes, or with those above."""
    registry = Registry("hook")
    for cls in classes or (Keeper, Needy, Open):
        registry.register_module(module=cls)
    return registry


def refusal(config: object, **options: Any) -> str:
    """Return the text with which a config is refused."""
    with pytest.raises(ConfigError) as caught:
        make_registry().build(config, path="custom_hooks[0]", **options)
    return str(caught.value)


def kept(**options: object) -> Any:
    """Return what a class is given for these options."""
    hook = make_registry().build(dict(type="Keeper", **options), path="custom_hooks[0]")
    return {name: hook.kept[name] for name in options}


def run_python(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# registration


def test_a_class_is_registered_under_its_own_name() -> None:
    """With brackets, without, and as a call."""
    registry = Registry("hook")

    @registry.register_module()
    class First:
        pass

    @registry.register_module
    class Second:
        pass

    class Third:
        pass

    assert registry.register_module(module=Third) is Third
    assert registry.names() == ("First", "Second", "Third")
    assert [registry.get(name) for name in registry.names()] == [First, Second, Third]


def test_a_class_can_be_registered_under_another_name() -> None:
    """The name is the first argument, as a decorator and as a call."""
    registry = Registry("hook")

    @registry.register_module("first")
    class First:
        pass

    registry.register_module("again", module=First)
    assert registry.get("first") is registry.get("again") is First
    assert "first" in registry
    assert "First" not in registry
    assert repr(registry) == "Registry('hook', 2 entries)"


def test_a_name_belongs_to_one_class() -> None:
    """The error names both classes and the way out."""
    registry = make_registry(Keeper)
    expected = (
        f"two classes are registered as the hook 'Keeper': {__name__}:Keeper and {__name__}:Open; "
        "give one of them another name, or pass force=True to replace the first"
    )
    with pytest.raises(ConfigError) as caught:
        registry.register_module("Keeper", module=Open)
    assert str(caught.value) == expected
    assert registry.get("Keeper") is Keeper
    registry.register_module("Keeper", force=True, module=Open)
    assert registry.get("Keeper") is Open


def test_a_class_that_is_defined_again_replaces_its_former_self() -> None:
    """As when a cell of a notebook runs twice."""
    registry = Registry("hook")
    defined = [type("Cell", (), {"__module__": "__main__"}) for _ in range(2)]
    for cls in defined:
        registry.register_module(module=cls)
    assert registry.get("Cell") is defined[1]


def test_a_built_in_class_may_register_itself() -> None:
    """Its entry in the table and the class are the same thing."""
    registry = Registry("hook", {"Keeper": f"{__name__}:Keeper"})
    registry.register_module(module=Keeper)
    assert registry.get("Keeper") is Keeper


def test_a_name_of_a_built_in_class_is_taken_before_it_is_imported() -> None:
    """The error names its place."""
    registry = Registry("hook", {"Keeper": "nowhere.at_all:Keeper"})
    with pytest.raises(ConfigError, match=f"'Keeper': nowhere.at_all:Keeper and {__name__}:Keeper"):
        registry.register_module(module=Keeper)


@pytest.mark.parametrize("name", [5, "", b"Keeper"])
def test_a_name_is_a_text(name: Any) -> None:
    """Anything else is refused and shown."""
    with pytest.raises(ConfigError, match=f"the name of a hook must be a text, got {name!r}"):
        Registry("hook").register_module(name)(Keeper)


def test_only_classes_can_be_registered() -> None:
    """A function has no place in a registry."""
    with pytest.raises(ConfigError, match="only a class can be registered as a hook, got 'Keeper'"):
        Registry("hook").register_module(module=typing.cast(type, "Keeper"))


@pytest.mark.parametrize("name", ["Keper", "keeper"])
def test_an_unknown_name_is_answered_with_the_nearest_one(name: str) -> None:
    """And with all the others."""
    with pytest.raises(ConfigError) as caught:
        make_registry().get(name)
    assert str(caught.value) == f"no hook is registered as {name!r}; did you mean 'Keeper'? valid choices: Keeper, Needy, Open"


def test_a_name_that_is_no_text_is_unknown() -> None:
    """Also one that cannot be hashed."""
    with pytest.raises(ConfigError, match=r"no hook is registered as \[1\]"):
        make_registry().get(typing.cast(str, [1]))


# built-in entries


def test_importing_the_registries_imports_neither_torch_nor_pydantic() -> None:
    """Listing names and refusing one does not either."""
    code = """
import sys
from hookbus.errors import ConfigError
from hookbus.registry import METRICS, OPTIMIZERS
assert "SGD" in OPTIMIZERS and len(METRICS.names()) > 90
try:
    OPTIMIZERS.get("SDG")
except ConfigError as error:
    print(error)
print(sorted({"torch", "pydantic", "torchmetrics", "numpy"} & set(sys.modules)))
"""
    assert run_python(code).splitlines()[-1] == "[]"


def test_a_built_in_class_is_imported_on_first_use() -> None:
    """And kept from then on."""
    registry = Registry("path", {"Fraction": "fractions:Fraction"})
    assert registry.get("Fraction") is registry.get("Fraction") is __import__("fractions").Fraction


def test_a_missing_package_is_answered_with_its_install_command() -> None:
    """As for the metrics where torchmetrics is not installed."""
    code = """
import sys
sys.modules["torchmetrics"] = None  # so that it cannot be imported
from hookbus.errors import ConfigError
from hookbus.registry import METRICS
try:
    METRICS.build(dict(type="MulticlassAccuracy", num_classes=3), path="val_evaluator")
except ConfigError as error:
    print(error)
"""
    assert run_python(code) == (
        "val_evaluator.type = 'MulticlassAccuracy': the metric 'MulticlassAccuracy' needs torchmetrics: "
        "pip install 'hookbus[metrics]'\n"
    )


def test_a_missing_module_of_an_installed_package_is_not_explained_away() -> None:
    """No command would install it."""
    registry = Registry("metric", {"Lost": "hookbus.no_such_module:Lost"}, extra="metrics")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        registry.get("Lost")


def test_a_class_that_the_installed_package_lacks_is_named() -> None:
    """As when an older torch has not got an optimizer yet."""
    with pytest.raises(ConfigError, match="the installed fractions has no number 'Real': not found in fractions"):
        Registry("number", {"Real": "fractions:Real"}).get("Real")


@pytest.mark.parametrize("registry", [OPTIMIZERS, PARAM_SCHEDULERS, METRICS], ids=lambda registry: registry.name)
def test_every_entry_for_a_class_of_another_package_exists(registry: Registry) -> None:
    """Under its own name."""
    assert [registry.get(name).__name__ for name in registry.names()] == list(registry.names())


def test_the_tables_hold_every_optimizer_and_scheduler_of_torch() -> None:
    """All but the base classes."""
    optimizers = {name for name in torch.optim.__all__ if isinstance(getattr(torch.optim, name), type)}
    assert optimizers - {"Optimizer"} <= set(OPTIMIZERS.names())
    assert set(torch.optim.lr_scheduler.__all__) - {"LRScheduler"} <= set(PARAM_SCHEDULERS.names())


def test_the_built_in_parts_of_hookbus_are_named() -> None:
    """Configs may use these names."""
    assert "CheckpointHook" in HOOKS
    assert {"EpochBasedTrainLoop", "ValLoop", "TestLoop"} <= set(LOOPS.names())
    assert {"terminal", "jsonl"} <= set(WRITERS.names())
    assert AVERAGERS.name == "averager"


# what fits


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("interval", 5, 5),
        ("ratio", 1, 1.0),
        ("folder", "runs/digits", pathlib.Path("runs/digits")),
        ("folder", pathlib.Path("runs"), pathlib.Path("runs")),
        ("rule", "greater", Rule.GREATER),
        ("rule", "GREATER", Rule.GREATER),
        ("rule", Rule.GREATER, Rule.GREATER),
        ("level", 2, Level.HIGH),
        ("level", "HIGH", Level.HIGH),
        ("mode", "max", "max"),
        ("betas", [0, 0.5], (0.0, 0.5)),
        ("milestones", [1, 2], [1, 2]),
        ("milestones", range(3), range(3)),
        ("writers", ("a", "b"), ("a", "b")),
        ("keys", ["a", "b"], {"a", "b"}),
        ("keys", None, None),
        ("limits", {"a": 1}, {"a": 1}),
        ("rows", [[1], []], [[1], []]),
        ("scale", 2, 2.0),
        ("fn", abs, abs),
        ("even", 4, 4),
        ("shape", "no check is possible", "no check is possible"),
        ("unknown", "its annotation cannot be looked up", "its annotation cannot be looked up"),
        ("anything", ["x"], ["x"]),
        ("free", {"x": 1}, {"x": 1}),
        ("late", None, None),
    ],
)
def test_an_option_that_fits_arrives(name: str, value: object, expected: object) -> None:
    """In the form that the annotation asks for."""
    got = kept(**{name: value})[name]
    assert got == expected
    assert type(got) is type(expected)


def test_an_object_stays_the_object_it_is() -> None:
    """A tensor for a float or a tensor is not turned into a float."""
    scale = torch.tensor(2.0)
    assert kept(scale=scale)["scale"] is scale


def test_a_config_may_hold_the_class_itself() -> None:
    """It need not be registered, since it is no name."""
    assert Registry("hook").build(dict(type=Needy, interval=1, monitor="loss")).kept == (1, "loss", "less")


def test_any_mapping_is_a_config() -> None:
    """It is read, never written."""
    assert make_registry().build(MappingProxyType(dict(type="Keeper", interval=3))).kept["interval"] == 3


def test_a_class_with_open_options_takes_what_it_does_not_name() -> None:
    """What it names is still checked."""
    assert make_registry().build(dict(type="Open", colour="red")).kept == {"interval": 1, "colour": "red"}
    assert refusal(dict(type="Open", colour="red", interval="1")) == "custom_hooks[0].interval = '1': expected int"


def test_a_class_without_a_constructor_takes_nothing() -> None:
    """It has no options to choose from."""

    class Plain:
        pass

    registry = make_registry(Plain)
    assert isinstance(registry.build(dict(type="Plain")), Plain)
    with pytest.raises(ConfigError, match=r"config.interval = 1: .*Plain has no such option; valid choices: \(none\)"):
        registry.build(dict(type="Plain", interval=1))


def test_a_dataclass_is_checked_like_any_class() -> None:
    """Its fields are its options, those it inherits among them."""

    @dataclass
    class Base:
        interval: int = 1

    @dataclass(kw_only=True)
    class Child(Base):
        names: list[str] = field(default_factory=list)

    registry = make_registry(Child)
    assert registry.build(dict(type="Child", interval=2, names=["a"])) == Child(interval=2, names=["a"])
    with pytest.raises(
        ConfigError, match=r"config.interval = '2': expected int\n.*config.names\[0\] = 1: expected a valid string"
    ):
        registry.build(dict(type="Child", interval="2", names=[1]))


def test_a_class_that_is_made_by_new_is_checked_by_new() -> None:
    """As some metrics choose their class from their options."""

    class Chooser:
        def __new__(cls, task: Literal["a", "b"]) -> Any:
            return task

    assert make_registry(Chooser).build(dict(type="Chooser", task="a")) == "a"
    with pytest.raises(ConfigError, match=r"config.task = 'c': expected 'a' or 'b'"):
        make_registry(Chooser).build(dict(type="Chooser", task="c"))


def test_a_class_with_an_unreadable_signature_takes_anything() -> None:
    """It will complain itself."""

    class Odd:
        def __init__(self, **options: object) -> None:
            self.options = options

    Odd.__init__.__signature__ = "unreadable"  # type: ignore[attr-defined]
    assert make_registry(Odd).build(dict(type="Odd", a=1)).options == {"a": 1}


# what does not fit


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("interval", True, ".interval = True: expected int"),
        ("interval", "5", ".interval = '5': expected int"),
        ("interval", 5.0, ".interval = 5.0: expected int"),
        ("interval", None, ".interval = None: expected int"),
        ("ratio", "1e-3", ".ratio = '1e-3': expected float"),
        ("ratio", True, ".ratio = True: expected float"),
        ("by_epoch", 1, ".by_epoch = 1: expected bool"),
        ("folder", 5, ".folder = 5: expected Path"),
        ("rule", "grater", ".rule = 'grater': expected one of less, greater; did you mean 'greater'?"),
        ("level", "HIHG", ".level = 'HIHG': expected one of LOW, HIGH; did you mean 'HIGH'?"),
        ("level", True, ".level = True: expected one of LOW, HIGH"),
        ("mode", "maxx", ".mode = 'maxx': expected 'min' or 'max'; did you mean 'max'?"),
        ("betas", [0.9], ".betas = [0.9]: expected tuple[float, float]"),
        ("betas", "ab", ".betas = 'ab': expected tuple[float, float]"),
        ("betas", [0.9, "x"], ".betas[1] = 'x': expected a valid number"),
        ("milestones", "12", ".milestones = '12': expected Iterable[int]"),
        ("milestones", ["a"], ".milestones = ['a']: expected Iterable[int]"),
        ("writers", "terminal", ".writers = 'terminal': expected Sequence[str]"),
        ("keys", "ab", ".keys = 'ab': expected set[str] | None"),
        ("limits", {"a": "b"}, ".limits = {'a': 'b'}: expected dict[str, int] | None"),
        ("rows", [[1], ["x"]], ".rows[1][0] = 'x': expected a valid integer"),
        ("scale", "1", ".scale = '1': expected float | Tensor"),
        ("even", 0, ".even = 0: expected greater than 0"),
        ("even", "2", ".even = '2': expected int"),
        ("late", "x", ".late = 'x': expected int"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(name: str, value: object, problem: str) -> None:
    """The text gives its path, its value, what was expected and the nearest choice."""
    assert refusal(dict(type="Keeper", **{name: value})) == f"custom_hooks[0]{problem}"


def test_an_unknown_option_is_answered_with_the_nearest_one() -> None:
    """And with all the others."""
    assert refusal(dict(type="Needy", intervall=5, interval=1, monitor=1)) == (
        "custom_hooks[0].intervall = 5: Needy has no such option; did you mean 'interval'? valid choices: interval, monitor, rule"
    )


def test_a_missing_option_is_named() -> None:
    """With what it should be, where the class says so."""
    assert refusal(dict(type="Needy")) == (
        "2 problems in the config:\n"
        "  - custom_hooks[0].interval is missing: Needy needs it; expected int\n"
        "  - custom_hooks[0].monitor is missing: Needy needs it"
    )


def test_all_problems_are_reported_at_once() -> None:
    """One line each, in the order of the config."""
    lines = refusal({"type": "Needy", "rule": 5, "monitr": None, 3: 4, "not a name": 1}).splitlines()
    assert lines[0] == "6 problems in the config:"
    assert [line.split(":")[0] for line in lines[1:]] == [
        "  - custom_hooks[0] has the key 3",
        "  - custom_hooks[0].rule = 5",
        "  - custom_hooks[0].monitr = None",
        "  - custom_hooks[0]['not a name'] = 1",
        "  - custom_hooks[0].interval is missing",
        "  - custom_hooks[0].monitor is missing",
    ]
    assert "did you mean 'monitor'?" in lines[3]


@pytest.mark.parametrize("config", [None, 5, "Keeper", ["Keeper"], Keeper], ids=str)
def test_a_config_is_a_mapping(config: object) -> None:
    """Anything else is refused and shown."""
    value = "Keeper" if config is Keeper else repr(config)
    assert refusal(config) == f"custom_hooks[0] = {value}: expected a dict whose 'type' names a hook"


def test_a_config_names_its_type() -> None:
    """A misspelt key is pointed out."""
    needs = "custom_hooks[0].type is missing: it says which hook to build; "
    assert refusal({}) == f"{needs}valid choices: Keeper, Needy, Open"
    assert refusal({"typ": "Keeper"}) == f"{needs}the key 'typ' looks like it; valid choices: Keeper, Needy, Open"


@pytest.mark.parametrize("named", [5, None, ["Keeper"], Keeper.__init__])
def test_a_type_is_a_name_or_a_class(named: object) -> None:
    """Nothing else says what to build."""
    text = refusal(dict(type=named))
    assert text.startswith("custom_hooks[0].type = ")
    assert text.endswith(": expected the name of a hook, or a class")


@pytest.mark.parametrize("named", ["os.system", "builtins:eval", "__import__('os')", f"{__name__}:Keeper", "${env:SECRET}", ""])
def test_a_type_is_looked_up_and_never_imported(named: str) -> None:
    """What looks like a place in a module is an unknown name."""
    assert refusal(dict(type=named)).startswith(f"custom_hooks[0].type = {named!r}: no hook is registered as {named!r}; ")


def test_what_the_caller_gives_may_not_stand_in_the_config() -> None:
    """And is not offered as a choice."""
    config = dict(type="Needy", interval=5, rul="x")
    lines = refusal(config, given={"interval": 1, "monitor": 2}).splitlines()
    assert lines[1] == "  - custom_hooks[0].interval = 5: Needy gets its 'interval' elsewhere; leave it out here"
    assert lines[2].endswith("did you mean 'rule'? valid choices: rule")


def test_what_the_caller_gives_is_passed_on_unchecked() -> None:
    """It is an object of the caller's, not an option."""
    assert make_registry().build(dict(type="Needy"), given={"interval": "x", "monitor": 2}).kept == ("x", 2, "less")


def test_a_class_must_take_what_the_caller_gives() -> None:
    """Otherwise it cannot be used in this place."""
    assert refusal(dict(type="Keeper"), given={"optimizer": 1}) == (
        "custom_hooks[0]: Keeper cannot be used here, its constructor takes no 'optimizer'"
    )


def test_keys_that_the_caller_reads_itself_may_stand_in_the_config() -> None:
    """The constructor gets those it has a parameter for."""
    config = dict(type="Needy", interval=5, monitor="x", priority="LOW", rule="greater")
    hook = make_registry().build(config, extra_keys=("priority", "rule"))
    assert hook.kept == (5, "x", "greater")
    assert make_registry().build(dict(type="Open", priority=1), extra_keys=("priority",)).kept == {"interval": 1}
    text = refusal(dict(type="Needy", interval=5, monitor="x", priorty="LOW"), extra_keys=("priority", "rule"))
    assert text.endswith("did you mean 'priority'? valid choices: interval, monitor, rule, priority")


def test_a_config_can_be_checked_without_being_built() -> None:
    """Its problems come back as a list."""
    registry = make_registry()
    assert registry.check(dict(type="Needy", interval=5), path="x", given=("monitor",)) == []
    assert registry.check(dict(type="Needy", interval="5"), path="x", given=("monitor",)) == ["x.interval = '5': expected int"]


def nested(levels: int) -> Any:
    """Return a value of so many levels of lists."""
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


def test_a_config_has_at_most_32_levels() -> None:
    """The config itself is the first."""
    assert kept(free=nested(31)) == {"free": nested(31)}
    expected = "custom_hooks[0].free is nested too deep: a config has at most 32 levels"
    endless: list[Any] = []
    endless += [endless, endless]
    for value in (nested(32), nested(1000), endless, {"a": endless}):
        assert refusal(dict(type="Keeper", free=value)) == expected


def test_long_and_unprintable_values_are_shown_briefly() -> None:
    """An error message stays readable whatever the config holds."""

    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no text")

    for value in ("x" * 5_000_000, [["y"] * 1000] * 1000, "a\nb\x1b[31m", Broken(), -(10**5000), torch.zeros(100, 100)):
        text = refusal(dict(type="Keeper", by_epoch=value))
        assert len(text) < 300
        assert text.isprintable()
    assert len(refusal(dict(type="z" * 5_000_000))) < 400


def test_a_config_is_never_changed() -> None:
    """Neither by what is read from it nor by what is built from it."""

    class Greedy:
        def __init__(self, rows, names: list[str]) -> None:  # type: ignore[no-untyped-def]
            rows[0].append(5)
            rows[1]["a"] = 6
            names.clear()

    config = dict(type="Greedy", rows=[[1], {"a": 2}, ({"b": 3},)], names=["a"])
    before = copy.deepcopy(config)
    make_registry(Greedy).build(config)
    assert config == before
    assert list(config) == list(before)


@pytest.mark.parametrize("error", [ConfigError("patience must be at least 1"), RuntimeError("no"), KeyError("no")], ids=repr)
def test_an_error_of_a_constructor_arrives_as_itself(error: Exception) -> None:
    """A note says what was being built."""

    class Picky:
        def __init__(self) -> None:
            raise error

    with pytest.raises(type(error)) as caught:
        make_registry(Picky).build(dict(type="Picky"), path="custom_hooks[3]")
    assert caught.value is error
    assert error.__notes__ == [f"while building {Picky.__qualname__} from custom_hooks[3]"]
    assert caught.traceback[-1].name == "__init__"


@pytest.mark.parametrize("error", [ValueError("patience must be at least 1"), TypeError("no")], ids=repr)
def test_options_that_a_constructor_refuses_are_an_error_of_the_config(error: Exception) -> None:
    """Which names the place, and has what the constructor raised as its cause."""

    class Picky:
        def __init__(self) -> None:
            raise error

    with pytest.raises(ConfigError, match=rf"custom_hooks\[3\]: .*Picky refuses its options: .*{error}") as caught:
        make_registry(Picky).build(dict(type="Picky"), path="custom_hooks[3]")
    assert caught.value.__cause__ is error


# a config is data

HOSTILE = (
    "lurking",
    "lurking.system",
    "lurking:system",
    "__import__('lurking').system('true')",
    "lurking.system('true')",
    "open('lurking')",
    "${env:lurking}",
    "!!python/object:lurking.system",
    "\ud800",
)
"""Texts that something would notice if they were imported, evaluated, executed or opened."""

VALID: Mapping[str, Any] = MappingProxyType(
    dict(
        type="Keeper",
        interval=5,
        ratio=0.5,
        by_epoch=False,
        folder="runs",
        rule="less",
        mode="max",
        betas=[0.1, 0.2],
        writers=["a"],
        limits={"a": 1},
        rows=[[1]],
    )
)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.sampled_from(HOSTILE)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
)
names = st.sampled_from(list(VALID)) | st.text() | st.sampled_from([*HOSTILE, "_target_", "__class__", "self"])


@st.composite
def mutations(draw: st.DrawFn) -> dict[Any, Any]:
    """Draw a valid config with some of its parts dropped, renamed, retyped, nested or joined by others."""
    config: dict[Any, Any] = copy.deepcopy(dict(VALID))
    for _ in range(draw(st.integers(1, 3))):
        target = draw(st.sampled_from(list(VALID)))
        match draw(st.sampled_from(["drop", "rename", "retype", "nest", "inject"])):
            case "drop":
                config.pop(target, None)
            case "rename":
                config[draw(names)] = config.pop(target, None)
            case "retype":
                config[target] = draw(values)
            case "nest":
                config[target] = {"type": draw(st.sampled_from(HOSTILE)), target: config.get(target)}
            case _:
                config[draw(names | st.integers())] = draw(values)
    return config


class Watch:
    """Sees what comes of the hostile texts while it is switched on: as an audit hook, and as a finder of modules."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        """Note files, processes, and text that is compiled or executed."""
        if self.on and event in ("open", "os.system", "subprocess.Popen"):
            self.seen.append(f"{event} {args!r}")
        if self.on and event in ("compile", "exec", "import"):
            code = args[0]
            text = repr((code.co_names, code.co_consts) if isinstance(code, types.CodeType) else code)
            self.seen += [f"{event} {text}"] * ("lurking" in text)

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Note a module that is looked for."""
        if self.on:
            self.seen.append(f"find {name}")

    def during(self, config: object) -> object:
        """Return what comes of a config, which is the object or the error, and fail if anything else happens."""
        self.seen.clear()
        sys.meta_path.insert(0, self)
        self.on = True
        try:
            return REGISTRY.build(config, path="custom_hooks[7]")
        except ConfigError as error:
            return error
        finally:
            self.on = False
            sys.meta_path.remove(self)
            assert self.seen == []


WATCH = Watch()
sys.addaudithook(WATCH)
REGISTRY = make_registry(Keeper)
REGISTRY.build(VALID)  # what is imported once, is imported here
REGISTRY.check(dict(VALID, interval="x", rule="y"))


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_hostile_text_is_only_a_text_wherever_it_stands(text: str) -> None:
    """As a value, as an element, as the name of an option and as the type."""
    for name in VALID:
        for value in (text, [text], {text: text}, {"type": text, "_target_": text}):
            assert isinstance(WATCH.during({**VALID, name: value}), (Keeper, ConfigError))
    assert isinstance(WATCH.during({**VALID, text: text}), ConfigError)
    assert isinstance(WATCH.during({**VALID, "free": text, "anything": [text]}), Keeper)


CARELESS: dict[str, Callable[[str], object]] = {
    "eval": eval,
    "exec": exec,
    "import_module": importlib.import_module,
    "__import__": __import__,
    "open": open,
}


@pytest.mark.parametrize("code", CARELESS)
def test_the_watch_sees_what_it_is_there_for(code: str) -> None:
    """Otherwise the tests around this one would prove nothing."""

    class Careless:
        def __init__(self, text: str) -> None:
            with contextlib.suppress(Exception):
                CARELESS[code](text)

    REGISTRY.register_module("Careless", force=True, module=Careless)
    with pytest.raises(AssertionError, match="lurking"):
        WATCH.during(dict(type="Careless", text="lurking"))


@settings(max_examples=250, deadline=None)
@given(mutations())
def test_a_changed_config_is_built_or_refused_and_nothing_else_happens(config: dict[Any, Any]) -> None:
    """No import, no execution, no file; and a refusal gives the path."""
    before = copy.deepcopy(config)
    built = WATCH.during(config)
    assert isinstance(built, Keeper) or "custom_hooks[7]" in str(built)
    assert repr(config) == repr(before)


# the classes of torch and torchmetrics


def parameters() -> list[torch.nn.Parameter]:
    """Return something to optimise, which every optimizer accepts."""
    return [torch.nn.Parameter(torch.ones(2, 2))]


@pytest.mark.parametrize(
    "config",
    [
        dict(type="SGD", lr=1, momentum=0.9, dampening=0, weight_decay=1e-4),
        dict(type="SGD", lr=0.1, momentum=0.9, nesterov=True, foreach=None, fused=None),
        dict(type="SGD", lr=torch.tensor(0.1), foreach=False),
        dict(type="Adam", lr=1e-3, betas=[0.9, 0.999], eps=1e-8, weight_decay=0, amsgrad=True),
        dict(type="AdamW", lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05, fused=False),
        dict(type="Adadelta", lr=1, rho=0.9),
        dict(type="Adafactor", lr=0.01, eps=[None, 1e-3], beta2_decay=-0.8, d=1),
        dict(type="Adagrad", lr=0.01, lr_decay=0, initial_accumulator_value=0),
        dict(type="Adamax", lr=2e-3, betas=[0, 0.99]),
        dict(type="ASGD", lr=0.01, lambd=1e-4, alpha=0.75, t0=1_000_000),
        dict(type="LBFGS", lr=1, max_iter=20, max_eval=None, line_search_fn="strong_wolfe"),
        dict(type="Muon", lr=1e-3, ns_coefficients=[3.4, -4.7, 2], adjust_lr_fn="match_rms_adamw"),
        dict(type="NAdam", lr=2e-3, momentum_decay=4e-3, decoupled_weight_decay=True),
        dict(type="RAdam", lr=1e-3),
        dict(type="RMSprop", lr=0.01, alpha=0.99, momentum=0, centered=True),
        dict(type="Rprop", lr=0.01, etas=[0.5, 1.2], step_sizes=[1e-6, 50]),
        dict(type="SparseAdam", lr=1e-3),
    ],
    ids=str,
)
def test_every_optimizer_takes_its_usual_options(config: dict[str, Any]) -> None:
    """What torch documents is not refused."""
    built = OPTIMIZERS.build(config, path="optimizer", given={"params": parameters()})
    assert type(built).__name__ == config["type"]


def test_an_optimizer_is_checked_before_torch_sees_it() -> None:
    """A learning rate that is a text is named."""
    assert OPTIMIZERS.check(
        dict(type="AdamW", lr="1e-3", betas=[0.9], weight_decai=0.1), path="optimizer", given=("params",)
    ) == [
        "optimizer.lr = '1e-3': expected float | Tensor",
        "optimizer.betas = [0.9]: expected tuple[float | Tensor, float | Tensor]",
        "optimizer.weight_decai = 0.1: AdamW has no such option; did you mean 'weight_decay'? valid choices: "
        "lr, betas, eps, weight_decay, amsgrad, maximize, foreach, capturable, differentiable, fused",
    ]


@pytest.mark.parametrize(
    "config",
    [
        *(dict(type=f"Binary{name}") for name in ("Accuracy", "AUROC", "F1Score", "Precision", "Recall", "ROC")),
        *(
            dict(type=f"Multiclass{name}", num_classes=3)
            for name in ("Accuracy", "AUROC", "F1Score", "ConfusionMatrix", "ExactMatch")
        ),
        *(dict(type=f"Multilabel{name}", num_labels=3) for name in ("Accuracy", "AveragePrecision", "RankingLoss")),
        dict(type="BinaryAUROC", max_fpr=1, thresholds=[0.1, 0.5]),
        dict(type="BinaryAUROC", thresholds=5),
        dict(type="BinaryFBetaScore", beta=2, threshold=0.5),
        dict(type="MulticlassAccuracy", num_classes=3, top_k=2, average="micro", ignore_index=-100, validate_args=False),
        dict(type="MulticlassAccuracy", num_classes=3, average=None, compute_on_cpu=True, sync_on_compute=False),
        dict(type="MulticlassConfusionMatrix", num_classes=3, normalize="true"),
        dict(type="Accuracy", task="multiclass", num_classes=3),
        dict(type="F1Score", task="multilabel", num_labels=3, average="macro"),
        dict(type="MeanSquaredError", squared=False),
        dict(type="MeanAbsoluteError"),
        dict(type="R2Score", multioutput="uniform_average"),
        dict(type="KLDivergence", log_prob=True, reduction="none"),
        dict(type="MinkowskiDistance", p=3),
        dict(type="TweedieDevianceScore", power=1),
        dict(type="MeanMetric", nan_strategy="ignore"),
        dict(type="SumMetric", nan_strategy=0.0),
    ],
    ids=str,
)
def test_metrics_take_their_usual_options(config: dict[str, Any]) -> None:
    """What torchmetrics documents is not refused, and the options it forwards are open."""
    assert callable(METRICS.build(config, path="val_evaluator").update)


@pytest.mark.filterwarnings("ignore:Metric .* will save all:UserWarning")  # some tell how much memory they take
@pytest.mark.parametrize("name", METRICS.names())
def test_every_metric_is_built_from_what_it_needs(name: str) -> None:
    """Two classes or labels, and a plausible number for what else is required."""
    needed = {"num_classes": 2, "num_labels": 2, "beta": 1.0, "p": 2.0, "task": "multiclass"}
    missing = [problem.split()[0].removeprefix("config.") for problem in METRICS.check(dict(type=name))]
    options = {key: needed[key] for key in missing}
    if "task" in options or name.startswith("Multiclass"):
        options["num_classes"] = 2
    if name == "FBetaScore":
        options["beta"] = 1.0
    assert callable(METRICS.build(dict(type=name, **options)).update)


def test_a_metric_without_its_classes_is_refused_by_name() -> None:
    """The nearest option is offered."""
    with pytest.raises(ConfigError, match=r"val_evaluator.num_classes is missing: MulticlassF1Score needs it; expected int"):
        METRICS.build(dict(type="MulticlassF1Score"), path="val_evaluator")
    with pytest.raises(ConfigError, match=r"val_evaluator.task = 'multi-class': expected .*; did you mean 'multiclass'\?"):
        METRICS.build(dict(type="Accuracy", task="multi-class"), path="val_evaluator")

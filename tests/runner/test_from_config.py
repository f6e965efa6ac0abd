"""A run described by a dict: what is in it is data, checked as a whole before anything is built."""

from __future__ import annotations

import copy
import functools
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hookbus.errors import ConfigError, InvalidName
from hookbus.runner import Runner
from tests.runner.builders import make_loader, make_model, unique_name

CONFIG: dict[str, Any] = {
    "optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9},
    "optim_wrapper": {"accumulative_counts": 2, "clip_grad": {"max_norm": 1.0}},
    "param_scheduler": [{"type": "LinearLR", "by_epoch": False, "end": 3}, {"type": "StepLR", "step_size": 2}],
    "train_cfg": {"by_epoch": True, "max_epochs": 2, "val_interval": 1},
    "val_cfg": {"dtype": "bfloat16"},
    "val_evaluator": {"type": "MulticlassAccuracy", "num_classes": 3},
    "default_hooks": {"checkpoint": {"interval": 1, "save_best": "auto"}, "timer": None, "logger": {"writers": ["jsonl"]}},
    "custom_hooks": [{"type": "IterTimerHook", "priority": "LOW"}],
    "randomness": {"seed": 3},
    "log_processor": {"window_size": 5},
    "log_level": "WARNING",
}


def parts() -> dict[str, Any]:
    """Return what no text can hold."""
    return dict(
        model=make_model(),
        loss_fn=torch.nn.functional.cross_entropy,
        train_dataloader=make_loader(8),
        val_dataloader=make_loader(4),
        device="cpu",
    )


def build(config: Any, work_dir: Path) -> Runner:
    """Return the runner that a config describes."""
    return Runner.from_config(config, **parts(), work_dir=work_dir, experiment_name=unique_name())


def test_a_dict_describes_a_run(tmp_path: Path) -> None:
    """And is left as it was, so that it describes the next one as well."""
    config = copy.deepcopy(CONFIG)
    metrics = build(config, tmp_path).train()
    assert set(metrics) == {"accuracy", "loss"}
    assert config == CONFIG
    assert build(config, tmp_path / "again").train() == metrics


def test_every_problem_is_named_with_its_path(tmp_path: Path) -> None:
    """Unknown, ill-typed, missing and given twice, in one error, and nothing is made."""
    config = copy.deepcopy(CONFIG) | {"trian_cfg": {}, "work_dir": "elsewhere"}
    config["optimizer"] |= {"lr": "1e-3", "momentun": 0.9}
    config["train_cfg"] = {"by_epoch": True}
    config["default_hooks"]["checkpoint"]["intervall"] = 5
    with pytest.raises(ConfigError) as caught:
        build(config, tmp_path / "work")
    words = (
        "config.trian_cfg",
        "'train_cfg'",
        "optimizer.lr = '1e-3'",
        "optimizer.momentun",
        "'momentum'",
        "train_cfg.max_epochs is missing",
    )
    more = ("default_hooks.checkpoint.intervall", "'interval'", "config.work_dir is also given")
    assert [word for word in (*words, *more) if word not in str(caught.value)] == [], str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("config", [None, "config.py", 3, [("optimizer", {})]])
def test_what_is_no_dict_is_refused(config: Any, tmp_path: Path) -> None:
    """A file name, for instance."""
    with pytest.raises(ConfigError, match="expected a dict of the arguments of a runner"):
        build(config, tmp_path)


# --- a config is data -------------------------------------------------------------------------------------------------

POISON = [
    "__import__('os').system('true')",
    "os.system",
    "hookbus.hooks.logger:LoggerHook",
    "${env:HOME}",
    "!!python/object:os.system",
]


_listening: list[list[str]] = []
"""Those who want to hear now."""


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if not _listening or event not in ("import", "exec", "open", "os.system", "subprocess.Popen"):
        return
    if event == "open" and str(arguments[0]).endswith(".py"):
        return  # the lines that a traceback shows
    if event != "exec" or {"os", "env", "object", "__import__"} & set(arguments[0].co_names):
        for heard in _listening:
            heard.append(f"{event} {arguments!r:.200}")


@functools.cache
def _watch() -> None:
    sys.addaudithook(_note)  # once, because it stays for good, and slows down all that comes after it


@contextmanager
def nothing_is_loaded() -> Iterator[list[str]]:
    """Note what is imported, opened and started while it is entered, and executed of what the config says.

    The annotations of constructors, and the plans of buses, are our own texts; they are compiled and executed, too.
    """
    _watch()
    heard: list[str] = []
    _listening.append(heard)
    try:
        yield heard
    finally:
        _listening.remove(heard)


@pytest.mark.parametrize("text", POISON)
@pytest.mark.parametrize(
    "place", [("optimizer", "type"), ("custom_hooks", 0, "type"), ("val_evaluator", "type"), ("train_cfg", "type")]
)
def test_a_name_is_looked_up_and_nothing_else(text: str, place: tuple[Any, ...], tmp_path: Path) -> None:
    """Names that other libraries would import, evaluate or expand are unknown names here."""
    build(CONFIG, tmp_path / "warm")  # the built-in classes are imported now
    config = copy.deepcopy(CONFIG)
    target: Any = config
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = text
    del config["train_cfg"]["by_epoch"]  # beside a type it is refused for its own sake
    with pytest.raises(ConfigError):
        build(config, tmp_path / "work")  # what torch loads at the first error is loaded now
    with nothing_is_loaded() as heard, pytest.raises(ConfigError, match="is registered as"):
        build(config, tmp_path / "work")
    assert heard == []


def test_a_config_that_contains_itself_or_is_nested_too_deep_is_refused(tmp_path: Path) -> None:
    """And does not end in a recursion error."""
    endless: dict[str, Any] = copy.deepcopy(CONFIG)
    endless["custom_hooks"].append(endless)
    deep: Any = {}
    for _ in range(1000):
        deep = {"type": deep}
    for config in (endless, CONFIG | {"optimizer": deep}, CONFIG | {"custom_hooks": [deep]}):
        with pytest.raises(ConfigError, match="nested too deep"):
            build(config, tmp_path)


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=8), st.sampled_from(POISON))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


def paths_of(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every entry of a config."""
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in entries:
        yield (*path, key)
        yield from paths_of(value, (*path, key))


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A config with one thing dropped, renamed, retyped, nested or put in."""
    config: Any = copy.deepcopy(CONFIG)
    *way, last = draw(st.sampled_from(list(paths_of(CONFIG))))
    target = config
    for key in way:
        target = target[key]
    change = draw(st.sampled_from(["drop", "rename", "retype", "nest", "put in"]))
    value = target[last]
    if change in ("drop", "rename"):
        del target[last]
    if change == "rename" and isinstance(target, dict):
        target[draw(st.text(max_size=10))] = value
    if change == "retype":
        target[last] = draw(VALUES)
    if change == "nest":
        target[last] = {"type": value} if draw(st.booleans()) else [value]
    if change == "put in" and isinstance(target, dict):
        target[draw(st.text(max_size=10))] = draw(VALUES)
    return config


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=mutated())
def test_a_mutated_config_is_either_good_or_a_config_error(config: Any, tmp_path: Path) -> None:
    """Nothing else is raised, and nothing is imported, executed or opened on the way."""
    build(CONFIG, tmp_path)  # the built-in classes are imported now
    state = random.getstate()
    with nothing_is_loaded() as heard:
        try:
            build(config, tmp_path)
        except (ConfigError, InvalidName):
            pass
    random.setstate(state)
    assert heard == []

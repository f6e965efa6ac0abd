"""What is checked of hooks and of writers alike: how they are made."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any

from hookbus.errors import ConfigError
from hookbus.registry import Registry
from tests.conformance.comparing import looks
from tests.conformance.subjects import Subject


def check_construction(registry: Registry, subject: Subject) -> None:
    """It is made from its defaults, says what it is for, and two of a kind have nothing in common that one could change."""
    one, other = (subject.cls(**subject.required) for _ in range(2))
    assert inspect.getdoc(subject.cls) != inspect.getdoc(subject.cls.__base__), "nothing says what it is for"
    shared = [name for name, value in vars(one).items() if _may_change(value) and value is vars(other).get(name)]
    assert not shared, f"two instances share {', '.join(shared)}"


def _may_change(value: Any) -> bool:
    return isinstance(value, dict | list | set | bytearray)


def check_config_round_trip(registry: Registry, subject: Subject) -> None:
    """A config that names every option, each with its default, makes what the constructor makes, and stays as it was."""
    config = subject.config(**subject.defaults())
    before = copy.deepcopy(config)
    built = registry.build(config)
    assert looks(config) == looks(before), "the config was changed"
    assert type(built) is subject.cls
    if subject.options():  # without any, all that differs is the moment at which they were made
        assert looks(vars(built)) == looks(vars(subject.cls(**subject.required)))


def check_every_option_counts(registry: Registry, subject: Subject) -> None:
    """Of each option some value makes another object or is refused, and always by name; none is taken and forgotten."""
    plain = looks(vars(registry.build(subject.config())))
    for name in subject.options():
        others = list(subject.others(name))
        assert others, f"no example of a value for {name} is known here"
        assert any(_makes_a_difference(registry, subject, name, value, plain) for value in others), f"{name} makes no difference"


def _makes_a_difference(registry: Registry, subject: Subject, name: str, value: Any, plain: Any) -> bool:
    try:
        built = registry.build(subject.config(**{name: value}))
    except ConfigError as error:
        refused = str(error)
    else:
        return bool(looks(vars(built)) != plain)
    assert name in refused, f"{name}={value!r} is refused without its name: {refused}"
    return True


def check_wrong_options_are_named(registry: Registry, subject: Subject) -> None:
    """An option that does not exist, and one of a type that cannot be, are refused with their names and places."""
    misspelt = refusal(registry, subject.config(no_such_option=1))
    assert "no_such_option" in misspelt, misspelt
    for name in subject.options():
        message = refusal(registry, subject.config(**{name: object()}))
        assert name in message, f"{name} is refused without its name: {message}"


def refusal(registry: Registry, config: dict[str, Any]) -> str:
    """Return how a config is refused."""
    try:
        built = registry.build(config)
    except ConfigError as error:
        return str(error)
    raise AssertionError(f"{config} is no good and was taken: {built}")


def accepted_changes(registry: Registry, subject: Subject) -> Iterator[dict[str, Any]]:
    """Yield each option with each of its other values, as far as the constructor takes it."""
    for name in subject.options():
        for value in subject.others(name):
            try:
                registry.build(subject.config(**{name: value}))
            except ConfigError:
                continue  # that it says why is checked elsewhere
            yield {name: value}


def required_arguments(cls: type) -> set[str]:
    """Return the options of a class that have no default."""
    parameters = inspect.signature(cls).parameters.values()
    return {one.name for one in parameters if one.default is one.empty and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)}


CHECKS = (check_construction, check_config_round_trip, check_every_option_counts, check_wrong_options_are_named)

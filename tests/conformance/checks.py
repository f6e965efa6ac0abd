"""What is checked of hooks and of writers alike: how they are made."""

from __future__ import annotations

import copy
import inspect
from typing import Any

from hookbus.errors import ConfigError, HookbusError
from hookbus.registry import Registry
from tests.conformance.comparing import looks
from tests.conformance.subjects import Subject


def check_construction(registry: Registry, subject: Subject) -> None:
    """It is made from its defaults, says what it is for, and two of a kind have nothing in common that one could change."""
    one, other = (subject.cls(**subject.required) for _ in range(2))
    assert str(subject.cls.__doc__).strip().partition("\n")[0].endswith((".", ",", ";")) or "\n" in str(subject.cls.__doc__)
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
    """Another value of an option makes another object, or is refused by name; none is taken and forgotten."""
    plain = looks(vars(registry.build(subject.config())))
    for name in subject.options():
        for value in subject.others(name):
            try:
                built = registry.build(subject.config(**{name: value}))
            except ConfigError as error:
                assert name in str(error), f"{name}={value!r} is refused without its name: {error}"
            else:
                assert looks(vars(built)) != plain, f"{name}={value!r} makes no difference"


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


def check_names_what_is_wrong(error: BaseException, *words: str) -> None:
    """Fail unless an error is one of ours and has one of the words in it."""
    assert isinstance(error, HookbusError), f"{type(error).__name__} says too little: {error}"
    assert any(word in str(error) for word in words), f"none of {', '.join(words)} is in: {error}"


def required_arguments(cls: type) -> set[str]:
    """Return the options of a class that have no default."""
    parameters = inspect.signature(cls).parameters.values()
    return {one.name for one in parameters if one.default is one.empty and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)}


CHECKS = (check_construction, check_config_round_trip, check_every_option_counts, check_wrong_options_are_named)

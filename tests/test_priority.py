"""Priorities: names for numbers."""

from __future__ import annotations

from typing import Any

import pytest

from hookbus.errors import ConfigError
from hookbus.priority import Priority, get_priority


def test_the_names_stand_for_the_documented_numbers() -> None:
    """Lower runs first."""
    assert {priority.name: int(priority) for priority in Priority} == {
        "HIGHEST": 0,
        "VERY_HIGH": 10,
        "HIGH": 30,
        "ABOVE_NORMAL": 40,
        "NORMAL": 50,
        "BELOW_NORMAL": 60,
        "LOW": 70,
        "VERY_LOW": 90,
        "LOWEST": 100,
    }


@pytest.mark.parametrize("priority", Priority)
def test_a_priority_is_given_as_a_name_a_number_or_the_member(priority: Priority) -> None:
    """Each form means the same plain number, whatever the case of the name."""
    for form in (priority.name, priority.name.lower(), int(priority), priority):
        assert get_priority(form) == int(priority)
        assert type(get_priority(form)) is int


@pytest.mark.parametrize("number", [0, 1, 55, 100])
def test_numbers_between_the_names_are_priorities(number: int) -> None:
    """The ends belong to it."""
    assert get_priority(number) == number


@pytest.mark.parametrize("wrong", [-1, 101, 2**70, True, False, 1.0, None, b"HIGH", ["HIGH"]])
def test_anything_else_is_refused(wrong: Any) -> None:
    """The message names what was given, or the range."""
    with pytest.raises(ConfigError, match="priority must"):
        get_priority(wrong)


@pytest.mark.parametrize(("name", "near"), [("HIHG", "HIGH"), ("verylow", "VERY_LOW"), ("Norml", "NORMAL")])
def test_a_misspelt_name_gets_the_nearest_one(name: str, near: str) -> None:
    """And all of them."""
    with pytest.raises(ConfigError, match=f"did you mean '{near}'.*ABOVE_NORMAL"):
        get_priority(name)


@pytest.mark.parametrize("name", ["", " HIGH", "50", "__members__", "mro"])
def test_a_name_that_is_near_nothing_is_refused(name: str) -> None:
    """Also one that happens to be an attribute of the class, or a number in quotes."""
    with pytest.raises(ConfigError, match="valid choices"):
        get_priority(name)

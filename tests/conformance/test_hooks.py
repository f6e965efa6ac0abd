"""Every hook that hookbus registers does right what all hooks have to; a new one is in by being registered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hookbus import hooks
from hookbus.events import AfterTrainIter, AfterValIter, Event
from hookbus.registry import HOOKS
from tests.conformance.checks import CHECKS, accepted_changes, required_arguments
from tests.conformance.hook_checks import (
    LOOPS,
    check_among_default_hooks,
    check_closing_twice,
    check_error_in_the_middle,
    check_evaluation_alone,
    check_state,
    check_training_and_test,
)
from tests.conformance.missing_parts import WITHOUT, check_does_without
from tests.conformance.subjects import HOOK_NAMES, REQUIRED, hook, slow_but_for

EVERY_HOOK = pytest.mark.parametrize("name", HOOK_NAMES)
BOTH_LOOPS = pytest.mark.parametrize("loop", slow_but_for(["epochs"], LOOPS))
INTERRUPTIONS: dict[str, tuple[str, type[Event], str]] = {
    "behind it in training": ("epochs", AfterTrainIter, "LOWEST"),
    "before it in training": ("iterations", AfterTrainIter, "HIGHEST"),
    "behind it in a validation": ("iterations", AfterValIter, "LOWEST"),
}


def test_every_hook_of_the_package_is_registered() -> None:
    """What can be imported can stand in a config, but for the base class."""
    exported = {name for name in hooks.__all__ if name != "Hook"}
    assert set(HOOK_NAMES) == exported


def test_nothing_is_given_to_a_constructor_that_it_does_not_need() -> None:
    """The table of required arguments follows the signatures."""
    needed = {name: required_arguments(HOOKS.get(name)) for name in HOOK_NAMES}
    assert {name: set(REQUIRED.get(name, {})) for name in HOOK_NAMES} == needed


@EVERY_HOOK
@pytest.mark.parametrize("check", CHECKS)
def test_a_hook_is_made_as_it_should(check: Any, name: str) -> None:
    """From defaults and from configs."""
    check(HOOKS, hook(name))


@EVERY_HOOK
@BOTH_LOOPS
def test_a_hook_lives_through_training_and_test(loop: str, name: str, tmp_path: Path) -> None:
    """As the only hook."""
    check_training_and_test(hook(name), tmp_path, loop)


@EVERY_HOOK
@BOTH_LOOPS
@pytest.mark.slow
def test_a_hook_gets_along_with_the_default_hooks(loop: str, name: str, tmp_path: Path) -> None:
    """As one of many."""
    check_among_default_hooks(hook(name), tmp_path, loop)


@EVERY_HOOK
def test_a_hook_lives_through_a_validation_without_training(name: str, tmp_path: Path) -> None:
    """And through a test."""
    check_evaluation_alone(hook(name), tmp_path)


@EVERY_HOOK
@BOTH_LOOPS
def test_the_state_of_a_hook_survives_a_restart(loop: str, name: str, tmp_path: Path) -> None:
    """In a real checkpoint."""
    check_state(hook(name), tmp_path, loop)


@EVERY_HOOK
@pytest.mark.slow
def test_a_hook_may_be_closed_twice(name: str, tmp_path: Path) -> None:
    """The second time there is nothing to do."""
    check_closing_twice(hook(name), tmp_path, "epochs")


@EVERY_HOOK
@pytest.mark.parametrize("interruption", slow_but_for(["before it in training"], INTERRUPTIONS))
def test_a_hook_stays_out_of_the_way_of_an_error(interruption: str, name: str, tmp_path: Path) -> None:
    """Of somebody else's."""
    check_error_in_the_middle(hook(name), tmp_path, *INTERRUPTIONS[interruption])


@EVERY_HOOK
@pytest.mark.parametrize("lacking", slow_but_for(["a validation", "training"], WITHOUT))
def test_a_hook_does_without_what_is_not_there(lacking: str, name: str, tmp_path: Path) -> None:
    """Or says what is missing."""
    check_does_without(hook(name), tmp_path, lacking)


@EVERY_HOOK
@pytest.mark.slow
@pytest.mark.parametrize("lacking", ["a validation", "epochs"])
def test_whatever_is_asked_of_a_hook_it_works_or_names_the_option(lacking: str, name: str, tmp_path: Path) -> None:
    """Each option alone, with another value than its default."""
    subject = hook(name)
    for number, options in enumerate(accepted_changes(HOOKS, subject)):
        check_does_without(subject, tmp_path / str(number), lacking, **options)

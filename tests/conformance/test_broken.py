"""Each check finds out a hook or writer that is broken in its way, and passes one that is sound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hookbus.events import AfterTrainIter, AfterValIter
from hookbus.hooks import Hook
from hookbus.registry import HOOKS, WRITERS
from hookbus.writers import Writer
from tests.conformance import checks, hook_checks, left_behind, missing_parts, writer_checks
from tests.conformance.broken_hooks import (
    ChangesTheData,
    ChangesTheWeights,
    CountsForAll,
    ExplicitIsDifferent,
    FailsBehindAnError,
    FailsWhenClosedTwice,
    ForgetsAnOption,
    ForgetsItsState,
    HidesWhatIsWrong,
    LeavesAFileOpen,
    LeavesAThread,
    LeavesAThreadAfterErrors,
    NeedsAValidation,
    NeedsTraining,
    SavesNothing,
    SharesAList,
    SoundHook,
    StaysAround,
    StaysBroken,
    StopsTooEarly,
    SubscribesForEver,
    TakesAnything,
)
from tests.conformance.broken_writers import (
    BeginsAnew,
    ClosesOnce,
    ExpectsNumbers,
    FailsAtTests,
    KeepsItsFile,
    LeavesItsThread,
    LosesTheTest,
    MakesItsFileAtOnce,
    SaysNotWhere,
    SharesOneFile,
)
from tests.conformance.subjects import Subject


def in_epochs(check: Callable[..., None]) -> Callable[[Subject, Path], None]:
    """Return a check of runs that count epochs."""
    return lambda subject, work_dir: check(subject, work_dir, "epochs")


def making(check: Callable[..., None]) -> Callable[[Subject, Path], None]:
    """Return a check of how something is made."""
    return lambda subject, work_dir: check(HOOKS if issubclass(subject.cls, Hook) else WRITERS, subject)


def an_error(subject: Subject, work_dir: Path) -> None:
    """Check what becomes of errors of others, in training and in a validation."""
    hook_checks.check_error_in_the_middle(subject, work_dir / "train", "epochs", AfterTrainIter, "LOWEST")
    hook_checks.check_error_in_the_middle(subject, work_dir / "val", "iterations", AfterValIter, "HIGHEST")


def no_validation(subject: Subject, work_dir: Path) -> None:
    """Check what becomes of a run without validation."""
    missing_parts.check_does_without(subject, work_dir, "a validation")


HOOK_CHECKS: dict[str, Callable[[Subject, Path], None]] = {
    "construction": making(checks.check_construction),
    "config": making(checks.check_config_round_trip),
    "options": making(checks.check_every_option_counts),
    "wrong options": making(checks.check_wrong_options_are_named),
    "training": in_epochs(hook_checks.check_training_and_test),
    "default hooks": in_epochs(hook_checks.check_among_default_hooks),
    "evaluation": hook_checks.check_evaluation_alone,
    "state": in_epochs(hook_checks.check_state),
    "closing": in_epochs(hook_checks.check_closing_twice),
    "error": an_error,
    "no validation": no_validation,
}

BROKEN_HOOKS: list[tuple[type[Hook], str, str]] = [
    (SharesAList, "construction", "share seen"),
    (ExplicitIsDifferent, "config", ""),
    (ForgetsAnOption, "options", "label makes no difference"),
    (TakesAnything, "wrong options", "was taken"),
    (HidesWhatIsWrong, "wrong options", "without its name"),
    (LeavesAThread, "training", "threads are left: <Thread(left behind"),
    (LeavesAThread, "evaluation", "threads are left"),
    (LeavesAThreadAfterErrors, "error", "threads are left"),
    (LeavesAFileOpen, "training", "notes.txt"),
    (StaysAround, "training", "around the handlers"),
    (SubscribesForEver, "training", "left on the bus"),
    (ChangesTheWeights, "training", "another one: 1.weight"),
    (ChangesTheWeights, "evaluation", "another one"),
    (ChangesTheWeights, "error", "another one"),
    (ChangesTheData, "default hooks", "another one"),
    (CountsForAll, "training", "changes the class"),
    (StopsTooEarly, "training", "training ended after"),
    (NeedsTraining, "evaluation", "_length"),
    (NeedsAValidation, "no validation", "num_batches"),
    (ForgetsItsState, "state", "ends with"),
    (SavesNothing, "state", "ends with"),
    (FailsWhenClosedTwice, "closing", "given back already"),
    (FailsBehindAnError, "error", "fails while the run is closed"),
    (StaysBroken, "error", ""),
]
"""A broken hook, the check that finds it out, and what is said about it."""


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """End what the broken ones leave behind."""
    monkeypatch.setattr("tests.conformance.footprint.GRACE", 0.3)
    yield
    left_behind.clear_away()


@pytest.mark.slow
@pytest.mark.parametrize("check", HOOK_CHECKS)
def test_a_sound_hook_passes(check: str, tmp_path: Path) -> None:
    """Otherwise the checks would prove nothing."""
    HOOK_CHECKS[check](Subject(SoundHook, SoundHook), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("broken", "check", "words"), BROKEN_HOOKS, ids=lambda value: getattr(value, "__name__", None))
def test_a_broken_hook_is_found_out(broken: type[Hook], check: str, words: str, tmp_path: Path) -> None:
    """By the check that is there for it."""
    with pytest.raises((AssertionError, AttributeError)) as found:
        HOOK_CHECKS[check](Subject(broken, broken), tmp_path)
    assert words in str(found.value)


def test_every_check_of_hooks_finds_something() -> None:
    """None is there for nothing."""
    assert {check for _, check, _ in BROKEN_HOOKS} == set(HOOK_CHECKS)


# --- writers ----------------------------------------------------------------------------------------------------------

WRITER_CHECKS: dict[str, Callable[[Subject, Path], None]] = {
    **{check.__name__: check for check in writer_checks.ALONE},
    **{f"{check.__name__}_in_a_run": in_epochs(check) for check in writer_checks.IN_A_RUN},
}

BROKEN_WRITERS: list[tuple[type[Writer], str, str]] = [
    (MakesItsFileAtOnce, "check_nothing_is_made_before_the_first_record", "opening makes files"),
    (LosesTheTest, "check_every_record_arrives", "4 of test left no trace"),
    (KeepsItsFile, "check_every_record_arrives", "metrics.more"),
    (ClosesOnce, "check_closing_twice", ""),
    (BeginsAnew, "check_closing_twice", "what was written before is gone"),
    (ExpectsNumbers, "check_strange_values", ""),
    (SaysNotWhere, "check_a_destination_that_is_gone", "do not say where"),
    (SharesOneFile, "check_two_at_once", "place of another"),
    (FailsAtTests, "check_training_and_test_in_a_run", "records are lost"),
    (FailsAtTests, "check_evaluation_alone_in_a_run", "records are lost"),
    (LeavesItsThread, "check_error_in_the_middle_in_a_run", "threads are left"),
]
"""A broken writer, the check that finds it out, and what is said about it."""


@pytest.mark.slow
@pytest.mark.parametrize(("broken", "check", "words"), BROKEN_WRITERS, ids=lambda value: getattr(value, "__name__", None))
def test_a_broken_writer_is_found_out(broken: type[Writer], check: str, words: str, tmp_path: Path) -> None:
    """By the check that is there for it."""
    with pytest.raises((AssertionError, TypeError)) as found:
        WRITER_CHECKS[check](Subject(broken, broken), tmp_path)
    assert words in str(found.value)


def test_every_check_of_writers_finds_something() -> None:
    """None is there for nothing."""
    assert {check for _, check, _ in BROKEN_WRITERS} == set(WRITER_CHECKS)

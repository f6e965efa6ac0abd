"""Each check finds out a hook or writer that is broken in its way, and passes one that is sound."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from hookbus.errors import ConfigError
from hookbus.events import AfterTrainIter, AfterValIter
from hookbus.hooks import Hook
from hookbus.registry import HOOKS, WRITERS
from hookbus.writers import JsonlWriter, Record, RunPlace, Writer
from tests.conformance import checks, hook_checks, missing_parts, writer_checks
from tests.conformance.subjects import Subject

_left: list[tuple[threading.Thread, threading.Event]] = []
"""Threads that broken hooks and writers started, with what ends them."""


def start_a_thread() -> threading.Event:
    """Start a thread, and return what ends it."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="left behind")
    thread.start()
    _left.append((thread, end))
    return end


# --- hooks ------------------------------------------------------------------------------------------------------------


class SoundHook(Hook):
    """Counts iterations, and gives up its thread and its place around the handlers.

    Args:
        step: what to count by.
    """

    def __init__(self, step: int = 1) -> None:
        if step < 1:
            msg = f"SoundHook.step = {step}: expected at least 1"
            raise ConfigError(msg)
        self.step = step
        self.count = 0

    def after_train_iter(self, runner: Any) -> None:
        """Count."""
        self.count += self.step

    def state_dict(self) -> dict[str, Any]:
        """Return the count."""
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.count = state_dict["count"]


class SharesAList(SoundHook):
    """Keeps what it saw in a list that all of them have."""

    _seen: ClassVar[list[int]] = []

    def __init__(self, step: int = 1) -> None:
        super().__init__(step)
        self.seen = self._seen


class ForgetsAnOption(SoundHook):
    """Takes an option and does nothing with it."""

    def __init__(self, step: int = 1, label: str = "") -> None:
        super().__init__(step)


class TakesAnything(SoundHook):
    """Swallows misspelt options."""

    def __init__(self, step: int = 1, **anything: Any) -> None:
        super().__init__(step)


class HidesWhatIsWrong(SoundHook):
    """Refuses options without naming them."""

    def __init__(self, step: Any = 1) -> None:
        if not isinstance(step, int):
            msg = "something is wrong"
            raise ConfigError(msg)
        super().__init__(step)


class ExplicitIsDifferent(SoundHook):
    """Treats a default that is spelt out as another value."""

    calls: ClassVar[int] = 0

    def __init__(self, step: int = 1) -> None:
        super().__init__(step)
        type(self).calls += 1
        self.number = self.calls


class LeavesAThread(SoundHook):
    """Starts a thread that nobody ends."""

    def before_run(self) -> None:
        """Start it."""
        start_a_thread()


class LeavesAThreadAfterErrors(SoundHook):
    """Ends its thread only when all goes well."""

    def before_run(self) -> None:
        """Start it."""
        self._end = start_a_thread()

    def after_train(self) -> None:
        """End it."""
        self._end.set()

    def after_test(self) -> None:
        """End it."""
        self._end.set()


class LeavesAFileOpen(SoundHook):
    """Opens a file and forgets it."""

    files: ClassVar[list[Any]] = []

    def before_run(self, runner: Any) -> None:
        """Open it."""
        self.files.append((runner.work_dir / "notes.txt").open("w"))


class StaysAround(SoundHook):
    """Leaves a wrapper around the handlers."""

    def before_run(self, runner: Any) -> None:
        """Put it there."""
        runner.bus.around = lambda subscription: contextlib.nullcontext()


class SubscribesForEver(SoundHook):
    """Adds a handler that nobody cancels."""

    def before_run(self, runner: Any) -> None:
        """Add it."""
        runner.bus.subscribe(AfterTrainIter, lambda: None)


class ChangesTheWeights(SoundHook):
    """Scales the weights a little, as if an exchange were not undone."""

    @torch.no_grad()
    def after_run(self, runner: Any) -> None:
        """Scale them."""
        for parameter in runner.model.parameters():
            parameter.mul_(1.01)


class ChangesTheData(SoundHook):
    """Writes into the batches that the model is trained with."""

    def before_train_iter(self, data_batch: Any) -> None:
        """Change them."""
        data_batch[0].mul_(0.5)


class CountsForAll(SoundHook):
    """Keeps on its class what belongs to a run."""

    total: ClassVar[int] = 0

    def after_train_iter(self, runner: Any) -> None:
        """Count."""
        type(self).total += 1


class StopsTooEarly(SoundHook):
    """Ends training without being asked to."""

    def after_train_iter(self, runner: Any) -> None:
        """End it."""
        runner.train_loop.stop_training = True


class NeedsTraining(SoundHook):
    """Takes for granted that a training came before the validation."""

    def before_train(self) -> None:
        """Learn something."""
        self._length = 3

    def after_val(self) -> None:
        """Use it."""
        self._length += 1


class NeedsAValidation(SoundHook):
    """Takes for granted that there is a validation."""

    def before_train(self, runner: Any) -> None:
        """Look at it."""
        self._batches = runner.val_loop.num_batches


class ForgetsItsState(SoundHook):
    """Saves its state and does not load it."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing."""


class SavesNothing(ForgetsItsState):
    """Has something to keep, and keeps nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}


class FailsWhenClosedTwice(SoundHook):
    """Gives back what it no longer has."""

    def before_run(self) -> None:
        """Take something."""
        self._held: list[int] | None = [1]

    def after_run(self) -> None:
        """Give it back."""
        assert self._held is not None, "given back already"
        self._held = None


class FailsBehindAnError(SoundHook):
    """Expects that every training ends well."""

    def before_run(self) -> None:
        """Begin."""
        self._is_done = False

    def after_train(self) -> None:
        """End."""
        self._is_done = True

    def after_test(self) -> None:
        """End."""
        self._is_done = True

    def after_val(self) -> None:
        """End."""
        self._is_done = True

    def after_run(self) -> None:
        """Complain."""
        assert self._is_done, "the run is not done"


class StaysBroken(SoundHook):
    """Does not get over an error."""

    _has_failed = False

    def run_failed(self) -> None:
        """Remember it."""
        self._has_failed = True

    def before_train(self) -> None:
        """Refuse to go on, without a word."""
        assert not self._has_failed


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
    while _left:
        thread, end = _left.pop()
        end.set()
        thread.join()
    for file in [*LeavesAFileOpen.files, *KeepsItsFile.files]:
        file.close()


@pytest.mark.parametrize("check", HOOK_CHECKS)
def test_a_sound_hook_passes(check: str, tmp_path: Path) -> None:
    """Otherwise the checks would prove nothing."""
    HOOK_CHECKS[check](Subject(SoundHook, SoundHook), tmp_path)


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


class MakesItsFileAtOnce(JsonlWriter):
    """Does not wait for the first record."""

    def open(self, place: RunPlace) -> None:
        """Make the file."""
        super().open(place)
        (place.log_dir / "metrics.jsonl").touch()


class KeepsItsFile(JsonlWriter):
    """Does not close what it opened."""

    files: ClassVar[list[Any]] = []

    def write(self, record: Record) -> None:
        """Open another file."""
        super().write(record)
        assert self._path is not None
        self.files.append(self._path.with_suffix(".more").open("a"))


class LosesTheTest(JsonlWriter):
    """Drops records of a mode that it does not know."""

    def write(self, record: Record) -> None:
        """Drop some."""
        if record.mode != "test":
            super().write(record)


class ClosesOnce(JsonlWriter):
    """Expects to be open when it is closed."""

    def close(self) -> None:
        """Insist."""
        if self._path is not None:
            assert self._file is not None
        super().close()


class BeginsAnew(JsonlWriter):
    """Deletes what an earlier run left."""

    def open(self, place: RunPlace) -> None:
        """Delete it."""
        super().open(place)
        (place.log_dir / "metrics.jsonl").unlink(missing_ok=True)


class ExpectsNumbers(JsonlWriter):
    """Takes every value for a number."""

    def write(self, record: Record) -> None:
        """Add them up."""
        assert sum(record.values.values()) is not None
        super().write(record)


class SaysNotWhere(JsonlWriter):
    """Hides which destination is gone."""

    def write(self, record: Record) -> None:
        """Hide it."""
        try:
            super().write(record)
        except OSError:
            raise OSError("something went wrong") from None


class SharesOneFile(Writer):
    """All of them write where the last one was opened."""

    _place: ClassVar[list[RunPlace]] = []

    def open(self, place: RunPlace) -> None:
        """Go there."""
        self._place[:] = [place]

    def write(self, record: Record) -> None:
        """Write there."""
        with (self._place[0].log_dir / "all.txt").open("a") as file:
            file.write(record.text)


class FailsAtTests(JsonlWriter):
    """Raises for what it does not know."""

    def write(self, record: Record) -> None:
        """Raise."""
        assert record.mode == "train"
        super().write(record)


class LeavesItsThread(JsonlWriter):
    """Starts a thread that nobody ends."""

    def write(self, record: Record) -> None:
        """Start it."""
        super().write(record)
        start_a_thread()


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


@pytest.mark.parametrize(("broken", "check", "words"), BROKEN_WRITERS, ids=lambda value: getattr(value, "__name__", None))
def test_a_broken_writer_is_found_out(broken: type[Writer], check: str, words: str, tmp_path: Path) -> None:
    """By the check that is there for it."""
    with pytest.raises((AssertionError, TypeError)) as found:
        WRITER_CHECKS[check](Subject(broken, broken), tmp_path)
    assert words in str(found.value)


def test_every_check_of_writers_finds_something() -> None:
    """None is there for nothing."""
    assert {check for _, check, _ in BROKEN_WRITERS} == set(WRITER_CHECKS)

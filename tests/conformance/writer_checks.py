"""What is checked of every writer, by itself and in real runs; each check raises an AssertionError that says what is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hookbus.delivery import DeliveryStats
from hookbus.events import AfterTrainIter
from hookbus.hooks import LoggerHook
from hookbus.registry import WRITERS
from hookbus.runner import Runner
from hookbus.runner.logs import RunLogger
from hookbus.writers import Record, RunPlace, Writer
from tests.conformance.footprint import leaves_nothing_behind
from tests.conformance.hook_checks import (
    LOOPS,
    NO_HOOKS,
    Deliberate,
    check_bus_is_clean,
    failure_of,
    make_run,
    second_call_raises,
    undisturbed,
)
from tests.conformance.subjects import Subject
from tests.runner.builders import same, weights

STRANGE_VALUES: Mapping[str, Any] = {
    "loss": math.nan,
    "lr": math.inf,
    "iter": 3,
    "train/loss": 0.5,
    "a text": "line\nline",
    "a list": [1, 2.5, None],
    "nothing": None,
    "half a pair \ud800": 1.0,
    "flag": True,
}
"""What hooks of users may put into a record."""


def make(subject: Subject) -> Writer:
    """Return a writer of its own."""
    writer = WRITERS.build(subject.config())
    assert isinstance(writer, Writer)
    return writer


def make_record(iteration: int, mode: Any = "train", values: Mapping[str, Any] | None = None) -> Record:
    """Return one record."""
    values = dict(values if values is not None else {"loss": 1 / iteration})
    return Record(mode=mode, epoch=1, iter=iteration, values=values, text=f"line {iteration}")


@contextmanager
def a_place(directory: Path) -> Iterator[RunPlace]:
    """Give a place in a directory, with a logger that writes there, too."""
    directory.mkdir(parents=True, exist_ok=True)
    logger = RunLogger("conformance", "INFO")
    logger.open(directory)
    try:
        yield RunPlace(logger=logger, log_dir=directory, experiment_name="conformance", hyperparameters={"lr": 0.1})
    finally:
        logger.close()


def written_below(directory: Path) -> int:
    """Return how many bytes lie below a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


# --- by itself --------------------------------------------------------------------------------------------------------


def check_nothing_is_made_before_the_first_record(subject: Subject, directory: Path) -> None:
    """A run that logs nothing leaves no file; `open` is part of what training waits for."""
    with a_place(directory) as place, leaves_nothing_behind():
        before = sorted(directory.rglob("*"))
        writer = make(subject)
        writer.open(place)
        assert sorted(directory.rglob("*")) == before, "opening makes files"
        writer.flush()
        writer.close()
        assert sorted(directory.rglob("*")) == before, "closing makes files"


def check_every_record_arrives(subject: Subject, directory: Path) -> None:
    """Behind `flush` each record, of training, validation and test, has left its trace."""
    with a_place(directory) as place, leaves_nothing_behind():
        writer = make(subject)
        writer.open(place)
        for iteration, mode in enumerate(("train", "train", "val", "test"), start=1):
            before = written_below(directory)
            writer.write(make_record(iteration, mode))
            writer.flush()
            assert written_below(directory) > before, f"the record {iteration} of {mode} left no trace"
        writer.close()


def check_closing_twice(subject: Subject, directory: Path) -> None:
    """`close` may come twice, and before `open`; a later `open` begins again, behind what is there."""
    with a_place(directory) as place, leaves_nothing_behind():
        writer = make(subject)
        writer.close()
        sizes = []
        for start in (1, 2):
            writer.open(place)
            writer.write(make_record(start))
            writer.close()
            writer.close()
            sizes.append(written_below(directory))
        assert sizes[1] > sizes[0], "what was written before is gone, or nothing came behind it"


def check_strange_values(subject: Subject, directory: Path) -> None:
    """NaN, texts, lists and names that no file can spell are written or left out; none is an error."""
    with a_place(directory) as place, leaves_nothing_behind():
        writer = make(subject)
        writer.open(place)
        for iteration in (1, 2):
            writer.write(make_record(iteration, values=STRANGE_VALUES))
        writer.write(make_record(3, "val", {}))
        writer.show(make_record(4, "val"))
        writer.close()


def check_a_destination_that_is_gone(subject: Subject, directory: Path) -> None:
    """Where there is no place to write, only `write` says so, with an OSError; closing still works."""
    with a_place(directory) as place, leaves_nothing_behind():
        blocked = directory / "blocked"
        blocked.write_text("no directory")
        writer = make(subject)
        writer.open(RunPlace(logger=place.logger, log_dir=blocked))
        errors = [error for error in (failure_of_writing(writer, iteration) for iteration in (1, 2)) if error is not None]
        writer.close()
    assert all(str(blocked) in str(error) for error in errors), f"the errors do not say where: {errors}"


def failure_of_writing(writer: Writer, iteration: int) -> OSError | None:
    """Return what becomes of writing a record, as far as a destination may fail."""
    try:
        writer.write(make_record(iteration))
    except OSError as error:
        return error
    return None


def check_two_at_once(subject: Subject, directory: Path) -> None:
    """Two of them write to two places, record by record, and neither touches what the other wrote."""
    places = [directory / "one", directory / "two"]
    with a_place(places[0]) as one, a_place(places[1]) as two, leaves_nothing_behind():
        writers = [make(subject), make(subject)]
        for writer, place in zip(writers, (one, two), strict=True):
            writer.open(place)
        for iteration, own in enumerate((0, 1, 0), start=1):
            other = places[1 - own]
            before = written_below(other)
            writers[own].write(make_record(iteration))
            writers[own].flush()
            assert written_below(other) == before, "a writer writes to the place of another"
            assert written_below(directory) > 0
        for writer in writers:
            writer.close()


ALONE = (
    check_nothing_is_made_before_the_first_record,
    check_every_record_arrives,
    check_closing_twice,
    check_strange_values,
    check_a_destination_that_is_gone,
    check_two_at_once,
)


# --- in a run ---------------------------------------------------------------------------------------------------------


def make_logging_run(subject: Subject, work_dir: Path, loop: str) -> Runner:
    """Return a runner of which each second iteration is logged to that writer alone."""
    logger = dict(type="LoggerHook", interval=2, writers=[subject.config()])
    return make_run(work_dir, [], train_cfg=LOOPS[loop], default_hooks={**NO_HOOKS, "logger": logger})


def outcome(runner: Runner) -> DeliveryStats:
    """Return what became of the records of the last run."""
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, LoggerHook))
    (stats,) = hook.deliveries
    return stats


def check_all_is_written(runner: Runner, at_least: int) -> None:
    """Fail unless each record was written."""
    stats = outcome(runner)
    assert stats.published >= at_least, f"{stats.published} records are too few"
    assert (stats.written, stats.failed, stats.dropped, stats.pending) == (stats.published, 0, 0, 0), f"records are lost: {stats}"


def check_training_and_test(subject: Subject, work_dir: Path, loop: str) -> None:
    """It gets every record of a training and of a test behind it, disturbs nothing and leaves nothing behind."""
    runner = make_logging_run(subject, work_dir, loop)
    with leaves_nothing_behind():
        runner.train()
        check_all_is_written(runner, at_least=4)
        runner.test()
        check_all_is_written(runner, at_least=1)
    assert same(weights(runner.model), undisturbed(loop)), "the writer changes what is trained"
    check_bus_is_clean(runner)


def check_evaluation_alone(subject: Subject, work_dir: Path, loop: str) -> None:
    """It gets the records of a validation without training."""
    runner = make_logging_run(subject, work_dir, loop)
    with leaves_nothing_behind():
        runner.val()
        check_all_is_written(runner, at_least=1)
    check_bus_is_clean(runner)


def check_error_in_the_middle(subject: Subject, work_dir: Path, loop: str) -> None:
    """When somebody else's error ends a run, what was logged before is written, the writer is closed, and the error comes out."""
    runner = make_logging_run(subject, work_dir, loop)
    error = Deliberate("on purpose")
    with leaves_nothing_behind():
        with runner.bus.subscribe(AfterTrainIter, second_call_raises(error), priority="LOWEST"):
            assert failure_of(runner) is error
        check_all_is_written(runner, at_least=1)
        assert not [note for note in error.__notes__ if note.startswith("and at ")]
        runner.train()
        check_all_is_written(runner, at_least=2)
    check_bus_is_clean(runner)


IN_A_RUN = (check_training_and_test, check_evaluation_alone, check_error_in_the_middle)

"""Delivery: whatever becomes of a destination, training goes on, and every record is accounted for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbus.bus import EventBus
from hookbus.delivery import Delivery, DeliveryStats
from hookbus.events import AfterTrainIter, ImagesDrawn, LogRecorded
from hookbus.hooks import LoggerHook
from hookbus.runner import Runner
from hookbus.writers import Record, RunPlace, Writer
from tests.runner.builders import make_loader, make_runner
from tests.writers.waiting import PATIENCE, comes_true


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Let torch compute on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Destination(Writer):
    """Keeps what it is given, and does before each record what a test wants."""

    def __init__(self, before: Callable[[int], object] = lambda number: None) -> None:
        self.steps: list[int] = []
        self.threads: set[str] = set()
        self.is_closed = False
        self._before = before

    def write(self, record: Record) -> None:
        """Take a record."""
        self.threads.add(threading.current_thread().name)
        self._before(record.iter)
        self.steps.append(record.iter)

    def close(self) -> None:
        """Be closed."""
        self.is_closed = True


def refuse(*numbers: int, words: str = "the disk is full") -> Callable[[int], None]:
    """Return what fails at these records."""

    def check(number: int) -> None:
        if number in numbers:
            raise OSError(words)

    return check


def train_with(tmp_path: Path, *writers: Writer, iterations: int = 10, bus: EventBus | None = None) -> tuple[Runner, LoggerHook]:
    """Train with a line for each iteration."""
    logger = LoggerHook(interval=1, writers=writers)
    changes: dict[str, Any] = dict(train_dataloader=make_loader(4 * iterations), val_dataloader=None)
    hooks = dict(logger=logger, checkpoint=None)
    runner = make_runner(tmp_path, **changes, train_cfg=dict(max_epochs=1), default_hooks=hooks, bus=bus)
    runner.train()
    return runner, logger


def counts(stats: DeliveryStats) -> tuple[int, int, int, int, int]:
    """Return published, written, failed, dropped, pending."""
    return stats.published, stats.written, stats.failed, stats.dropped, stats.pending


def log_of(runner: Runner) -> list[str]:
    """Return the lines that are about destinations."""
    lines = (runner.log_dir / "train.log").read_text(encoding="utf-8").splitlines()
    return [line.split(" - ", 1)[1] for line in lines if "Destination" in line and "dearest handlers" not in line]


def test_each_writer_gets_every_record_in_order_on_a_thread_of_its_own(tmp_path: Path) -> None:
    """Not on that of training, and not on that of another writer."""
    first, second = Destination(), Destination()
    _, logger = train_with(tmp_path, first, second)
    assert first.steps == second.steps == list(range(1, 11))
    assert len(first.threads) == len(second.threads) == 1
    assert threading.current_thread().name not in first.threads | second.threads
    assert [counts(stats) for stats in logger.deliveries] == [(10, 10, 0, 0, 0)] * 2


def test_a_dead_destination_neither_ends_the_run_nor_disturbs_another(tmp_path: Path) -> None:
    """It is reported when it first fails and at the end, with counts; each record was tried."""
    dead, alive = Destination(refuse(*range(11))), Destination()
    runner, logger = train_with(tmp_path, dead, alive)
    assert runner.iter == 10
    assert alive.steps == list(range(1, 11))
    assert [counts(stats) for stats in logger.deliveries] == [(10, 0, 10, 0, 0), (10, 10, 0, 0, 0)]
    assert log_of(runner) == [
        "WARNING - Destination failed, training goes on and each record is tried (repeats are counted, not logged): "
        "OSError: the disk is full",
        "WARNING - Destination lost 10 of 10 records: 10 failed, the last with OSError: the disk is full",
    ]
    assert dead.is_closed


def test_a_destination_that_comes_back_goes_on(tmp_path: Path) -> None:
    """What it lost meanwhile is said when it does, and once more at the end."""
    shaky = Destination(refuse(3, 4, 7))
    runner, logger = train_with(tmp_path, shaky)
    assert shaky.steps == [1, 2, 5, 6, 8, 9, 10]
    assert counts(logger.deliveries[0]) == (10, 7, 3, 0, 0)
    assert [line.split(" - ")[0] for line in log_of(runner)] == ["WARNING", "INFO", "WARNING"]
    assert "writes again; 2 records were lost meanwhile" in log_of(runner)[1]
    assert "lost 3 of 10 records" in log_of(runner)[2]


def test_failures_that_are_all_different_do_not_flood_the_log(tmp_path: Path) -> None:
    """The first ten are reported, all of them are counted."""

    def fail(number: int) -> None:
        msg = f"no answer to request {number}"
        raise ConnectionError(msg)

    runner, logger = train_with(tmp_path, Destination(fail), iterations=30)
    assert logger.deliveries[0].failed == 30
    assert len(log_of(runner)) == 11


def test_a_slow_destination_does_not_hold_training_up(tmp_path: Path) -> None:
    """Training ends while the first record is still being written; then everything is written before the run ends."""
    trained = threading.Event()
    waited: list[bool] = []

    def wait_once(number: int) -> None:
        if number == 1:
            waited.append(trained.wait(PATIENCE))

    slow = Destination(wait_once)
    logger = LoggerHook(interval=1, writers=[slow])
    runner = make_runner(tmp_path, val_dataloader=None, default_hooks=dict(logger=logger, checkpoint=None))
    runner.bus.subscribe(AfterTrainIter, lambda iter: trained.set() if iter == 5 else None, priority="LOWEST")
    runner.train()
    assert waited == [True]
    assert slow.steps == [1, 2, 3, 4, 5, 6]
    assert counts(logger.deliveries[0]) == (6, 6, 0, 0, 0)


@pytest.mark.slow
def test_a_destination_that_hangs_is_left_behind_and_its_records_are_counted(tmp_path: Path) -> None:
    """The run ends after its deadline, and says how much was lost."""
    released = threading.Event()
    hanging = Destination(lambda number: number == 3 and released.wait(PATIENCE))
    try:
        runner, logger = train_with(tmp_path, hanging, bus=EventBus("hanging", drain_timeout=0.2))
        assert counts(logger.deliveries[0]) == (10, 2, 0, 8, 0)
        assert any("lost 8 of 10 records" in line for line in log_of(runner))
        assert any("left behind" in line for line in log_of(runner))
    finally:
        released.set()
    assert comes_true(lambda: hanging.is_closed)


def test_a_writer_that_cannot_be_opened_is_tried_again_with_each_record(tmp_path: Path) -> None:
    """The first failure is that of opening; from the first success on all is well."""

    class LateDestination(Destination):
        attempts = 0

        def open(self, place: RunPlace) -> None:
            self.attempts += 1
            if self.attempts < 4:
                raise OSError("nobody is there")

    late = LateDestination()
    _, logger = train_with(tmp_path, late)
    assert late.attempts == 4
    assert late.steps == list(range(3, 11))
    assert counts(logger.deliveries[0]) == (10, 8, 2, 0, 0)


def test_a_writer_whose_close_fails_is_reported(tmp_path: Path) -> None:
    """The other writers are closed all the same."""

    class UnwillingDestination(Destination):
        def close(self) -> None:
            raise OSError("not yet")

    other = Destination()
    runner, _ = train_with(tmp_path, UnwillingDestination(), other)
    assert other.is_closed
    assert any("OSError: not yet" in line for line in log_of(runner))


def test_writers_are_closed_after_a_run_that_failed(tmp_path: Path) -> None:
    """And have everything that was recorded before."""
    kept = Destination()
    logger = LoggerHook(interval=1, writers=[kept])
    runner = make_runner(tmp_path, default_hooks=dict(logger=logger, checkpoint=None))

    def fail(iter: int) -> None:
        if iter == 2:
            raise KeyboardInterrupt

    runner.bus.subscribe(AfterTrainIter, fail, priority="LOWEST")
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    assert (kept.steps, kept.is_closed) == ([1, 2, 3], True)


async def test_a_run_inside_a_service_delivers_as_well(tmp_path: Path) -> None:
    """On both kinds of event loop."""
    kept = Destination()
    logger = LoggerHook(interval=1, writers=[kept])
    runner = make_runner(tmp_path, default_hooks=dict(logger=logger, checkpoint=None))
    await runner.train_async()
    assert kept.steps == [1, 2, 3, 3, 4, 5, 6, 6]
    assert counts(logger.deliveries[0]) == (8, 8, 0, 0, 0)


def test_more_records_than_may_wait_are_dropped_and_counted() -> None:
    """The oldest go first; the sum is right at every moment."""
    released = threading.Event()
    kept = Destination(lambda number: number == 1 and released.wait(PATIENCE))
    bus = EventBus()
    with bus:
        delivery = Delivery(kept, bus, RunPlace(logger=logging.getLogger("tests.delivery"), log_dir=Path()))
        bus.emit(record(1))
        assert comes_true(lambda: kept.threads)
        for number in range(2, 2002):
            bus.emit(record(number))
            stats = delivery.stats()
            assert stats.published == stats.written + stats.failed + stats.dropped + stats.pending == number
        bus.stats()  # hands out what lies in the outbox, so that all of it competes for the room
        released.set()
        close(delivery)
    assert 1024 < len(kept.steps) < 2001
    assert kept.steps == [1, *range(2003 - len(kept.steps), 2002)]
    assert counts(delivery.stats()) == (2001, len(kept.steps), 0, 2001 - len(kept.steps), 0)


def record(number: int, **facts: Any) -> LogRecorded:
    """Return a record of training."""
    usual: dict[str, Any] = dict(mode="train", epoch=1, iter=number, values={}, text="")
    return LogRecorded(**usual | facts)


def close(delivery: Delivery) -> None:
    """Close a delivery in its own time."""
    closed = threading.Event()
    assert comes_true(lambda: delivery.stats().pending == 0)
    delivery.begin_closing(closed.set)
    assert closed.wait(PATIENCE)
    delivery.end()


@given(st.lists(st.booleans(), max_size=40))
@settings(max_examples=15, deadline=None)
def test_whatever_fails_the_sum_is_right(outcomes: list[bool]) -> None:
    """Written and failed are what they are, and nothing else happened."""
    failing = [number for number, is_fine in enumerate(outcomes) if not is_fine]
    kept = Destination(refuse(*failing))
    with EventBus() as bus:
        delivery = Delivery(kept, bus, RunPlace(logger=quiet(), log_dir=Path()))
        for number in range(len(outcomes)):
            bus.emit(record(number))
        close(delivery)
    assert kept.steps == [number for number, is_fine in enumerate(outcomes) if is_fine]
    assert counts(delivery.stats()) == (len(outcomes), len(outcomes) - len(failing), len(failing), 0, 0)


def quiet() -> logging.Logger:
    """Return a logger that nobody listens to."""
    logger = logging.Logger("quiet")  # noqa: LOG001  one that goes with the test
    logger.addHandler(logging.NullHandler())
    return logger


def test_progress_goes_only_to_writers_that_show_it() -> None:
    """For the others it does not even count."""

    class Screen(Destination):
        def __init__(self) -> None:
            super().__init__()
            self.shown: list[int] = []

        def show(self, record: Record) -> None:
            self.shown.append(record.iter)

    screen, plain = Screen(), Destination()
    with EventBus() as bus:
        deliveries = [Delivery(writer, bus, RunPlace(logger=quiet(), log_dir=Path())) for writer in (screen, plain)]
        bus.emit(record(1, mode="val", is_progress=True))
        bus.emit(record(2))
        for delivery in deliveries:
            close(delivery)
    assert (screen.shown, screen.steps, plain.steps) == ([1], [2], [2])
    assert [delivery.stats().published for delivery in deliveries] == [2, 1]


def test_images_reach_writers_that_take_them() -> None:
    """One after the other with the records, although they come another way."""

    class Album(Destination):
        def __init__(self) -> None:
            super().__init__()
            self.paths: list[str] = []

        def write_images(self, images: ImagesDrawn) -> None:
            self.paths += images.paths

    album = Album()
    with EventBus() as bus:
        delivery = Delivery(album, bus, RunPlace(logger=quiet(), log_dir=Path()))
        bus.emit(ImagesDrawn(mode="val", epoch=1, iter=3, paths=["a.png"], captions=[""]), {"runner": None})
        bus.emit(record(3))
        close(delivery)
    assert (album.paths, album.steps) == (["a.png"], [3])
    assert counts(delivery.stats()) == (2, 2, 0, 0, 0)

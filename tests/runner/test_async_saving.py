"""Saving while training goes on: what is written, when it counts, and how its failure surfaces."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import anyio
import pytest
import torch

from hookbus.checkpoint import CheckpointStore, Files, load_checkpoint, verify_checkpoint
from hookbus.errors import CheckpointsInUse, CheckpointWriteError, Skip
from hookbus.events import (
    AfterRun,
    AfterTrain,
    AfterTrainIter,
    AfterValIter,
    BeforeSaveCheckpoint,
    CheckpointCommitted,
    CheckpointFailed,
    CheckpointStaged,
    Event,
    RunFailed,
    SaveEvent,
)
from hookbus.mailbox import Acknowledgement
from hookbus.runner import Runner
from tests.runner.builders import at_iter, checkpoints, make_runner, names, record, same, weights

PATIENCE = 20.0
"""Seconds after which a test gives up."""


class SlowFiles(Files):
    """Does not begin to write the state of a checkpoint before it may; of the named one, or of all."""

    def __init__(self, name: str = "") -> None:
        self._name = name
        self.may_write = threading.Event()
        self.is_writing = threading.Event()

    def create(self, path: Path) -> BinaryIO:
        """See `Files`."""
        if path.name == "state.json" and path.parent.name.startswith(f".{self._name}"):
            self.is_writing.set()
            assert self.may_write.wait(PATIENCE)
        return super().create(path)


class FullDisk(Files):
    """Has room for a number of checkpoints."""

    def __init__(self, room_for: int) -> None:
        self._left = room_for

    def create(self, path: Path) -> BinaryIO:
        """See `Files`."""
        if path.name == "manifest.json":
            self._left -= 1
            if self._left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        return super().create(path)


def make(work_dir: Path, checkpoint: dict[str, Any] | None = None, files: Files | None = None, **changes: Any) -> Runner:
    """Return a runner of six iterations that saves asynchronously, on files of the given kind."""
    options = None if checkpoint is None else dict(async_save=True) | checkpoint
    runner = make_runner(work_dir, default_hooks=dict(checkpoint=options), **changes)
    if files is not None:
        runner._saver.store = CheckpointStore(work_dir / "checkpoints", work_dir / "last_checkpoint", files=files)
    return runner


@contextmanager
def helper(action: Callable[[], None]) -> Iterator[None]:
    """Do something on another thread meanwhile."""
    thread = threading.Thread(target=action)
    thread.start()
    yield
    thread.join(PATIENCE)
    assert not thread.is_alive()


def wait_until(condition: Callable[[], object]) -> None:
    """Wait on a thread until something is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.001)


def log_of(runner: Runner) -> str:
    """Return what the runner logged so far."""
    path = runner.log_dir / "train.log"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def facts_of(events: Sequence[Event], *fields: str) -> list[tuple[Any, ...]]:
    """Return the names of events, each with some of its facts."""
    return [(type(event).__name__, *(getattr(event, field) for field in fields)) for event in events]


# --- what is written --------------------------------------------------------------------------------------------------


def test_training_goes_on_while_a_checkpoint_is_written_and_it_holds_what_was_there_when_it_was_taken(tmp_path: Path) -> None:
    """Several iterations later it is still being written, and then it is of the moment it was asked for."""
    files, answers = SlowFiles(), list[Acknowledgement[Path | None]]()
    taken: dict[str, Any] = {}
    runner = make(tmp_path, files=files)

    def ask() -> None:
        answers.append(runner.request_save("mine", asynchronous=True))

    def look() -> None:
        assert files.is_writing.wait(PATIENCE)
        assert not answers[0].done()
        assert "mine" not in checkpoints(tmp_path)
        assert not same(weights(runner.model), taken["weights"])
        files.may_write.set()

    def keep(checkpoint: dict[str, Any]) -> None:
        taken["weights"] = weights(runner.model)
        taken["momentum"] = checkpoint["optimizer"]["state"][0]["momentum_buffer"].clone()

    runner.bus.subscribe(BeforeSaveCheckpoint, keep)
    runner.bus.subscribe(AfterTrainIter, at_iter(0, ask))
    runner.bus.subscribe(AfterTrainIter, at_iter(4, look))
    runner.train()
    assert answers[0].result() == tmp_path / "checkpoints" / "mine"
    found = load_checkpoint(tmp_path / "checkpoints" / "mine")
    assert same(dict(found["state_dict"]), taken["weights"])
    assert torch.equal(found["optimizer"]["state"][0]["momentum_buffer"], taken["momentum"])
    assert found["progress"]["iter"] == found["meta"]["iter"] == 1


def test_what_is_changed_around_torch_right_after_the_call_is_not_written(tmp_path: Path) -> None:
    """Every tensor and every list of the state, in place, while the writer has not begun: fifty times."""
    files = SlowFiles()
    runner = make(tmp_path, files=files)
    kept: list[dict[str, Any]] = []
    runner.bus.subscribe(BeforeSaveCheckpoint, lambda checkpoint: kept.append(checkpoint))
    runner.bus.subscribe(BeforeSaveCheckpoint, lambda checkpoint: checkpoint.update(extra={"list": [1, [2]]}))
    expected: list[dict[str, torch.Tensor]] = []

    def spoil() -> None:
        expected.append(weights(runner.model))
        for tensor in [*kept[-1]["state_dict"].values(), kept[-1]["optimizer"]["state"][0]["momentum_buffer"]]:
            tensor.data.mul_(0.5)
        kept[-1]["extra"]["list"][1].append(3)
        files.may_write.set()

    runner.bus.subscribe(CheckpointStaged, spoil)
    runner.bus.subscribe(CheckpointCommitted, files.may_write.clear)
    runner.bus.subscribe(
        AfterTrainIter, lambda iter: iter < 50 and runner.request_save(f"iter_{iter}", asynchronous=True), priority="HIGHEST"
    )
    runner.train_loop.max_epochs = 17
    runner.train()
    assert len(expected) == 50
    for number, before in enumerate(expected):
        found = load_checkpoint(tmp_path / "checkpoints" / f"iter_{number}")
        assert same(dict(found["state_dict"]), before)
        assert found["extra"] == {"list": [1, [2]]}


def test_what_is_written_is_what_a_synchronous_save_writes(tmp_path: Path) -> None:
    """Weights, optimizer, schedules, generators and counters of every checkpoint; training itself is the same."""
    options = dict(interval=2, by_epoch=False, save_best="loss")
    scheduler = dict(type="StepLR", step_size=1, gamma=0.5)
    now = make(tmp_path / "now", options | dict(async_save=False), param_scheduler=scheduler)
    later = make(tmp_path / "later", options, param_scheduler=scheduler)
    now.train()
    later.train()
    assert same(weights(now.model), weights(later.model))
    assert checkpoints(tmp_path / "now") == checkpoints(tmp_path / "later")
    for name in checkpoints(tmp_path / "now"):
        left, right = (load_checkpoint(tmp_path / where / "checkpoints" / name) for where in ("now", "later"))
        assert left.keys() == right.keys()
        assert same(dict(left["state_dict"]), dict(right["state_dict"]))
        for key in ("param_schedulers", "progress", "hooks"):
            assert left[key] == right[key]
        assert str(left["optimizer"]) == str(right["optimizer"])
        assert str(left["rng"]) == str(right["rng"])


def test_a_run_goes_on_from_a_checkpoint_that_was_written_in_the_background(tmp_path: Path) -> None:
    """And ends where the uninterrupted run ends."""
    straight = make(tmp_path / "straight", dict(interval=1))
    straight.train()
    make(tmp_path / "cut", dict(interval=1), train_cfg=dict(max_epochs=1)).train()
    resumed = make(tmp_path / "cut", dict(interval=1), resume=True)
    resumed.train()
    assert same(weights(resumed.model), weights(straight.model))


# --- one at a time ----------------------------------------------------------------------------------------------------


def test_the_next_save_waits_for_the_one_before(tmp_path: Path) -> None:
    """It is counted and logged; what others ask of the training thread is done meanwhile."""
    files = SlowFiles()
    runner = make(tmp_path, dict(interval=1, by_epoch=False, save_last=False), files, train_cfg=dict(max_epochs=1))
    served: list[int] = []

    def let_go() -> None:
        wait_until(lambda: runner._saver._writer.waits)
        served.append(runner.run_on_main_stream(lambda: runner.iter).result(PATIENCE))
        files.may_write.set()

    with helper(let_go):
        runner.train()
    assert served == [2]
    assert "saving iter_2 waits for iter_1, which is still being written (wait 1)" in log_of(runner)
    assert checkpoints(tmp_path) == ["iter_1", "iter_2", "iter_3"]
    assert (tmp_path / "last_checkpoint").read_text() == "iter_3"


def test_an_old_checkpoint_goes_only_when_the_new_one_is_there(tmp_path: Path) -> None:
    """And the hub, too, only then names the new one."""
    files = SlowFiles("epoch_2")
    runner = make(tmp_path, dict(interval=1, max_keep_ckpts=1), files)

    def before() -> None:
        assert files.is_writing.wait(PATIENCE)
        assert "epoch_1" in checkpoints(tmp_path)
        assert "epoch_2" not in checkpoints(tmp_path)
        assert runner.message_hub.get_info("last_ckpt") == str(tmp_path / "checkpoints" / "epoch_1")
        assert (tmp_path / "last_checkpoint").read_text() == "epoch_1"
        files.may_write.set()

    runner.bus.subscribe(AfterTrain, before)
    runner.train()
    assert checkpoints(tmp_path) == ["epoch_2"]
    assert runner.message_hub.get_info("last_ckpt") == str(tmp_path / "checkpoints" / "epoch_2")


# --- the end of a run -------------------------------------------------------------------------------------------------


def open_at_the_end(runner: Runner, files: SlowFiles, seen: Sequence[Event]) -> Callable[[], None]:
    """Return a function that lets the writer go on when the run waits for it, before its last event."""

    def let_go() -> None:
        wait_until(lambda: "the run ends when" in log_of(runner))
        assert "AfterRun" not in names(seen)
        files.may_write.set()

    return let_go


def test_the_end_of_a_run_waits_until_everything_is_written(tmp_path: Path) -> None:
    """`AfterRun` comes behind it, and nothing is left in memory."""
    files = SlowFiles()
    runner = make(tmp_path, dict(interval=2), files)
    seen = record(runner.bus, Event)
    with helper(open_at_the_end(runner, files, seen)):
        runner.train()
    assert names(seen)[-2:] == ["CheckpointCommitted", "AfterRun"]
    assert checkpoints(tmp_path) == ["epoch_2"]
    assert runner._saver._staging.size == 0


def test_a_run_that_fails_waits_as_well(tmp_path: Path) -> None:
    """What it had asked for before is there, and its own error arrives."""
    files = SlowFiles()
    runner = make(tmp_path, files=files)
    seen = record(runner.bus, Event)

    def fail() -> None:
        raise ZeroDivisionError

    runner.bus.subscribe(AfterTrainIter, at_iter(0, lambda: runner.request_save("mine", asynchronous=True)))
    runner.bus.subscribe(AfterTrainIter, at_iter(2, fail))
    with helper(open_at_the_end(runner, files, seen)), pytest.raises(ZeroDivisionError):
        runner.train()
    assert names(seen)[-3:] == ["CheckpointCommitted", "RunFailed", "AfterRun"]
    assert checkpoints(tmp_path) == ["mine"]


async def test_a_cancelled_run_waits_as_well(tmp_path: Path) -> None:
    """The caller's loop stays free meanwhile, and what was asked for before is there."""
    files = SlowFiles()
    runner = make(tmp_path, files=files, train_cfg=dict(max_epochs=100_000), val_dataloader=None)
    seen = record(runner.bus, Event)
    runner.bus.subscribe(AfterTrainIter, at_iter(0, lambda: runner.request_save("mine", asynchronous=True)))
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runner.train_async)
            with anyio.fail_after(PATIENCE):
                while runner.iter < 5:  # noqa: ASYNC110  it is counted on another thread
                    await anyio.sleep(0.001)
            threading.Thread(target=open_at_the_end(runner, files, seen)).start()  # nobody here may wait for it
            scope.cancel()
    assert scope.cancelled_caught
    assert "RunFailed" not in names(seen)
    assert names(seen)[-2:] == ["CheckpointCommitted", "AfterRun"]
    assert checkpoints(tmp_path) == ["mine"]


def test_the_end_of_a_run_does_not_wait_for_ever(tmp_path: Path) -> None:
    """The error says so; what is written in the end counts, and the next run begins behind it."""
    files = SlowFiles()
    runner = make(tmp_path, dict(interval=2, stall_timeout=0.01), files)
    with pytest.raises(CheckpointWriteError, match=r"not a byte of epoch_2 was written for 0\.01 s at the end of the run"):
        runner.train()
    assert checkpoints(tmp_path) != ["epoch_2"]
    with pytest.raises(CheckpointsInUse):  # it is still being written
        make(tmp_path, dict(interval=2)).train()
    files.may_write.set()
    seen = record(runner.bus, SaveEvent)
    runner.train_loop.max_epochs = 3
    runner.hooks[-1].stall_timeout = PATIENCE  # type: ignore[attr-defined]
    runner.train()
    assert checkpoints(tmp_path) == ["epoch_2", "epoch_3"]
    committed = [event for event in seen if isinstance(event, CheckpointCommitted)]
    assert [event.name for event in committed] == ["epoch_2", "epoch_3"]


class Growing(SlowFiles):
    """Bytes are written between any two looks; after a number of looks, everything is."""

    looks = 0

    @property
    def written(self) -> int:
        """How many bytes, by now."""
        self.looks += 1
        if self.looks == 30:
            self.may_write.set()
        return self.looks

    @written.setter
    def written(self, number: int) -> None:
        """Count something else."""


def test_the_end_of_a_run_waits_for_as_long_as_there_is_progress(tmp_path: Path) -> None:
    """Thirty times as long as a stall may be; without progress that is an error, as the test above shows."""
    files = Growing()
    make(tmp_path, dict(interval=2, stall_timeout=0.01), files).train()
    assert files.looks >= 30
    assert checkpoints(tmp_path) == ["epoch_2"]


def test_what_is_written_is_counted(tmp_path: Path) -> None:
    """So that whoever waits sees progress."""
    files = Files()
    make(tmp_path, dict(interval=2), files).train()
    assert files.written > sum(path.stat().st_size for path in (tmp_path / "checkpoints" / "epoch_2").iterdir())


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_failure_surfaces_at_a_step_boundary(tmp_path: Path) -> None:
    """As itself; what was there before stays, nothing half-written does, and listeners and whoever asked are told."""
    runner = make(tmp_path, dict(interval=1, max_keep_ckpts=1), FullDisk(1), train_cfg=dict(max_epochs=1000), val_dataloader=None)
    seen = record(runner.bus, Event)
    with pytest.raises(CheckpointWriteError, match="epoch_2 was not committed") as raised:
        runner.train()
    assert raised.value.errno == errno.ENOSPC
    assert runner.iter < 3000
    assert checkpoints(tmp_path) == ["epoch_1"]
    verify_checkpoint(tmp_path / "checkpoints" / "epoch_1")
    assert (tmp_path / "last_checkpoint").read_text() == "epoch_1"
    (failed,) = [event for event in seen if isinstance(event, CheckpointFailed)]
    assert (failed.name, failed.epoch, failed.iter, failed.error_type) == ("epoch_2", 2, 6, "CheckpointWriteError")
    assert "No space left" in failed.message
    assert names(seen)[-2:] == ["RunFailed", "AfterRun"]


def test_a_failure_of_the_last_save_surfaces_at_the_end_of_the_run(tmp_path: Path) -> None:
    """`RunFailed` follows it."""
    runner = make(tmp_path, dict(interval=2), FullDisk(0))
    seen = record(runner.bus, Event)
    with pytest.raises(CheckpointWriteError) as raised:
        runner.train()
    assert raised.value.errno == errno.ENOSPC
    assert [name for name in names(seen) if name in ("CheckpointFailed", "RunFailed", "AfterRun")] == [
        "CheckpointFailed",
        "RunFailed",
        "AfterRun",
    ]
    assert checkpoints(tmp_path) == []


def test_a_failure_is_told_to_whoever_asked(tmp_path: Path) -> None:
    """The acknowledgement raises what the run raises."""
    runner = make(tmp_path, files=FullDisk(0))
    answers: list[Acknowledgement[Path | None]] = []
    runner.bus.subscribe(AfterTrainIter, at_iter(0, lambda: answers.append(runner.request_save("mine", asynchronous=True))))
    with pytest.raises(CheckpointWriteError) as raised:
        runner.train()
    with pytest.raises(CheckpointWriteError) as told:
        answers[0].result()
    assert told.value is raised.value


def test_a_failure_is_noted_on_the_error_that_ends_the_run(tmp_path: Path) -> None:
    """Neither is lost; what a listener does wrong is noted, too."""
    runner = make(tmp_path, files=FullDisk(0))

    def fail() -> None:
        raise ZeroDivisionError

    runner.bus.subscribe(CheckpointFailed, fail)
    with pytest.raises(CheckpointWriteError) as raised:
        runner.bus.subscribe(AfterTrainIter, at_iter(5, lambda: runner.request_save("mine", asynchronous=True)))
        runner.train()
    assert any("and at CheckpointFailed: ZeroDivisionError" in note for note in raised.value.__notes__)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_cannot_be_saved_is_named(asynchronous: bool, tmp_path: Path) -> None:
    """Wherever it is encoded."""
    runner = make(tmp_path, dict(interval=1, async_save=asynchronous))
    runner.bus.subscribe(BeforeSaveCheckpoint, lambda checkpoint: checkpoint.update(mine={"lock": threading.Lock()}))
    seen = record(runner.bus, RunFailed)
    with pytest.raises(TypeError, match=r"mine\.lock"):
        runner.train()
    assert facts_of(seen, "error_type") == [("RunFailed", "StateEncodingError")]


def test_a_failure_outlasts_a_pause_in_a_validation(tmp_path: Path) -> None:
    """Between two of its batches no save can be taken, but the outcome of one may come."""
    files = SlowFiles()
    runner = make(tmp_path, dict(interval=1), files)
    seen = record(runner.bus, SaveEvent)

    def pause() -> None:
        runner.pause()
        threads.append(threading.Thread(target=go_on))
        threads[0].start()

    def go_on() -> None:
        thread = runner._thread
        assert thread is not None
        wait_until(lambda: thread._pauses_inside)
        files.may_write.set()
        wait_until(lambda: "epoch_1" in checkpoints(tmp_path) and bool(thread._requests.at_boundary))
        runner.unpause()

    threads: list[threading.Thread] = []
    runner.bus.subscribe(AfterValIter, pause, once=True)
    after: list[int] = []
    runner.bus.subscribe(AfterTrainIter, lambda: after.append(len(seen)))
    runner.train()
    threads[0].join(PATIENCE)
    assert after[3] == 2  # staged and committed before the second epoch began


# --- what is heard ----------------------------------------------------------------------------------------------------


def test_listeners_hear_of_every_checkpoint(tmp_path: Path) -> None:
    """Staged first, committed later, on the training thread; a synchronous one is committed at once."""
    threads = set[threading.Thread]()
    for asynchronous in (False, True):
        runner = make(tmp_path / str(asynchronous), dict(interval=1, async_save=asynchronous))
        seen = record(runner.bus, SaveEvent)
        runner.bus.subscribe(SaveEvent, lambda runner: threads.add(threading.current_thread()))
        runner.train()
        committed = [event for event in seen if isinstance(event, CheckpointCommitted)]
        staged = [event for event in seen if isinstance(event, CheckpointStaged)]
        expected = [(f"epoch_{number}", number, number * 3) for number in (1, 2)]
        assert [(event.name, event.epoch, event.iter) for event in committed] == expected
        assert [(event.name, event.epoch, event.iter) for event in staged] == (expected if asynchronous else [])
        assert [event.path for event in committed] == [str(runner.work_dir / "checkpoints" / name) for name, _, _ in expected]
        assert all(event.seconds > 0 for event in committed)
        assert all(event.seconds > 0 for event in staged)
    assert threads == {threading.current_thread()}


async def test_an_awaited_answer_comes_when_the_checkpoint_is_there(tmp_path: Path) -> None:
    """Also where nobody reaches a step boundary meanwhile: training may be in the middle of a long validation."""
    files, done = SlowFiles(), threading.Event()
    files.may_write.set()
    runner = make(tmp_path, files=files)
    runner.bus.subscribe(AfterTrainIter, at_iter(2, lambda: done.wait(PATIENCE)))
    paths: list[Path | None] = []

    async def ask() -> None:
        with anyio.fail_after(PATIENCE):
            while not runner.is_training:  # noqa: ASYNC110  it becomes so on another thread
                await anyio.sleep(0.001)
            paths.append(await runner.request_save("mine", asynchronous=True))
        done.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await runner.train_async()
    assert paths == [tmp_path / "checkpoints" / "mine"]


def test_a_save_that_a_hook_leaves_out_is_answered_with_none(tmp_path: Path) -> None:
    """Nothing is copied for it."""
    runner = make(tmp_path)
    seen = record(runner.bus, SaveEvent)
    answers: list[Acknowledgement[Path | None]] = []

    def skip() -> None:
        raise Skip("not now")

    runner.bus.subscribe(BeforeSaveCheckpoint, skip)
    runner.bus.subscribe(AfterTrainIter, at_iter(0, lambda: answers.append(runner.request_save("mine", asynchronous=True))))
    runner.train()
    assert answers[0].result() is None
    assert seen == []


def test_a_rollback_or_a_look_at_the_checkpoints_comes_behind_what_is_being_written(tmp_path: Path) -> None:
    """So the newest one is the one that was asked for last."""
    files = SlowFiles()
    runner = make(tmp_path, files=files)
    runner.bus.subscribe(AfterTrainIter, at_iter(0, lambda: runner.request_save("mine", asynchronous=True)))
    found: list[str] = []

    def let_go() -> None:
        wait_until(lambda: runner._saver._writer.waits)
        files.may_write.set()

    def look() -> None:
        with helper(let_go):
            found.extend(info.name for store in runner._saver.stores() for info in store.list())

    runner.bus.subscribe(AfterTrainIter, at_iter(2, look))
    seen = record(runner.bus, AfterRun)
    runner.train()
    assert found == ["mine"]
    assert len(seen) == 1

"""Cancelling `train_async`: what is saved then, and that a run goes on from there as if nothing had happened."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import pytest

from hookbus.bridge import CrossingCancelled
from hookbus.errors import CheckpointWriteError
from hookbus.events import AfterRun, AfterTrain, AfterTrainIter, AfterValIter, BeforeSaveCheckpoint, CheckpointCommitted, Event
from hookbus.mailbox import LoopHandle
from hookbus.runner import Runner
from hookbus.training_thread import TrainingThread
from tests.checkpoint.builders import assert_same
from tests.runner.builders import at_iter, checkpoints, names, record
from tests.runner.learners import final_state, make_learner
from tests.runner.test_async_saving import FullDisk, make

PATIENCE = 20.0
"""Seconds after which a test gives up."""

CUT = 5
"""The iteration in which the runs here are cancelled; the boundary behind it has completed one more."""

Train = Callable[[], Coroutine[Any, Any, object]]
Cancelled = Callable[[Runner, Train], Awaitable[None]]
"""Runs a training until its iteration `CUT` and has it cancelled there, in one of the ways there are."""


def hold_until_cancelled(runner: Runner) -> None:
    """Return when the cancellation has reached the run, so that it takes effect at the boundary of this iteration."""
    deadline = time.monotonic() + PATIENCE
    while not getattr(runner._thread, "_is_cancelled", True):
        assert time.monotonic() < deadline
        time.sleep(0.001)  # on the training thread, which has nothing else to do


def cut(runner: Runner, cancel: Callable[[], object], event_type: type[Event] = AfterTrainIter) -> None:
    """Have a function called on the loop in the iteration of the cut, and hold the run until that cancels it."""
    loop = LoopHandle.current()

    def act() -> None:
        loop.call_soon(cancel)
        hold_until_cancelled(runner)

    runner.bus.subscribe(event_type, at_iter(CUT, act), priority="LOWEST")


async def by_scope(runner: Runner, train: Train) -> None:
    """A scope around the training is cancelled."""
    with anyio.CancelScope() as scope:
        cut(runner, scope.cancel)
        await train()
    assert scope.cancelled_caught


async def by_task_group(runner: Runner, train: Train) -> None:
    """The training is a task of a group inside of a group, whose scope is cancelled."""
    async with anyio.create_task_group() as outer, anyio.create_task_group() as inner:
        cut(runner, outer.cancel_scope.cancel)
        inner.start_soon(train)


async def by_neighbour(runner: Runner, train: Train) -> None:
    """Another task of the group fails."""
    failing = anyio.Event()

    async def fail() -> None:
        await failing.wait()
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as raised:
        async with anyio.create_task_group() as tasks:
            cut(runner, failing.set)
            tasks.start_soon(fail)
            tasks.start_soon(train)
    assert [type(error) for error in raised.value.exceptions] == [ZeroDivisionError]


async def by_timeout(runner: Runner, train: Train) -> None:
    """The time of a `move_on_after` runs out."""
    with anyio.move_on_after(float("inf")) as scope:
        cut(runner, lambda: setattr(scope, "deadline", anyio.current_time()))
        await train()
    assert scope.cancelled_caught


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the uninterrupted run ends with."""
    work_dir = tmp_path_factory.mktemp("straight")
    make_learner(work_dir).train()
    return final_state(work_dir, "epoch_3")


@pytest.mark.parametrize(
    ("cancelled", "async_save"),
    [(by_scope, False), (by_scope, True), (by_task_group, True), (by_neighbour, False), (by_timeout, True)],
)
async def test_a_cancelled_run_takes_its_last_checkpoint_and_goes_on_from_there(
    cancelled: Cancelled, async_save: bool, straight: dict[str, Any], tmp_path: Path
) -> None:
    """In the middle of an epoch and of an accumulation; in the end the whole state is that of the uninterrupted run."""
    options: dict[str, Any] = dict(default_hooks=dict(checkpoint=dict(interval=1, async_save=async_save), logger=None))
    runner = make_learner(tmp_path / "cut", **options)
    seen = record(runner.bus, Event)
    await cancelled(runner, runner.train_async)
    assert runner.iter == CUT + 1
    assert checkpoints(tmp_path / "cut") == ["epoch_1", f"iter_{CUT + 1}"]
    ending = [name for name in names(seen) if name in ("AfterTrain", "CheckpointCommitted", "AfterRun", "RunFailed")]
    assert ending[-2:] == ["CheckpointCommitted", "AfterRun"]
    assert ending.count("AfterTrain") == 1
    assert "RunFailed" not in ending
    resumed = make_learner(tmp_path / "cut", resume=True)
    await resumed.train_async()
    assert resumed.iter == 12
    found = final_state(tmp_path / "cut", "epoch_3")
    for part in ("state_dict", "optimizer", "param_schedulers", "rng", "loader", "progress"):
        assert_same(found[part], straight[part], part)


def test_a_native_cancellation_takes_the_last_checkpoint(tmp_path: Path) -> None:
    """`task.cancel()` of asyncio, and a second one meanwhile."""
    runner = make_learner(tmp_path)

    async def main() -> None:
        task = asyncio.create_task(runner.train_async())
        cut(runner, task.cancel)
        runner.bus.subscribe(AfterTrain, cancel_again(task))
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert f"iter_{CUT + 1}" in checkpoints(tmp_path)


def cancel_again(task: asyncio.Task[Any]) -> Callable[[], Awaitable[None]]:
    """Return a handler that cancels its own run, and waits."""

    async def handler() -> None:
        task.cancel()
        await asyncio.sleep(0.01)

    return handler


@pytest.mark.parametrize("save_last", [True, False])
async def test_save_last_alone_decides(save_last: bool, tmp_path: Path) -> None:
    """As it does for a stop and for a signal."""
    runner = make(tmp_path, dict(interval=-1, save_last=save_last, async_save=False))
    await by_scope(runner, runner.train_async)
    assert checkpoints(tmp_path) == (["epoch_2"] if save_last else [])  # the cut is the last iteration of its epoch


async def test_without_a_checkpoint_hook_nothing_is_saved(tmp_path: Path) -> None:
    """The loop acts where hooks request, and nobody requests."""
    runner = make(tmp_path)
    await by_scope(runner, runner.train_async)
    assert checkpoints(tmp_path) == []


@pytest.mark.parametrize("async_save", [False, True])
async def test_awaited_handlers_of_the_end_are_waited_for(async_save: bool, tmp_path: Path) -> None:
    """Those that come before the checkpoint is asked for, while it is taken, and when it is there."""
    runner = make_learner(tmp_path, default_hooks=dict(checkpoint=dict(interval=-1, async_save=async_save), logger=None))
    done: list[str] = []

    def note(event_type: type[Event]) -> None:
        async def handler() -> None:
            await anyio.sleep(0.01)
            done.append(event_type.__name__)

        runner.bus.subscribe(event_type, handler, priority="HIGHEST")

    for event_type in (AfterTrain, BeforeSaveCheckpoint, CheckpointCommitted, AfterRun):
        note(event_type)
    await by_scope(runner, runner.train_async)
    assert done == ["AfterTrain", "BeforeSaveCheckpoint", "CheckpointCommitted", "AfterRun"]
    assert checkpoints(tmp_path) == [f"iter_{CUT + 1}"]


async def test_a_handler_of_the_end_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is limited, and what took too long is said."""
    monkeypatch.setattr("hookbus.bridge.CLOSING_DEADLINE", 0.05)
    runner = make_learner(tmp_path)
    runner.bus.subscribe(AfterTrain, anyio.sleep_forever)
    with pytest.raises(TimeoutError, match="took longer than"):
        await by_scope(runner, runner.train_async)


async def test_a_cancellation_in_the_middle_of_an_iteration_takes_no_checkpoint(tmp_path: Path) -> None:
    """An awaited handler is cancelled where it waits: the state is that of no step boundary."""
    runner = make_learner(tmp_path, default_hooks=dict(checkpoint=dict(interval=-1), logger=None))
    seen = record(runner.bus)
    asleep = anyio.Event()

    async def sleep(iter: int) -> None:
        if iter == CUT:
            asleep.set()
            await anyio.sleep_forever()

    runner.bus.subscribe(AfterTrainIter, sleep)
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runner.train_async)
            await asleep.wait()
            tasks.cancel_scope.cancel()
    assert checkpoints(tmp_path) == []
    assert "AfterTrain" not in names(seen)
    assert names(seen)[-1] == "AfterRun"


async def test_a_cancellation_during_a_validation_leaves_it_due(tmp_path: Path) -> None:
    """The last checkpoint says so, and the resumed run begins with it."""
    options: dict[str, Any] = dict(default_hooks=dict(checkpoint=dict(interval=-1), logger=None))
    runner = make_learner(tmp_path, **options)
    with anyio.CancelScope() as scope:
        loop = LoopHandle.current()

        def act() -> None:
            loop.call_soon(scope.cancel)
            hold_until_cancelled(runner)

        runner.bus.subscribe(AfterValIter, act, once=True)
        await runner.train_async()
    assert checkpoints(tmp_path) == ["epoch_1"]
    resumed = make_learner(tmp_path, resume=True, **options)
    seen = record(resumed.bus)
    resumed.train()
    assert names(seen).index("AfterVal") < names(seen).index("BeforeTrainIter")
    assert resumed.iter == 12


async def test_a_last_checkpoint_that_fails_is_an_error(tmp_path: Path) -> None:
    """It does not get lost in the cancellation."""
    runner = make(tmp_path, dict(interval=-1, async_save=False), FullDisk(0))
    with pytest.raises(CheckpointWriteError, match="was not committed"):
        await by_scope(runner, runner.train_async)


async def test_training_goes_on_after_a_cancellation(straight: dict[str, Any], tmp_path: Path) -> None:
    """The same runner, called again, ends where the uninterrupted one does."""
    runner = make_learner(tmp_path)
    await by_scope(runner, runner.train_async)
    await runner.train_async()
    assert_same(final_state(tmp_path, "epoch_3")["state_dict"], straight["state_dict"])


class HastyThread(TrainingThread):
    """The twin: it leaves the loop where a cancellation finds it, instead of stopping there."""

    def step_boundary(self) -> None:
        if self._is_cancelled:
            raise CrossingCancelled
        super().step_boundary()


@pytest.mark.parametrize("thread", [TrainingThread, HastyThread])
async def test_a_twin_that_leaves_the_loop_at_once_is_caught(
    thread: type[TrainingThread], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that raises at the boundary instead of stopping there takes no checkpoint."""
    monkeypatch.setattr("hookbus.runner.lifecycle.TrainingThread", thread)
    options: dict[str, Any] = dict(default_hooks=dict(checkpoint=dict(interval=-1)), train_cfg=dict(max_epochs=100_000))
    runner = make_learner(tmp_path, val_dataloader=None, **options)
    with anyio.CancelScope() as scope:
        loop = LoopHandle.current()
        runner.bus.subscribe(AfterTrainIter, at_iter(CUT, lambda: loop.call_soon(scope.cancel)))
        await runner.train_async()
    assert len(checkpoints(tmp_path)) == (thread is TrainingThread)

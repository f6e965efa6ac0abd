"""Stopping and pausing: behind an iteration, inside a validation or test, while data is awaited, and in a pause."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import torch

from hookbus.checkpoint import load_checkpoint
from hookbus.errors import EmptyDataLoader, RunAlreadyLive, RunEnded, Skip, WouldDeadlock
from hookbus.events import AfterRun, AfterTrainIter, AfterValIter, BeforeTrainIter, BeforeVal
from hookbus.runner import Runner
from tests.runner.builders import at_iter, checkpoints, make_loader, make_runner, names, record, same, weights


def in_validation(action: Callable[[Runner], Any]) -> Callable[..., None]:
    """Return a handler that acts in the first batch of a validation."""

    def handler(runner: Runner, batch_idx: int) -> None:
        if batch_idx == 0:
            action(runner)

    return handler


def test_a_stop_ends_a_validation_between_two_batches(tmp_path: Path) -> None:
    """There is no result, so no `AfterValEpoch`; training ends, and the checkpoint knows that the validation is due."""
    runner = make_runner(tmp_path, val_dataloader=make_loader(20))
    runner.bus.subscribe(AfterValIter, in_validation(lambda runner: runner.stop()))
    seen = record(runner.bus)
    runner.train()
    begun = ["BeforeVal", "BeforeValEpoch", "BeforeValIter", "AfterValIter"]
    assert names(seen)[-7:] == [*begun, "AfterVal", "AfterTrain", "AfterRun"]
    assert runner.progress.validation_due
    assert load_checkpoint(tmp_path / "checkpoints" / "epoch_1")["progress"]["validation_due"]


def test_a_validation_that_was_stopped_is_made_up_for(tmp_path: Path) -> None:
    """Training again begins with it, and ends like a training that was never stopped."""
    whole = make_runner(tmp_path / "whole")
    expected = whole.train()
    runner = make_runner(tmp_path / "parts")
    with runner.bus.subscribe(AfterValIter, in_validation(lambda runner: runner.stop())):
        assert runner.train() == {}
    seen = record(runner.bus)
    assert runner.train() == expected
    assert names(seen)[:3] == ["BeforeRun", "BeforeTrain", "BeforeVal"]
    assert same(weights(runner.model), weights(whole.model))


@pytest.mark.parametrize("call", ["val", "test"])
def test_a_stop_ends_a_call_of_its_own_too(call: str, tmp_path: Path) -> None:
    """The acknowledgement says when; there are no metrics."""
    runner = make_runner(tmp_path, val_dataloader=make_loader(20), test_dataloader=make_loader(20))
    answers: list[Any] = []

    class Stopper:
        def after_val_iter(self, runner: Runner) -> None:
            answers.append(runner.stop())

        after_test_iter = after_val_iter

    runner.register_hook(Stopper())
    assert getattr(runner, call)() == {}
    assert answers[0].result(0).iter == 0


class Slow:
    """Two batches; the second one arrives when somebody lets it."""

    def __init__(self) -> None:
        self.batches = list(make_loader(8))
        self.is_asked = threading.Event()
        self.may_come = threading.Event()

    def __iter__(self) -> Iterator[Any]:
        yield self.batches[0]
        self.is_asked.set()
        assert self.may_come.wait(30)
        yield self.batches[1]

    def __len__(self) -> int:
        return 2


async def test_a_stop_that_comes_while_data_is_awaited_does_not_train_on_it(tmp_path: Path) -> None:
    """It takes effect when the batch is there, behind the last iteration that was trained."""
    slow = Slow()
    runner = make_runner(tmp_path, train_dataloader=slow, train_cfg=dict(max_epochs=3))

    async def stop() -> None:
        await anyio.to_thread.run_sync(slow.is_asked.wait, abandon_on_cancel=True)
        answer = runner.stop()
        slow.may_come.set()
        assert (await answer).iter == 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop)
        await runner.train_async()
    assert runner.iter == 1


@pytest.mark.parametrize("where", [AfterTrainIter, BeforeTrainIter, AfterValIter])
def test_a_paused_run_goes_on_when_it_is_told_to(where: Any, tmp_path: Path) -> None:
    """From another thread; nothing is lost by it, and the order of things is the same."""
    runner = make_runner(tmp_path)
    answers: dict[str, Any] = {}

    def unpause() -> None:
        answers["paused"].result(30)
        answers["unpaused"] = runner.unpause()

    thread = threading.Thread(target=unpause)

    def pause() -> None:
        answers["paused"] = runner.pause()
        thread.start()

    runner.bus.subscribe(where, pause, once=True)
    seen = record(runner.bus)
    runner.train()
    thread.join()
    assert answers["paused"].result(0) == answers["unpaused"].result(0)
    assert len(names(seen)) == len(names(record_of_a_plain_run(tmp_path / "plain")))


def record_of_a_plain_run(work_dir: Path) -> Any:
    """Return the events of a run that nobody paused."""
    runner = make_runner(work_dir)
    seen = record(runner.bus)
    runner.train()
    return seen


async def test_a_paused_run_can_be_stopped_saved_and_asked(tmp_path: Path) -> None:
    """What is asked for in a pause takes effect in it; handlers of the bus still hear what others publish."""
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=9))
    paused: list[Any] = []
    runner.bus.subscribe(AfterTrainIter, at_iter(4, lambda: paused.append(runner.pause())))

    async def steer() -> None:
        await runner.message_hub.wait_until(lambda hub: hub.get_info("iter", 0) >= 4)
        while not paused:
            await anyio.lowlevel.checkpoint()
        assert (await paused[0]).iter == 5
        assert await runner.run_on_main_stream(lambda: runner.iter) == 5
        path = await runner.request_save("asked_for")
        assert path is not None
        assert path.name == "asked_for"
        assert (await runner.stop()).iter == 5

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(steer)
        await runner.train_async()
    assert runner.iter == 5
    assert "asked_for" in checkpoints(tmp_path)


async def test_a_paused_run_can_be_cancelled(tmp_path: Path) -> None:
    """It does not have to be woken first."""
    runner = make_runner(tmp_path)
    paused: list[Any] = []
    runner.bus.subscribe(AfterTrainIter, lambda: paused.append(runner.pause()), once=True)
    seen = record(runner.bus)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:

            async def cancel() -> None:
                while not paused:
                    await anyio.lowlevel.checkpoint()
                await paused[0]
                scope.cancel()

            tasks.start_soon(cancel)
            await runner.train_async()
    assert names(seen)[-1] == "AfterRun"
    assert runner.iter == 1


def test_controls_of_a_run_that_is_over_say_so(tmp_path: Path) -> None:
    """They name the run and what was asked."""
    runner = make_runner(tmp_path)
    for name in ("stop", "pause", "unpause"):
        with pytest.raises(RunEnded, match=rf"{name}\(\) cannot take effect: no run of"):
            getattr(runner, name)()


def test_a_stop_asked_for_at_the_very_end_is_answered(tmp_path: Path) -> None:
    """With the reason why it had no effect."""
    runner = make_runner(tmp_path)
    answers: list[Any] = []
    runner.bus.subscribe(AfterRun, lambda runner: answers.append(runner.stop()))
    runner.train()
    with pytest.raises(RunEnded, match=r"stop\(\)"):
        answers[0].result(0)


def test_a_skipped_validation_is_not_made_up_for(tmp_path: Path) -> None:
    """A hook said that it should not be."""
    runner = make_runner(tmp_path)

    def skip() -> None:
        raise Skip("not now")

    runner.bus.subscribe(BeforeVal, skip)
    runner.train()
    assert not runner.progress.validation_due


async def test_a_save_in_a_pause_inside_a_validation_is_refused_and_does_not_wait_for_ever(tmp_path: Path) -> None:
    """Weights may be swapped there; the error says what to do."""
    runner = make_runner(tmp_path, val_dataloader=make_loader(20))
    paused: list[Any] = []
    runner.bus.subscribe(AfterValIter, lambda: paused.append(runner.pause()), once=True)

    async def steer() -> None:
        while not paused:
            await anyio.lowlevel.checkpoint()
        await paused[0]
        with pytest.raises(WouldDeadlock, match=r"saving mine cannot take effect: the run is paused.*unpause it first"):
            await runner.request_save("mine")
        await runner.unpause()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(steer)
        await runner.train_async()
    assert runner.epoch == 2


def test_a_train_step_that_forgets_its_optimizer_is_told_so(tmp_path: Path) -> None:
    """Nothing would be learned, and nobody would notice."""

    class Forgetful(torch.nn.Linear):
        def train_step(self, batch: Any, optim_wrapper: Any) -> dict[str, Any]:
            return {"loss": torch.nn.functional.cross_entropy(self(batch[0]), batch[1])}

    runner = make_runner(tmp_path, model=Forgetful(4, 3))
    runner.train()
    assert "the optimizer took no step at all; does train_step call update_params?" in (runner.log_dir / "train.log").read_text()


def test_a_loop_cannot_begin_inside_itself(tmp_path: Path) -> None:
    """The error names the call that is going on."""
    runner = make_runner(tmp_path)
    runner.bus.subscribe(AfterTrainIter, lambda: runner.test(), once=True)
    with pytest.raises(RunAlreadyLive, match=r"test\(\) of 'run-.*' cannot begin: its train\(\) is going on"):
        runner.train()


def test_data_that_can_be_gone_through_once_only_is_named(tmp_path: Path) -> None:
    """A generator, which the second epoch finds empty."""
    runner = make_runner(tmp_path, train_dataloader=iter(list(make_loader(12))))
    with pytest.raises(EmptyDataLoader, match="an iterator, a list_iterator, which can be gone through only once"):
        runner.train()

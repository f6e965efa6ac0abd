"""Training as a good citizen of an event loop, on asyncio and on trio: free, cancellable, and leaving nothing behind."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from anyio.lowlevel import checkpoint

from hookbus.bus import EventBus
from hookbus.errors import RunAlreadyLive, RunEnded, WouldDeadlock
from hookbus.events import (
    AfterRun,
    AfterTestIter,
    AfterTrainEpoch,
    AfterTrainIter,
    AfterValIter,
    BeforeRun,
    BeforeTrain,
    BeforeTrainIter,
    BeforeVal,
    Event,
    MountPoint,
)
from hookbus.hub import MessageHub
from hookbus.mailbox import LoopHandle
from hookbus.runner import Runner
from tests.runner.builders import at_iter, make_loader, make_runner, names, record, same, unique_name, weights

LONG = dict(max_epochs=100_000)
"""Longer than any test would wait."""

trace_id: contextvars.ContextVar[str] = contextvars.ContextVar("trace_id", default="none")


class Broken(Exception):
    """What a failing handler raises."""


def make_endless(tmp_path: Path, **changes: Any) -> Runner:
    """Return a runner that trains until somebody ends it."""
    hooks = dict(checkpoint=None, logger=dict(interval=1000))
    return make_runner(tmp_path, **dict(train_cfg=LONG, val_dataloader=None, default_hooks=hooks) | changes)


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is true."""
    with anyio.fail_after(20):
        while not condition():  # noqa: ASYNC110  it may come true on another thread
            await anyio.sleep(0.001)


async def test_the_three_calls_give_what_their_blocking_forms_give(tmp_path: Path) -> None:
    """Weights bit for bit, metrics, and the order of events."""
    blocking = make_runner(tmp_path / "a")
    expected_events = record(blocking.bus)
    expected = [blocking.train(), blocking.val(), blocking.test()]
    runner = make_runner(tmp_path / "b")
    seen = record(runner.bus)
    assert [await runner.train_async(), await runner.val_async(), await runner.test_async()] == expected
    assert names(seen) == names(expected_events)
    assert same(weights(runner.model), weights(blocking.model))


async def test_training_runs_on_one_thread_of_its_own_and_async_handlers_on_the_callers_loop(tmp_path: Path) -> None:
    """Inline handlers all run on one other thread, which is joined; awaited ones on the thread of this loop."""
    inline, awaited = set[threading.Thread](), set[threading.Thread]()
    runner = make_runner(tmp_path)
    runner.bus.subscribe(MountPoint, lambda: inline.add(threading.current_thread()))

    async def note() -> None:
        awaited.add(threading.current_thread())

    runner.bus.subscribe(MountPoint, note)
    await runner.train_async()
    (trainer,) = inline
    assert trainer is not threading.current_thread()
    assert not trainer.is_alive()
    assert awaited == {threading.current_thread()}


async def test_the_event_loop_stays_free_while_a_model_trains(tmp_path: Path) -> None:
    """A ticking task gets its turns all along, also while a handler on the training thread is at work."""
    ticks = 0
    seen_while_blocked: list[bool] = []
    go_on = threading.Event()

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            if ticks == 50:
                go_on.set()
            await anyio.sleep(0.0005)

    runner = make_runner(tmp_path)
    runner.bus.subscribe(AfterTrainIter, lambda: seen_while_blocked.append(go_on.wait(20)), once=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tick)
        await runner.train_async()
        tasks.cancel_scope.cancel()
    assert seen_while_blocked == [True]


@pytest.mark.parametrize("has_awaited", [False, True])
async def test_cancelling_a_scope_stops_at_a_step_boundary(has_awaited: bool, tmp_path: Path) -> None:
    """`AfterRun` reaches everybody, also async handlers that wait; there is no `RunFailed`; nothing is left."""
    runner = make_endless(tmp_path)
    seen = record(runner.bus)
    closed: list[str] = []

    async def say_goodbye(event: AfterRun) -> None:
        await anyio.sleep(0.01)
        closed.append("async")

    async def note() -> None:
        await checkpoint()

    runner.bus.subscribe(AfterRun, say_goodbye)
    if has_awaited:
        runner.bus.subscribe(AfterTrainIter, note)
    with anyio.CancelScope() as scope:
        cancel = canceller(scope)
        runner.bus.subscribe(AfterTrainIter, at_iter(10, cancel))
        await runner.train_async()
    assert scope.cancelled_caught
    assert closed == ["async"]
    assert "RunFailed" not in names(seen)
    assert names(seen)[-1] == "AfterRun"
    assert names(seen).count("AfterRun") == 1
    iterations = [event.iter for event in seen if isinstance(event, AfterTrainIter)]
    assert runner.iter in (len(iterations), len(iterations) - 1)  # an awaited handler is cancelled where it waits
    assert not runner.is_training
    assert not runner.logger.handlers
    with pytest.raises(RunEnded):
        runner.stop()


def canceller(scope: anyio.CancelScope) -> Callable[[], object]:
    """Return a function that cancels a scope of this loop from another thread."""
    loop = LoopHandle.current()
    return lambda: loop.call_soon(scope.cancel)


@pytest.mark.parametrize("call", ["train_async", "val_async", "test_async"])
async def test_every_call_can_be_cancelled_soon(call: str, tmp_path: Path) -> None:
    """Also a long validation or test is left between two of its iterations."""
    endless = EndlessLoader()
    runner = make_endless(tmp_path, train_dataloader=endless, val_dataloader=endless, test_dataloader=endless)
    seen = record(runner.bus)
    with anyio.move_on_after(20) as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(getattr(runner, call))
            await until(lambda: len(seen) > 20)
            tasks.cancel_scope.cancel()
            endless.end_within(1000)
    assert not scope.cancelled_caught
    assert not endless.was_exhausted
    assert names(seen)[-1] == "AfterRun"
    assert "RunFailed" not in names(seen)
    assert runner.model.training


class EndlessLoader:
    """Yields the same batch until it is told to end, so that a test that fails does not hang."""

    def __init__(self) -> None:
        self._left: int | None = None
        self.was_exhausted = False
        (self._batch,) = make_loader(4)

    def end_within(self, batches: int) -> None:
        self._left = batches

    def __iter__(self) -> Any:
        while self._left is None or self._left > 0:
            yield tuple(self._batch)
            if self._left is not None:
                self._left -= 1
        self.was_exhausted = True


async def test_cancelling_wakes_a_handler_that_sleeps_for_ever(tmp_path: Path) -> None:
    """The coroutine is cancelled where it waits, and its clean-up runs."""
    cleaned: list[bool] = []
    asleep = anyio.Event()

    async def sleep() -> None:
        asleep.set()
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.append(True)

    runner = make_endless(tmp_path)
    seen = record(runner.bus)
    runner.bus.subscribe(AfterTrainIter, sleep)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(runner.train_async)
        with anyio.fail_after(20):
            await asleep.wait()
        tasks.cancel_scope.cancel()
    assert cleaned == [True]
    assert names(seen)[-1] == "AfterRun"
    assert "RunFailed" not in names(seen)


async def test_cancelling_before_the_run_has_begun_still_closes_it(tmp_path: Path) -> None:
    """A scope that is cancelled already when `train_async` is awaited."""
    runner = make_endless(tmp_path)
    seen = record(runner.bus)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await runner.train_async()
    assert scope.cancelled_caught
    assert names(seen)[-1:] in ([], ["AfterRun"])
    assert "RunFailed" not in names(seen)
    assert not runner.is_training


async def test_a_deadline_ends_a_run_like_any_cancellation(tmp_path: Path) -> None:
    """`move_on_after` around a training."""
    runner = make_endless(tmp_path)
    seen = record(runner.bus, AfterRun)
    with anyio.move_on_after(0.2) as scope:
        await runner.train_async()
    assert scope.cancelled_caught
    assert len(seen) == 1


def test_a_native_cancel_of_an_asyncio_task_stops_the_run(tmp_path: Path) -> None:
    """`task.cancel()` once, and a second time by somebody impatient; the task ends as cancelled."""

    async def main() -> None:
        runner = make_endless(tmp_path)
        seen = record(runner.bus)
        goodbyes: list[int] = []

        async def say_goodbye() -> None:
            await asyncio.sleep(0.01)
            goodbyes.append(1)

        runner.bus.subscribe(AfterRun, say_goodbye)
        task = asyncio.create_task(runner.train_async())
        await until(lambda: runner.iter > 5)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert goodbyes == [1]
        assert names(seen)[-1] == "AfterRun"
        assert "RunFailed" not in names(seen)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_wait_for_and_timeout_of_asyncio_work_on_a_run(tmp_path: Path) -> None:
    """Both are native cancellations with a meaning of their own, which must not get lost."""

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(make_endless(tmp_path / "a").train_async(), 0.2)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await make_endless(tmp_path / "b").train_async()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    asyncio.run(main())


@pytest.mark.parametrize("is_async", [False, True])
async def test_an_error_of_a_handler_arrives_as_itself(is_async: bool, tmp_path: Path) -> None:
    """Not in an exception group, with its note and with the line that raised in its traceback."""
    error = Broken("on purpose")

    def fail() -> None:
        raise error

    async def fail_later() -> None:
        await checkpoint()
        raise error

    runner = make_runner(tmp_path)
    seen = record(runner.bus)
    runner.bus.subscribe(AfterTrainIter, fail_later if is_async else fail, name="culprit")
    with pytest.raises(Broken) as caught:
        await runner.train_async()
    assert caught.value is error
    assert len(error.__notes__) == 1
    assert "while culprit handled AfterTrainIter(" in error.__notes__[0]
    assert caught.traceback[-1].name == ("fail_later" if is_async else "fail")
    assert names(seen)[-2:] == ["RunFailed", "AfterRun"]


async def test_a_handler_that_raises_a_group_gets_it_through_unchanged(tmp_path: Path) -> None:
    """A task group inside a handler fails with a group; that is the handler's error."""

    async def fail() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(broken)

    async def broken() -> None:
        raise Broken

    runner = make_runner(tmp_path)
    runner.bus.subscribe(AfterTrainIter, fail)
    with pytest.raises(ExceptionGroup) as caught:
        await runner.train_async()
    (inner,) = caught.value.exceptions
    assert isinstance(inner, Broken)


async def test_an_error_while_cancelling_is_not_lost(tmp_path: Path) -> None:
    """A handler of `AfterRun` fails while the run is being cancelled."""
    runner = make_endless(tmp_path)

    def fail() -> None:
        raise Broken("while closing")

    runner.bus.subscribe(AfterRun, fail)
    with pytest.raises((Broken, ExceptionGroup)) as caught:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runner.train_async)
            await until(lambda: runner.iter > 3)
            tasks.cancel_scope.cancel()
    assert isinstance(caught.value, ExceptionGroup)
    assert caught.value.subgroup(Broken) is not None


async def test_two_runs_at_once_in_one_loop_do_not_see_each_other(tmp_path: Path) -> None:
    """Each has its own hub, also where code asks for the current one."""
    found: dict[str, set[str]] = {}
    metrics: dict[str, Any] = {}
    runners = {part: make_runner(tmp_path / part, train_cfg=dict(max_epochs=3)) for part in "ab"}

    async def train(part: str) -> None:
        runner = runners[part]
        hubs = found.setdefault(runner.experiment_name, set())
        runner.bus.subscribe(AfterTrainIter, lambda: hubs.add(MessageHub.get_current_instance().name))

        async def note(hub: MessageHub) -> None:
            hubs.add(MessageHub.get_current_instance().name)
            await anyio.sleep(0.001)
            hubs.add(hub.name)

        runner.bus.subscribe(AfterTrainIter, note)
        metrics[part] = await runner.train_async()
        assert runner.message_hub.get_info("iter") == 9

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(train, "a")
        tasks.start_soon(train, "b")
    assert all(hubs == {name} for name, hubs in found.items())
    assert len(found) == 2
    assert metrics["a"] == metrics["b"]


async def test_one_runner_cannot_run_twice_at_once(tmp_path: Path) -> None:
    """The second call is refused, the first one goes on."""
    runner = make_endless(tmp_path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(runner.train_async)
        await until(lambda: runner.iter > 0)
        with pytest.raises(RunAlreadyLive):
            await runner.val_async() if runner.val_loop else await runner.test_async()
        assert runner.is_training
        runner.stop()


async def test_stop_from_a_task_is_acknowledged(tmp_path: Path) -> None:
    """The acknowledgement gives the step boundary at which it took effect."""
    runner = make_endless(tmp_path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(runner.train_async)
        await until(lambda: runner.iter > 5)
        answer = await runner.stop()
    assert answer.iter == runner.iter
    assert answer.epoch in (runner.epoch, runner.epoch - 1)  # behind the last batch, the epoch is still completed


async def test_awaiting_a_stop_inside_a_handler_is_refused_by_name(tmp_path: Path) -> None:
    """It could never come; the error ends the run instead of hanging it."""
    runner = make_endless(tmp_path)

    async def stop(runner: Runner) -> None:
        await runner.stop()

    runner.bus.subscribe(AfterTrainIter, stop)
    with anyio.fail_after(20), pytest.raises(WouldDeadlock, match="step boundary"):
        await runner.train_async()


async def test_a_task_that_a_handler_started_may_wait_for_a_stop(tmp_path: Path) -> None:
    """Training does not wait for it, so nothing is stuck."""
    runner = make_endless(tmp_path)
    answers: list[Any] = []

    async def stop_it() -> None:
        answers.append(await runner.stop())

    async with anyio.create_task_group() as tasks:

        async def start() -> None:
            tasks.start_soon(stop_it)

        runner.bus.subscribe(AfterTrainIter, start, once=True)
        with anyio.fail_after(20):
            await runner.train_async()
    (answer,) = answers
    assert answer.iter == runner.iter


async def test_functions_for_the_main_stream_run_on_the_training_thread(tmp_path: Path) -> None:
    """From a task, and from an awaited handler, which waits for them while training waits for it."""
    runner = make_endless(tmp_path)
    threads: list[set[int]] = [set(), set(), set()]
    runner.bus.subscribe(AfterTrainIter, lambda: threads[0].add(threading.get_ident()))

    async def ask(runner: Runner) -> None:
        threads[1].add(await runner.run_on_main_stream(threading.get_ident))

    runner.bus.subscribe(AfterTrainIter, ask)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(runner.train_async)
        await until(lambda: runner.iter > 2)
        threads[2].add(await runner.run_on_main_stream(threading.get_ident))
        with pytest.raises(ZeroDivisionError):
            await runner.run_on_main_stream(lambda: 1 / 0)
        runner.stop()
    assert threads[0] == threads[1] == threads[2]
    assert len(threads[0]) == 1
    with pytest.raises(RunEnded, match="run_on_main_stream"):
        runner.run_on_main_stream(threading.get_ident)


async def test_events_published_by_a_task_run_inline_handlers_on_the_training_thread(tmp_path: Path) -> None:
    """`await bus.publish(...)` has the training thread emit at its next safe point."""

    class Note(Event):
        text: str

    runner = make_endless(tmp_path)
    heard: list[tuple[str, int]] = []
    trainer: set[int] = set()
    runner.bus.subscribe(Note, lambda text: heard.append((text, threading.get_ident())))
    runner.bus.subscribe(AfterTrainIter, lambda: trainer.add(threading.get_ident()))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(runner.train_async)
        await until(lambda: runner.iter > 2)
        await runner.bus.publish(Note(text="hello"))
        runner.stop()
    assert heard == [("hello", trainer.pop())]


async def test_the_callers_context_reaches_the_training_thread_and_awaited_handlers(tmp_path: Path) -> None:
    """Context variables, grad mode, autocast, default device and default dtype are those of the caller."""
    seen: list[tuple[Any, ...]] = []

    def look() -> None:
        facts = (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"))
        seen.append((trace_id.get(), *facts, torch.get_default_dtype(), torch.zeros(()).device.type))

    async def look_later() -> None:
        await checkpoint()
        look()

    runner = make_runner(tmp_path)
    runner.bus.subscribe(BeforeVal, look)
    runner.bus.subscribe(BeforeVal, look_later)
    token = trace_id.set("request-7")
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad(), torch.autocast("cpu", torch.float16):
            await runner.val_async()
    finally:
        torch.set_default_dtype(dtype)
        trace_id.reset(token)
    assert seen == [("request-7", False, True, torch.float16, torch.float64, "cpu")] * 2
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("call", ["train", "train_async"])
async def test_the_callers_default_device_is_that_of_every_handler(call: str, tmp_path: Path) -> None:
    """Tensors that inline and awaited handlers make lie where those of the caller would."""
    devices: list[str] = []

    async def look() -> None:
        devices.append(torch.zeros(()).device.type)
        await checkpoint()
        devices.append(torch.zeros(()).device.type)

    runner = make_runner(tmp_path)
    runner.bus.subscribe(BeforeRun, lambda: devices.append(torch.zeros(()).device.type))
    runner.bus.subscribe(BeforeRun, look)
    runner.bus.subscribe(BeforeTrain, stop_at_once)
    torch.set_default_device("meta")
    try:
        result = getattr(runner, call)()
        if call == "train_async":
            await result
    except StopHere:
        pass
    finally:
        torch.set_default_device(None)
    assert devices == ["meta"] * 3
    assert torch.zeros(()).device.type == "cpu"


class StopHere(Exception):
    """Ends a run early."""


def stop_at_once() -> None:
    """End the run."""
    raise StopHere


@pytest.mark.parametrize(
    ("mode", "is_on"),
    [
        (torch.no_grad, lambda: not torch.is_grad_enabled()),
        (torch.inference_mode, torch.is_inference_mode_enabled),
        (lambda: torch.autocast("cpu", torch.bfloat16), lambda: torch.is_autocast_enabled("cpu")),
    ],
    ids=["no_grad", "inference_mode", "autocast"],
)
async def test_a_mode_that_a_handler_sets_does_not_leak_to_other_tasks(
    mode: Callable[[], Any], is_on: Callable[[], bool], tmp_path: Path
) -> None:
    """The handler waits inside the mode and comes back with it; other tasks and the training thread never see it."""
    elsewhere: set[bool] = set()
    inside: list[bool] = []
    on_trainer: set[bool] = set()
    turns = 0

    async def watch() -> None:
        nonlocal turns
        while True:
            elsewhere.add(is_on())
            turns += 1
            await anyio.sleep(0.0005)

    async def handler() -> None:
        with mode():
            before = turns
            inside.append(is_on())
            while turns < before + 3:  # noqa: ASYNC110  a task that knows nothing of this one counts them
                await anyio.sleep(0.0005)
            inside.append(is_on())
        inside.append(is_on())

    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=1))
    runner.bus.subscribe(AfterTrainIter, handler)
    runner.bus.subscribe(AfterTrainIter, lambda: on_trainer.add(is_on()), priority="LOWEST")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        await runner.train_async()
        tasks.cancel_scope.cancel()
    assert inside == [True, True, False] * 3
    assert elsewhere == {False}
    assert on_trainer == {False}
    assert not is_on()


async def test_a_mode_left_open_by_a_handler_stays_with_it(tmp_path: Path) -> None:
    """A handler that forgets to turn gradients on again spoils neither the loop nor the training."""

    async def forget() -> None:
        torch.set_grad_enabled(False)
        await checkpoint()

    runner = make_runner(tmp_path)
    runner.bus.subscribe(AfterTrainIter, forget)
    await runner.train_async()
    assert torch.is_grad_enabled()
    assert runner.epoch == 2


async def test_nothing_is_left_after_many_runs(tmp_path: Path) -> None:
    """No task, thread or live run; the thread-leak check of every test looks once more."""
    before = threading.active_count()
    for number in range(5):
        runner = make_runner(tmp_path / str(number), train_cfg=dict(max_epochs=1))

        async def note() -> None:
            await checkpoint()

        runner.bus.subscribe(AfterTrainEpoch, note)
        await runner.train_async()
    gc.collect()
    await until(lambda: threading.active_count() <= before)
    with pytest.raises(RunEnded, match="none"):
        MessageHub.get_current_instance()


async def test_a_named_bus_hears_a_run_of_another_task(tmp_path: Path) -> None:
    """A dashboard subscribes before the run exists and waits for a condition in its hub."""
    runner_name = unique_name()
    heard: list[int] = []
    EventBus.get_instance(runner_name).subscribe(AfterValIter, lambda iter: heard.append(iter))
    hub = MessageHub.get_instance(runner_name)
    reached: list[int] = []

    async def wait() -> None:
        reached.append(await hub.wait_until(lambda seen: seen.get_info("iter", 0) >= 4 and seen.get_info("iter")))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await make_runner(tmp_path, experiment_name=runner_name).train_async()
    assert heard == [3, 3, 6, 6]
    assert reached[0] >= 4


async def test_an_awaited_handler_of_a_test_iteration_is_waited_for(tmp_path: Path) -> None:
    """The order of a test is kept, too."""
    order: list[str] = []

    async def slow() -> None:
        await anyio.sleep(0.01)
        order.append("slow")

    runner = make_runner(tmp_path)
    runner.bus.subscribe(AfterTestIter, slow, priority="HIGH")
    runner.bus.subscribe(AfterTestIter, lambda: order.append("fast"), priority="LOW")
    await runner.test_async()
    assert order == ["slow", "fast"]


async def test_a_stop_before_the_first_step_is_done_after_it(tmp_path: Path) -> None:
    """The first boundary comes behind the first iteration."""
    runner = make_endless(tmp_path)
    runner.bus.subscribe(BeforeTrainIter, lambda runner: runner.stop(), once=True)
    await runner.train_async()
    assert runner.iter == 1

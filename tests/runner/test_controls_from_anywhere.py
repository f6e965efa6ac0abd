"""Controls from wherever code can run, whenever a run is there: all are answered, none hangs, on both backends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch

from hookbus.bus import EventBus
from hookbus.errors import PublishDepthExceeded, RunEnded
from hookbus.events import AfterRun, AfterTrain, AfterTrainIter, BeforeRun, BeforeTrain, BeforeTrainIter, ControlApplied, Event
from hookbus.runner import Runner
from tests.runner.builders import at_iter, make_loader, make_runner, record

PATIENCE = 30
CONTROLS = ("pause", "unpause", "save", "validate", "set_lr", "stop")


class Told(Event):
    """Something that a handler of the user's own hears."""


def ask(runner: Runner, control: str) -> Any:
    """Call a control."""
    return runner.set_lr(0.05) if control == "set_lr" else getattr(runner, control)()


def on_a_thread(function: Callable[[], Any]) -> None:
    """Call a function on a thread and wait for it."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def by_signal(function: Callable[[], Any]) -> None:
    """Call a function in the handler of a signal."""
    before = signal.signal(signal.SIGUSR1, lambda *_: function())
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


def from_an_awaited_handler(runner: Runner, function: Callable[[], Any]) -> None:
    """Call a function in a coroutine that training waits for."""

    async def handler() -> None:
        function()

    runner.bus.subscribe(AfterTrainIter, handler, once=True)


PLACES: dict[str, Callable[[Runner, Callable[[], Any]], Any]] = {
    "an inline handler": lambda runner, function: runner.bus.subscribe(AfterTrainIter, lambda: function(), once=True),
    "an awaited handler": from_an_awaited_handler,
    "a thread": lambda runner, function: runner.bus.subscribe(BeforeTrainIter, lambda: on_a_thread(function), once=True),
    "a signal handler": lambda runner, function: runner.bus.subscribe(BeforeTrainIter, lambda: by_signal(function), once=True),
    "the main stream": lambda runner, function: runner.bus.subscribe(
        BeforeTrain, lambda: runner.run_on_main_stream(function).forgive(), once=True
    ),
    "a posted event": lambda runner, function: (
        runner.bus.subscribe(Told, lambda: function()),
        runner.bus.subscribe(BeforeTrainIter, lambda: runner.bus.post(Told()), once=True),
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_all_controls_work_from_everywhere(place: str, tmp_path: Path, anyio_backend_name: str) -> None:
    """They take effect in the order of asking within one iteration, and are published."""
    runner = make_runner(tmp_path)
    answers: list[Any] = []
    PLACES[place](runner, lambda: answers.extend(ask(runner, control) for control in CONTROLS[:-1]))
    seen = record(runner.bus, ControlApplied)
    runner.train(backend=anyio_backend_name)  # type: ignore[arg-type]
    assert [answer.result(0)[:2] for answer in answers] == [(0, 1)] * 5
    assert [event.control for event in seen if isinstance(event, ControlApplied)] == list(CONTROLS[:-1])
    assert runner.iter == 6


@pytest.mark.parametrize("place", PLACES)
def test_a_stop_takes_effect_within_one_iteration(place: str, tmp_path: Path) -> None:
    """Counted, not timed."""
    runner = make_runner(tmp_path)
    PLACES[place](runner, lambda: runner.stop())
    runner.train()
    assert runner.iter == 1


@pytest.mark.parametrize("place", [place for place in PLACES if place != "a signal handler"])
async def test_a_pause_from_anywhere_ends_when_a_task_says_so(place: str, tmp_path: Path) -> None:
    """While it lasts, no iteration is trained; what is asked for takes effect in it."""
    runner = make_runner(tmp_path)
    asked = threading.Event()
    answers: list[Any] = []

    def pause() -> None:
        answers.append(runner.pause())
        asked.set()

    PLACES[place](runner, pause)

    async def steer() -> None:
        await anyio.to_thread.run_sync(asked.wait)
        assert (await answers[0]).iter == 1
        assert (await runner.save("in_the_pause")).path == tmp_path / "checkpoints" / "in_the_pause"
        assert (await runner.validate()).metrics["loss"] > 0
        assert (await runner.set_lr(0.05)).iter == 1
        assert await runner.run_on_main_stream(lambda: runner.iter) == 1
        await runner.unpause()

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(steer)
            await runner.train_async()
    assert runner.iter == 6


# when


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize(("when", "iteration"), [(BeforeRun, 1), (BeforeTrain, 1), (AfterTrain, 6)])
def test_a_control_at_the_edge_of_a_run_takes_effect_at_the_nearest_boundary(
    when: Any, iteration: int, control: str, tmp_path: Path
) -> None:
    """Before the first one, and at the last one behind training."""
    runner = make_runner(tmp_path, log_level="WARNING")
    answers: list[Any] = []
    runner.bus.subscribe(when, lambda: answers.extend([ask(runner, control), runner.unpause()]))
    runner.train()
    assert answers[0].result(0).iter == iteration
    assert runner.iter == (1 if control == "stop" and iteration == 1 else 6)


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_that_comes_too_late_is_refused(control: str, tmp_path: Path) -> None:
    """In the last event by its acknowledgement, after the end at once."""
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=1), log_level="WARNING")
    answers: list[Any] = []
    runner.bus.subscribe(AfterRun, lambda: answers.append(ask(runner, control)))
    runner.train()
    with pytest.raises(RunEnded, match=rf"{control}\(\) cannot take effect: the run ends, no step boundary follows"):
        answers[0].result(0)
    with pytest.raises(RunEnded, match=rf"{control}\(\) cannot take effect: no run of"):
        ask(runner, control)


def test_a_hundred_threads_at_once_are_all_answered(tmp_path: Path) -> None:
    """Each with its own control; the last unpause is behind the last pause."""
    runner = make_runner(tmp_path, train_cfg=dict(by_epoch=False, max_iters=10**6, val_interval=10**6), log_level="WARNING")
    begun = threading.Event()
    runner.bus.subscribe(AfterTrainIter, lambda: begun.set(), once=True)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            begun.wait(PATIENCE)
            control = CONTROLS[number % 5]
            ask(runner, control).result(PATIENCE)
            if control == "pause":
                runner.unpause().result(PATIENCE)
        except BaseException as error:  # noqa: BLE001  shown below
            failures.append(error)

    def end() -> None:
        for thread in threads:
            thread.join(PATIENCE)
        runner.stop()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(100)]
    ending = threading.Thread(target=end)
    for thread in (*threads, ending):
        thread.start()
    runner.train()
    ending.join()
    assert failures == []


# nested


def test_nested_publishes_end_at_the_depth_limit_and_controls_go_on(tmp_path: Path, anyio_backend_name: str) -> None:
    """Awaited handlers that publish what they hear: an error names it, nothing hangs."""
    runner = make_runner(tmp_path)

    async def echo(event: Told) -> None:
        await runner.bus.publish(Told())

    async def begin() -> None:
        with pytest.raises(PublishDepthExceeded):
            await runner.bus.publish(Told())
        runner.set_lr(0.01)

    runner.bus.subscribe(Told, echo)
    runner.bus.subscribe(AfterTrainIter, begin, once=True)
    runner.train(backend=anyio_backend_name)  # type: ignore[arg-type]
    wrapper: Any = runner.optim_wrapper
    assert wrapper.optimizer.param_groups[0]["lr"] == 0.01
    assert runner.iter == 6


def test_an_awaited_handler_that_asks_the_main_stream_is_served_at_every_depth(tmp_path: Path, anyio_backend_name: str) -> None:
    """Training waits for it, and serves it while it waits; what it runs there may publish again."""
    runner = make_runner(tmp_path)
    depths: list[int] = []

    async def deeper(event: Told, bus: EventBus = runner.bus) -> None:
        depths.append(len(depths))
        if len(depths) < 5:
            await runner.run_on_main_stream(lambda: bus.emit(Told()))

    runner.bus.subscribe(Told, deeper)
    runner.bus.subscribe(AfterTrainIter, lambda: runner.bus.emit(Told()), once=True)
    runner.train(backend=anyio_backend_name)  # type: ignore[arg-type]
    assert depths == [0, 1, 2, 3, 4]


# other people's bugs


class Waiting:
    """Three batches; what is done before one of them arrives is up to the test."""

    num_workers = 1

    def __init__(self, action: Callable[[], Any]) -> None:
        self._action = action
        self._batches = list(make_loader(12))

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self._batches):
            if number == 2:
                self._action()
            yield batch


@pytest.mark.parametrize(
    ("where", "iterations"), [("warm-up", 1), ("data wait", 2), ("evaluation", 3), ("first compile", 1), ("a paused run", 2)]
)
def test_spd_677_a_stop_is_honoured_in_every_phase(where: str, iterations: int, tmp_path: Path) -> None:
    """https://github.com/goodfire-ai/spd/issues/677: a flag that is read only between steps was missed; here each phase looks."""
    box: dict[str, Runner] = {}

    def stop() -> None:
        box["runner"].stop()

    class Model(torch.nn.Linear):
        calls = 0

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            Model.calls += 1
            if where == "first compile" and Model.calls == 1:
                stop()
            return super().forward(inputs)

    changes: dict[str, Any] = {"train_dataloader": Waiting(stop)} if where == "data wait" else {}
    runner = box["runner"] = make_runner(tmp_path, model=Model(4, 3), val_dataloader=make_loader(40), **changes)
    if where == "warm-up":
        runner.bus.subscribe(BeforeTrain, stop)
    if where == "evaluation":
        runner.register_hook(StopInValidation())
    if where == "a paused run":
        runner.bus.subscribe(AfterTrainIter, at_iter(1, lambda: (runner.pause(), runner.stop())))
    runner.train()
    assert runner.iter == iterations


class StopInValidation:
    """Stops in the first batch of a validation."""

    def after_val_iter(self, runner: Runner, batch_idx: int) -> None:
        """No second batch follows."""
        assert batch_idx == 0
        runner.stop()


async def test_onetrainer_1621_a_paused_run_keeps_its_model_for_a_look_and_goes_on_exactly(tmp_path: Path) -> None:
    """https://github.com/Nerogar/OneTrainer/issues/1621: pause, try the model by hand, continue, and nothing has changed."""
    straight, runner = make_runner(tmp_path / "straight"), make_runner(tmp_path / "paused")
    await straight.train_async()
    paused = threading.Event()
    runner.bus.subscribe(AfterTrainIter, at_iter(2, lambda: [runner.pause(), paused.set()]))  # type: ignore[func-returns-value]

    async def look() -> None:
        await anyio.to_thread.run_sync(paused.wait)
        assert (await runner.run_on_main_stream(lambda: runner.model(torch.ones(1, 4)).shape)) == (1, 3)
        await runner.unpause()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look)
        await runner.train_async()
    assert all(torch.equal(a, b) for a, b in zip(runner.model.parameters(), straight.model.parameters(), strict=True))


def test_rf_detr_1209_a_new_learning_rate_takes_effect_in_mid_run(tmp_path: Path) -> None:
    """https://github.com/roboflow/rf-detr/issues/1209: nobody has to edit a checkpoint for it."""
    runner = make_runner(tmp_path, param_scheduler=dict(type="StepLR", step_size=1, gamma=0.5))
    runner.bus.subscribe(AfterTrainIter, at_iter(1, lambda: runner.set_lr(0.4)))
    runner.train()
    assert list(runner.message_hub.get_scalar("train/lr").data[0]) == pytest.approx([0.1, 0.1, 0.4, 0.2, 0.2, 0.2])

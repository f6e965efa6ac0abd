"""SIGINT and SIGTERM: one stops the run at a step boundary with its last checkpoint, two at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hookbus.checkpoint import load_checkpoint
from hookbus.events import AfterRun, AfterTrainIter, AfterValIter, BeforeTrainIter
from hookbus.runner import Runner
from tests.checkpoint.builders import assert_same
from tests.runner.builders import checkpoints, make_runner, names, record
from tests.runner.learners import final_state, make_learner

ENDS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}


@pytest.fixture(autouse=True)
def python_handles_interrupts() -> Iterator[None]:
    """As it does unless the tests were started in the background of a shell, which has SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def send(number: int, times: int = 1) -> None:
    """Send a signal to this process."""
    for _ in range(times):
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", ENDS, ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("where", [BeforeTrainIter, AfterTrainIter, AfterValIter])
def test_a_signal_stops_the_run_and_then_has_its_effect(where: Any, number: signal.Signals, tmp_path: Path) -> None:
    """The run ends as after a stop, with its last checkpoint; the handlers are those that were there before."""
    before = [signal.getsignal(each) for each in ENDS]
    runner = make_runner(tmp_path)
    runner.bus.subscribe(where, lambda: send(number), once=True)
    seen = record(runner.bus)
    with pytest.raises(ENDS[number]) as caught:
        runner.train()
    if number == signal.SIGTERM:
        assert caught.value.code == 143  # type: ignore[attr-defined]
    assert names(seen)[-1] == "AfterRun"
    assert "AfterTrain" in names(seen)
    assert "RunFailed" not in names(seen)
    assert checkpoints(tmp_path) == (["epoch_1"] if where is AfterValIter else ["iter_1"])
    assert [signal.getsignal(each) for each in ENDS] == before


def test_a_run_that_was_interrupted_goes_on_exactly(tmp_path: Path) -> None:
    """In the middle of an epoch, while gradients are being accumulated."""
    make_learner(tmp_path / "straight").train()
    runner = make_learner(tmp_path)
    runner.bus.subscribe(AfterTrainIter, lambda: send(signal.SIGTERM), when=lambda event: event.iter == 4)
    with pytest.raises(SystemExit):
        runner.train()
    assert load_checkpoint(tmp_path / "checkpoints" / "iter_5")["progress"]["iter"] == 5
    make_learner(tmp_path, resume=True).train()
    assert_same(final_state(tmp_path, "epoch_3"), final_state(tmp_path / "straight", "epoch_3"))


def test_a_second_signal_takes_effect_at_once(tmp_path: Path) -> None:
    """Inside the handler that runs; the closing events still come, and what was committed stays."""
    runner = make_runner(tmp_path)
    behind: list[str] = []

    def impatient() -> None:
        send(signal.SIGINT, times=2)
        behind.append("not reached")

    runner.bus.subscribe(AfterTrainIter, impatient, when=lambda event: event.iter == 4)
    seen = record(runner.bus)
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    assert behind == []
    assert names(seen)[-2:] == ["RunFailed", "AfterRun"]
    assert checkpoints(tmp_path) == ["epoch_1"]


def test_a_paused_run_is_woken_by_a_signal(tmp_path: Path) -> None:
    """Nobody has to unpause it first."""
    runner = make_runner(tmp_path)
    paused: list[Any] = []
    runner.bus.subscribe(AfterTrainIter, lambda: paused.append(runner.pause()), once=True)

    def interrupt() -> None:
        while not paused:
            pass
        paused[0].result(30)
        send(signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    thread.join()
    assert runner.iter == 1


def test_handlers_of_the_user_are_left_alone(tmp_path: Path) -> None:
    """Whoever handles a signal decides what it means, by a stop for instance."""
    runner = make_runner(tmp_path)
    heard: list[int] = []

    def handle(number: int, frame: Any) -> None:
        heard.append(number)
        runner.stop()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        runner.bus.subscribe(AfterTrainIter, lambda: send(signal.SIGTERM), once=True)
        runner.train()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    assert runner.iter == 1


async def test_a_run_inside_a_service_leaves_signals_to_it(tmp_path: Path) -> None:
    """Unless it is told otherwise."""
    runner = make_runner(tmp_path)
    handlers: list[Any] = []

    def look(runner: Runner) -> None:
        handlers.append(signal.getsignal(signal.SIGTERM))

    runner.bus.subscribe(AfterRun, look)
    outside = signal.getsignal(signal.SIGTERM)
    await runner.train_async()
    assert handlers == [outside]


async def test_a_run_inside_a_service_may_handle_signals(tmp_path: Path) -> None:
    """Then the first one stops it, and the awaiting task is told what came."""
    hooks = dict(checkpoint=dict(interval=-1), logger=None)
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=100_000, val_interval=100_000), default_hooks=hooks)
    runner.bus.subscribe(AfterTrainIter, lambda: send(signal.SIGTERM), once=True)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        await runner.train_async(handle_signals=True)
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(checkpoints(tmp_path)) == 1  # in the middle of an epoch or at its end, wherever the signal arrived


PROGRAM = """
import sys, pathlib
from tests.runner.builders import make_runner
from hookbus.events import AfterTrainIter
if __name__ == "__main__":
    runner = make_runner(pathlib.Path(sys.argv[1]), train_cfg=dict(max_epochs=100_000), log_level="ERROR",
                         default_hooks=dict(checkpoint=dict(interval=-1), logger=None))
    runner.bus.subscribe(AfterTrainIter, lambda: print("training", flush=True), once=True)
    runner.train()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)], ids=["SIGTERM", "SIGINT"])
def test_the_exit_code_of_a_script_tells_the_truth(number: int, code: int, tmp_path: Path) -> None:
    """143 for SIGTERM; a script that dies of SIGINT is seen as such by its shell, as 130."""
    script = tmp_path / "train.py"
    script.write_text(PROGRAM, encoding="utf-8")
    command = [sys.executable, str(script), str(tmp_path / "work")]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], env={"PYTHONPATH": "."}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"training\n"
        process.send_signal(number)
        assert process.wait(60) == code
    assert len(checkpoints(tmp_path / "work")) == 1

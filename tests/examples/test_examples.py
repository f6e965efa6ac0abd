"""Every example runs, in a process of its own, shortened, with warnings as errors."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import NamedTuple, TypeAlias

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


class Call(NamedTuple):
    """One way to run an example."""

    example: str
    arguments: tuple[str, ...]
    expected: tuple[str, ...]
    """Patterns, each of which some line of its output matches from its start."""


CALLS = (
    Call(
        "digits.py",
        ("--epochs", "2"),
        (
            r"best checkpoint: .*runs/digits/checkpoints/best_accuracy_epoch_\d$",
            r"test/accuracy: 0\.\d{4}$",
        ),
    ),
    Call(
        "custom_hook.py",
        ("--epochs", "2"),
        (
            r"    \(ABOVE_NORMAL 40\) +LossTrendHook\.after_train_iter$",
            r"report 1 to the lab: the lowest loss after epoch 2 is 0\.\d{4}$",
            r"signed: epoch_2, seen by LossTrendHook$",
            r"kept in runs/custom_hook/checkpoints/epoch_2: \{'lowest': 0\.\d+, 'reports': 1\}$",
        ),
    ),
    Call(
        "trio_service.py",
        ("--epochs", "2", "--port", "0"),
        (
            r"serving on http://127\.0\.0\.1:\d+$",
            r"trained for 2 epochs, 64 iterations$",
        ),
    ),
    *(
        Call(
            "async_subscriber.py",
            ("--epochs", "1", "--backend", backend),
            (
                r"  3\. low, inline: +iteration 60 was sent as message m0060$",
                r"trained for 64 iterations, while the heartbeat beat [1-9]\d* times$",
            ),
        )
        for backend in ("asyncio", "trio")
    ),
    Call(
        "detached_reader.py",
        ("--epochs", "4"),
        (
            r"\[task\] version \d+: loss \d\.\d{4}$",
            r"\[thread\] 4 epochs are done, the newest 64 losses average \d\.\d{4}$",
            r"\[thread\] the run ended with version \d+: iteration 256, .*train/loss",
        ),
    ),
    Call(
        "bare_loop.py",
        ("--iters", "60"),
        (
            r"    \(NORMAL 50\) +announce  \[awaited\]$",
            r"iteration    1: the loss has halved to \d+\.\d{5}$",
            r"record \(inline\) was called 60 times, failed 0 times$",
        ),
    ),
    Call(
        "custom_event.py",
        ("--epochs", "3"),
        (
            r'the first one as JSON: \{"event":"__main__:LossRecord","iter":0,"loss":\d+\.\d+,"fell_by":1\.0\}$',
            r"iteration +\d+: record \d+\.\d{4}$",
            r"iteration +\d+: down by \d\d% in epoch [123]$",
            r"report: the lowest mean loss was 0\.\d{4}, 96 iterations are done; archived as custom_event, behind 1 line\(s\)$",
        ),
    ),
    Call(
        "gan.py",
        ("--epochs", "5"),
        (
            r"epoch   5: the discriminator is right in 0\.[4-9]\d, mean 0\.[23]\d\d \(data 0\.306\), spread 0\.[012]\d\d",
            r"generator: 5 epochs, learning rate now 0\.000100$",
            r"discriminator: 5 epochs, learning rate now 0\.\d+$",
        ),
    ),
    Call(
        "iterations.py",
        ("--iters", "250"),
        (
            r"learning rate at iteration 50: 0\.\d+, 100: 0\.\d+, 150: 0\.\d+, 200: 0\.\d+, 250: 0\.00000$",
            r"validated after 100, 200, 250 iterations$",
            r"validation loss at the end: 0\.0\d+$",
            r"checkpoints: best_loss_iter_250, iter_250$",
            r"for TensorBoard: events\.out\.tfevents\.\.\.$",
        ),
    ),
    Call(
        "resume.py",
        ("--epochs", "4"),
        (
            r"part 1: stopped after 2 epochs$",
            r"part 2: went on to 4 epochs, 128 iterations$",
            r"the weights are equal, bit for bit: True$",
            r"damaged epoch_4: went on from epoch_3 instead$",
            r"checkpoints: epoch_3, epoch_4$",
            r"set aside: epoch_4$",
        ),
    ),
)
"""Every example that ends by itself, with what shortens it and the essence of its output."""

SERVED = ("async_service.py",)
"""Those that go on until they are told to end; `test_services.py` runs them."""


class Outcome(NamedTuple):
    """What came of running an example, and where."""

    process: subprocess.CompletedProcess[str]
    directory: Path


Outcomes: TypeAlias = Callable[[Call], Outcome]


def run_example(call: Call, directory: Path) -> Outcome:
    """Run an example with `directory` as the current one."""
    process = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / call.example), *call.arguments],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    return Outcome(process, directory)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcomes]:
    """Run an example when it is asked for, and the next one meanwhile: most of their time is the import of torch."""
    running: dict[Call, Future[Outcome]] = {}
    with ThreadPoolExecutor(max_workers=2) as pool:
        all_there = Barrier(2)
        list(pool.map(lambda _: all_there.wait(), range(2)))  # no test is to find threads that were not there before it

        def outcome(call: Call) -> Outcome:
            here = CALLS.index(call)
            for each in CALLS[here : here + 2]:
                if each not in running:
                    running[each] = pool.submit(run_example, each, tmp_path_factory.mktemp("run"))
            return running[call].result()

        yield outcome
        pool.shutdown(cancel_futures=True)


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS, ids=lambda call: " ".join([call.example, *call.arguments]))
def test_an_example_runs_and_shows_what_it_promises(outcomes: Outcomes, call: Call) -> None:
    """It ends well, without a warning or a failed thread, and prints its essential lines."""
    process, _ = outcomes(call)

    assert (process.returncode, "Traceback" in process.stderr) == (0, False), process.stdout + process.stderr
    assert missing_lines(call, process.stdout) == [], process.stdout


@pytest.mark.slow
def test_the_digits_example_names_a_checkpoint_that_exists(outcomes: Outcomes) -> None:
    """The path behind `best checkpoint:` leads to a complete checkpoint."""
    process, directory = outcomes(next(call for call in CALLS if call.example == "digits.py"))
    named = re.search(r"^best checkpoint: (.+)$", process.stdout, re.MULTILINE)

    assert named is not None
    assert (directory / named[1] / "manifest.json").is_file()


def test_every_example_is_run() -> None:
    """Each file of the examples stands in the table of calls or among the services, and nothing else does."""
    assert differences([*(call.example for call in CALLS), *SERVED], EXAMPLES) == set()


def test_an_example_that_nobody_runs_is_reported(tmp_path: Path) -> None:
    """A file without a call, and a call without a file, are both differences."""
    (tmp_path / "forgotten.py").touch()

    assert differences(["removed.py"], tmp_path) == {"forgotten.py", "removed.py"}


def test_a_line_that_does_not_appear_is_reported() -> None:
    """A pattern counts as found only where a line begins with it."""
    call = Call("some.py", (), (r"loss: \d$", r"accuracy: \d$"))

    assert missing_lines(call, "loss: 1\nthe accuracy: 2\n") == [r"accuracy: \d$"]


def differences(known: Collection[str], directory: Path) -> set[str]:
    """Return the examples that are in only one of the table and the directory."""
    return set(known) ^ {path.name for path in directory.glob("*.py")}


def missing_lines(call: Call, output: str) -> list[str]:
    """Return the patterns of a call that no line of its output matches."""
    lines = output.splitlines()
    return [pattern for pattern in call.expected if not any(re.match(pattern, line) for line in lines)]

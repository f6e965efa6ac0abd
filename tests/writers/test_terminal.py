"""TerminalWriter: plain lines for programs, and a progress bar for people."""

from __future__ import annotations

import io
import logging
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.live import Live

from hookbus.errors import ConfigError
from hookbus.writers import Record, RunPlace, RunPosition, TerminalWriter
from hookbus.writers._live_line import CLEAR
from hookbus.writers._progress_line import ProgressLine
from tests.writers.terminals import logger_on, terminal

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


@pytest.fixture(autouse=True)
def an_ordinary_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test depend on where the suite runs."""
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def position(**facts: Any) -> RunPosition:
    """Return a place in the middle of a run."""
    usual: dict[str, Any] = dict(mode="train", epoch=2, max_epochs=20, iter=250, max_iters=1000, batch=0, num_batches=None)
    return RunPosition(**usual | facts)


def line(number: int = 1, **facts: Any) -> Record:
    """Return a line of training."""
    usual: dict[str, Any] = dict(mode="train", epoch=3, iter=number, values={"loss": 0.5, "lr": 0.001, "eta": 61.0})
    return Record(**usual | dict(text=f"line {number}") | facts)


def place(logger: logging.Logger, at: Callable[[], RunPosition] | None = position) -> RunPlace:
    """Return where a run logs to."""
    return RunPlace(logger=logger, log_dir=Path(), position=at)


def drawn(at: RunPosition, width: int = 100, record: Record | None = None, encoding: str = "utf-8") -> str:
    """Return the line as text."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    progress = ProgressLine(lambda: at, clock=lambda: 0.0)
    progress.learn(record or line())
    with console.capture() as capture:
        console.print(progress, end="")
    return capture.get()


@pytest.mark.parametrize(
    ("at", "begin", "fraction"),
    [
        (position(), "Epoch 3/20 ", " 250/1000 "),
        (position(epoch=20, iter=1000), "Epoch 20/20 ", " 1000/1000 "),
        (position(max_epochs=None), "Training ", " 250/1000 "),
        (position(max_iters=None), "Epoch 3/20 ", " 250/? "),
        (position(mode="val", batch=7, num_batches=27), "Validation ", "  7/27 "),
        (position(mode="test", batch=7), "Test ", " 7/? "),
        (position(mode=None), "Epoch 3/20 ", " 250/1000 "),
    ],
)
def test_the_bar_says_how_far_the_run_is(at: RunPosition, begin: str, fraction: str) -> None:
    """In training over the whole run, in a validation over its batches."""
    text = drawn(at)
    assert text.startswith(begin)
    assert fraction in text
    assert text.endswith("  loss 0.5000  lr 1.00e-03  eta 0:01:01")


@pytest.mark.parametrize(("iteration", "full"), [(0, 0), (250, 10), (500, 20), (1000, 40), (2000, 40)])
def test_the_bar_is_as_long_as_its_share(iteration: int, full: int) -> None:
    """Forty columns where there is room."""
    text = drawn(position(iter=iteration), width=140, encoding="ascii")
    assert text.count("=") == full


@pytest.mark.parametrize("width", [10, 20, 40, 60, 80, 200])
def test_the_bar_never_takes_more_than_one_line(width: int) -> None:
    """So that drawing it anew erases nothing else."""
    text = drawn(position(), width=width)
    assert "\n" not in text
    assert len(text) < width


@pytest.mark.parametrize(
    "values", [{}, {"loss": None, "lr": "?", "eta": float("inf")}, {"eta": float("nan")}, {"loss": float("nan")}]
)
def test_values_that_are_missing_or_odd_are_no_trouble(values: dict[str, Any]) -> None:
    """They are left out, or shown as they are."""
    text = drawn(position(), record=line(values=values))
    assert "250/1000" in text
    assert "eta" not in text


def test_names_may_have_their_mode(tmp_path: Path) -> None:
    """As `log_with_hierarchy` gives them."""
    assert "loss 0.2500" in drawn(position(), record=line(values={"train/loss": 0.25}))


def test_the_time_left_runs_down_between_two_lines() -> None:
    """And never below nothing."""
    now = [0.0]
    progress = ProgressLine(position, clock=lambda: now[0])
    progress.learn(line())
    found = []
    for now[0] in (1.0, 60.0, 1000.0):
        console = Console(file=io.StringIO(), width=100)
        with console.capture() as capture:
            console.print(progress)
        found.append(capture.get().rpartition("eta ")[2].strip())
    assert found == ["0:01:00", "0:00:01", "0:00:00"]


def test_on_a_terminal_lines_stand_above_the_bar_and_nothing_is_left_of_it() -> None:
    """Complete, in order, and the cursor is back."""
    with terminal() as (stream, screen):
        writer, logger = TerminalWriter(), logger_on(stream)
        writer.open(place(logger))
        assert screen.shows("Epoch 3/20")
        for number in range(5):
            writer.write(line(number, text=f"line {number} " + "x" * 200 * (number == 3)))
        logger.info("a line of somebody else")
        assert screen.shows("0:01:0")
        writer.close()
        logger.info("the end")
    assert "".join(screen.lines()) == "line 0 line 1 line 2 line 3 " + "x" * 200 + "line 4 a line of somebody elsethe end"
    assert screen.raw.rindex(SHOW_CURSOR) > screen.raw.rindex(HIDE_CURSOR)


def test_the_bar_moves_between_two_lines() -> None:
    """It asks how far the run is, ten times a second at most."""
    asked: list[int] = []

    def at() -> RunPosition:
        asked.append(len(asked))
        return position(iter=len(asked))

    with terminal() as (stream, screen):
        writer = TerminalWriter()
        writer.open(place(logger_on(stream), at))
        assert screen.shows(" 4/1000")
        writer.close()


@pytest.mark.parametrize(
    ("progress", "environment", "is_shown"),
    [
        ("auto", {}, True),
        ("auto", {"CI": "true"}, False),
        ("auto", {"CI": "false"}, True),
        ("auto", {"TERM": "dumb"}, False),
        (True, {"CI": "true"}, True),
        (False, {}, False),
    ],
)
def test_the_bar_is_for_people(progress: Any, environment: dict[str, str], is_shown: bool, monkeypatch: Any) -> None:
    """Where a program reads the terminal it gets plain lines."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with terminal() as (stream, screen):
        writer = TerminalWriter(progress)
        writer.open(place(logger_on(stream)))
        writer.write(line())
        assert screen.shows("line 1")
        writer.close()
    assert ("Epoch 3/20" in screen.raw) == is_shown
    assert screen.lines() == ["line 1"]


def test_no_colour_means_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar is there, without any."""
    monkeypatch.setenv("NO_COLOR", "1")
    with terminal() as (stream, screen):
        writer = TerminalWriter()
        writer.open(place(logger_on(stream)))
        assert screen.shows("Epoch 3/20")
        writer.close()
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", screen.raw)


def test_in_a_pipe_there_are_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a program says that it wants colours, and where the bar was asked for."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    pipe = io.StringIO()
    writer = TerminalWriter(progress=True)
    writer.open(place(logger_on(pipe)))
    writer.write(line())
    writer.show(line(text="Epoch(val)  [2/5]", is_progress=True))
    writer.close()
    assert pipe.getvalue() == "line 1\nEpoch(val)  [2/5]\n"


def test_two_runs_share_a_terminal() -> None:
    """The first has the bar; every line of both is complete, and the second one after it may have the bar."""
    with terminal() as (stream, screen):
        first, second = TerminalWriter(), TerminalWriter()
        loggers = [logger_on(stream), logging.Logger(name="second")]  # noqa: LOG001
        loggers[1].addHandler(logging.StreamHandler(stream))
        first.open(place(loggers[0]))
        second.open(place(loggers[1], lambda: position(max_epochs=7)))
        threads = [threading.Thread(target=write_many, args=pair) for pair in ((first, "first"), (second, "second"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        first.close()
        second.close()
        second.open(place(loggers[1], lambda: position(max_epochs=7)))
        assert screen.shows("Epoch 3/7")
        second.close()
    found = screen.lines()
    for name in ("first", "second"):
        assert [line for line in found if line.startswith(name)] == [f"{name} {number}" for number in range(100)]
    assert len(found) == 200


def write_many(writer: TerminalWriter, name: str) -> None:
    """Write many lines."""
    for number in range(100):
        writer.write(line(text=f"{name} {number}"))


def test_a_run_in_another_process_keeps_out_of_the_way() -> None:
    """It finds the terminal taken, and empties the line of the bar before each line of its own."""
    code = textwrap.dedent("""
        import logging, sys
        from pathlib import Path
        from hookbus.writers import Record, RunPlace, RunPosition, TerminalWriter
        logger = logging.getLogger("other"); logger.setLevel("INFO"); logger.addHandler(logging.StreamHandler())
        writer = TerminalWriter()
        at = RunPosition(mode="train", epoch=0, max_epochs=9, iter=1, max_iters=9, batch=0, num_batches=None)
        writer.open(RunPlace(logger=logger, log_dir=Path(), position=lambda: at))
        writer.write(Record(mode="train", epoch=1, iter=1, values={}, text="from another process"))
        writer.close()
    """)
    with terminal() as (stream, screen):
        writer = TerminalWriter()
        writer.open(place(logger_on(stream)))
        subprocess.run([sys.executable, "-c", code], stderr=stream, check=True)
        assert screen.shows("from another process")
        writer.close()
    assert f"{CLEAR}from another process" in screen.raw
    assert "Epoch 1/9" not in screen.raw
    assert screen.lines() == ["from another process"]


def test_another_live_display_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that the program shows itself; lines stand above it."""
    with terminal() as (stream, screen):
        monkeypatch.setattr(sys, "stderr", stream)
        with Live("their display", console=Console(file=stream, force_terminal=True), auto_refresh=False, transient=True):
            writer = TerminalWriter()
            writer.open(place(logger_on(sys.stderr)))
            writer.write(line())
            writer.close()
    assert "Epoch 3/20" not in screen.raw
    assert screen.lines() == ["line 1"]


INTERRUPTED = """
import signal, sys
import torch
from hookbus.testing import make_runner
from hookbus.events import AfterTrainIter
from pathlib import Path

def act(iter):
    if iter == 4:
        {action}

runner = make_runner(Path(sys.argv[1]), train_cfg=dict(max_epochs=50))
runner.bus.subscribe(AfterTrainIter, act, priority="LOWEST")
runner.train()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "words"),
    [
        ("raise ValueError('on purpose')", "ValueError: on purpose"),
        ("signal.raise_signal(signal.SIGINT)", "KeyboardInterrupt"),
        ("signal.raise_signal(signal.SIGINT), signal.raise_signal(signal.SIGINT)", "KeyboardInterrupt"),
        ("sys.exit(3)", "Epoch(train)"),
    ],
)
def test_however_a_run_ends_the_cursor_is_back(action: str, words: str, tmp_path: Path) -> None:
    """And nothing of the bar is left."""
    with terminal() as (stream, screen):
        command = [sys.executable, "-c", INTERRUPTED.format(action=action), str(tmp_path)]
        ended = subprocess.run(command, stdout=stream, stderr=stream, check=False, cwd=Path(__file__).parents[2])
        assert ended.returncode not in (0, -signal.SIGKILL)
    assert screen.raw.rindex(SHOW_CURSOR) > screen.raw.rindex(HIDE_CURSOR)
    assert any(words in line for line in screen.lines())
    assert not any("━" in line for line in screen.lines())


def test_an_unknown_choice_is_refused() -> None:
    """With what would do."""
    with pytest.raises(ConfigError, match="expected 'auto', True or False"):
        TerminalWriter("always")  # type: ignore[arg-type]

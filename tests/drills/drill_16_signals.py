"""Drill 16: SIGTERM, SIGINT, both of them twice, and SIGHUP, at random moments and at the worst ones."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from hookbus.events import AfterLoadCheckpoint, AfterTrainIter, AfterValIter, BeforeSaveCheckpoint, Event
from hookbus.runner import Runner
from hookbus.runner.signals import SignalGuard, _take_effect
from tests.checkpoint.builders import assert_same, make_store
from tests.drills.children import Child, Ended, wait_for_byte
from tests.drills.drill import Drill, Spec
from tests.drills.runs import iterations_in, warm_up
from tests.runner.learners import final_state, make_learner, train_until

MOMENTS = 20
"""How many signals come at random."""
STEP = 0.02
"""Seconds that an iteration takes at least."""
LONGEST = 0.6
"""Seconds after the beginning within which a signal comes; the run is over before."""
BOUND = 5.0
"""Seconds within which a run has ended, last checkpoint included, on a machine that does something else as well."""

Mode = Callable[[Runner], object]

MODES: dict[str, Mode] = {
    "script": lambda runner: runner.train(),
    "script, trio": lambda runner: runner.train(backend="trio"),
    "service": lambda runner: anyio.run(lambda: runner.train_async(handle_signals=True)),
    "service, trio": lambda runner: anyio.run(lambda: runner.train_async(handle_signals=True), backend="trio"),
    "thread": lambda runner: anyio.run(lambda: anyio.to_thread.run_sync(runner.train)),
}
"""Where a run lives; on a thread that is not the main one it leaves signals alone."""

PLACES: dict[str, type[Event]] = {
    "in a save": BeforeSaveCheckpoint,
    "in a validation": AfterValIter,
    "in an iteration": AfterTrainIter,
    "while resuming": AfterLoadCheckpoint,
}
"""Moments that chance would seldom hit."""

STOPS = {signal.SIGTERM: "SystemExit(143)", signal.SIGINT: "KeyboardInterrupt()"}


@dataclass(frozen=True)
class Case:
    """Which signal comes when, and where the run lives."""

    number: signal.Signals
    mode: str
    place: str | None = None
    """None for a random moment."""
    is_twice: bool = False

    def __str__(self) -> str:
        return f"{self.number.name}{' twice' if self.is_twice else ''}, {self.mode}, {self.place or 'at random'}"

    @property
    def is_held_back(self) -> bool:
        """Whether the run sees the signal, and stops of its own."""
        return self.number in STOPS and self.mode != "thread"


def _cases(drill: Drill) -> Iterator[Case]:
    signals = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    for place in drill.shuffled(PLACES):
        yield Case(drill.random.choice(list(STOPS)), drill.random.choice(["script", "service"]), place)
    for number in STOPS:
        yield Case(number, "script", "in an iteration", is_twice=True)
    for trial in drill.times(MOMENTS):
        yield Case(signals[trial % 3], drill.random.choice(list(MODES)))


def run(drill: Drill) -> None:
    """Send each signal to a run of its own, and go on from what is there."""
    warm_up()
    straight = drill.fresh()
    drill.check(Child(lambda: make_learner(straight).train() and None).join().code == 0, "the uninterrupted run failed")
    expected = final_state(straight, "epoch_3")
    for case in drill.within(_cases(drill)):
        _check(drill, case, expected)


def _check(drill: Drill, case: Case, expected: dict[str, Any]) -> None:
    work_dir = drill.fresh()
    if case.place == "while resuming":
        Child(lambda: train_until(make_learner(work_dir), 4) and None).join()
    ended, seconds = _interrupt(drill, case, work_dir)
    drill.check(seconds <= BOUND, f"{case}: ended after {seconds:.1f} s")
    _check_ending(drill, case, ended)
    newest = max((iterations_in(info.path) for info in make_store(work_dir).list()), default=0)
    if ended.value and not case.is_twice:
        iterations = ended.value["iterations"]
        drill.check(newest == iterations, f"{case}: stopped after iteration {iterations}, the last checkpoint is of {newest}")
    drill.check(not make_store(work_dir).damaged(), f"{case}: a damaged checkpoint")
    after = Child(lambda: make_learner(work_dir, resume="auto").train() and None).join()
    if drill.check(after.code == 0, f"{case}: cannot go on: {after}"):
        found = final_state(work_dir, "epoch_3")
        for part in ("state_dict", "optimizer", "param_schedulers", "rng", "loader", "progress", "hooks"):
            if part in expected:
                drill.check(_is_same(found[part], expected[part]), f"{case}: {part} differs after going on from {newest}")
    left = [path.name for path in (work_dir / "checkpoints").iterdir() if path.name.startswith(("tmp", ".tmp"))]
    drill.check(not left, f"{case}: left {left}")
    drill.drop(work_dir)


def _check_ending(drill: Drill, case: Case, ended: Ended) -> None:
    """A run that hears of the signal says what came, once its handlers are given back; any other one dies of it."""
    if not case.is_held_back:
        is_right = ended.code in (-case.number, 0) or "KeyboardInterrupt" in ended.error  # 0 where training was over before
        drill.check(is_right, f"{case}: {ended}")
        return
    if not drill.check(ended.code == 0 and ended.value, f"{case}: {'hangs' if ended.code == -signal.SIGALRM else ended}"):
        return
    found = ended.value
    drill.check(
        found["raised"] in (STOPS[case.number], *([] if case.place else ["nothing"])), f"{case}: raised {found['raised']}"
    )
    drill.check(found["restored"], f"{case}: the handlers are not those from before")


def _interrupt(drill: Drill, case: Case, work_dir: Path) -> tuple[Ended, float]:
    """Return how a run ended that got the signal, and how long after it."""
    listening, telling = os.pipe()
    child = Child(lambda: _train(drill, case, work_dir, telling))
    os.close(telling)
    drill.check(wait_for_byte(listening), f"{case}: did not begin")
    if case.place is None:
        time.sleep(drill.random.uniform(0, LONGEST))
        os.kill(child.pid, case.number)
    sent = time.monotonic()
    ended = child.join()
    os.close(listening)
    return ended, time.monotonic() - sent


def _train(drill: Drill, case: Case, work_dir: Path, telling: int) -> dict[str, Any]:
    if drill.is_broken:
        SignalGuard._handle = lambda _, number, frame: _take_effect(number)  # type: ignore[assignment, method-assign]
    runner = make_learner(work_dir, resume="auto")
    before = {number: signal.getsignal(number) for number in STOPS}

    def act() -> None:
        os.write(telling, b".")
        for _ in range(1 + case.is_twice):
            os.kill(os.getpid(), case.number)
        if case.is_twice:
            time.sleep(60)

    if case.place is None:
        runner.bus.subscribe(AfterTrainIter, lambda: time.sleep(STEP))
        os.write(telling, b".")
    else:
        runner.bus.subscribe(PLACES[case.place], act, once=True)
    raised = "nothing"
    try:
        MODES[case.mode](runner)
    except (SystemExit, KeyboardInterrupt) as error:
        raised = repr(error)
    restored = all(signal.getsignal(number) is handler for number, handler in before.items())
    return {"raised": raised, "iterations": runner.iter, "restored": restored}


def _is_same(found: Any, expected: Any) -> bool:
    try:
        assert_same(found, expected)
    except AssertionError:
        return False
    return True


SPEC = Spec(
    number=16,
    name="signals",
    promise="P5",
    expected="the run ends in time with its last checkpoint, says truthfully what ended it, and goes on exactly from there",
    twin="lets the first signal take effect at once",
    run=run,
    weight=3,
)

"""Drill 18: one writes to the hub, seven read, and the process forks in the middle of it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from hookbus.errors import ReadOnlyHub
from hookbus.hub import MessageHub
from tests.drills.children import Ended, in_child
from tests.drills.drill import Drill, Spec
from tests.test_hub_hammer import NaiveHub, Readers, write_round

SECONDS = 1.0
FORKS = 10
FORK_LIMIT = 10
"""Seconds after which a forked process hangs."""

Write = Callable[[int], None]


def run(drill: Drill) -> None:
    """Hammer on a hub that a run writes to, then on one that whole groups of another thread arrive in."""
    for title, hammer in {"by the run": _by_the_run, "in groups": _in_groups}.items():
        ended = in_child(naive_hub if drill.is_broken else hammer)
        if drill.check(ended.code == 0, f"{title}: {ended}"):
            _check(drill, title, ended)


def _check(drill: Drill, title: str, ended: Ended) -> None:
    found = ended.value
    drill.check(found["found"] is None, f"{title}: {found['found']}")
    drill.check(drill.is_broken or found["rounds"] > FORKS, f"{title}: {found['rounds']} rounds are too few to show anything")
    drill.check(found["looks"] > found["forks"], f"{title}: {found['looks']} looks are too few to show anything")
    for number, answer in enumerate(found["answers"]):
        drill.check(answer == "whole, ReadOnlyHub", f"{title}: fork {number}: {answer}")
    drill.facts[title] = f"{found['rounds']} rounds, {found['looks']} looks, {found['forks']} forks"


def _by_the_run() -> dict[str, Any]:
    hub = MessageHub("hammered")
    hub.begin_run(threading.get_ident())

    def write(n: int) -> None:
        write_round(hub, n)
        hub.commit()

    return _hammer(hub, write, lambda: _look(hub))


def _in_groups() -> dict[str, Any]:
    """The run itself only commits; somebody else writes, two updates at a time."""
    hub = MessageHub("hammered")
    hub.begin_run(threading.get_ident())
    over = threading.Event()

    def keep_writing() -> None:
        n = 0
        while not over.is_set():
            n += 1
            with hub.update():
                write_round(hub, n)

    thread = threading.Thread(target=keep_writing)
    thread.start()
    try:
        return _hammer(hub, lambda _: hub.commit(), lambda: _look(hub))
    finally:
        over.set()
        thread.join()


def naive_hub() -> dict[str, Any]:
    """A twin: two dicts, and a version that is counted up after each update."""
    hub = NaiveHub()
    return _hammer(None, lambda n: write_round(hub, n), lambda: (hub.version, dict(hub.info), dict(hub.scalars)))


def _hammer(hub: MessageHub | None, write: Write, look: Callable[[], Any]) -> dict[str, Any]:
    """Write as fast as possible while seven read, and fork now and then; return what was found."""
    sys.setswitchinterval(1e-6)
    rounds = 0
    answers: list[str] = []
    with Readers(look) as readers:
        until = time.monotonic() + SECONDS
        while readers.found is None and (time.monotonic() < until or (hub is not None and len(answers) < FORKS)):
            rounds += 1
            write(rounds)
            if hub is not None and len(answers) < FORKS and rounds % 20 == 0:
                answers.append(_fork(hub))
    if hub is not None:
        hub.end_run()
    return {"found": readers.found, "rounds": rounds, "looks": readers.looks, "forks": len(answers), "answers": answers}


def _look(hub: MessageHub) -> tuple[int, Mapping[str, Any], Mapping[str, float]]:
    snapshot = hub.snapshot()
    return snapshot.version, snapshot.runtime_info, snapshot.scalars


def _fork(hub: MessageHub) -> str:
    """Fork while others hold whatever locks there are; return what the child says, or that it said nothing."""
    listening, telling = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(FORK_LIMIT)
        try:
            os.write(telling, _use(hub).encode())
        finally:
            os._exit(0)
    os.close(telling)
    with open(listening, "rb") as file:
        answer = file.read().decode()
    os.waitpid(child, 0)
    return answer or "hangs"


def _use(hub: MessageHub) -> str:
    """Read from the hub and write to it, in a process that is not its run's."""
    try:
        _, info, _ = _look(hub)
        state = "whole" if len({info.get(key) for key in "abc"}) == 1 else f"torn: {info}"
        hub.update_info("a", -1)
    except ReadOnlyHub:
        return f"{state}, ReadOnlyHub"
    except Exception as error:  # noqa: BLE001  whatever it is, it is told
        return repr(error)
    return f"{state}, and it could write"


SPEC = Spec(
    number=18,
    name="hub hammer",
    promise="P11, P28",
    expected="no torn read, no version that goes back; a forked process reads, is refused when it writes, and never hangs",
    twin="writes one piece after the other",
    run=run,
)

"""What every test gets: the event loops it runs on, and a check that it leaves no thread behind."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

import pytest

with suppress(ImportError):  # some environments have no need of it
    import hypothesis  # noqa: F401  it looks for random generators as it is imported, and finds none once they are frozen

THREAD_GRACE = 5.0
"""Seconds a thread may take to end after its test, on a machine that is busy with something else."""


LOOPS = [
    pytest.param(("asyncio", {"debug": True}), id="asyncio"),
    pytest.param(("trio", {}), id="trio"),
]
"""The event loops on which each asynchronous test runs."""

if sys.platform != "win32":
    LOOPS.append(pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"))

if sys.version_info >= (3, 12):

    def eager_loop() -> asyncio.AbstractEventLoop:
        """Return a loop on which a new task runs at once up to its first wait."""
        loop = asyncio.new_event_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        return loop

    LOOPS.append(pytest.param(("asyncio", {"debug": True, "loop_factory": eager_loop}), id="eager"))


@pytest.fixture(
    scope="module",  # as wide as the widest async fixture, which needs a backend of at least its own scope
    params=LOOPS,
)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    """Run an async test on asyncio in debug mode, on trio, on uvloop, and with eager tasks where Python has them."""
    return request.param


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of every garbage collection to come, which would take a quarter of a second otherwise."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """Let others find who refers to what again: Hypothesis does, if it is imported only now."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_thread_left_behind() -> Iterator[None]:
    """Fail a test that leaves a thread running which was not there before."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + THREAD_GRACE
    while (left := _started_since(before)) and time.monotonic() < deadline:
        left[0].join(0.05)  # a slice at a time: one of trio's workers is done when it turns idle, and goes on living
    assert not left, f"the test left threads behind: {', '.join(map(str, left))}"


def _started_since(before: Iterable[threading.Thread]) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread not in before and not _may_stay(thread)]


def _may_stay(thread: threading.Thread) -> bool:
    if isinstance(thread, threading._DummyThread):
        return True  # a native thread, such as torch's of one device's backward pass, that ran Python once: nobody can join it
    # Idle workers of trio live on for ten seconds (a busy one has the name of its job); so do those of an exporter of telemetry.
    return thread.name.startswith(("Trio thread ", "Otel"))

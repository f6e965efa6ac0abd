"""An event loop whose clock jumps to the next deadline as soon as nothing else is left to do, so that tests never sleep.

`anyio.sleep(3600)` takes no time, `anyio.fail_after(10)` still fails, and both at exactly the moment that the code says.
Only the loop's own clock is virtual: `time.monotonic()`, threads and processes go on as ever. A loop that waits for one
of those, such as for a training thread, has nothing left to do itself; `patience` has it wait that many real seconds
for such an answer before its clock jumps.
"""

from __future__ import annotations

__all__ = ("run_with_virtual_clock", "virtual_clock", "virtual_clock_backends")

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio

from hookbus.types import Backend

T = TypeVar("T")


def virtual_clock(backend: Backend = "asyncio", *, patience: float = 0.0) -> tuple[str, dict[str, Any]]:
    """Return name and options of a backend with a virtual clock, as a parameter of anyio's `anyio_backend` fixture.

    Args:
        backend: `"asyncio"` or `"trio"`.
        patience: real seconds for which nothing must have happened before the clock jumps.
    """
    if backend == "asyncio":
        return backend, {"loop_factory": lambda: _VirtualLoop(patience)}
    from trio.testing import MockClock

    return backend, {"clock": MockClock(autojump_threshold=patience)}


def virtual_clock_backends(*, patience: float = 0.0) -> list[tuple[str, dict[str, Any]]]:
    """Return the parameters for both backends: `@pytest.fixture(params=virtual_clock_backends())`."""
    return [virtual_clock("asyncio", patience=patience), virtual_clock("trio", patience=patience)]


def run_with_virtual_clock(
    function: Callable[..., Awaitable[T]], *arguments: Any, backend: Backend = "asyncio", patience: float = 0.0
) -> T:
    """Run a coroutine function to its end on a loop with a virtual clock, and return what it returned."""
    name, options = virtual_clock(backend, patience=patience)
    return anyio.run(function, *arguments, backend=name, backend_options=options)


class _VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop of asyncio in which waiting for a time takes none."""

    def __init__(self, patience: float) -> None:
        self._now = 0.0
        super().__init__(_JumpingSelector(self._jump, patience))

    def time(self) -> float:
        return self._now

    def _jump(self, seconds: float) -> None:
        self._now += seconds


class _JumpingSelector(selectors.DefaultSelector):
    """Waits for files as ever, but for a time only by having the clock jump there."""

    def __init__(self, jump: Callable[[float], None], patience: float) -> None:
        super().__init__()
        self._jump = jump
        self._patience = patience

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:  # nothing has a deadline, or something is due
            return super().select(timeout)
        ready = super().select(self._patience)
        if not ready:
            self._jump(timeout)
        return ready

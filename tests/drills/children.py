"""Processes that a drill forks from its own warm one: they share all that is imported, and may die."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.drills.drill import Skipped

LIMIT = 30
"""Seconds after which a child that hangs is gone."""

NOBODY = 65534

_NEW_MOUNTS, _NEW_USER = 0x00020000, 0x10000000
_PRIVATE_AND_BELOW = (1 << 18) | (1 << 14)


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    code: int
    """Its exit code; of one that a signal ended, minus the number of the signal."""
    value: Any = None
    """What its task returned, in the terms of JSON."""
    error: str = ""
    """The traceback of what its task raised."""


class Child:
    """A forked process that runs one task; what it prints is lost."""

    def __init__(self, task: Callable[[], object], limit: int = LIMIT) -> None:
        if not hasattr(os, "fork"):
            msg = "this system cannot fork"
            raise Skipped(msg)
        self._answer, answer = os.pipe()
        gc.freeze()  # what no collection looks at stays shared with the child
        self.pid = os.fork()
        if self.pid == 0:
            _run(task, answer, limit)
        os.close(answer)

    def kill(self) -> None:
        """End it at once, as `kill -9` does."""
        os.kill(self.pid, signal.SIGKILL)

    def join(self) -> Ended:
        """Wait for its end."""
        with open(self._answer, "rb") as file:
            answer = file.read()
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return Ended(code, **json.loads(answer)) if answer.endswith(b"}") else Ended(code)


def in_child(task: Callable[[], object]) -> Ended:
    """Run a task in a forked process, and wait for its end."""
    return Child(task).join()


def _run(task: Callable[[], object], answer: int, limit: int) -> None:
    signal.alarm(limit)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    code, report = 0, {}
    try:
        report = {"value": task()}
        answer_text = json.dumps(report)
    except BaseException:  # noqa: BLE001  the parent is told
        code, answer_text = 1, json.dumps({"error": traceback.format_exc()})
    try:
        os.write(answer, answer_text.encode())
    finally:
        os._exit(code)


def become_nobody() -> None:
    """Give up every right of root, for which modes of files and limits of processes do not count."""
    if os.geteuid() != 0:
        return
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def mount_memory(path: Path, size: int, *, options: str = "") -> None:
    """Put a file system of so many bytes there, that this process alone sees, and that goes with it.

    Raises:
        OSError: the system does not allow it.
    """
    if sys.platform != "linux":
        msg = "only Linux has mounts of one process"
        raise OSError(msg)
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(_NEW_MOUNTS) and library.unshare(_NEW_MOUNTS | _NEW_USER):
        _fail("unshare")
    if library.mount(None, b"/", None, _PRIVATE_AND_BELOW, None):
        _fail("mount /")
    data = f"size={size}{options}".encode()
    if library.mount(b"tmpfs", os.fsencode(path), b"tmpfs", 0, data):
        _fail(f"mount {path}")


def remount_read_only(path: Path) -> None:
    """Allow no more writing in what `mount_memory` mounted."""
    read_only, remount = 1, 32
    if ctypes.CDLL(None, use_errno=True).mount(b"tmpfs", os.fsencode(path), b"tmpfs", read_only | remount, None):
        _fail(f"remount {path}")


def _fail(operation: str) -> None:
    code = ctypes.get_errno()
    raise OSError(code, f"{operation}: {os.strerror(code)}")


def peak_memory() -> int:
    """Return the most bytes this process had in memory at once, since `forget_peak_memory`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    msg = "the system does not tell how much memory was in use"
    raise Skipped(msg)


def forget_peak_memory() -> None:
    """Begin to count anew."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        msg = f"the system cannot count memory anew: {error}"
        raise Skipped(msg) from error


def wait_for_byte(descriptor: int, limit: float = LIMIT) -> bool:
    """Return whether a child wrote something within the limit."""
    deadline = time.monotonic() + limit
    os.set_blocking(descriptor, False)
    while time.monotonic() < deadline:
        try:
            return os.read(descriptor, 1) != b""
        except BlockingIOError:
            time.sleep(0.0005)
    return False

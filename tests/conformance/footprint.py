"""What a process holds, so that a run can be asked to leave nothing of it behind."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GRACE = 5.0
"""Seconds that a thread may take to end, on a machine that is busy with something else."""

_OF_PACKAGES = ("wandb-", "Otel")
"""How the names of threads begin that packages behind extras keep for as long as the process lives."""

_OF_THE_SYSTEM = ("/dev/", "/proc/", "anon_inode:")
_DESCRIPTORS = Path("/proc/self/fd")


@contextmanager
def leaves_nothing_behind() -> Iterator[None]:
    """Fail if there are threads or open files behind the block that were not there before it."""
    threads, files = set(threading.enumerate()), _open_files()
    yield
    deadline = time.monotonic() + GRACE
    while (left := _started_since(threads)) and time.monotonic() < deadline:
        left[0].join(0.01)
    assert not left, f"threads are left: {', '.join(map(str, left))}"
    open_files = _open_files() - files
    assert not open_files, f"files are left open: {', '.join(open_files)}"


def _started_since(before: set[threading.Thread]) -> list[threading.Thread]:
    started = [thread for thread in threading.enumerate() if thread not in before]
    return [each for each in started if not isinstance(each, threading._DummyThread) and not each.name.startswith(_OF_PACKAGES)]


def _open_files() -> Counter[str]:
    """Return how often each file and pipe is open; nothing where the system does not tell."""
    if not _DESCRIPTORS.exists():
        return Counter()
    links = (_target(name) for name in os.listdir(_DESCRIPTORS))
    return Counter(link for link in links if link is not None and not link.startswith(_OF_THE_SYSTEM) and "/wandb/" not in link)


def _target(name: str) -> str | None:
    try:
        return os.readlink(_DESCRIPTORS / name)
    except FileNotFoundError:  # the one with which the directory was read
        return None

"""Who asks for something: the function that called, and the task or thread that it runs in."""

from __future__ import annotations

__all__ = ("requester",)

import sys
import threading
from _thread import get_ident
from types import FrameType

import anyio

from hookbus._current import current_writing

_OURS = "hookbus.runner"


def requester(training_thread_id: int) -> str:
    """Return the name of the function outside of the runner that called, and where it is no handler its task or thread."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith(_OURS):
        frame = frame.f_back
    name = frame.f_code.co_qualname if frame is not None else "somebody"
    if get_ident() == training_thread_id or _is_awaited_handler():
        return name
    task = _task_name()
    return f"{name} in the thread {threading.current_thread().name}" if task is None else f"{name} in the task {task}"


def _is_awaited_handler() -> bool:
    writing = current_writing.get()
    return writing is not None and writing.hub is not None


def _task_name() -> str | None:
    """Return the name of the running task, or None outside of event loops and in their callbacks."""
    try:
        return anyio.get_current_task().name
    except (RuntimeError, AttributeError):  # no loop runs on this thread, or it runs no task now
        return None

"""Why dataloader workers could not start, or died, in words that say what to do about it."""

from __future__ import annotations

__all__ = ("check_importable", "check_main_guard", "explain_death", "explain_failed_start", "is_death")

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Mapping
from multiprocessing.process import BaseProcess
from types import FunctionType

from hookbus._sendable import find_unsendable
from hookbus.errors import DataLoaderError, DataWorkerDied, describe_error

GUARD = "if __name__ == '__main__':"

_REMEDIES = (
    "Load with num_workers=0, or give the dataloader multiprocessing_context='fork', which sends nothing, but whose workers "
    "hang where they need a lock that a thread of this process held just then, and cannot use an accelerator"
)

_CAUSES = {
    "SIGKILL": "Most often memory ran out: use fewer workers, a smaller prefetch_factor, or a dataset that reads what it needs",
    "SIGBUS": "Most often shared memory ran out: make /dev/shm larger, or use fewer workers or smaller batches",
}


def check_main_guard() -> None:
    """Refuse to train in a process that another one has started and that is only just importing the script.

    Raises:
        DataLoaderError: the script trains when it is imported.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        msg = (
            f"a process such as a dataloader worker imports the script that started it, and the script trains when it is "
            f"imported; put what it does under `{GUARD}`"
        )
        raise DataLoaderError(msg)


def check_importable(parts: Mapping[str, object]) -> None:
    """Refuse to start workers that could not import what they need.

    Args:
        parts: what is sent to them, by the name that the user knows.

    Raises:
        DataLoaderError: the main module, or something that is defined in it, cannot be imported elsewhere.
    """
    main = sys.modules["__main__"]
    if getattr(main.__spec__, "name", None) is not None:
        return
    file = getattr(main, "__file__", None)
    if file is None:
        _refuse_what_main_defines(parts)
    elif not os.path.exists(file):
        msg = f"dataloader workers import the program that starts them, and {file!r} is no file: run it from one. {_REMEDIES}"
        raise DataLoaderError(msg)


def _refuse_what_main_defines(parts: Mapping[str, object]) -> None:
    for name, part in parts.items():
        definition = part if isinstance(part, FunctionType) else type(part)
        if definition.__module__ == "__main__":
            msg = (
                f"{name} cannot be sent to dataloader workers: {definition.__qualname__} is defined in a notebook or at a "
                f"prompt, which they cannot import. Define it in a module and import it from there. {_REMEDIES}"
            )
            raise DataLoaderError(msg)


def explain_failed_start(error: Exception, parts: Mapping[str, object]) -> DataLoaderError | None:
    """Return what to raise instead of an error that starting the workers raised, or None where it speaks for itself."""
    if isinstance(error, UserWarning) and isinstance(error.__context__, Exception):
        error = error.__context__  # torch warns of an error in pickling, and here warnings are errors
    if _came_from("multiprocessing.reduction", error):
        unsendable = find_unsendable(parts)
        if unsendable is None:
            return None
        reason = describe_error(unsendable.error).rstrip(".")
        return DataLoaderError(
            f"{unsendable} cannot be sent to dataloader workers: {reason}. They start in fresh processes and receive it by "
            f"pickle: define functions and classes at the top level of a module, and open files, locks and connections in the "
            f"worker, when they are first used. {_REMEDIES}"
        )
    if _came_from("multiprocessing.forkserver", error):
        return DataLoaderError(
            f"the fork server, which starts dataloader workers, died: {describe_error(error)}. Its own error stands on stderr; "
            f"it imports the script, so the script must do what it does under `{GUARD}`, and the modules to preload"
        )
    return None


def _came_from(module: str, error: Exception) -> bool:
    return any(frame.f_globals.get("__name__") == module for frame, _ in traceback.walk_tb(error.__traceback__))


def is_death(error: RuntimeError) -> bool:
    """Return whether torch raised this because a worker died."""
    return str(error).startswith("DataLoader worker (pid")


def explain_death(error: RuntimeError, workers: Iterable[BaseProcess], *, has_begun: bool) -> DataWorkerDied:
    """Return what to raise where a worker died.

    Args:
        error: what torch raised.
        workers: all workers of the dataloader.
        has_begun: whether a batch has come from them.
    """
    codes = {worker.pid: worker.exitcode for worker in workers if worker.exitcode}
    who = ", ".join(f"pid {pid}, {_ending(code)}" for pid, code in codes.items()) or describe_error(error)
    return DataWorkerDied(f"a dataloader worker died ({who}). {_likely_cause(who, has_begun)}")


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    return f"killed by {signal.Signals(-code).name}" if -code in set(signal.Signals) else f"killed by signal {-code}"


def _likely_cause(endings: str, has_begun: bool) -> str:
    for ending, cause in _CAUSES.items():
        if ending in endings:
            return cause
    if has_begun:
        return "Its own error, if it could report one, stands on stderr"
    return (
        f"Its own error stands on stderr. It had not delivered a batch, so most often the script does its work outside of "
        f"`{GUARD}` and trained again when the worker imported it, or the dataset is of a class that a worker cannot import, "
        f"such as one defined in a notebook"
    )

"""Every exception of hookbus, named after the condition it reports.

```text
HookbusError
├── ConfigError                a config or an option is unknown, ill-typed or does not fit (ValueError)
├── InvalidName                a name may not be used for a run, a file or a metric (ValueError)
├── EventDefinitionError       an event class breaks the rules of events (TypeError)
├── SubscriptionError          a handler or a hook cannot be subscribed (TypeError)
│   ├── HandlerSignatureError      it asks for a name that its event does not offer
│   └── UnknownMountPoint          one of its methods nearly has the name of a mount point
├── BusError                   a bus is used from the wrong place or in the wrong state (RuntimeError)
│   ├── BusNotEntered              awaited handlers subscribe, and no event loop is there for them
│   ├── WrongThread                a thread or task calls what belongs to another one
│   ├── WouldDeadlock              waiting here could never end
│   ├── PublishDepthExceeded       publishes are nested too deep
│   ├── BusStalled                 the event loop made no progress while a thread needed it
│   └── HandlerCancelled           a handler was cancelled by something other than its run
├── RunError                   a run cannot go on (RuntimeError)
│   ├── RunEnded                   the run is over, so the request cannot take effect
│   ├── RunAlreadyLive             another run of that name is live in this process
│   ├── LossError                  a training step returned no usable loss (ValueError)
│   ├── InvalidLoss                a loss is NaN or infinite (FloatingPointError)
│   ├── EmptyDataLoader            a dataloader yielded nothing (ValueError)
│   ├── DataLoaderError            the workers of a dataloader cannot be started
│   │   └── DataWorkerDied             one of them died
│   ├── ReadOnlyHub                a copy of a hub, in another process than its run, is written to or waited for
│   └── MetricNotFound             a metric that was asked for was not computed (KeyError)
└── CheckpointError            a checkpoint cannot be written or read (RuntimeError)
    ├── StateEncodingError         a value in the state has no exact encoding (TypeError)
    ├── CheckpointWriteError       the file system refused a write (OSError)
    ├── CheckpointReadError        the file system refused a read (OSError)
    ├── CheckpointsInUse           another live run writes checkpoints into the directory
    ├── CheckpointCorrupt          bytes on disk are not what was written (ValueError)
    └── UnsafeCheckpoint           a foreign file could run code or fill the memory (ValueError)

Skip                           not an error: a handler vetoes the action it was told about
```
"""

from __future__ import annotations

__all__ = (
    "BusError",
    "BusNotEntered",
    "BusStalled",
    "CheckpointCorrupt",
    "CheckpointError",
    "CheckpointReadError",
    "CheckpointWriteError",
    "CheckpointsInUse",
    "ConfigError",
    "DataLoaderError",
    "DataWorkerDied",
    "EmptyDataLoader",
    "EventDefinitionError",
    "HandlerCancelled",
    "HandlerSignatureError",
    "HookbusError",
    "InvalidLoss",
    "InvalidName",
    "LossError",
    "MetricNotFound",
    "PublishDepthExceeded",
    "ReadOnlyHub",
    "RunAlreadyLive",
    "RunEnded",
    "RunError",
    "Skip",
    "StateEncodingError",
    "SubscriptionError",
    "UnknownMountPoint",
    "UnsafeCheckpoint",
    "WouldDeadlock",
    "WrongThread",
    "choices",
    "describe_error",
    "nearest",
)

import difflib
from collections.abc import Iterable


class HookbusError(Exception):
    """Base of every error that hookbus raises itself."""


class ConfigError(HookbusError, ValueError):
    """Raised when a config or an option is unknown, ill-typed or does not fit the rest."""


class InvalidName(HookbusError, ValueError):
    """Raised when a name may not be used for a run, a checkpoint, a file or a metric."""


class EventDefinitionError(HookbusError, TypeError):
    """Raised when an event class is defined against the rules of events."""


class SubscriptionError(HookbusError, TypeError):
    """Raised when a handler or a hook cannot be subscribed as asked."""


class HandlerSignatureError(SubscriptionError):
    """Raised when a handler asks for a name that its event does not offer."""


class UnknownMountPoint(SubscriptionError):
    """Raised when a method of a hook is nearly, but not quite, named like a mount point."""


class BusError(HookbusError, RuntimeError):
    """Base of the errors about using a bus from the wrong place or in the wrong state."""


class BusNotEntered(BusError):
    """Raised when awaited handlers subscribe to an event and no event loop is there for them."""


class WrongThread(BusError):
    """Raised when a thread or a task calls something that belongs to another one."""


class WouldDeadlock(BusError):
    """Raised when waiting at this place could never end."""


class PublishDepthExceeded(BusError):
    """Raised when handlers publish events inside events deeper than the limit."""


class BusStalled(BusError):
    """Raised when the event loop made no progress while a thread needed it."""


class HandlerCancelled(BusError):
    """Raised when a handler was cancelled by something other than its own run."""


class RunError(HookbusError, RuntimeError):
    """Base of the errors that end or refuse a run."""


class RunEnded(RunError):
    """Raised when a request cannot take effect because the run is over."""


class RunAlreadyLive(RunError):
    """Raised when a run starts while another one of the same name is live in this process."""


class LossError(RunError, ValueError):
    """Raised when a training step returned no scalar tensor to minimise."""


class InvalidLoss(RunError, FloatingPointError):
    """Raised when a loss is NaN or infinite; names it and its iteration."""


class EmptyDataLoader(RunError, ValueError):
    """Raised when a dataloader yielded no batch at all."""


class DataLoaderError(RunError):
    """Raised when the workers of a dataloader cannot be started; names what stands in the way."""


class DataWorkerDied(DataLoaderError):
    """Raised when a worker of a dataloader ended before its work was done; names its process."""


class ReadOnlyHub(RunError):
    """Raised when a copy of a hub, in another process than its run, is written to or waited for."""


class MetricNotFound(RunError, KeyError):
    """Raised when a metric that was asked for is not among those computed."""

    __str__ = Exception.__str__  # KeyError would show the message in quotes


class CheckpointError(HookbusError, RuntimeError):
    """Base of the errors about writing and reading checkpoints."""


class StateEncodingError(CheckpointError, TypeError):
    """Raised when a value in the state has no exact encoding; names its path."""


class CheckpointWriteError(CheckpointError, OSError):
    """Raised when the file system refused a write; nothing that was committed is touched."""


class CheckpointReadError(CheckpointError, OSError):
    """Raised when the file system refused a read: whether the checkpoint is sound is not known."""


class CheckpointsInUse(CheckpointError):
    """Raised when a run would write checkpoints into a directory that another live run writes to."""


class CheckpointCorrupt(CheckpointError, ValueError):
    """Raised when the bytes on disk are not the bytes that were committed."""


class UnsafeCheckpoint(CheckpointError, ValueError):
    """Raised when reading a foreign file could run code that is in it, or take more memory than it may."""


class Skip(Exception):
    """Raised by a handler to veto what its event announces, together with the rest of the plan.

    `BeforeVal`, `BeforeOptimizerStep` and `BeforeSaveCheckpoint` understand it; anywhere else it is an error.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """Return the valid choice that looks most like `name`, or None if none comes close."""
    by_folded = {choice.casefold(): choice for choice in valid}
    matches = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.65)
    return by_folded[matches[0]] if matches else None


def choices(name: str, valid: Iterable[str]) -> str:
    """Return the tail of an error message: the nearest valid choice, then all of them."""
    listed = list(valid)
    close = nearest(name, listed)
    hint = f"did you mean {close!r}? " if close else ""
    return f"{hint}valid choices: {', '.join(listed) if listed else '(none)'}"


def describe_error(error: BaseException) -> str:
    """Return type and text of an exception on one line, also of one whose own text cannot be built."""
    try:
        text = str(error)
    except Exception as broken:  # noqa: BLE001  a broken __str__ must not hide the error it belongs to
        text = f"<its text could not be built: {type(broken).__name__}>"
    return f"{type(error).__name__}: {' '.join(text.split())}" if text else type(error).__name__

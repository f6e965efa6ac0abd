"""hookbus: an event-bus runtime for PyTorch training.

Every name below is public. Importing the package loads no torch: what needs it is imported on first use.
"""

from __future__ import annotations

__all__ = (
    "__version__",
    "Acknowledgement",
    "AfterBackward",
    "AfterLoadCheckpoint",
    "AfterOptimizerStep",
    "AfterRun",
    "AfterTest",
    "AfterTestEpoch",
    "AfterTestIter",
    "AfterTrain",
    "AfterTrainEpoch",
    "AfterTrainIter",
    "AfterVal",
    "AfterValEpoch",
    "AfterValIter",
    "Background",
    "BaseLoop",
    "BeforeOptimizerStep",
    "BeforeRun",
    "BeforeSaveCheckpoint",
    "BeforeTest",
    "BeforeTestEpoch",
    "BeforeTestIter",
    "BeforeTrain",
    "BeforeTrainEpoch",
    "BeforeTrainIter",
    "BeforeVal",
    "BeforeValEpoch",
    "BeforeValIter",
    "CheckpointCommitted",
    "CheckpointFailed",
    "CheckpointStaged",
    "ControlApplied",
    "EpochEvent",
    "Event",
    "EventBus",
    "EventStream",
    "HandlerCost",
    "HistogramsTaken",
    "HistoryBuffer",
    "Hook",
    "HookbusError",
    "ImagesDrawn",
    "IterEvent",
    "LogProcessor",
    "LogRecorded",
    "MessageHub",
    "MountPoint",
    "OptimWrapper",
    "OptimWrapperDict",
    "Priority",
    "Record",
    "RunEnded",
    "RunFailed",
    "ScalarsLanded",
    "RunPlace",
    "Runner",
    "Skip",
    "Snapshot",
    "Subscription",
    "Writer",
    "decode_event",
    "encode_event",
    "background",
    "every",
    "import_weights",
    "on",
    "AVERAGERS",
    "HOOKS",
    "LOOPS",
    "METRICS",
    "OPTIMIZERS",
    "PARAM_SCHEDULERS",
    "WRITERS",
)

import importlib
from typing import TYPE_CHECKING, Any

from hookbus._version import __version__

if TYPE_CHECKING:
    from hookbus.bus import Background, EventBus, EventStream, HandlerCost, Subscription, background, every, on
    from hookbus.errors import HookbusError, RunEnded, Skip
    from hookbus.events import (
        AfterBackward,
        AfterLoadCheckpoint,
        AfterOptimizerStep,
        AfterRun,
        AfterTest,
        AfterTestEpoch,
        AfterTestIter,
        AfterTrain,
        AfterTrainEpoch,
        AfterTrainIter,
        AfterVal,
        AfterValEpoch,
        AfterValIter,
        BeforeOptimizerStep,
        BeforeRun,
        BeforeSaveCheckpoint,
        BeforeTest,
        BeforeTestEpoch,
        BeforeTestIter,
        BeforeTrain,
        BeforeTrainEpoch,
        BeforeTrainIter,
        BeforeVal,
        BeforeValEpoch,
        BeforeValIter,
        CheckpointCommitted,
        CheckpointFailed,
        CheckpointStaged,
        ControlApplied,
        EpochEvent,
        Event,
        HistogramsTaken,
        ImagesDrawn,
        IterEvent,
        LogRecorded,
        MountPoint,
        RunFailed,
        ScalarsLanded,
    )
    from hookbus.foreign_weights import import_weights
    from hookbus.history import HistoryBuffer
    from hookbus.hooks import Hook
    from hookbus.hub import MessageHub, Snapshot
    from hookbus.log_processor import LogProcessor
    from hookbus.loops import BaseLoop
    from hookbus.mailbox import Acknowledgement
    from hookbus.optim import OptimWrapper, OptimWrapperDict
    from hookbus.priority import Priority
    from hookbus.registry import AVERAGERS, HOOKS, LOOPS, METRICS, OPTIMIZERS, PARAM_SCHEDULERS, WRITERS
    from hookbus.runner import Runner
    from hookbus.wire import decode_event, encode_event
    from hookbus.writers import Record, RunPlace, Writer

_HOME = {
    "hookbus.bus": "Background EventBus EventStream HandlerCost Subscription background every on",
    "hookbus.errors": "HookbusError RunEnded Skip",
    "hookbus.events": (
        "AfterBackward AfterLoadCheckpoint AfterOptimizerStep AfterRun AfterTest AfterTestEpoch AfterTestIter AfterTrain "
        "AfterTrainEpoch AfterTrainIter AfterVal AfterValEpoch AfterValIter BeforeOptimizerStep BeforeRun "
        "BeforeSaveCheckpoint BeforeTest BeforeTestEpoch BeforeTestIter BeforeTrain BeforeTrainEpoch BeforeTrainIter "
        "BeforeVal BeforeValEpoch BeforeValIter CheckpointCommitted CheckpointFailed CheckpointStaged ControlApplied "
        "EpochEvent Event HistogramsTaken ImagesDrawn IterEvent LogRecorded MountPoint RunFailed ScalarsLanded"
    ),
    "hookbus.foreign_weights": "import_weights",
    "hookbus.history": "HistoryBuffer",
    "hookbus.hooks": "Hook",
    "hookbus.hub": "MessageHub Snapshot",
    "hookbus.log_processor": "LogProcessor",
    "hookbus.loops": "BaseLoop",
    "hookbus.mailbox": "Acknowledgement",
    "hookbus.optim": "OptimWrapper OptimWrapperDict",
    "hookbus.priority": "Priority",
    "hookbus.registry": "AVERAGERS HOOKS LOOPS METRICS OPTIMIZERS PARAM_SCHEDULERS WRITERS",
    "hookbus.runner": "Runner",
    "hookbus.wire": "decode_event encode_event",
    "hookbus.writers": "Record RunPlace Writer",
}
"""Where each public name lives."""

_MODULE_OF = {name: module for module, names in _HOME.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        msg = f"module 'hookbus' has no attribute {name!r}"
        raise AttributeError(msg)
    value = globals()[name] = getattr(importlib.import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

"""The map of a run: every event, in the order in which the loops publish them.

```text
runner.train()
    BeforeRun
    [AfterLoadCheckpoint]                 only when weights or a run are loaded
    BeforeTrain
    for each epoch:
        BeforeTrainEpoch
        for each batch:                   the batch is on its device
            BeforeTrainIter
            forward, loss, backward
            AfterBackward                 each micro-batch
            BeforeOptimizerStep           gradients unscaled and accumulated, not yet clipped; may be skipped
            optimizer step, gradients cleared
            AfterOptimizerStep            says whether the step was skipped
            AfterTrainIter
            [ScalarsLanded]               recorded values have reached the host; at once on the CPU
            -- step boundary --           counters have moved; saves and stops happen here:
            [BeforeSaveCheckpoint]            may be skipped
            [CheckpointStaged]                it is copied and will be written while training goes on
            [CheckpointCommitted]             it is safely there; an asynchronous one some boundaries later
            [CheckpointFailed]                it could not be written; the error goes on
            [ControlApplied]                  a stop, a save or another control that somebody called took effect
        AfterTrainEpoch
        -- step boundary --
        [validation, where due]
            BeforeVal                     may be skipped
            BeforeValEpoch
            for each batch:
                BeforeValIter
                AfterValIter
            AfterValEpoch                 carries the metrics
            AfterVal
            -- step boundary --
    AfterTrain
    [RunFailed]                           an error ended the run
    AfterRun                              always

runner.val()     BeforeRun, the validation block, AfterRun
runner.test()    BeforeRun, BeforeTest, BeforeTestEpoch, (BeforeTestIter, AfterTestIter)*,
                 AfterTestEpoch, AfterTest, AfterRun
```

An event holds facts only: numbers, text and plain containers. Live objects travel beside it, under the names
that its class declares in `live`. So an event can be queued, compared, printed, encoded and read on any thread.

`epoch` and `iter` count completed epochs and training iterations. Until the boundary after them has passed, the
running ones are not completed: in the first iteration `iter` is 0, also at `AfterTrainIter`.
"""

from __future__ import annotations

__all__ = (
    "MOUNT_POINTS",
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
    "CheckpointEvent",
    "CheckpointFailed",
    "CheckpointStaged",
    "ControlApplied",
    "EpochEvent",
    "Event",
    "Histogram",
    "HistogramsTaken",
    "ImagesDrawn",
    "IterEvent",
    "LogRecorded",
    "MountPoint",
    "PhaseEvent",
    "RunEvent",
    "RunFailed",
    "ScalarsLanded",
    "SaveEvent",
    "StepEvent",
    "mount_point_name",
)

import re
from typing import Any, ClassVar, dataclass_transform

import msgspec

from hookbus.errors import EventDefinitionError
from hookbus.types import Mode

_RESERVED = ("event", "hub", "runner")
"""Names that handlers ask for and that therefore cannot be fields."""
_DECLARED = ("live", "counted", "skippable", "closing")
"""What event classes declare about themselves."""


class _EventMeta(msgspec.StructMeta):
    """Makes every event frozen, keyword-only and tagged by `module:qualname`, without saying so each time."""

    def __new__(mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> Any:
        for option in ("frozen", "kw_only"):
            if options.setdefault(option, True) is not True:
                msg = f"event {name} is declared with {option}=False; events are frozen and keyword-only"
                raise EventDefinitionError(msg)
        options.setdefault("tag_field", "event")
        options.setdefault("tag", f"{namespace['__module__']}:{namespace['__qualname__']}")
        try:
            cls: Any = super().__new__(mcls, name, bases, namespace, **options)
        except ValueError as error:  # what msgspec says of a field named like the tag
            msg = f"event {name} cannot be defined: {error}; {', '.join(_RESERVED)} are reserved for handlers"
            raise EventDefinitionError(msg) from error
        _check_names(cls)
        return cls


def _check_names(cls: Any) -> None:
    """Refuse fields that handlers could not tell from what they get besides the event, or that hide what events declare."""
    for field in set(_DECLARED).intersection(cls.__struct_fields__):
        msg = f"event {cls.__name__} has a field named {field!r}, which is a class variable of events; write it as ClassVar"
        raise EventDefinitionError(msg)
    for field in cls.__struct_fields__:
        if field in _RESERVED:
            msg = f"event {cls.__name__} has a field named {field!r}; {', '.join(_RESERVED)} are reserved for handlers"
            raise EventDefinitionError(msg)
        if field in cls.live:
            msg = f"event {cls.__name__} declares {field!r} both as a field and as a live name"
            raise EventDefinitionError(msg)
    if not isinstance(cls.live, tuple) or {"event", "hub"} & set(cls.live):
        msg = f"event {cls.__name__} declares live={cls.live!r}; it must be a tuple of names other than 'event' and 'hub'"
        raise EventDefinitionError(msg)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Event(msgspec.Struct, frozen=True, metaclass=_EventMeta):
    """Base of every event; subclass it for your own, with annotated fields.

    Raises:
        EventDefinitionError: a subclass is not frozen or not keyword-only, or a field has a reserved name.
    """

    live: ClassVar[tuple[str, ...]] = ()
    """The names of the live objects that are handed over beside this event."""
    counted: ClassVar[tuple[str, int] | None] = None
    """What `every=n` counts: a field and what to add to it; None counts the publishes."""
    skippable: ClassVar[bool] = False
    """Whether a handler may veto what this event announces by raising `Skip`."""
    closing: ClassVar[bool] = False
    """Whether every handler runs, whatever the ones before it raised."""
    commits: ClassVar[bool] = True
    """Whether what handlers recorded becomes visible to other threads when they are done, or with the next event."""


class MountPoint(Event):
    """A place in the loop at which hooks are called."""

    epoch: int
    iter: int
    live: ClassVar[tuple[str, ...]] = ("runner",)
    mode: ClassVar[Mode | None] = None
    """Which part of the run the event belongs to; handlers may ask for it by name."""


class RunEvent(MountPoint):
    """A call of `train`, `val` or `test` begins or ends."""

    loop: str
    """`train`, `val` or `test`."""


class PhaseEvent(MountPoint):
    """Training, a validation or a test begins or ends."""


class EpochEvent(MountPoint):
    """A pass over a dataloader begins or ends."""


class IterEvent(MountPoint):
    """A batch is about to be, or has been, worked on."""

    batch_idx: int
    live: ClassVar[tuple[str, ...]] = ("runner", "data_batch")


class StepEvent(MountPoint):
    """A point inside a training iteration."""

    batch_idx: int
    optimizer: str = ""
    """The name of the optimizer, where there are several."""
    mode: ClassVar[Mode | None] = "train"
    counted: ClassVar[tuple[str, int] | None] = ("iter", 1)


class CheckpointEvent(MountPoint):
    """A checkpoint dict is at hand; handlers may edit it."""

    name: str
    """Name of the checkpoint, `epoch_5` for instance."""
    live: ClassVar[tuple[str, ...]] = ("runner", "checkpoint")


class SaveEvent(Event):
    """What became of a checkpoint; no mount point, so that no hook method is named after it."""

    name: str
    """Name of the checkpoint."""
    epoch: int
    iter: int
    live: ClassVar[tuple[str, ...]] = ("runner",)
    counted: ClassVar[tuple[str, int] | None] = ("iter", 0)  # not the publishes: no checkpoint knows of its own


# --- the run begins ---------------------------------------------------------------------------------------------------


class BeforeRun(RunEvent):
    """A call of `train`, `val` or `test` begins; nothing is loaded yet."""


class AfterLoadCheckpoint(CheckpointEvent):
    """A checkpoint was read and verified; `checkpoint` may be edited before it is taken over."""

    resuming: bool = False
    """Whether the run goes on from it; otherwise its weights are taken over."""


# --- training ---------------------------------------------------------------------------------------------------------


class BeforeTrain(PhaseEvent):
    """Training begins: model, optimizer and schedulers are ready. The place for one-time set-up."""

    mode: ClassVar[Mode | None] = "train"


class BeforeTrainEpoch(EpochEvent):
    """An epoch begins; the dataloader has not been asked for its iterator yet."""

    mode: ClassVar[Mode | None] = "train"
    counted: ClassVar[tuple[str, int] | None] = ("epoch", 1)


class BeforeTrainIter(IterEvent):
    """A batch has arrived and is on its device; it may be changed in place."""

    data_time: float
    """Seconds that the loop waited for this batch."""
    mode: ClassVar[Mode | None] = "train"
    counted: ClassVar[tuple[str, int] | None] = ("iter", 1)
    commits: ClassVar[bool] = False  # an iteration is one version: its number, its losses and its times


class AfterBackward(StepEvent):
    """Gradients of one micro-batch have been added; they may be changed in place."""


class BeforeOptimizerStep(StepEvent):
    """Gradients are unscaled and accumulated, not yet clipped; `Skip` leaves this update out."""

    skippable: ClassVar[bool] = True


class AfterOptimizerStep(StepEvent):
    """The optimizer had its turn."""

    skipped: bool = False
    """Whether the update was left out."""


class AfterTrainIter(IterEvent):
    """An iteration is done: weights are updated, gradients cleared; counters move right after."""

    data_time: float = 0.0
    """Seconds that the loop waited for this batch."""
    live: ClassVar[tuple[str, ...]] = ("runner", "data_batch", "outputs")
    mode: ClassVar[Mode | None] = "train"
    counted: ClassVar[tuple[str, int] | None] = ("iter", 1)


class AfterTrainEpoch(EpochEvent):
    """An epoch is done; `epoch` counts it right after."""

    mode: ClassVar[Mode | None] = "train"
    counted: ClassVar[tuple[str, int] | None] = ("epoch", 1)


# --- validation -------------------------------------------------------------------------------------------------------


class BeforeVal(PhaseEvent):
    """A validation begins; `Skip` leaves it out."""

    mode: ClassVar[Mode | None] = "val"
    skippable: ClassVar[bool] = True


class BeforeValEpoch(EpochEvent):
    """The pass over the validation data begins; the model is still in training mode."""

    mode: ClassVar[Mode | None] = "val"
    counted: ClassVar[tuple[str, int] | None] = ("epoch", 0)


class BeforeValIter(IterEvent):
    """A validation batch has arrived and is on its device."""

    data_time: float
    """Seconds that the loop waited for this batch."""
    mode: ClassVar[Mode | None] = "val"
    counted: ClassVar[tuple[str, int] | None] = ("batch_idx", 1)


class AfterValIter(IterEvent):
    """A validation batch is done."""

    data_time: float = 0.0
    """Seconds that the loop waited for this batch."""
    live: ClassVar[tuple[str, ...]] = ("runner", "data_batch", "outputs")
    mode: ClassVar[Mode | None] = "val"
    counted: ClassVar[tuple[str, int] | None] = ("batch_idx", 1)


class AfterValEpoch(EpochEvent):
    """The pass over the validation data is done and the metrics are computed."""

    metrics: dict[str, Any]
    mode: ClassVar[Mode | None] = "val"
    counted: ClassVar[tuple[str, int] | None] = ("epoch", 0)


class AfterVal(PhaseEvent):
    """A validation is over."""

    mode: ClassVar[Mode | None] = "val"


# --- saving, and the end of training ----------------------------------------------------------------------------------


class BeforeSaveCheckpoint(CheckpointEvent):
    """`checkpoint` holds the whole state and is about to be written; it may be edited, `Skip` leaves the save out."""

    skippable: ClassVar[bool] = True


class CheckpointStaged(SaveEvent):
    """The state was copied as it is now, and is written while training goes on."""

    seconds: float
    """How long training stood still for it."""


class CheckpointCommitted(SaveEvent):
    """A checkpoint is complete and durable; `epoch` and `iter` are those that it holds."""

    path: str
    seconds: float
    """How long it took, counted from the step boundary that it was taken at."""


class CheckpointFailed(SaveEvent):
    """A checkpoint could not be written; the error ends the run, and earlier checkpoints are as they were."""

    error_type: str
    message: str
    closing: ClassVar[bool] = True


class ControlApplied(Event):
    """A control of the runner, `set_lr` for instance, took effect; no mount point, so that no hook method is named after it."""

    control: str
    """Which one: `stop`, `pause`, `unpause`, `save`, `validate` or `set_lr`."""
    arguments: dict[str, Any]
    """What it was called with."""
    epoch: int
    iter: int
    requested_by: str
    """Who called it: what the caller said, else the function and its thread or task."""
    live: ClassVar[tuple[str, ...]] = ("runner",)
    counted: ClassVar[tuple[str, int] | None] = ("iter", 0)  # not the publishes: a checkpoint is that of a run without controls


class AfterTrain(PhaseEvent):
    """Training is over, because it is complete or because a stop was asked for."""

    mode: ClassVar[Mode | None] = "train"


# --- test -------------------------------------------------------------------------------------------------------------


class BeforeTest(PhaseEvent):
    """A test begins."""

    mode: ClassVar[Mode | None] = "test"


class BeforeTestEpoch(EpochEvent):
    """The pass over the test data begins."""

    mode: ClassVar[Mode | None] = "test"
    counted: ClassVar[tuple[str, int] | None] = ("epoch", 0)


class BeforeTestIter(IterEvent):
    """A test batch has arrived and is on its device."""

    data_time: float
    """Seconds that the loop waited for this batch."""
    mode: ClassVar[Mode | None] = "test"
    counted: ClassVar[tuple[str, int] | None] = ("batch_idx", 1)


class AfterTestIter(IterEvent):
    """A test batch is done."""

    data_time: float = 0.0
    """Seconds that the loop waited for this batch."""
    live: ClassVar[tuple[str, ...]] = ("runner", "data_batch", "outputs")
    mode: ClassVar[Mode | None] = "test"
    counted: ClassVar[tuple[str, int] | None] = ("batch_idx", 1)


class AfterTestEpoch(EpochEvent):
    """The pass over the test data is done and the metrics are computed."""

    metrics: dict[str, Any]
    mode: ClassVar[Mode | None] = "test"
    counted: ClassVar[tuple[str, int] | None] = ("epoch", 0)


class AfterTest(PhaseEvent):
    """A test is over."""

    mode: ClassVar[Mode | None] = "test"


# --- what is recorded -------------------------------------------------------------------------------------------------


class ScalarsLanded(Event):
    """Recorded values have reached the host: on the CPU after each iteration, on a device once per transfer, with their steps.

    For those who cannot wait for a device: no value is read for this event that was not there already.
    """

    iters: list[int]
    """The iterations that values belong to, counted from 1, in ascending order."""
    scalars: dict[str, list[float | None]]
    """For each key its values at these iterations; None where there is none."""


# --- what is logged ---------------------------------------------------------------------------------------------------


class LogRecorded(Event):
    """A line of the log was made: the values of one moment, and the same as text; numbers, text and plain containers only."""

    mode: Mode
    epoch: int
    """The running epoch in training, completed epochs in validation and test."""
    iter: int
    """Completed iterations."""
    values: dict[str, Any]
    text: str
    is_progress: bool = False
    """Whether it only shows how far a validation or test has come, and is not to be kept."""
    logger: str = ""
    """Which LoggerHook made it, where a run has several; the writers of the others leave it out."""
    counted: ClassVar[tuple[str, int] | None] = ("iter", 0)


class Histogram(msgspec.Struct, frozen=True, kw_only=True):
    """How the finite values of one tensor are distributed."""

    min: float
    max: float
    total: float
    """The sum of the values."""
    total_of_squares: float
    limits: list[float]
    """The upper limits of the buckets, in ascending order."""
    counts: list[int]
    """How many values lie in each bucket."""
    not_finite: int = 0
    """How many values are NaN or infinite, and therefore in no bucket."""


class HistogramsTaken(Event):
    """Weights and gradients were counted before an optimizer step; published with the next line of the log."""

    epoch: int
    iter: int
    """The iteration whose gradients these are, counted from 1."""
    histograms: dict[str, Histogram]
    counted: ClassVar[tuple[str, int] | None] = ("iter", 0)


class ImagesDrawn(Event):
    """Images of a validation or a test lie in files; published once when it is over, and no mount point."""

    mode: Mode
    epoch: int
    """Completed epochs."""
    iter: int
    """Completed iterations."""
    paths: list[str]
    """PNG files, in the order in which they were drawn."""
    captions: list[str]
    """What stands below each of them, maybe on several lines; empty where nothing does."""
    live: ClassVar[tuple[str, ...]] = ("runner",)
    counted: ClassVar[tuple[str, int] | None] = ("iter", 0)


# --- the run ends -----------------------------------------------------------------------------------------------------


class RunFailed(MountPoint):
    """An error ended the run; `AfterRun` follows. Every handler runs."""

    error_type: str
    message: str
    handler: str = ""
    """The handler that raised, where it was one."""
    closing: ClassVar[bool] = True


class AfterRun(RunEvent):
    """A call of `train`, `val` or `test` ends, well or not. Every handler runs."""

    closing: ClassVar[bool] = True


def mount_point_name(event_type: type[Event]) -> str:
    """Return the name of the hook method for an event: its class name in `snake_case`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", event_type.__name__).lower()


MOUNT_POINTS: dict[str, type[MountPoint]] = {
    mount_point_name(event_type): event_type
    for event_type in (
        *(BeforeRun, AfterLoadCheckpoint, BeforeTrain, BeforeTrainEpoch, BeforeTrainIter, AfterBackward),
        *(BeforeOptimizerStep, AfterOptimizerStep, AfterTrainIter, AfterTrainEpoch, BeforeVal, BeforeValEpoch),
        *(BeforeValIter, AfterValIter, AfterValEpoch, AfterVal, BeforeSaveCheckpoint, AfterTrain, BeforeTest),
        *(BeforeTestEpoch, BeforeTestIter, AfterTestIter, AfterTestEpoch, AfterTest, RunFailed, AfterRun),
    )
}
"""Every mount point by the name of its hook method, in firing order."""

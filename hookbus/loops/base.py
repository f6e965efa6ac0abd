"""What all loops share: the parts of a run that a loop works with, and the ways it publishes."""

from __future__ import annotations

__all__ = ("BaseLoop", "LoopContext")

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch

from hookbus._landing import scalars_landed
from hookbus.bus import EventBus
from hookbus.errors import EmptyDataLoader, Skip
from hookbus.events import EpochEvent, PhaseEvent, ScalarsLanded
from hookbus.hub import MessageHub
from hookbus.loading import LoaderPosition, start_loading, stop_loading
from hookbus.progress import Progress
from hookbus.training_thread import TrainingThread

TIMED_EVERY = 16
"""Steps between two whose handlers are timed, on average in the long run."""
GOLDEN = 0.6180339887498949
"""Multiples of the golden ratio are spread evenly, and so in step with no interval that somebody chose for a handler."""


@dataclass
class LoopContext:
    """The parts of a run that its loops work with."""

    runner: Any
    model: torch.nn.Module
    progress: Progress
    device: torch.device
    move: Callable[[Any], Any]
    """Brings a batch to the device of the model."""
    bus: EventBus = field(init=False)
    hub: MessageHub = field(init=False)
    thread: TrainingThread | None = None
    """The training thread, while the run is live."""

    @property
    def live_thread(self) -> TrainingThread:
        """The training thread of the live run."""
        assert self.thread is not None
        return self.thread


class BaseLoop(ABC):
    """Goes through a dataloader and publishes what happens; subclasses implement `run`."""

    def __init__(self, context: LoopContext, dataloader: Any) -> None:
        self.context = context
        self.dataloader = dataloader
        self.position = LoaderPosition()
        """Where the running pass over the data stands."""
        self._steps = 0
        self._timed_thread: TrainingThread | None = None
        """The thread of the run whose steps are counted."""
        self._is_timed = False
        self._switch_timing_at = 0
        self._spread = 0.0

    @abstractmethod
    def run(self) -> dict[str, Any]:
        """Run to the end and return the newest metrics."""

    @property
    def num_batches(self) -> int | None:
        """The batches of one pass, or None where the dataloader has no length."""
        try:
            return len(self.dataloader)
        except TypeError:  # also torch's own, where its dataset is a stream
            return None

    @property
    def epoch_length(self) -> int | None:
        """The iterations of one epoch, or None where that is unknown."""
        return self.num_batches

    @property
    def runner(self) -> Any:
        """The runner that this loop belongs to."""
        return self.context.runner

    def emit(self, event_type: type[PhaseEvent | EpochEvent], **facts: Any) -> Skip | None:
        """Publish an event that needs no live object besides the runner."""
        bus, progress = self.context.bus, self.context.progress
        if not bus.has_subscribers(event_type):
            return None
        return bus.emit(event_type(epoch=progress.epoch, iter=progress.iter, **facts), {"runner": self.context.runner})

    def tell_landed(self) -> None:
        """Publish what was recorded and has reached the host."""
        bus = self.context.bus
        if bus.has_subscribers(ScalarsLanded):
            event = scalars_landed(self.context.hub.take_landed())
            if event is not None:
                bus.emit(event)

    def batches(self, where: str, number: int) -> Iterator[tuple[int, Any, float]]:
        """Yield number, batch on its device, and the seconds it was waited for; end early where a stop came meanwhile.

        Args:
            where: which data, for an error.
            number: tells this pass from the others of this loop; random augmentation in workers follows from it.

        Raises:
            EmptyDataLoader: there was not a single batch.
        """
        move = self.context.move
        self._begin_timing()
        may_leave_a_batch = self._may_leave_a_batch()
        batch_idx = self.position.done - 1
        with self._iterating(number) as iterator:
            asked = perf_counter()
            for batch_idx, loaded in enumerate(iterator, self.position.done):
                batch, waited = move(loaded), perf_counter() - asked
                if may_leave_a_batch and self._stop_came_meanwhile():
                    return
                steps = self._steps = self._steps + 1
                if steps >= self._switch_timing_at:
                    self._switch_timing()
                yield batch_idx, batch, waited
                asked = perf_counter()
        if batch_idx < 0:
            raise EmptyDataLoader(_no_batch(where, self.dataloader))

    def state_dict(self) -> dict[str, Any]:
        """Return where the running pass over the data stands."""
        return self.position.state_dict(self.dataloader)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on in the middle of a pass."""
        self.position.load_state_dict(state_dict, self.dataloader)

    @contextmanager
    def _iterating(self, number: int) -> Iterator[Iterator[Any]]:
        """Have the dataloader begin a pass where its position is; its workers, if any, end with it."""
        loader, position = self.dataloader, self.position
        for doubt in position.doubts(loader):
            self.runner.logger.warning("these batches may not be those of the uninterrupted run: %s", doubt)
        with position.following(loader, self.runner.seed, number):
            iterator = start_loading(loader, self.context.hub, self.runner.logger.warning)
        try:
            yield position.skip(loader, iterator)
        finally:
            stop_loading(iterator)

    def _begin_timing(self) -> None:
        """Count steps anew in each run; the first one does what is done only once, and is not timed."""
        if self._timed_thread is not self.context.thread:
            self._timed_thread = self.context.thread
            self._steps, self._switch_timing_at, self._is_timed, self._spread = 0, 2, False, 0.0

    def _switch_timing(self) -> None:
        """Have the handlers of some steps timed, and no others: many at first, then one of `TIMED_EVERY` on average."""
        self._is_timed = not self._is_timed
        self.context.bus.time_steps(self._is_timed)
        self._switch_timing_at = self._steps + (1 if self._is_timed else self._steps_until_timed())

    def _steps_until_timed(self) -> int:
        self._spread = (self._spread + GOLDEN) % 1.0
        return 1 + int(self._spread * 2 * min(self._steps - 1, TIMED_EVERY))

    def _stop_came_meanwhile(self) -> bool:
        thread = self.context.live_thread
        was_stopped = thread.stop_requested
        thread.control_point()
        return thread.stop_requested and not was_stopped

    def _may_leave_a_batch(self) -> bool:
        """Return whether a stop may come between the arrival of a batch and its step.

        Not where the arrival moved what checkpoints keep: the random generators of this thread, or a state of the loader.
        """
        return not hasattr(self.dataloader, "state_dict") and getattr(self.dataloader, "num_workers", 1) > 0


def _no_batch(where: str, dataloader: Any) -> str:
    if isinstance(dataloader, Iterator):
        kind = type(dataloader).__name__
        return f"the {where} data is an iterator, a {kind}, which can be gone through only once; give a list or a dataloader"
    dataset: Any = getattr(dataloader, "dataset", None)
    size = len(dataset) if hasattr(dataset, "__len__") else "unknown"
    return f"the {where} dataloader yielded no batch (size of its dataset: {size}); is drop_last set, or a sampler empty?"

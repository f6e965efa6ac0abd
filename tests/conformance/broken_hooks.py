"""A sound hook, and hooks that are broken, each in a way of its own."""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar

import torch

from hookbus.errors import ConfigError
from hookbus.events import AfterTrainIter
from hookbus.hooks import Hook
from tests.conformance.left_behind import files, start_a_thread


class SoundHook(Hook):
    """Counts iterations, and gives up its thread and its place around the handlers.

    Args:
        step: what to count by.
    """

    def __init__(self, step: int = 1) -> None:
        if step < 1:
            msg = f"SoundHook.step = {step}: expected at least 1"
            raise ConfigError(msg)
        self.step = step
        self.count = 0

    def after_train_iter(self, runner: Any) -> None:
        """Count."""
        self.count += self.step

    def state_dict(self) -> dict[str, Any]:
        """Return the count."""
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.count = state_dict["count"]


class SharesAList(SoundHook):
    """Keeps what it saw in a list that all of them have."""

    _seen: ClassVar[list[int]] = []

    def __init__(self, step: int = 1) -> None:
        super().__init__(step)
        self.seen = self._seen


class ForgetsAnOption(SoundHook):
    """Takes an option and does nothing with it."""

    def __init__(self, step: int = 1, label: str = "") -> None:
        super().__init__(step)


class TakesAnything(SoundHook):
    """Swallows misspelt options."""

    def __init__(self, step: int = 1, **anything: Any) -> None:
        super().__init__(step)


class HidesWhatIsWrong(SoundHook):
    """Refuses options without naming them."""

    def __init__(self, step: Any = 1) -> None:
        if not isinstance(step, int):
            msg = "something is wrong"
            raise ConfigError(msg)
        super().__init__(step)


class ExplicitIsDifferent(SoundHook):
    """Treats a default that is spelt out as another value."""

    calls: ClassVar[int] = 0

    def __init__(self, step: int = 1) -> None:
        super().__init__(step)
        type(self).calls += 1
        self.number = self.calls


class LeavesAThread(SoundHook):
    """Starts a thread that nobody ends."""

    def before_run(self) -> None:
        """Start it."""
        start_a_thread()


class LeavesAThreadAfterErrors(SoundHook):
    """Ends its thread only when all goes well."""

    def before_run(self) -> None:
        """Start it."""
        self._end = start_a_thread()

    def after_train(self) -> None:
        """End it."""
        self._end.set()

    def after_test(self) -> None:
        """End it."""
        self._end.set()


class LeavesAFileOpen(SoundHook):
    """Opens a file and forgets it."""

    def before_run(self, runner: Any) -> None:
        """Open it."""
        files.append((runner.work_dir / "notes.txt").open("w"))


class StaysAround(SoundHook):
    """Leaves a wrapper around the handlers."""

    def before_run(self, runner: Any) -> None:
        """Put it there."""
        runner.bus.around = lambda subscription: contextlib.nullcontext()


class SubscribesForEver(SoundHook):
    """Adds a handler that nobody cancels."""

    def before_run(self, runner: Any) -> None:
        """Add it."""
        runner.bus.subscribe(AfterTrainIter, lambda: None)


class ChangesTheWeights(SoundHook):
    """Scales the weights a little, as if an exchange were not undone."""

    @torch.no_grad()
    def after_run(self, runner: Any) -> None:
        """Scale them."""
        for parameter in runner.model.parameters():
            parameter.mul_(1.01)


class ChangesTheData(SoundHook):
    """Writes into the batches that the model is trained with."""

    def before_train_iter(self, data_batch: Any) -> None:
        """Change them."""
        data_batch[0].mul_(0.5)


class CountsForAll(SoundHook):
    """Keeps on its class what belongs to a run."""

    total: ClassVar[int] = 0

    def after_train_iter(self, runner: Any) -> None:
        """Count."""
        type(self).total += 1


class StopsTooEarly(SoundHook):
    """Ends training without being asked to."""

    def after_train_iter(self, runner: Any) -> None:
        """End it."""
        runner.train_loop.stop_training = True


class NeedsTraining(SoundHook):
    """Takes for granted that a training came before the validation."""

    def before_train(self) -> None:
        """Learn something."""
        self._length = 3

    def after_val(self) -> None:
        """Use it."""
        self._length += 1


class NeedsAValidation(SoundHook):
    """Takes for granted that there is a validation."""

    def before_train(self, runner: Any) -> None:
        """Look at it."""
        self._batches = runner.val_loop.num_batches


class ForgetsItsState(SoundHook):
    """Saves its state and does not load it."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing."""


class SavesNothing(ForgetsItsState):
    """Has something to keep, and keeps nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}


class FailsWhenClosedTwice(SoundHook):
    """Gives back what it no longer has."""

    def before_run(self) -> None:
        """Take something."""
        self._held: list[int] | None = [1]

    def after_run(self) -> None:
        """Give it back."""
        assert self._held is not None, "given back already"
        self._held = None


class FailsBehindAnError(SoundHook):
    """Expects that every training ends well."""

    def before_run(self) -> None:
        """Begin."""
        self._is_done = False

    def after_train(self) -> None:
        """End."""
        self._is_done = True

    def after_test(self) -> None:
        """End."""
        self._is_done = True

    def after_val(self) -> None:
        """End."""
        self._is_done = True

    def after_run(self) -> None:
        """Complain."""
        assert self._is_done, "the run is not done"


class StaysBroken(SoundHook):
    """Does not get over an error."""

    _has_failed = False

    def run_failed(self) -> None:
        """Remember it."""
        self._has_failed = True

    def before_train(self) -> None:
        """Refuse to go on, without a word."""
        assert not self._has_failed

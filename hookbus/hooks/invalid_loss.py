"""Acts on a loss that is NaN or infinite: ends the run, leaves the batch out, or goes back to the newest checkpoint."""

from __future__ import annotations

__all__ = ("InvalidLossHook", "LossInvalid")

import math
from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch

from hookbus._config import refuse, shown
from hookbus._scalars import DeviceScalars, as_number, on_device
from hookbus.errors import ConfigError, InvalidLoss, Skip, choices
from hookbus.events import Event
from hookbus.hooks.base import Hook
from hookbus.optim.masking import LeftOut, largest_unless_finite

Policy = Literal["raise", "skip", "rollback"]


class LossInvalid(Event):
    """A loss was NaN or infinite; published when the host knows, which on a device may be some iterations later."""

    key: str
    value: float
    """With policy `skip` that of the largest gradient, where the loss itself was finite."""
    epoch: int
    iter: int
    policy: str
    live: ClassVar[tuple[str, ...]] = ("runner",)


class InvalidLossHook(Hook):
    """Acts on losses that are NaN or infinite, when their value reaches the host; a device is never waited for.

    A loss on the host is seen in its own iteration, one on a device some iterations later, before a save, and at the end of
    an epoch and of training. `"raise"` ends the run with `InvalidLoss`. `"skip"` looks at the gradients: an update with one
    that is not finite is left out, and the buffers of the model go back, on the device where they lie there. `"rollback"` has
    the runner go back to the newest checkpoint at the step boundary. While the newest loss is invalid, or a weight is not
    finite, nothing that is asked for during training is saved. The hub has `train/invalid_losses`, how many there were.

    Args:
        policy: what to do, `"raise"`, `"skip"` or `"rollback"`.
        interval: iterations between two looks at the loss; `"skip"` looks at every one.
        key: which of the outputs of the training step to look at.
        max_rollbacks: how often to go back without saving in between before the run ends with `InvalidLoss`.

    Raises:
        ConfigError: an option makes no sense; names each.
    """

    priority: ClassVar[int | str] = "ABOVE_NORMAL"

    def __init__(self, policy: Policy = "raise", interval: int = 1, key: str = "loss", max_rollbacks: int = 3) -> None:
        refuse(_problems(policy, interval, key, max_rollbacks))
        self.policy = policy
        self.interval = interval
        self.key = key
        self.max_rollbacks = max_rollbacks
        self.invalid_losses = 0
        self._newest_is_invalid = False
        self._arriving = _Arriving(key)
        self._has_seen_key = False
        self._rollback: Any = None
        """The answer to the rollback that was asked for last, until it is carried out."""
        self._rollbacks_in_a_row = 0
        self._gradient: torch.Tensor | float | None = None
        """The largest gradient of the running iteration, as far as it has to be reported."""
        self._left_out: Any = None
        """Leaves batches out, where that is the policy."""

    def uses(self, mount_point: str) -> bool:
        """Leave alone what only one policy has a use for."""
        of_skip = ("before_train_iter", "after_backward", "before_optimizer_step", "after_optimizer_step")
        return mount_point not in of_skip or self.policy == "skip"

    # --- the loss -----------------------------------------------------------------------------------------------------

    def before_train(self, runner: Any) -> None:
        """Forget what an earlier call of `train` left behind."""
        self._arriving = _Arriving(self.key)
        self._newest_is_invalid = self._has_seen_key = False
        self._rollback = self._gradient = None
        self._left_out = LeftOut(runner.model) if self.policy == "skip" else None

    def after_train_iter(self, runner: Any, outputs: Mapping[str, Any], epoch: int, iter: int) -> None:
        """Look at the loss, or at those that have arrived meanwhile.

        Raises:
            InvalidLoss: one was invalid, and the policy is to raise, or the rollbacks are used up.
            ConfigError: the step returned no number of that name.
        """
        if self._rollback is not None and self._rollback.done():
            self._rollback = None
            self._arriving = _Arriving(self.key)  # what is still under way was computed before
        if (iter + 1) % self.interval == 0:
            self._look(runner, self._loss(outputs), _Place(epoch, iter))
        if self._arriving:
            self._judge_arrived(runner)

    def after_train_epoch(self, runner: Any) -> None:
        """Wait for what is on its way, so that neither a save nor a validation comes before the policy."""
        self._judge_arrived(runner, wait=True)

    def after_train(self, runner: Any) -> None:
        """Wait for the last losses."""
        self._judge_arrived(runner, wait=True)

    def before_save_checkpoint(self, runner: Any, name: str) -> None:
        """Leave out a save of weights that are, or are about to be, no good; one by hand, after training, is taken."""
        if not runner.is_training:
            return
        self._judge_arrived(runner, wait=True)  # saving waits for the device anyway
        if self._newest_is_invalid and self.policy != "skip":
            self._veto(runner, name, f"the newest {self.key} is not finite")
        if not _are_finite(runner.model):
            self._veto(runner, name, "a weight is not finite")
        self._rollbacks_in_a_row = 0

    def _veto(self, runner: Any, name: str, reason: str) -> None:
        runner.logger.warning("%s was not saved: %s", name, reason)
        raise Skip(reason)

    def _loss(self, outputs: Mapping[str, Any]) -> Any:
        """Return the loss, or None where this step has none; the first one has to, lest its name is misspelt."""
        if self.key not in outputs and not self._has_seen_key:
            msg = f"InvalidLossHook.key = {shown(self.key)}: the training step returned no such value; "
            raise ConfigError(msg + choices(self.key, map(str, outputs)))
        self._has_seen_key = True
        return outputs.get(self.key)

    def _look(self, runner: Any, loss: Any, place: _Place) -> None:
        value = loss if loss is None or on_device(loss) else as_number(self.key, loss)
        value, self._gradient = _worse(value, self._gradient), None
        if isinstance(value, torch.Tensor):
            self._arriving.add(value, place)
        elif value is not None:
            self._judge(runner, value, place)

    def _judge_arrived(self, runner: Any, *, wait: bool = False) -> None:
        for value, place in self._arriving.take(wait=wait):
            self._judge(runner, value, place)

    def _judge(self, runner: Any, value: float, place: _Place) -> None:
        self._newest_is_invalid = not math.isfinite(value)
        if not self._newest_is_invalid:
            return
        self.invalid_losses += 1
        runner.message_hub.update_scalar("train/invalid_losses", self.invalid_losses)
        event = LossInvalid(key=self.key, value=value, epoch=place.epoch, iter=place.iter, policy=self.policy)
        runner.bus.emit(event, {"runner": runner})
        what = f"{self.key} = {value} in iteration {place.iter + 1} (epoch {place.epoch + 1})"
        if self.policy == "raise":
            raise InvalidLoss(what)
        if self.policy == "rollback":
            self._ask_to_roll_back(runner, what)
        elif self.invalid_losses & (self.invalid_losses - 1) == 0:  # the 1st, 2nd, 4th, 8th: a log is for reading
            runner.logger.warning("%s, or its gradients: the batch was left out; so far %d", what, self.invalid_losses)

    def _ask_to_roll_back(self, runner: Any, what: str) -> None:
        if self._rollback is not None:
            return
        if self._rollbacks_in_a_row >= self.max_rollbacks:
            msg = f"{what}, after {self._rollbacks_in_a_row} rollbacks with no save in between"
            raise InvalidLoss(msg)
        self._rollbacks_in_a_row += 1
        self._rollback = runner.request_rollback(what)

    # --- leaving a batch out ------------------------------------------------------------------------------------------

    def before_train_iter(self) -> None:
        """Keep the buffers as they are before the batch."""
        self._left_out.begin_batch()

    def after_backward(self, runner: Any, optimizer: str) -> None:
        """Look at the gradients of one of several micro-batches."""
        self._left_out.end_micro_batch(_wrapper(runner, optimizer))

    def before_optimizer_step(self, runner: Any, optimizer: str) -> None:
        """Leave out the update where a gradient is not finite."""
        wrapper = _wrapper(runner, optimizer)
        largest, is_taken = self._left_out.begin_update(wrapper)
        # A group of micro-batches is told of by the loss of one of them; overflows are everyday life of a loss scaler.
        if largest is not None and wrapper.accumulative_counts == 1 and wrapper.dtype is not torch.float16:
            self._gradient = _worse(self._gradient, largest)
        if not is_taken:
            raise Skip("a gradient is not finite")

    def after_optimizer_step(self, optimizer: str) -> None:
        """Take back an update of which only the device knew that it was invalid."""
        self._left_out.end_update(optimizer)

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return how many invalid losses there were."""
        return {"invalid_losses": self.invalid_losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.invalid_losses = state_dict["invalid_losses"]


class _Place(NamedTuple):
    """The iteration that a loss belongs to."""

    epoch: int
    iter: int


class _Arriving:
    """Losses on their way from a device to the host, with the places they belong to."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._values = DeviceScalars()
        self._places: deque[_Place] = deque()

    def __bool__(self) -> bool:
        return bool(self._places)

    def add(self, value: torch.Tensor, place: _Place) -> None:
        """Take a value as it is now."""
        self._values.add(self._key, value, 1, place.iter)
        self._places.append(place)

    def take(self, *, wait: bool) -> list[tuple[float, _Place]]:
        """Return what has arrived, in order; `wait` for all of it."""
        if wait or self._values.is_due():
            self._values.send()
        return [(value, self._places.popleft()) for _, value, _, _ in self._values.land(wait=wait)]


def _wrapper(runner: Any, optimizer: str) -> Any:
    wrapper = runner.optim_wrapper
    return wrapper[optimizer] if isinstance(wrapper, Mapping) else wrapper


def _worse(first: Any, second: Any) -> Any:
    """Return the first value, or the second one where only that is not finite; on a device where that has to tell."""
    if first is None or second is None:
        return second if first is None else first
    if isinstance(first, float):
        return second if math.isfinite(first) else first
    if isinstance(second, float):
        return first if math.isfinite(second) else second
    first, second = first.detach().reshape(()), second.to(first.device, non_blocking=True)
    return torch.where(torch.isfinite(first) & ~torch.isfinite(second), second, first)


def _are_finite(model: torch.nn.Module) -> bool:
    largest = largest_unless_finite(p for p in model.parameters() if p.is_floating_point() or p.is_complex())
    return largest is None or bool(torch.isfinite(torch.as_tensor(largest)))


def _problems(policy: object, interval: object, key: object, max_rollbacks: object) -> list[str]:
    problems = []
    if policy not in get_args(Policy):
        problems.append(f"InvalidLossHook.policy = {shown(policy)}: {choices(str(policy)[:100], get_args(Policy))}")
    for name, value in (("interval", interval), ("max_rollbacks", max_rollbacks)):
        if type(value) is not int or value < 1:
            problems.append(f"InvalidLossHook.{name} = {shown(value)}: expected a whole number of at least 1")
    if policy == "skip" and interval != 1:
        problems.append(f"InvalidLossHook.interval = {shown(interval)}: policy 'skip' looks at every iteration; leave it out")
    if not isinstance(key, str) or not key:
        problems.append(f"InvalidLossHook.key = {shown(key)}: expected the name of an output of the training step")
    return problems

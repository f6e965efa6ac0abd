"""One optimizer in a training loop: backward, the points around its step, and clean gradients afterwards.

An update belongs to a group of micro-batches, by default of one: their losses are divided by the length of the group, so the
gradients that the optimizer sees are those of one big batch. The last group of a run ends with the run and is divided by its
own length. With float16 the gradients are unscaled before anybody but `AfterBackward` sees them.
"""

from __future__ import annotations

__all__ = ("OptimWrapper",)

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch

from hookbus._config import refuse
from hookbus.bus import EventBus
from hookbus.errors import ConfigError, Skip
from hookbus.events import AfterBackward, AfterOptimizerStep, BeforeOptimizerStep, StepEvent
from hookbus.hub import MessageHub
from hookbus.optim.accumulation import MicroBatches
from hookbus.optim.gradients import Clipping, average_over_processes, gradients_of, parameters_of
from hookbus.optim.options import wrapper_problems
from hookbus.optim.precision import LossScaler, low_precision
from hookbus.optim.step_counter import StepCounter
from hookbus.progress import Progress
from hookbus.types import Live


class OptimWrapper:
    """Updates the parameters of one optimizer and publishes the inner mount points, free when nobody subscribes.

    Args:
        optimizer: torch's.
        accumulative_counts: how many micro-batches, calls of `update_params`, make one update.
        clip_grad: `dict(max_norm=..., norm_type=2.0)` or `dict(type="value", clip_value=...)`; the norm is recorded
            as `train/grad_norm`.
        dtype: "bfloat16" or "float16" for the forward pass; None is the format of the parameters.
        loss_scale: for float16: "dynamic", a number that stays, a dict of options for torch's `GradScaler`, or None.
        name: tells several optimizers of a run apart.

    Raises:
        ConfigError: an option is unknown, ill-typed or out of range; names each.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        accumulative_counts: int = 1,
        clip_grad: Mapping[str, Any] | None = None,
        dtype: Literal["bfloat16", "float16"] | torch.dtype | None = None,
        loss_scale: Literal["dynamic"] | float | Mapping[str, Any] | None = "dynamic",
        name: str = "",
    ) -> None:
        options = {"accumulative_counts": accumulative_counts, "clip_grad": clip_grad, "dtype": dtype, "loss_scale": loss_scale}
        refuse(wrapper_problems({"optimizer": optimizer, **options}))
        self.optimizer = optimizer
        self.options = {
            "accumulative_counts": accumulative_counts,
            "clip_grad": clip_grad and dict(clip_grad),
            "dtype": dtype and str(dtype),
        }
        """What it was given, as plain values."""
        self.name = name
        self.accumulative_counts = accumulative_counts
        self.dtype = low_precision(dtype)
        self.skipped = False
        """Whether the newest update was left out: a hook vetoed it, or its gradients overflowed."""
        self._clip = None if clip_grad is None else Clipping(clip_grad)
        self._scaler = self._make_scaler(loss_scale)
        self._group = MicroBatches(accumulative_counts)
        self._is_plain = accumulative_counts == 1 and self._clip is None and self._scaler is None
        self._has_failed = False
        self._gradients_differ = False
        """Whether gradients were added up without those of the other processes."""
        self._counter = StepCounter.of(optimizer, owner=self)
        self._bus: EventBus | None = None
        self._hub: MessageHub | None = None
        self._progress = Progress()
        self._live: Live = {}
        self._max_iters: Callable[[], int | None] = _unknown

    def _make_scaler(self, loss_scale: Any) -> LossScaler | None:
        if self.dtype is not torch.float16 or loss_scale is None or loss_scale == 1:
            return None
        return LossScaler(loss_scale, parameters_of(self.optimizer)[0].device.type)

    def __repr__(self) -> str:
        return f"<OptimWrapper of {type(self.optimizer).__name__}>"

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of the optimizer."""
        return self.optimizer.param_groups

    @property
    def updates(self) -> int:
        """The steps that the optimizer has taken since it was wrapped, also those it was asked for directly.

        A fused optimizer looks for overflows on the device, where an update that it leaves out cannot be told from others.
        """
        return self._counter.steps

    def attach(self, bus: EventBus, hub: MessageHub, progress: Progress, live: Live, max_iters: Callable[[], int | None]) -> None:
        """Publish on this bus and record in this hub from now on; `max_iters` gives the length of the run, if it is known."""
        self._bus, self._hub, self._progress, self._live, self._max_iters = bus, hub, progress, live, max_iters

    def wrappers(self) -> dict[str, OptimWrapper]:
        """Return every wrapper by name: this one."""
        return {self.name: self}

    def wrapper_of(self, optimizer: torch.optim.Optimizer) -> OptimWrapper:
        """Return this wrapper, if it is the optimizer's.

        Raises:
            ConfigError: it is another one's.
        """
        if optimizer is not self.optimizer:
            ours = type(self.optimizer).__name__
            msg = f"{type(optimizer).__name__}: this object is not the optimizer of the run, which is another {ours} object"
            raise ConfigError(msg)
        return self

    # --- updating -----------------------------------------------------------------------------------------------------

    def update_params(self, loss: torch.Tensor) -> None:
        """Minimise `loss`: backward and, where the group of micro-batches is complete, the step of the optimizer."""
        if not self._is_plain:
            self.backward(loss)
            if self.should_update():
                self.step()
            return
        if self._has_failed:
            self._recover()
        try:  # the hot path: what backward() and step() come to where there is nothing to do to the gradients
            loss.backward()  # type: ignore[no-untyped-call]
            bus, skipped = self._bus, False
            if bus is not None:
                if bus.has_subscribers(AfterBackward):
                    self._publish(AfterBackward)
                if bus.has_subscribers(BeforeOptimizerStep):
                    skipped = self._publish(BeforeOptimizerStep) is not None
            if not skipped:
                self.optimizer.step()
            self.optimizer.zero_grad()
            self.skipped = skipped
            if bus is not None and bus.has_subscribers(AfterOptimizerStep):
                self._publish(AfterOptimizerStep, skipped=skipped)
        except BaseException:
            self._has_failed = True  # gradients stay, for whoever looks for the cause
            raise

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of one micro-batch, its loss divided and scaled as need be."""
        if self._has_failed:
            self._recover()
        try:
            if self.accumulative_counts > 1:
                self._group.begin(self._iters_left)
                loss = loss / self._group.length
            if self._scaler is not None:
                loss = self._scaler.scale(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            if self.accumulative_counts > 1:
                self._group.done += 1
            self._publish(AfterBackward)
        except BaseException:
            self._has_failed = True
            raise

    def should_update(self) -> bool:
        """Return whether the step is due after the newest `backward`."""
        return self.accumulative_counts == 1 or self._group.is_complete

    def step(self) -> None:
        """Have the optimizer take its step on the gradients gathered so far, unless a hook vetoes it, and clear them."""
        try:
            self._complete_group()
            self.skipped = not self._step_on_gradients()
            self.zero_grad()
            self._publish(AfterOptimizerStep, skipped=self.skipped)
        except BaseException:
            self._has_failed = True
            raise

    def zero_grad(self) -> None:
        """Clear the gradients; with them the running group of micro-batches is gone."""
        self.optimizer.zero_grad()
        self._group.end()

    def finish(self) -> None:
        """Use the gradients of a last group that nobody knew to be the last; a training that is completed calls it."""
        if self._group.done:
            self.step()

    def _iters_left(self) -> int | None:
        max_iters = self._max_iters()
        return None if max_iters is None else max_iters - self._progress.iter

    def _complete_group(self) -> None:
        """Make the gradients the mean over the micro-batches that there were, in every process."""
        factor = self._group.end()
        if factor != 1:
            for gradient in gradients_of(self.optimizer):
                gradient.mul_(factor)
        if self._gradients_differ:
            average_over_processes(gradients_of(self.optimizer))
            self._gradients_differ = False

    def _step_on_gradients(self) -> bool:
        """Return whether the optimizer took its step."""
        scaler = self._scaler
        if scaler is None or not gradients_of(self.optimizer):  # torch's scaler refuses an optimizer that has none
            is_wanted = self._publish(BeforeOptimizerStep) is None
            if is_wanted:
                self._clip_gradients()
                self.optimizer.step()
            return is_wanted
        scaler.unscale(self.optimizer)
        updates = self.updates
        if self._publish(BeforeOptimizerStep) is None:
            self._clip_gradients()
            scaler.step(self.optimizer)
        scaler.update()
        return self.updates > updates

    def _clip_gradients(self) -> None:
        if self._clip is None:
            return
        norm = self._clip(parameters_of(self.optimizer))
        if norm is not None and self._hub is not None:
            self._hub.update_scalar(f"train/{self.name}.grad_norm" if self.name else "train/grad_norm", norm)

    def _recover(self) -> None:
        """Forget an update that failed, so that its gradients are not counted twice where training goes on."""
        self._has_failed = False
        self.zero_grad()
        if self._scaler is not None:
            self._scaler.restart()

    def _publish(self, event_type: type[StepEvent], **facts: Any) -> Skip | None:
        bus, progress = self._bus, self._progress
        if bus is None or not bus.has_subscribers(event_type):
            return None
        place = {"epoch": progress.epoch, "iter": progress.iter, "batch_idx": progress.batch_idx}
        return bus.emit(event_type(**place, optimizer=self.name, **facts), self._live)

    # --- the forward pass ---------------------------------------------------------------------------------------------

    def needs_context(self, model: torch.nn.Module) -> bool:
        """Return whether `optim_context` does anything for a model."""
        return self.dtype is not None or self._may_postpone_synchronisation(model)

    @contextmanager
    def optim_context(self, model: torch.nn.Module) -> Iterator[None]:
        """Surround the forward pass of one micro-batch: low precision, and processes that wait for the end of a group."""
        with ExitStack() as stack:
            if self._may_postpone_synchronisation(model):
                self._group.begin(self._iters_left)
                self._gradients_differ = self._group.done + 1 < self._group.length
                if self._gradients_differ:
                    stack.enter_context(model.no_sync())  # type: ignore[operator]  # that of DistributedDataParallel
            if self.dtype is not None:
                stack.enter_context(torch.autocast(parameters_of(self.optimizer)[0].device.type, self.dtype))
            yield

    def _may_postpone_synchronisation(self, model: torch.nn.Module) -> bool:
        return self.accumulative_counts > 1 and callable(getattr(model, "no_sync", None))

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer, and beside it that of the loss scale and of an incomplete group, if any."""
        state = self.optimizer.state_dict()
        if self._scaler is not None:
            state["loss_scaler"] = self._scaler.state_dict()
        if self._group.done:
            gradients = [parameter.grad for parameter in parameters_of(self.optimizer)]
            state["accumulation"] = {"done": self._group.done, "length": self._group.length, "gradients": gradients}
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the state of an optimizer: what `state_dict` returned, or torch's own.

        Raises:
            ConfigError: it is that of several optimizers.
        """
        if "param_groups" not in state_dict:
            msg = f"the state is not that of one optimizer; it has the keys {', '.join(map(str, state_dict))}"
            raise ConfigError(msg)
        self.optimizer.load_state_dict({key: state_dict[key] for key in state_dict if key not in ("loss_scaler", "accumulation")})
        self.zero_grad()
        if self._scaler is not None and "loss_scaler" in state_dict:
            self._scaler.load_state_dict(state_dict["loss_scaler"])
        if self.accumulative_counts > 1 and "accumulation" in state_dict:
            self._load_group(state_dict["accumulation"])

    def _load_group(self, state: Mapping[str, Any]) -> None:
        self._group.done, self._group.length = state["done"], state["length"]
        for parameter, gradient in zip(parameters_of(self.optimizer), state["gradients"], strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.device, copy=True)


def _unknown() -> None:
    """Return nothing, for a wrapper that no run uses."""

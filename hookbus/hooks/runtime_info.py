"""Keeps the message hub up to date, so that modules without a runner can read what a run is doing."""

from __future__ import annotations

__all__ = ("RuntimeInfoHook",)

from collections.abc import Callable, Mapping
from numbers import Number
from typing import Any, ClassVar

from hookbus._version import __version__
from hookbus.hooks.base import Hook
from hookbus.hub import MessageHub


class RuntimeInfoHook(Hook):
    """Writes counters, learning rate, losses and metrics to the message hub.

    Information: `experiment_name`, `seed`, `hookbus_version`, `loop_stage`, `epoch`, `iter`, `max_epochs`, `max_iters`,
    `dataset_meta`. Scalars: `train/lr` of the first parameter group, `train/<key>` for every scalar among the outputs,
    `val/<metric>`, `test/<metric>`. Where an optimizer has several groups, `train/base_lr` is that of the first group which
    began with the optimizer's own rate; several optimizers have `train/<name>.lr` each.
    """

    priority: ClassVar[int | str] = "VERY_HIGH"

    def __init__(self) -> None:
        self._keys: dict[str, str] = {}
        self._stage: str | None = None
        self._rates: Callable[[], dict[str, Any]] | None = None
        """Gives the learning rates, where there are more than that of one optimizer with one parameter group."""

    def before_run(self, runner: Any, hub: MessageHub) -> None:
        """Say which run this is."""
        hub.update_info_dict(_identity(runner))

    def before_train(self, runner: Any, hub: MessageHub) -> None:
        """Say how long training will be, and once more which run this is: a checkpoint brought the facts of an older one."""
        limits = {"max_epochs": runner.max_epochs, "max_iters": runner.max_iters}
        self._enter("train", hub, epoch=runner.epoch, iter=runner.iter, **limits, **_identity(runner))
        self._rates = _several_rates(runner.optim_wrapper)
        meta = getattr(getattr(runner.train_dataloader, "dataset", None), "metainfo", None)
        if meta is not None:
            hub.update_info("dataset_meta", meta)

    def before_train_epoch(self, epoch: int, hub: MessageHub) -> None:
        """Count the epoch; a validation that a hook skipped is over now, too."""
        hub.update_info_dict({"loop_stage": "train", "epoch": epoch})

    def before_train_iter(self, iter: int, hub: MessageHub) -> None:
        """Count the iteration."""
        hub.update_info("iter", iter)

    def after_train_iter(self, runner: Any, outputs: Mapping[str, Any], hub: MessageHub) -> None:
        """Record the learning rate of the step, and every scalar it returned; what is not one is for other hooks."""
        rates = self._rates
        values = {"train/lr": runner.optim_wrapper.optimizer.param_groups[0]["lr"]} if rates is None else rates()
        for key, value in outputs.items():
            if type(value) is float or _is_scalar(value):
                values[self._keys.get(key) or self._key(key)] = value
        hub.update_scalars(values)

    def after_train_epoch(self, iter: int, hub: MessageHub) -> None:
        """Count the last iteration as completed."""
        hub.update_info("iter", iter)

    def before_val(self, epoch: int, iter: int, hub: MessageHub) -> None:
        """Count what is completed before the validation."""
        hub.update_info_dict({"loop_stage": "val", "epoch": epoch, "iter": iter})

    def after_val_epoch(self, metrics: Mapping[str, Any], hub: MessageHub) -> None:
        """Record the metrics."""
        _record("val", metrics, hub)

    def after_val(self, hub: MessageHub) -> None:
        """Go back to training, where the validation was part of one."""
        if self._stage is None:
            hub.pop_info("loop_stage")
        else:
            hub.update_info("loop_stage", self._stage)

    def after_train(self, epoch: int, iter: int, hub: MessageHub) -> None:
        """Count what was completed in all."""
        self._leave(hub, epoch=epoch, iter=iter)

    def before_test(self, hub: MessageHub) -> None:
        """Say that a test is going on."""
        hub.update_info("loop_stage", "test")

    def after_test_epoch(self, metrics: Mapping[str, Any], hub: MessageHub) -> None:
        """Record the metrics."""
        _record("test", metrics, hub)

    def after_test(self, hub: MessageHub) -> None:
        """Say that the test is over."""
        hub.pop_info("loop_stage")

    def after_run(self, hub: MessageHub) -> None:
        """Say that nothing is going on, however the run ended."""
        self._leave(hub)

    def _enter(self, stage: str, hub: MessageHub, **info: Any) -> None:
        self._stage = stage
        hub.update_info_dict({"loop_stage": stage} | info)

    def _leave(self, hub: MessageHub, **info: Any) -> None:
        self._stage = None
        hub.pop_info("loop_stage")
        hub.update_info_dict(info)

    def _key(self, key: str) -> str:
        """Return `train/<key>`, made once."""
        return self._keys.setdefault(key, f"train/{key}")


def _identity(runner: Any) -> dict[str, Any]:
    return {"experiment_name": runner.experiment_name, "seed": runner.seed, "hookbus_version": __version__}


def _several_rates(optim_wrapper: Any) -> Callable[[], dict[str, Any]] | None:
    """Return what gives the learning rates by key; None where there is but one."""
    if isinstance(optim_wrapper, Mapping):
        optimizers = {f"train/{name}.lr": wrapper.optimizer for name, wrapper in optim_wrapper.items()}
        return lambda: {key: optimizer.param_groups[0]["lr"] for key, optimizer in optimizers.items()}
    optimizer = optim_wrapper.optimizer
    if len(optimizer.param_groups) == 1:
        return None
    first_rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]  # schedulers note the first one
    places = {"train/lr": 0}
    base_rate = optimizer.defaults.get("lr")
    if base_rate in first_rates:
        places["train/base_lr"] = first_rates.index(base_rate)
    return lambda: {key: optimizer.param_groups[place]["lr"] for key, place in places.items()}


def _is_scalar(value: Any) -> bool:
    numel = getattr(value, "numel", None)
    return numel() == 1 if numel is not None else isinstance(value, Number) or getattr(value, "size", None) == 1


def _record(mode: str, metrics: Mapping[str, Any], hub: MessageHub) -> None:
    """Record scalar metrics with their history, others as information."""
    hub.update_scalars({f"{mode}/{name}": value for name, value in metrics.items() if _is_scalar(value)})
    others = {f"{mode}/{name}": value for name, value in metrics.items() if not _is_scalar(value)}
    if others:
        hub.update_info_dict(others)

"""What a run was started with, as numbers and texts by name, for destinations that compare runs."""

from __future__ import annotations

__all__ = ("hyperparameters_of",)

from collections.abc import Mapping
from typing import Any

Hyperparameter = bool | int | float | str


def hyperparameters_of(runner: Any) -> dict[str, Hyperparameter]:
    """Return what a runner knows: model, seed, device, lengths, batch size, and the options of its optimizers."""
    facts: dict[str, Any] = {
        "model": type(runner.model).__name__,
        "parameters": sum(parameter.numel() for parameter in runner.model.parameters()),
        "seed": runner.seed,
        "device": str(runner.device),
        "world_size": runner.world_size,
        "batch_size": getattr(runner.train_dataloader, "batch_size", None),
        "max_epochs": runner.max_epochs,
        "max_iters": runner.max_iters,
    }
    return {name: value for name, value in (facts | _of_optimizers(runner.optim_wrapper)).items() if _is_simple(value)}


def _of_optimizers(wrapper: Any) -> dict[str, Any]:
    """Return `optimizer` and `optimizer.<option>`, with the name of the optimizer in front where there are several."""
    wrappers: dict[str, Any] = {"": wrapper} if wrapper is not None else {}
    if isinstance(wrapper, Mapping):
        wrappers = {f"{name}.": each for name, each in wrapper.items()}
    found: dict[str, Any] = {}
    for prefix, each in wrappers.items():
        optimizer = each.optimizer
        found[f"{prefix}optimizer"] = type(optimizer).__name__
        first: dict[str, Any] = next(iter(optimizer.param_groups), {})
        rates = {"lr": first.get("initial_lr", first.get("lr"))}  # schedulers have already changed the rate itself
        found |= {f"{prefix}optimizer.{option}": value for option, value in (optimizer.defaults | rates).items()}
    return found


def _is_simple(value: object) -> bool:
    return isinstance(value, bool | int | float | str)

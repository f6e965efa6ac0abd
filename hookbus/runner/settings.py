"""The settings that a resumed run must share with the one it goes on from, to be that run and no other.

They stand in every checkpoint. Where one differs, resuming is refused with the list of all differences, or accepted by
name: then the new setting holds, and what is no longer exact is said in the log.
"""

from __future__ import annotations

__all__ = ("CONSEQUENCES", "differences", "settings_of")

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from hookbus._bare import bare
from hookbus._config import shown

if TYPE_CHECKING:
    from hookbus.runner.runner import Runner

CONSEQUENCES: Mapping[str, str] = {
    "model": "weights of other names stay as they are, and the optimizer begins without its state",
    "optimizer": "the options of the new optimizer hold; its state is taken over where it is of the same class",
    "optim_wrapper": "updates are not those of the uninterrupted run",
    "param_scheduler": "the new schedules hold, advanced to where this run stands",
    "train_cfg": "the counters go on in the other unit",
    "batch_size": "the running pass over the data begins anew",
    "train_batches": "the running pass over the data begins anew",
    "num_workers": "random augmentation differs from here on",
    "world_size": "each process sees other batches",
    "torch_version": "other kernels may round differently",
}
"""What may differ by name, and what that means."""


def settings_of(runner: Runner) -> dict[str, Any]:
    """Return the settings of a run, plain values by name; those of training only where it trains."""
    settings: dict[str, Any] = {"torch_version": str(torch.__version__), "world_size": runner.world_size}
    if runner.optim_wrapper is None:
        return settings
    wrappers = runner.optim_wrapper.wrappers()
    loader = runner.train_dataloader
    batch_sampler = getattr(loader, "batch_sampler", None)
    return settings | {
        "train_cfg": "epochs" if runner.train_loop.by_epoch else "iterations",
        "batch_size": getattr(batch_sampler, "batch_size", None) or getattr(loader, "batch_size", None),
        "train_batches": runner.train_loop.num_batches,
        "num_workers": getattr(loader, "num_workers", 0),
        "optimizer": {name: _optimizer(wrapper.optimizer) for name, wrapper in wrappers.items()},
        "optim_wrapper": {name: wrapper.options for name, wrapper in wrappers.items()},
        "param_scheduler": [scheduler.description for scheduler in runner.param_schedulers],
    }


def _optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    options = {key: value for key, value in optimizer.defaults.items() if isinstance(value, bool | int | float | tuple | None)}
    return {"type": type(optimizer).__name__, **options}


def differences(runner: Runner, checkpoint: Mapping[str, Any]) -> dict[str, str]:
    """Return by name what differs between a checkpoint and the run that is to go on from it, and how."""
    before, now = checkpoint["meta"].get("settings", {}), settings_of(runner)
    found = {name: _change(name, before[name], now[name]) for name in now if name in before and before[name] != now[name]}
    weights = _weights(bare(runner.model).state_dict(), checkpoint["state_dict"])
    return {"model": weights} | found if weights else found


def _change(name: str, before: Any, now: Any) -> str:
    """Return what is another value now, each by its place."""
    old, new = dict(_leaves(before, name)), dict(_leaves(now, name))
    places = [place for place in old | new if old.get(place, _ABSENT) != new.get(place, _ABSENT)]
    return ", ".join(f"{place} was {shown(old.get(place, _ABSENT))} and is {shown(new.get(place, _ABSENT))}" for place in places)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every plain value in nested dicts and lists with its place."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if key else path)  # the only optimizer has no name
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}[{index}]")
    else:
        yield path, value


class _Absent:
    def __repr__(self) -> str:
        return "not there"


_ABSENT = _Absent()


def _weights(own: Mapping[str, Any], saved: Mapping[str, Any]) -> str:
    """Return how the weights differ in name or shape; an empty text if they do not."""
    lacking = [name for name in own if name not in saved]
    unknown = [name for name in saved if name not in own]
    reshaped = [f"{name} {_shape(saved[name])} -> {_shape(own[name])}" for name in own if _reshaped(own, saved, name)]
    parts = {"it lacks": lacking, "it also holds": unknown, "of another shape": reshaped}
    said = [f"{what} {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}" for what, names in parts.items() if names]
    return f"model: of the checkpoint, {'; '.join(said)}" if said else ""


def _reshaped(own: Mapping[str, Any], saved: Mapping[str, Any], name: str) -> bool:
    return name in saved and _shape(own[name]) != _shape(saved[name])


def _shape(value: Any) -> Any:
    return tuple(getattr(value, "shape", ()))

"""Everything that is wrong with what a user gave a runner, found before anything is built."""

from __future__ import annotations

__all__ = ("config_problems",)

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from hookbus._config import Constructor, shown
from hookbus.errors import choices, describe_error
from hookbus.log_processor import LogProcessor
from hookbus.registry import LOOPS, METRICS
from hookbus.runner.assembly import train_loop_config
from hookbus.runner.defaults import hook_problems
from hookbus.runner.optimizers import optimizer_problems
from hookbus.runner.randomness import Randomness
from hookbus.runner.settings import CONSEQUENCES
from hookbus.schedulers import param_scheduler_problems

Given = Mapping[str, Any]
"""The arguments of a runner by name."""

_TRAINING = ("train_dataloader", "train_cfg", "optimizer")
_LOOP_PARTS = ("context", "dataloader", "step", "val_loop")
_EVALUATION_PARTS = ("context", "dataloader", "step", "evaluation")


def config_problems(given: Given) -> Iterator[str]:
    """Yield one sentence for each problem; a part is looked at only if those it builds on are sound."""
    for check in _CHECKS:
        yield from check(given)
    yield from hook_problems(given["default_hooks"], given["custom_hooks"])


def _model(given: Given) -> Iterator[str]:
    if not isinstance(given["model"], torch.nn.Module):
        yield f"model = {shown(given['model'])}: expected a torch.nn.Module"


def _device(given: Given) -> Iterator[str]:
    try:
        torch.empty(0, device=given["device"])
    except (RuntimeError, TypeError, AssertionError) as error:
        here = ["cpu", *([torch.accelerator.current_accelerator()] if torch.accelerator.is_available() else [])]
        yield f"device = {shown(given['device'])}: {describe_error(error)}; available: {', '.join(map(str, here))}"


def _functions(given: Given) -> Iterator[str]:
    for name in ("loss_fn", "train_step", "val_step"):
        if given[name] is not None and not callable(given[name]):
            yield f"{name} = {shown(given[name])}: expected a function"


def _phases(given: Given) -> Iterator[str]:
    """Refuse a phase of which only a part was given."""
    present = [name for name in _TRAINING if given[name] is not None or (name == "optimizer" and _brings_optimizer(given))]
    missing = [name for name in _TRAINING if name not in present]
    if present and missing:
        needs = "training needs train_dataloader, train_cfg and optimizer"
        yield f"{needs}; there is {', '.join(present)}, but no {', '.join(missing)}"
    for phase in ("val", "test"):
        for part in (f"{phase}_cfg", f"{phase}_evaluator"):
            if given[part] is not None and given[f"{phase}_dataloader"] is None:
                yield f"{part} = {shown(given[part])}: there is no {phase}_dataloader for it"


def _brings_optimizer(given: Given) -> bool:
    wrapper = given["optim_wrapper"]
    return "optimizer" in wrapper if isinstance(wrapper, dict) else wrapper is not None


def _optimizers(given: Given) -> Iterator[str]:
    if isinstance(given["model"], torch.nn.Module):
        yield from optimizer_problems(given["optimizer"], given["optim_wrapper"], given["model"])


def _schedulers(given: Given) -> Iterator[str]:
    spec = given["param_scheduler"]
    if spec is None:
        return
    if given["optimizer"] is None and not _brings_optimizer(given):
        yield f"param_scheduler = {shown(spec)}: there is no optimizer for it"
    else:
        yield from param_scheduler_problems(spec, _optimizer_objects(given["optimizer"]), path="param_scheduler")


def _optimizer_objects(spec: Any) -> torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer] | None:
    """Return the optimizers that exist already, for what can only be checked with them."""
    several = list(spec.values()) if isinstance(spec, Mapping) else [spec]
    return spec if all(isinstance(each, torch.optim.Optimizer) for each in several) else None


def _dataloaders(given: Given) -> Iterator[str]:
    for path in ("train_dataloader", "val_dataloader", "test_dataloader"):
        spec = given[path]
        if isinstance(spec, Mapping):
            yield from Constructor.of(DataLoader).fit(dict(spec), path, given={}, extra_keys=())[1]
        elif spec is not None and not hasattr(spec, "__iter__"):
            yield f"{path} = {shown(spec)}: expected a dataloader, or a dict of options for torch.utils.data.DataLoader"


def _loops(given: Given) -> Iterator[str]:
    for path, parts in {"train_cfg": _LOOP_PARTS, "val_cfg": _EVALUATION_PARTS, "test_cfg": _EVALUATION_PARTS}.items():
        config = given[path]
        if config is None:
            continue
        if not isinstance(config, Mapping):
            yield f"{path} = {shown(config)}: expected a dict of options"
        elif path == "train_cfg":
            yield from _train_cfg(config, parts)
        else:
            default = {"type": f"{path.removesuffix('_cfg').title()}Loop"}
            yield from LOOPS.check({**default, **config}, path=path, given=parts)


def _train_cfg(config: Mapping[str, Any], parts: tuple[str, ...]) -> Iterator[str]:
    by_epoch = config.get("by_epoch")
    if not isinstance(by_epoch, bool | None):
        yield f"train_cfg.by_epoch = {shown(by_epoch)}: expected bool"
    elif by_epoch is not None and "type" in config:
        yield f"train_cfg.by_epoch = {by_epoch}: the type of the loop says what it counts; leave one of them out"
    else:
        yield from LOOPS.check(train_loop_config(config), path="train_cfg", given=parts)


def _evaluators(given: Given) -> Iterator[str]:
    for path in ("val_evaluator", "test_evaluator"):
        spec = given[path]
        if isinstance(spec, Mapping) and "type" in spec:
            yield from METRICS.check(spec, path=path)


def _options(given: Given) -> Iterator[str]:
    for path, cls in (("randomness", Randomness), ("log_processor", LogProcessor)):
        options = given[path]
        if isinstance(options, Mapping):
            yield from Constructor.of(cls).fit(dict(options), path, given={}, extra_keys=())[1]
        elif not isinstance(options, cls | None):
            yield f"{path} = {shown(options)}: expected a {cls.__name__}, or a dict of its options"


def _resuming(given: Given) -> Iterator[str]:
    resume, load_from = given["resume"], given["load_from"]
    if not isinstance(resume, bool | str | Path):
        yield f"resume = {shown(resume)}: expected False, True, 'auto' or the path of a checkpoint"
    elif load_from is not None and resume not in (False, True, "auto"):
        yield f"load_from = {shown(load_from)}: resume = {shown(resume)} names what to load already; leave one of them out"
    for name in given["allow"] if isinstance(given["allow"], list | tuple | set) else [given["allow"]]:
        if name not in CONSEQUENCES:
            yield f"allow = {shown(name)}: no setting that may differ when resuming; {choices(str(name), CONSEQUENCES)}"
    if not isinstance(load_from, str | Path | None):
        yield f"load_from = {shown(load_from)}: expected the path of a checkpoint"


def _compiling(given: Given) -> Iterator[str]:
    options = given["compile"]
    if isinstance(options, Mapping):
        valid = _options_of(torch.compile)
        for key in options:
            if key not in valid:
                yield f"compile.{key} = {shown(options[key])}: torch.compile has no such option; {choices(str(key), valid)}"
    elif not isinstance(options, bool):
        yield f"compile = {shown(options)}: expected bool or a dict of options for torch.compile"


def _options_of(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "model"]


_CHECKS = (
    *(_model, _device, _functions, _phases, _optimizers, _schedulers, _dataloaders, _loops),
    *(_evaluators, _options, _resuming, _compiling),
)

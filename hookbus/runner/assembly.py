"""Makes the parts of a run out of what the user gave: objects as they are, configs built and checked."""

from __future__ import annotations

__all__ = (
    "build_dataloader",
    "build_evaluator",
    "build_log_processor",
    "build_optim_wrapper",
    "check_functions",
    "check_model",
    "check_phases",
)

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from hookbus._config import Constructor, refuse, shown
from hookbus.errors import ConfigError
from hookbus.log_processor import LogProcessor
from hookbus.optim import OptimWrapper
from hookbus.registry import METRICS, OPTIMIZERS


def check_model(model: object) -> None:
    """Refuse what is no module.

    Raises:
        ConfigError: it is something else, a config for instance.
    """
    if not isinstance(model, torch.nn.Module):
        msg = f"model = {shown(model)}: expected a torch.nn.Module"
        raise ConfigError(msg)


def check_phases(given: Mapping[str, Any]) -> None:
    """Refuse a phase of which only a part was given, and options that are no dict.

    Raises:
        ConfigError: names every part that is missing.
    """
    configs = {name: given[name] for name in ("train_cfg", "val_cfg", "test_cfg", "randomness")}
    problems = [f"{k} = {shown(v)}: expected a dict of options" for k, v in configs.items() if not isinstance(v, Mapping | None)]
    training = {name: given[name] for name in ("train_dataloader", "train_cfg", "optimizer")}
    missing = [name for name, part in training.items() if part is None]
    if missing and len(missing) < len(training):
        present = [name for name in training if name not in missing]
        needs = "training needs train_dataloader, train_cfg and optimizer"
        problems.append(f"{needs}; there is {', '.join(present)}, but no {', '.join(missing)}")
    for phase in ("val", "test"):
        for part in (f"{phase}_cfg", f"{phase}_evaluator"):
            if given[part] is not None and given[f"{phase}_dataloader"] is None:
                problems.append(f"{part} = {shown(given[part])}: there is no {phase}_dataloader for it")
    refuse(problems)


def check_functions(given: Mapping[str, object]) -> None:
    """Refuse what was given as a function and cannot be called.

    Raises:
        ConfigError: names each.
    """
    refuse([f"{k} = {shown(v)}: expected a function" for k, v in given.items() if v is not None and not callable(v)])


def build_optim_wrapper(optimizer: object, model: torch.nn.Module) -> OptimWrapper | None:
    """Return the optimizer of a run, wrapped.

    Raises:
        ConfigError: it is none, or it updates no parameter of the model.
    """
    if optimizer is None:
        return None
    if isinstance(optimizer, OptimWrapper):
        return optimizer
    if isinstance(optimizer, Mapping):
        optimizer = OPTIMIZERS.build(optimizer, path="optimizer", given={"params": model.parameters()})
    if not isinstance(optimizer, torch.optim.Optimizer):
        msg = f"optimizer = {shown(optimizer)}: expected a torch optimizer or a dict(type=...)"
        raise ConfigError(msg)
    if isinstance(optimizer, torch.optim.LBFGS) and not hasattr(model, "train_step"):
        msg = "optimizer = LBFGS: it computes the loss several times a step; use it in a train_step method of the model"
        raise ConfigError(msg)
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        msg = f"optimizer = {type(optimizer).__name__}: it updates no parameter of the model {type(model).__name__}"
        raise ConfigError(msg)
    return OptimWrapper(optimizer)


def build_dataloader(spec: object, path: str) -> Any:
    """Return a dataloader: an iterable as it is, a dict of options for torch's own built.

    Raises:
        ConfigError: it is neither, or an option does not fit.
    """
    if isinstance(spec, Mapping):
        arguments, problems = Constructor.of(DataLoader).fit(dict(spec), path, given={}, extra_keys=())
        refuse(problems)
        return DataLoader(**arguments)
    if spec is not None and not hasattr(spec, "__iter__"):
        msg = f"{path} = {shown(spec)}: expected a dataloader, or a dict of options for torch.utils.data.DataLoader"
        raise ConfigError(msg)
    return spec


def build_evaluator(spec: object, path: str) -> Any:
    """Return a metric or a collection of metrics: objects as they are, configs built."""
    return METRICS.build(spec, path=path) if isinstance(spec, Mapping) and "type" in spec else spec


def build_log_processor(spec: object) -> LogProcessor:
    """Return the log processor: an object as it is, a dict of options built.

    Raises:
        ConfigError: an option is unknown or ill-typed.
    """
    if isinstance(spec, LogProcessor):
        return spec
    if not isinstance(spec, Mapping | None):
        msg = f"log_processor = {shown(spec)}: expected a LogProcessor, or a dict of its options"
        raise ConfigError(msg)
    arguments, problems = Constructor.of(LogProcessor).fit(dict(spec or {}), "log_processor", given={}, extra_keys=())
    refuse(problems)
    return LogProcessor(**arguments)

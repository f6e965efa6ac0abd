"""Makes the parts of a run out of what the user gave: objects as they are, configs built and checked."""

from __future__ import annotations

__all__ = (
    "StepFunctions",
    "build_dataloader",
    "build_evaluation_loop",
    "build_evaluator",
    "build_log_processor",
    "build_optim_wrapper",
    "build_options",
    "build_schedulers",
    "build_train_loop",
    "check_functions",
    "check_model",
    "check_phases",
)

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from hookbus._config import Constructor, refuse, shown
from hookbus.errors import ConfigError
from hookbus.evaluation import Evaluation
from hookbus.log_processor import LogProcessor
from hookbus.loops.base import BaseLoop, LoopContext
from hookbus.optim import OptimWrapper
from hookbus.registry import LOOPS, METRICS, OPTIMIZERS
from hookbus.schedulers import ParamScheduler, build_param_schedulers
from hookbus.steps import evaluation_step, train_step


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
    return LogProcessor(**build_options(LogProcessor, spec, "log_processor"))


def build_options(cls: type, options: Mapping[str, Any] | None, path: str) -> dict[str, Any]:
    """Return options as the constructor of `cls` takes them.

    Raises:
        ConfigError: an option is unknown or ill-typed.
    """
    arguments, problems = Constructor.of(cls).fit(dict(options or {}), path, given={}, extra_keys=())
    refuse(problems)
    return arguments


def build_schedulers(spec: object, optim_wrapper: OptimWrapper | None) -> list[ParamScheduler]:
    """Return the schedulers of a run.

    Raises:
        ConfigError: there is no optimizer for them, or one does not fit.
    """
    if spec is None:
        return []
    if optim_wrapper is None:
        msg = f"param_scheduler = {shown(spec)}: there is no optimizer for it"
        raise ConfigError(msg)
    return build_param_schedulers(spec, optim_wrapper.optimizer, loop_by_epoch=True)


class StepFunctions(NamedTuple):
    """What a user gave instead of methods of the model."""

    loss_fn: Callable[..., torch.Tensor] | None
    train_step: Callable[..., Any] | None
    val_step: Callable[..., Any] | None


def build_train_loop(
    context: LoopContext,
    dataloader: Any,
    functions: StepFunctions,
    train_cfg: Mapping[str, Any] | None,
    optim_wrapper: OptimWrapper | None,
    val_loop: BaseLoop | None,
) -> Any:
    """Return the training loop, or None where the run does not train."""
    if train_cfg is None or optim_wrapper is None:
        return None
    options = dict(train_cfg)
    if options.pop("by_epoch", True) is not True:
        msg = f"train_cfg.by_epoch = {train_cfg['by_epoch']!r}: training by iterations is not available yet"
        raise NotImplementedError(msg)
    step = train_step(context.model, optim_wrapper, functions.train_step, functions.loss_fn)
    parts = {"context": context, "dataloader": dataloader, "step": step, "val_loop": val_loop}
    return LOOPS.build({"type": "EpochBasedTrainLoop"} | options, path="train_cfg", given=parts)


def build_evaluation_loop(
    name: str, context: LoopContext, dataloader: Any, functions: StepFunctions, cfg: Mapping[str, Any] | None, evaluator: Any
) -> Any:
    """Return the loop called `name`, `val` or `test`, or None where there is no dataloader for it."""
    if dataloader is None:
        return None
    parts = {
        "context": context,
        "dataloader": dataloader,
        "step": evaluation_step(name, context.model, functions.val_step, functions.loss_fn),
        "evaluation": Evaluation(build_evaluator(evaluator, f"{name}_evaluator"), context.device),
    }
    return LOOPS.build({"type": f"{name.title()}Loop"} | dict(cfg or {}), path=f"{name}_cfg", given=parts)

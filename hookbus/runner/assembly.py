"""Makes the parts of a run out of what the user gave: objects as they are, configs built and checked."""

from __future__ import annotations

__all__ = (
    "StepFunctions",
    "build_dataloader",
    "build_evaluation_loop",
    "build_evaluator",
    "build_log_processor",
    "build_options",
    "build_schedulers",
    "build_train_loop",
    "compile_model",
    "counts_epochs",
    "train_loop_config",
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
from hookbus.optim import OptimWrapper, OptimWrapperDict
from hookbus.registry import LOOPS, METRICS
from hookbus.schedulers import ParamScheduler, build_param_schedulers
from hookbus.steps import evaluation_step, train_step


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


def build_schedulers(
    spec: object, optim_wrapper: OptimWrapper | OptimWrapperDict | None, train_cfg: Mapping[str, Any] | None
) -> list[ParamScheduler]:
    """Return the schedulers of a run.

    Raises:
        ConfigError: one does not fit.
    """
    if spec is None or optim_wrapper is None:
        return []
    loop_by_epoch = counts_epochs(train_cfg or {})
    if isinstance(optim_wrapper, OptimWrapper):
        return build_param_schedulers(spec, optim_wrapper.optimizer, loop_by_epoch=loop_by_epoch)
    optimizers = {name: each.optimizer for name, each in optim_wrapper.items()}
    return build_param_schedulers(spec, optimizers, loop_by_epoch=loop_by_epoch)


def compile_model(model: torch.nn.Module, options: bool | Mapping[str, Any]) -> None:
    """Have torch compile the forward pass when it first runs; in place, so that weights keep their names."""
    if options is not False:
        model.compile(**({} if options is True else options))


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
    optim_wrapper: OptimWrapper | OptimWrapperDict | None,
    val_loop: BaseLoop | None,
) -> Any:
    """Return the training loop, or None where the run does not train."""
    if train_cfg is None or optim_wrapper is None:
        return None
    step = train_step(context.model, optim_wrapper, functions.train_step, functions.loss_fn)
    parts = {"context": context, "dataloader": dataloader, "step": step, "val_loop": val_loop}
    return LOOPS.build(train_loop_config(train_cfg), path="train_cfg", given=parts)


def counts_epochs(train_cfg: Mapping[str, Any]) -> bool:
    """Return whether the training loop that is asked for counts epochs."""
    name = train_loop_config(train_cfg)["type"]
    cls = LOOPS.get(name) if isinstance(name, str) and name in LOOPS else name
    return bool(getattr(cls, "by_epoch", True))


def train_loop_config(train_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of the training loop, its type told from `by_epoch` where it is not given."""
    options = dict(train_cfg)
    by_epoch = options.pop("by_epoch", "max_iters" not in options)
    return {"type": "EpochBasedTrainLoop" if by_epoch else "IterBasedTrainLoop"} | options


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

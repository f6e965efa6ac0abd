"""What happens to one batch: the three ways in which a model can say so.

In this order: methods `train_step(batch, optim_wrapper)`, `val_step(batch)`, `test_step(batch)` of the model; else
functions `train_step(model, batch)` and `val_step(model, batch)` given to the runner; else
`loss_fn(model(inputs), targets)` for batches that are `(inputs, targets)`.

Several optimizers are driven by the model's own `train_step`. The other two ways run model and loss function inside the
optimizer's context, which sets the number format; a method that wants it enters `optim_wrapper.optim_context(self)`.

A training step gives a dict whose `loss` was minimised and whose other entries are recorded. A validation step gives
`(predictions, targets)` for the evaluator, or a dict of scalars that are averaged over the samples.
"""

from __future__ import annotations

__all__ = ("EvaluationStep", "TrainStep", "evaluation_step", "train_step")

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch

from hookbus.errors import ConfigError, LossError, choices
from hookbus.evaluation import EvaluationOutput
from hookbus.optim import OptimWrapper, OptimWrapperDict

TrainStep: TypeAlias = Callable[[Any], dict[str, Any]]
"""Trains on one batch and returns the detached outputs."""


EvaluationStep: TypeAlias = Callable[[Any], EvaluationOutput]
"""Evaluates one batch, without gradients."""

_PAIRS = (list, tuple)

LossFunction: TypeAlias = Callable[[Any, Any], torch.Tensor]


def train_step(
    model: torch.nn.Module,
    optim_wrapper: OptimWrapper | OptimWrapperDict,
    function: Callable[..., Any] | None,
    loss_fn: LossFunction | None,
) -> TrainStep:
    """Return the function that trains `model` on a batch.

    Raises:
        ConfigError: nothing says how, or not for several optimizers.
    """
    method = getattr(model, "train_step", None)
    if callable(method):
        return lambda batch: _detached(method(batch, optim_wrapper))
    if isinstance(optim_wrapper, OptimWrapperDict):
        msg = (
            f"nothing says which of the optimizers {', '.join(optim_wrapper)} minimises what: several optimizers need a method "
            f"train_step(batch, optim_wrapper) of the model, and {type(model).__name__} has none"
        )
        raise ConfigError(msg)
    if function is not None:
        return _minimising(_forward(lambda batch: function(model, batch), model, optim_wrapper), "train_step", optim_wrapper)
    if loss_fn is not None:
        return _supervised(model, loss_fn, optim_wrapper)
    msg = (
        f"nothing says how to train {type(model).__name__}: give the runner a loss_fn for (inputs, targets) batches, "
        "or a function train_step(model, batch), or give the model a method train_step(batch, optim_wrapper)"
    )
    raise ConfigError(msg)


def _supervised(model: torch.nn.Module, loss_fn: LossFunction, optim_wrapper: OptimWrapper) -> TrainStep:
    if optim_wrapper.needs_context(model):
        forward = _forward(lambda batch: _pair_loss(model, loss_fn, batch), model, optim_wrapper)
        return _minimising(forward, "loss_fn", optim_wrapper)
    update = optim_wrapper.update_params

    def step(batch: Any) -> dict[str, Any]:  # the hot path: without a further call
        inputs, targets = batch if type(batch) in _PAIRS and len(batch) == 2 else _pair(batch)
        loss = loss_fn(model(inputs), targets)
        if not _is_loss(loss):
            raise LossError(_no_loss(loss, "loss_fn"))
        update(loss)
        return {"loss": loss.detach()}

    return step


def _pair_loss(model: torch.nn.Module, loss_fn: LossFunction, batch: Any) -> dict[str, Any]:
    inputs, targets = _pair(batch)
    return {"loss": loss_fn(model(inputs), targets)}


def _forward(function: Callable[[Any], Any], model: torch.nn.Module, optim_wrapper: OptimWrapper) -> Callable[[Any], Any]:
    """Return the function as it is to be called: inside the optimizer's context, where that does anything."""
    if not optim_wrapper.needs_context(model):
        return function

    def forward(batch: Any) -> Any:
        with optim_wrapper.optim_context(model):
            return function(batch)

    return forward


def _minimising(function: Callable[[Any], Any], where: str, optim_wrapper: OptimWrapper) -> TrainStep:
    def step(batch: Any) -> dict[str, Any]:
        result = function(batch)
        outputs = result if isinstance(result, Mapping) else {"loss": result}
        if "loss" not in outputs:
            msg = f"train_step returned a dict without the key 'loss'; {choices('loss', map(str, outputs))}"
            raise LossError(msg)
        if not _is_loss(outputs["loss"]):
            raise LossError(_no_loss(outputs["loss"], where))
        optim_wrapper.update_params(outputs["loss"])
        return _detached(outputs)

    return step


def _detached(outputs: Any) -> dict[str, Any]:
    if not isinstance(outputs, Mapping):
        msg = f"the model's train_step must return a dict of values to record, got {type(outputs).__name__}"
        raise LossError(msg)
    detached = dict(outputs)
    for key, value in outputs.items():
        if isinstance(value, torch.Tensor) and value.requires_grad:
            detached[key] = value.detach()
    return detached


def _is_loss(loss: Any) -> bool:
    return isinstance(loss, torch.Tensor) and loss.numel() == 1 and loss.requires_grad


def _no_loss(loss: Any, where: str) -> str:
    if not isinstance(loss, torch.Tensor):
        return f"{where} returned {loss!r:.80} of type {type(loss).__name__}; expected a tensor of one element"
    if loss.numel() != 1:
        return f"{where} returned a tensor of shape {tuple(loss.shape)}; expected one element: reduce it, by .mean() for instance"
    return f"{where} returned a tensor without gradient; was it detached, or made under torch.no_grad()?"


def evaluation_step(
    kind: str, model: torch.nn.Module, function: Callable[..., Any] | None, loss_fn: LossFunction | None
) -> EvaluationStep:
    """Return the function that evaluates `model` on a batch; `kind` is `val` or `test`.

    Raises:
        ConfigError: nothing says how.
    """
    method = getattr(model, f"{kind}_step", None) or getattr(model, "val_step", None)
    if callable(method):
        return lambda batch: _evaluated(method(batch))
    if function is not None:
        return lambda batch: _evaluated(function(model, batch))
    if loss_fn is None:
        msg = (
            f"nothing says how to evaluate {type(model).__name__}: give the runner a loss_fn for (inputs, targets) "
            f"batches, or a function val_step(model, batch), or give the model a method {kind}_step(batch)"
        )
        raise ConfigError(msg)

    def step(batch: Any) -> EvaluationOutput:
        inputs, targets = _pair(batch)
        predictions = model(inputs)
        return EvaluationOutput(predictions, targets, {"loss": loss_fn(predictions, targets)}, has_predictions=True)

    return step


def _evaluated(result: Any) -> EvaluationOutput:
    if isinstance(result, EvaluationOutput):
        return result
    if isinstance(result, Mapping):
        return EvaluationOutput(scalars=result)
    if isinstance(result, tuple) and len(result) == 2:
        return EvaluationOutput(result[0], result[1], has_predictions=True)
    msg = f"val_step must return (predictions, targets) or a dict of scalars, got {type(result).__name__}"
    raise ConfigError(msg)


def _pair(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    size = f" of length {len(batch)}" if isinstance(batch, tuple | list) else ""
    msg = (
        f"loss_fn needs batches that are (inputs, targets), got {type(batch).__name__}{size}; "
        "give the runner train_step(model, batch) and val_step(model, batch) instead"
    )
    raise ConfigError(msg)

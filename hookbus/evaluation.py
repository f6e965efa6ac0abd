"""The metrics of one pass over validation or test data.

An evaluator is a metric or a collection of the torchmetrics kind: `update(predictions, targets)`, `compute()`,
`reset()`. Scalars of the steps are averaged over the samples, on the device, and read once at the end of the pass.
"""

from __future__ import annotations

__all__ = ("Evaluation", "EvaluationOutput", "metric_name")

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from hookbus.errors import ConfigError

_CLASS_NAME = re.compile(r"[A-Z][A-Za-z0-9]*")
_TASK_PREFIX = re.compile(r"^(Multiclass|Multilabel|Binary)(?=[A-Z])")


def metric_name(name: str) -> str:
    """Return the snake_case name of a metric class, without the task it is for: `MulticlassF1Score` -> `f1_score`.

    Other names are a user's own, such as `mIoU` or `coco/bbox_mAP`, and stay as they are.
    """
    if not _CLASS_NAME.fullmatch(name):
        return name
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", _TASK_PREFIX.sub("", name))
    return words.lower()


class EvaluationOutput(NamedTuple):
    """What came of one batch of a validation or test."""

    predictions: Any = None
    targets: Any = None
    scalars: Mapping[str, Any] = {}
    has_predictions: bool = False


class Evaluation:
    """Collects what the steps of one pass give, and computes the metrics at its end.

    Raises:
        ConfigError: the evaluator lacks `update`, `compute` or `reset`.
    """

    def __init__(self, evaluator: Any, device: torch.device) -> None:
        missing = [name for name in ("update", "compute", "reset") if not callable(getattr(evaluator, name, None))]
        if evaluator is not None and missing:
            msg = f"an evaluator needs update, compute and reset; {evaluator!r} lacks {', '.join(missing)}"
            raise ConfigError(msg)
        self._evaluator = evaluator.to(device) if hasattr(evaluator, "to") else evaluator
        self._sums: dict[str, Any] = {}
        self._samples = 0

    def reset(self) -> None:
        """Begin a pass."""
        self._sums, self._samples = {}, 0
        if self._evaluator is not None:
            self._evaluator.reset()

    def update(self, output: EvaluationOutput, batch: Any) -> None:
        """Take in what came of one batch.

        Raises:
            ConfigError: there is an evaluator, and the step gave no predictions for it.
        """
        samples = _batch_size(batch)
        self._samples += samples
        for key, value in output.scalars.items():
            self._sums[key] = self._sums.get(key, 0.0) + value * samples
        if self._evaluator is None:
            return
        if not output.has_predictions:
            msg = "the evaluator needs (predictions, targets), but the step returned a dict of scalars"
            raise ConfigError(msg)
        self._evaluator.update(output.predictions, output.targets)

    def compute(self) -> dict[str, Any]:
        """Return the metrics by name: the evaluator's first, then the averaged scalars it did not compute, `loss` last."""
        metrics: dict[str, Any] = {}
        if self._evaluator is not None:
            computed = self._evaluator.compute()
            named = computed if isinstance(computed, Mapping) else {type(self._evaluator).__name__: computed}
            for name, value in named.items():
                short = metric_name(str(name))
                metrics[str(name) if short in metrics else short] = _plain(value)
        averages = {key: _plain(total / self._samples) for key, total in self._sums.items() if key not in metrics}
        metrics |= {key: value for key, value in averages.items() if key != "loss"}
        return metrics | {key: value for key, value in averages.items() if key == "loss"}


def _plain(value: Any) -> Any:
    """Return a metric as Python numbers, in lists and dicts where it is more than one."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if not hasattr(value, "tolist"):
        return value
    size = value.numel() if isinstance(value, torch.Tensor) else value.size
    return value.item() if size == 1 else value.tolist()


def _batch_size(batch: Any) -> int:
    """Return the length of the first tensor in a batch, or 1 where there is none."""
    return next((len(tensor) for tensor in _tensors(batch)), 1)


def _tensors(batch: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in a batch that have a length."""
    if isinstance(batch, torch.Tensor):
        if batch.ndim:
            yield batch
    elif dataclasses.is_dataclass(batch):
        yield from _tensors([getattr(batch, field.name) for field in dataclasses.fields(batch)])
    elif isinstance(batch, Mapping | tuple | list):
        for item in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(item)

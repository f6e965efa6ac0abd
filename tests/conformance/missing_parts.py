"""Runners that lack something a hook could use, or have more of it than it may expect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from hookbus.errors import ConfigError, HookbusError
from hookbus.registry import HOOKS
from hookbus.runner import Runner
from tests.conformance.footprint import leaves_nothing_behind
from tests.conformance.hook_checks import ImageModel, image_loader, make_run
from tests.conformance.subjects import Subject

Changes = Mapping[str, Any]


class Endless(IterableDataset[Any]):
    """The same samples, of which nobody knows how many there are."""

    def __iter__(self) -> Iterator[Any]:
        return iter(image_loader(3).dataset[index] for index in range(12))


class TwoPlayers(torch.nn.Module):
    """Two models, each with an optimizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = ImageModel(), ImageModel()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Give what both say."""
        scores: torch.Tensor = self.first(images) + self.second(images)
        return scores

    def train_step(self, batch: Any, optim_wrapper: Any) -> dict[str, torch.Tensor]:
        """Update both."""
        for name in ("first", "second"):
            loss = torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
            optim_wrapper[name].update_params(loss)
        return {"loss": loss}


def _two_players() -> Changes:
    model = TwoPlayers()
    optimizers = {name: torch.optim.SGD(getattr(model, name).parameters(), lr=0.1) for name in ("first", "second")}
    return dict(model=model, optimizer=optimizers)


def _two_groups() -> Changes:
    model = ImageModel()
    groups: list[dict[str, Any]] = [{"params": [*model[1].parameters()], "lr": 0.01}, {"params": [*model[2].parameters()]}]
    return dict(model=model, optimizer=torch.optim.SGD(groups, lr=0.1))


def _nothing_to_train() -> Changes:
    return dict(train_dataloader=None, train_cfg=None, optimizer=None)


def _weights_that_stay() -> Changes:
    model = ImageModel().requires_grad_(False)
    bias = [*model.parameters()][-1].requires_grad_(True)
    return dict(model=model, optimizer=torch.optim.SGD([bias], lr=0.1))


def _no_metrics() -> Changes:
    return dict(val_step=lambda model, batch: {})


def _pairs_of_something_else() -> Changes:
    def step(model: Any, batch: Any) -> dict[str, torch.Tensor]:
        return {"loss": model(batch[0]).square().mean()}

    batches = [(torch.rand(4, 16), "no labels")] * 3
    return dict(train_step=step, val_step=step, train_dataloader=batches, val_dataloader=batches, test_dataloader=batches)


WITHOUT: Mapping[str, tuple[Callable[[], Changes], tuple[str, ...]]] = {
    "a validation": (lambda: dict(val_dataloader=None), ("val_dataloader",)),
    "a test": (lambda: dict(test_dataloader=None), ("test_dataloader",)),
    "metrics": (_no_metrics, ("metric",)),
    "training": (_nothing_to_train, ("train",)),
    "a length": (lambda: dict(train_dataloader=DataLoader(Endless(), batch_size=4)), ("length", "max_iters", "train_dataloader")),
    "epochs": (lambda: dict(train_cfg=dict(by_epoch=False, max_iters=4, val_interval=2)), ("epoch", "iterations")),
    "a validation in time": (lambda: dict(train_cfg=dict(max_epochs=1, val_begin=9)), ("val",)),
    "one optimizer": (_two_players, ("optimizer",)),
    "one group of parameters": (_two_groups, ("optimizer", "group")),
    "gradients of most weights": (_weights_that_stay, ("requires_grad", "gradient", "optimizer")),
    "images with labels": (_pairs_of_something_else, ("batch", "image", "label")),
}
"""What a runner may be without; how it is made so, and words of which one has to stand in an error about it."""


def check_does_without(subject: Subject, work_dir: Path, lacking: str, **options: Any) -> None:
    """It does its work without that, or a ConfigError names what is missing; nothing is left behind in either case.

    Options that were given may be named instead: who asks for something has to be told that it is not there.
    """
    make_changes, words = WITHOUT[lacking]
    refused: HookbusError | None = None
    with leaves_nothing_behind():
        try:
            use(make_run(work_dir, [HOOKS.build(subject.config(**options))], **make_changes()))
        except HookbusError as error:
            refused = error
    if refused is not None:
        allowed = (*words, *options, *map(str, options.values()))
        assert isinstance(refused, ConfigError) or options, f"{type(refused).__name__} is no ConfigError: {refused}"
        assert any(word in str(refused) for word in allowed), f"none of {', '.join(allowed)} is in: {refused}"


def use(runner: Runner) -> None:
    """Do with a runner all that it has the parts for."""
    if runner.train_dataloader is not None:
        runner.train()
    if runner.val_dataloader is not None:
        runner.val()
    if runner.test_dataloader is not None:
        runner.test()

"""What happens to one training batch, for each of the three ways in which a model can say so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hookbus.errors import ConfigError, LossError
from hookbus.optim import OptimWrapper, OptimWrapperDict
from hookbus.steps import TrainStep, train_step
from tests.runner.builders import make_model

BATCH = (torch.randn(4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0]))
cross_entropy = torch.nn.functional.cross_entropy


class Net(torch.nn.Linear):
    """A model that says itself how to train it."""

    def train_step(self, batch: Any, optim_wrapper: OptimWrapper) -> dict[str, Any]:
        """Give the format it computed in, too."""
        inputs, targets = batch
        with optim_wrapper.optim_context(self):
            outputs = self(inputs)
            loss = cross_entropy(outputs, targets)
        optim_wrapper.update_params(loss)
        return {"loss": loss, "outputs": outputs, "number": 3}


def by_function(model: torch.nn.Module, batch: Any) -> dict[str, Any]:
    """Return the loss, the outputs and a number."""
    outputs = model(batch[0])
    return {"loss": cross_entropy(outputs, batch[1]), "outputs": outputs, "number": 3}


def make_step(way: str, **options: Any) -> tuple[torch.nn.Module, OptimWrapper, TrainStep]:
    """Return model, wrapper and training step for one of the three ways."""
    model = make_model()
    if way == "method":
        model = Net(4, 3)
        model.load_state_dict(make_model().state_dict())
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), **options)
    function = by_function if way == "function" else None
    return model, wrapper, train_step(model, wrapper, function, cross_entropy)


every_way = pytest.mark.parametrize("way", ["method", "function", "loss_fn"])


@every_way
@pytest.mark.parametrize(
    "options", [{}, dict(dtype="bfloat16"), dict(accumulative_counts=2)], ids=["plain", "bfloat16", "in twos"]
)
def test_a_step_returns_the_detached_undivided_loss(way: str, options: dict[str, Any]) -> None:
    """Whatever it is divided by for its gradients, the loss that is recorded is the one that was computed."""
    model, _, step = make_step(way, **options)
    expected = cross_entropy(model(BATCH[0]), BATCH[1])
    outputs = step(BATCH)
    torch.testing.assert_close(outputs["loss"], expected.detach(), rtol=2e-2, atol=2e-2, check_dtype=False)
    assert not any(value.requires_grad for value in outputs.values() if isinstance(value, torch.Tensor))
    assert outputs.get("number", 3) == 3


@every_way
@pytest.mark.parametrize(("dtype", "expected"), [(None, torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_the_forward_pass_runs_in_the_format_of_the_optimizer(way: str, dtype: Any, expected: torch.dtype) -> None:
    """Backward and step run outside of it, so that weights and gradients stay as they are."""
    model, wrapper, step = make_step(way, dtype=dtype, loss_scale=None)
    formats: list[torch.dtype] = []
    model.register_forward_hook(lambda module, inputs, outputs: formats.append(outputs.dtype))
    was_enabled: list[bool] = []
    wrapper.optimizer.register_step_pre_hook(lambda *_: was_enabled.append(torch.is_autocast_enabled("cpu")))
    step(BATCH)
    assert formats == [expected]
    assert was_enabled == [False]


def test_the_loss_function_runs_in_that_format_too() -> None:
    """Autocast decides for each operation; a loss of half precision would be computed outside of it."""
    enabled: list[bool] = []

    def loss_fn(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        enabled.append(torch.is_autocast_enabled("cpu"))
        return cross_entropy(outputs, targets)

    model = make_model()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), dtype="bfloat16")
    outputs = train_step(model, wrapper, None, loss_fn)(BATCH)
    assert enabled == [True]
    assert outputs["loss"].dtype == torch.float32


@every_way
def test_every_way_comes_to_the_same_weights(way: str) -> None:
    """Those of a loop by hand."""
    model, wrapper, step = make_step(way)
    other = make_model()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    for _ in range(3):
        step(BATCH)
        cross_entropy(other(BATCH[0]), BATCH[1]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    assert wrapper.updates == 3
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def make_several(model: torch.nn.Module) -> OptimWrapperDict:
    """Return two optimizers for one model."""
    weight, bias = model.parameters()
    wrappers = {"first": OptimWrapper(torch.optim.SGD([weight], lr=0.1)), "second": OptimWrapper(torch.optim.SGD([bias], lr=0.1))}
    return OptimWrapperDict(**wrappers)


@pytest.mark.parametrize("function", [None, by_function])
def test_several_optimizers_need_a_model_that_drives_them(function: Callable[..., Any] | None) -> None:
    """Nothing else can say which of them minimises what."""
    model = make_model()
    with pytest.raises(ConfigError, match=r"optimizers first, second.*train_step\(batch, optim_wrapper\).*Linear has none"):
        train_step(model, make_several(model), function, cross_entropy)


def test_a_model_drives_several_optimizers() -> None:
    """It gets the dict and picks the one it means."""

    class Adversaries(torch.nn.Linear):
        def train_step(self, batch: Any, optim_wrapper: OptimWrapperDict) -> dict[str, Any]:
            loss = cross_entropy(self(batch[0]), batch[1])
            optim_wrapper["second"].update_params(loss)
            return {"loss": loss}

    model = Adversaries(4, 3)
    wrappers = make_several(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train_step(model, wrappers, None, None)(BATCH)
    moved = {name: not torch.equal(before[name], parameter) for name, parameter in model.named_parameters()}
    assert moved == {"weight": False, "bias": True}


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_loss_that_cannot_be_minimised_is_refused_by_the_name_of_its_maker(dtype: Any) -> None:
    """In low precision, too."""
    model = make_model()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), dtype=dtype)
    with pytest.raises(LossError, match=r"loss_fn returned 0\.5 of type float"):
        train_step(model, wrapper, None, lambda outputs, targets: 0.5)(BATCH)  # type: ignore[arg-type, return-value]
    with pytest.raises(LossError, match=r"train_step returned 0\.5 of type float"):
        train_step(model, wrapper, lambda model, batch: 0.5, None)(BATCH)
    with pytest.raises(ConfigError, match="loss_fn needs batches that are"):
        train_step(model, wrapper, None, cross_entropy)([1, 2, 3])
